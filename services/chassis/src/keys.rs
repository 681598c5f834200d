//! The public keys that verify access tokens: asked of the User Service.

use contracts::user::v1::user_service_client::UserServiceClient;
use contracts::user::v1::{ListSigningKeysRequest, SigningKey};
use futures_util::future::BoxFuture;
use mesh::{Channel, KeySource, VerifyingKey};

/// `iss` of every access token.
pub const ISSUER: &str = "ordermesh-user";
/// `aud` of every access token.
pub const AUDIENCE: &str = "ordermesh";

/// Keys by `ListSigningKeys`.
#[derive(Clone, Debug)]
pub struct RemoteKeys(Channel);

impl RemoteKeys {
    /// Over a channel to the User Service.
    pub fn new(user: Channel) -> Self {
        Self(user)
    }
}

impl KeySource for RemoteKeys {
    fn fetch(&self) -> BoxFuture<'_, Result<Vec<VerifyingKey>, tonic::Status>> {
        Box::pin(async move {
            let request = mesh::untraced(ListSigningKeysRequest {});
            let response = UserServiceClient::new(self.0.clone()).list_signing_keys(request).await?;
            Ok(response
                .into_inner()
                .keys
                .into_iter()
                .map(|SigningKey { kid, x, .. }| VerifyingKey { kid, x })
                .collect())
        })
    }
}
