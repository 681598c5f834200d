//! The crash suite: promises 1 to 4, tried to be broken in every place. Deterministic; the real domains and stores of the Order and
//! the Payment Service, with a gateway in memory.
//!
//! # Layout
//! - `world`: the services, a clock, and one order; `gateway`: the ledger; `faults`: deaths and deeds at the drivers' points
//! - `scripts`: what may happen to an order; `exhaustive`: all of it, with a death, two deaths, everything twice, a late owner
//! - `random`: interleavings that nobody thought of; `model`: all interleavings of a smaller world
//! - `tombstone`: the counter-example that the first design had

mod exhaustive;
mod faults;
mod gateway;
mod model;
mod random;
mod scripts;
mod tombstone;
mod world;
