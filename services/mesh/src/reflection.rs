//! Reflection, v1 and v1alpha (old grpcurl), with google.rpc: without it grpcurl cannot print an error's details.

use tonic::service::Routes;
use tonic_reflection::server::{Builder, Error};

pub(crate) fn add(routes: Routes, descriptors: &'static [&'static [u8]]) -> Routes {
    match try_add(routes.clone(), descriptors) {
        Ok(with_reflection) => with_reflection,
        Err(error) => {
            // The descriptors are made by the build: this is a broken build, and no reason not to serve.
            tracing::error!(target: "ordermesh", "no reflection: the descriptors cannot be read: {error}");
            routes
        }
    }
}

fn try_add(routes: Routes, descriptors: &'static [&'static [u8]]) -> Result<Routes, Error> {
    Ok(routes.add_service(builder(descriptors).build_v1()?).add_service(builder(descriptors).build_v1alpha()?))
}

fn builder(descriptors: &'static [&'static [u8]]) -> Builder<'static> {
    let builder = Builder::configure()
        .register_encoded_file_descriptor_set(tonic_types::pb::FILE_DESCRIPTOR_SET)
        .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET);
    descriptors.iter().fold(builder, |builder, set| builder.register_encoded_file_descriptor_set(set))
}
