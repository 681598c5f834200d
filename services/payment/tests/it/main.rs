//! Tests of the Payment Service. `domain`: the logic, on one store, with a scripted gateway and a manual clock.
//! `archive`: payments in the archive, the same way. `sockets`: the whole service over TCP, against `gateway-mock`.

mod archive;
mod domain;
mod scripted;
mod sockets;
mod world;
