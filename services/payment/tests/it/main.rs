//! Tests of the Payment Service: `domain` on one store with a scripted gateway and a manual clock, `sockets` as a whole
//! against the real mock of the gateway.

mod domain;
mod scripted;
mod sockets;
mod world;
