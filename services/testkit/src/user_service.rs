//! A fake User Service: signing keys, and log-ins if they are given; every other call is UNIMPLEMENTED.

use std::sync::Arc;

use contracts::user::v1 as proto;
use contracts::user::v1::user_service_server::UserService;
use tonic::{Request, Response, Status, async_trait};

type Rpc<T> = Result<Response<T>, Status>;
type Login = dyn Fn(proto::LoginRequest) -> Result<proto::LoginResponse, Status> + Send + Sync;

/// The fake. Clones share it.
#[derive(Clone, Default)]
pub struct FakeUserService {
    keys: Vec<proto::SigningKey>,
    login: Option<Arc<Login>>,
}

impl FakeUserService {
    /// With these signing keys.
    pub fn with_keys(keys: impl IntoIterator<Item = proto::SigningKey>) -> Self {
        Self { keys: keys.into_iter().collect(), login: None }
    }

    /// With these log-ins.
    pub fn with_login(
        login: impl Fn(proto::LoginRequest) -> Result<proto::LoginResponse, Status> + Send + Sync + 'static,
    ) -> Self {
        Self { keys: vec![], login: Some(Arc::new(login)) }
    }
}

fn not_faked<T>() -> Rpc<T> {
    Err(Status::unimplemented("not faked"))
}

#[async_trait]
#[rustfmt::skip]
impl UserService for FakeUserService {
    async fn list_signing_keys(&self, _: Request<proto::ListSigningKeysRequest>) -> Rpc<proto::ListSigningKeysResponse> {
        Ok(Response::new(proto::ListSigningKeysResponse { keys: self.keys.clone() }))
    }
    async fn login(&self, request: Request<proto::LoginRequest>) -> Rpc<proto::LoginResponse> {
        match &self.login {
            Some(login) => login(request.into_inner()).map(Response::new),
            None => not_faked(),
        }
    }
    async fn end_sessions(&self, _: Request<proto::EndSessionsRequest>) -> Rpc<proto::EndSessionsResponse> { not_faked() }
    async fn list_ended_sessions(&self, _: Request<proto::ListEndedSessionsRequest>) -> Rpc<proto::ListEndedSessionsResponse> { not_faked() }
    async fn register(&self, _: Request<proto::RegisterRequest>) -> Rpc<proto::RegisterResponse> { not_faked() }
    async fn refresh_session(&self, _: Request<proto::RefreshSessionRequest>) -> Rpc<proto::RefreshSessionResponse> { not_faked() }
    async fn logout(&self, _: Request<proto::LogoutRequest>) -> Rpc<proto::LogoutResponse> { not_faked() }
    async fn get_profile(&self, _: Request<proto::GetProfileRequest>) -> Rpc<proto::GetProfileResponse> { not_faked() }
    async fn update_profile(&self, _: Request<proto::UpdateProfileRequest>) -> Rpc<proto::UpdateProfileResponse> { not_faked() }
    async fn change_password(&self, _: Request<proto::ChangePasswordRequest>) -> Rpc<proto::ChangePasswordResponse> { not_faked() }
}
