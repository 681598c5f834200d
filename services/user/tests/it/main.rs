//! The User Service over real sockets, with a real SQLite file.

mod bad_input;
mod events;
mod flow;
mod hashing_permits;
mod passwords;
mod sessions;
mod world;
