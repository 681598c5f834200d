//! The Payment Service, tested: `domain` on one store with a scripted gateway and a clock that is moved by hand, `sockets`
//! as a whole against the real mock of the gateway.

mod domain;
mod scripted;
mod sockets;
mod world;
