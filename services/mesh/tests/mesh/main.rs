//! The mesh around a hand-written service, over real sockets on port 0.

mod cancelled;
mod circles;
mod client;
mod deadlines;
mod drain;
mod echo;
mod errors;
mod identity;
mod instances;
mod limits;
mod misbehaving;
mod observed;
mod propagation;
mod readme;
mod retries;
mod shares;
mod standard;
mod telemetry;
mod tls;
mod traffic;
mod world;
