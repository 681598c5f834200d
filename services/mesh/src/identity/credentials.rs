//! The credentials that a client presents.

use std::task::{Context, Poll};

use http::{HeaderName, HeaderValue};
use tower::layer::layer_fn;
use tower::{Layer, Service};

use crate::call::wire::{Request, SECRET_HEADER, SERVICE_HEADER};
use crate::identity::secret::SharedSecret;

/// The credentials that a client presents.
#[derive(Clone, Debug)]
pub enum Credentials {
    /// None.
    None,
    /// The secret that services on one machine share.
    MeshSecret {
        /// The caller's own name, for example `order`.
        service: String,
        /// The secret.
        secret: SharedSecret,
    },
}

impl Credentials {
    pub(crate) fn headers(&self) -> Vec<(HeaderName, HeaderValue)> {
        let Self::MeshSecret { service, secret } = self else { return vec![] };
        let (Ok(service), Ok(mut secret)) = (HeaderValue::try_from(service), HeaderValue::try_from(secret.expose()))
        else {
            tracing::error!(target: "ordermesh", "the mesh secret or the service name contains a control character: no credentials are sent");
            return vec![];
        };
        // Sensitive: HPACK does not index it, Debug does not print it.
        secret.set_sensitive(true);
        vec![(SERVICE_HEADER, service), (SECRET_HEADER, secret)]
    }
}

#[derive(Clone)]
pub(crate) struct WithCredentials<S> {
    inner: S,
    headers: std::sync::Arc<[(HeaderName, HeaderValue)]>,
}

pub(crate) fn with_credentials<S>(credentials: &Credentials) -> impl Layer<S, Service = WithCredentials<S>> + Clone {
    let headers: std::sync::Arc<[_]> = credentials.headers().into();
    layer_fn(move |inner| WithCredentials { inner, headers: headers.clone() })
}

impl<S: Service<Request>> Service<Request> for WithCredentials<S> {
    type Response = S::Response;
    type Error = S::Error;
    type Future = S::Future;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, mut request: Request) -> S::Future {
        for (name, value) in self.headers.iter() {
            request.headers_mut().insert(name.clone(), value.clone());
        }
        self.inner.call(request)
    }
}
