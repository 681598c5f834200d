//! The program as a person uses it, on a system of its own. Start reading at [`world`].

mod events;
mod life;
mod output;
mod world;
