//! The program as a person uses it, on a system of its own. Start reading at [`world`].

#[cfg(target_os = "linux")]
mod attacked;
mod events;
mod identities;
mod life;
mod output;
mod world;
