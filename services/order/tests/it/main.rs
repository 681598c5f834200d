//! Tests of the Order Service; their names are sentences.
//!
//! # Layout
//! - `world`, `fakes`, `invariants`: the domain on a real store, with a controlled clock, scripted peers and faults
//! - `life`, `create`, `batches`, `cancel`, `stock`, `unpaid`, `archive`, `crash`: its rules
//! - `system`, `api`, `admin`, `traffic`, `watching`, `limits`, `keys`: the whole service over real sockets
//! - `reasons`: the reasons of errors, which are public

mod admin;
mod api;
mod archive;
mod batches;
mod cancel;
mod crash;
mod create;
mod fakes;
mod invariants;
mod keys;
mod life;
mod limits;
mod reasons;
mod stock;
mod system;
mod table;
mod traffic;
mod unpaid;
mod watching;
mod world;
