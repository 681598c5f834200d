//! The Data Service over real sockets, with a real database. Start reading at [`world`].

mod catalog;
mod delivery;
mod events;
mod lookups;
mod permissions;
mod watch;
mod world;
