//! The program as a user runs it, on a dedicated system. Start reading at [`system`].

#[cfg(target_os = "linux")]
mod attacked;
#[cfg(target_os = "linux")]
mod attacker;
mod events;
mod identities;
mod life;
mod output;
mod system;
