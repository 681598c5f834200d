//! The Data Service over real sockets, with a real database. Start reading at [`world`].

mod catalog;
mod delivery;
mod event_sink;
mod events;
mod lookups;
mod permissions;
mod watch;
mod world;
