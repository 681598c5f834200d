//! The program as a person uses it, on a system of its own. Start reading at [`world`].

#[cfg(target_os = "linux")]
mod attacked;
#[cfg(target_os = "linux")]
mod attacker;
mod events;
mod identities;
mod life;
mod output;
mod world;
