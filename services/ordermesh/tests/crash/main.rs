//! The crash suite: tries to break promises 1 to 4 at every fault point. Deterministic; with the real domains and
//! stores of the Order and the Payment Service, and a gateway in memory.
//!
//! # Layout
//! - `system`: the services, a clock, and one order; `gateway`: the ledger; `faults`: crashes and actions at the
//!   drivers' fault points
//! - `scripts`: what may happen to an order; `exhaustive`: all scripts, with one crash, two crashes, duplicate calls, a
//!   late lease owner
//! - `random`: random interleavings; `model`: all interleavings of a smaller system
//! - `tombstone`: the counter-example to the first design

mod exhaustive;
mod faults;
mod gateway;
mod model;
mod random;
mod scripts;
mod system;
mod tombstone;
