//! The mesh under a hand-made service, over real sockets on port 0.

mod client;
mod client_tls;
mod deadlines;
mod drain;
mod echo;
mod errors;
mod identity;
mod instances;
mod limits;
mod observed;
mod retries;
mod telemetry;
mod world;
