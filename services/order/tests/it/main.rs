//! The Order Service, tested as sentences.
//!
//! # Layout
//! - `world`, `fakes`, `invariants`: the domain on a real store, with a clock, peers and faults that obey the test
//! - `life`, `create`, `cancel`, `stock`, `unpaid`, `crash`: its rules
//! - `system`, `api`, `watching`, `limits`, `keys`: the whole service over real sockets
//! - `reasons`: the reasons of refusals, which are public

mod api;
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
mod unpaid;
mod watching;
mod world;
