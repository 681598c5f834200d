//! Exports to a collector over real sockets on port 0: gRPC and HTTP, plain text and TLS.

mod collector;
mod exports;
mod options;
mod readme;
mod tls;
