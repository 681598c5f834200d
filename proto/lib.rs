//! The contracts of all services: the code that build.rs generates from the `.proto` files in this folder.
//!
//! # Layout
//! - [`user`], [`order`], [`payment`], [`data`], [`gateway`]: messages, clients and servers, a module per package
//! - [`common`]: money, addresses, dates, event types; [`mesh`]: the option with a method's policy
//! - [`POLICIES`]: the mesh's policy for each method; `policy_table.rs` has the rules whose violation fails the build
//! - [`DESCRIPTORS`]: for reflection
//! - `redact.rs`: Debug output of messages with secrets

mod redact;

#[cfg(test)]
mod policy_table;
#[cfg(test)]
mod tests;

/// The mesh's policy for each method, read by the client's and the server's stack.
pub static POLICIES: ::mesh::PolicyTable = ::mesh::PolicyTable(&include!(concat!(env!("OUT_DIR"), "/policies.rs")));

/// An encoded `FileDescriptorSet` of all packages and their imports from google.protobuf, with comments.
pub const DESCRIPTORS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/descriptor.bin"));

/// Types that the packages share.
pub mod common {
    /// Version 1.
    pub mod v1 {
        tonic::include_proto!("common.v1");
    }
}

/// The option with a method's policy.
pub mod mesh {
    /// Version 1.
    pub mod v1 {
        tonic::include_proto!("mesh.v1");
    }
}

/// Accounts, passwords, sessions.
pub mod user {
    /// Version 1.
    pub mod v1 {
        tonic::include_proto!("user.v1");
    }
}

/// Orders and stock.
pub mod order {
    /// Version 1.
    pub mod v1 {
        tonic::include_proto!("order.v1");
    }
}

/// Payments.
pub mod payment {
    /// Version 1.
    pub mod v1 {
        tonic::include_proto!("payment.v1");
    }
}

/// Products and trace events.
pub mod data {
    /// Version 1.
    pub mod v1 {
        tonic::include_proto!("data.v1");
    }
}

/// The external payment gateway.
pub mod gateway {
    /// Version 1.
    pub mod v1 {
        tonic::include_proto!("gateway.v1");
    }
}
