//! Reflection, v1 and v1alpha (old grpcurl). As specified, it lists the services served here ("the full names of
//! registered services"), and has the files of all that these may refer to; google.rpc too, because grpcurl needs it to
//! print error details.

use tonic::service::Routes;
use tonic_reflection::pb::{v1, v1alpha};
use tonic_reflection::server::{Builder, Error};

/// Served by every server.
const STANDARD: [&str; 3] =
    ["grpc.health.v1.Health", "grpc.reflection.v1.ServerReflection", "grpc.reflection.v1alpha.ServerReflection"];

pub(crate) fn add(routes: Routes, descriptors: &'static [&'static [u8]], services: &[&str]) -> Routes {
    match try_add(routes.clone(), descriptors, services) {
        Ok(with_reflection) => with_reflection,
        Err(error) => {
            // The build makes the descriptors: this is a build error, and no reason not to serve.
            tracing::error!(target: "ordermesh", "no reflection: the descriptors cannot be read: {error}");
            routes
        }
    }
}

fn try_add(routes: Routes, descriptors: &'static [&'static [u8]], services: &[&str]) -> Result<Routes, Error> {
    let builder = || builder(descriptors, services);
    Ok(routes.add_service(builder().build_v1()?).add_service(builder().build_v1alpha()?))
}

fn builder(descriptors: &'static [&'static [u8]], services: &[&str]) -> Builder<'static> {
    let mut builder = Builder::configure()
        .register_encoded_file_descriptor_set(tonic_types::pb::FILE_DESCRIPTOR_SET)
        .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
        .register_encoded_file_descriptor_set(v1::FILE_DESCRIPTOR_SET)
        .register_encoded_file_descriptor_set(v1alpha::FILE_DESCRIPTOR_SET);
    for set in descriptors {
        builder = builder.register_encoded_file_descriptor_set(set);
    }
    services.iter().chain(&STANDARD).fold(builder, |builder, service| builder.with_service_name(*service))
}
