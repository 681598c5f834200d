//! The gRPC handlers: decode, domain, encode.

use std::sync::Arc;

use chassis::audit;
use contracts::user::v1 as proto;
use contracts::user::v1::user_service_server::UserService;
use tonic::{Extensions, Request, Response, Status, async_trait};

use crate::account::{Login, PasswordUpdate, ProfileChange, Registration};
use crate::convert::{self, EndedSessions, address_of};
use crate::error::{Error, status};
use crate::session::RefreshToken;
use crate::users::{AccountRef, Person, Users};

/// The handlers of user.v1.UserService.
pub(crate) struct UserHandlers(pub(crate) Arc<Users>);

impl UserHandlers {
    /// The authenticated user, whose session has not ended.
    async fn person(&self, extensions: &Extensions) -> Result<Person, Error> {
        self.0.live(convert::person(extensions)?).await
    }

    async fn create_account(&self, request: Request<proto::RegisterRequest>) -> Result<proto::RegisterResponse, Error> {
        let (operation, from) = (audit::operation(request.extensions()), address_of(request.extensions()));
        let registration = Registration::try_from(request.into_inner())?;
        let profile = self.0.register(registration, from, &operation).await?;
        Ok(proto::RegisterResponse { profile: Some(profile.into()) })
    }

    async fn open_session(&self, request: Request<proto::LoginRequest>) -> Result<proto::LoginResponse, Error> {
        let (operation, from) = (mesh::operation(request.extensions()), address_of(request.extensions()));
        let Login { email, password } = request.into_inner().try_into()?;
        let (tokens, profile) = self.0.login(&email, password, from, &operation).await?;
        Ok(proto::LoginResponse { session: Some(tokens.into()), profile: Some(profile.into()) })
    }

    async fn rotate_token(
        &self,
        request: Request<proto::RefreshSessionRequest>,
    ) -> Result<proto::RefreshSessionResponse, Error> {
        let tokens = self.0.refresh(request.into_inner().try_into()?).await?;
        Ok(proto::RefreshSessionResponse { session: Some(tokens.into()) })
    }

    async fn end_session(&self, request: Request<proto::LogoutRequest>) -> Result<proto::LogoutResponse, Error> {
        let operation = audit::operation(request.extensions());
        let token = RefreshToken::try_from(request.into_inner())?;
        self.0.logout(token, &operation).await?;
        Ok(proto::LogoutResponse {})
    }

    async fn profile(&self, request: Request<proto::GetProfileRequest>) -> Result<proto::GetProfileResponse, Error> {
        let person = self.person(request.extensions()).await?;
        let profile = self.0.profile(person.user_id).await?;
        Ok(proto::GetProfileResponse { profile: Some(profile.into()) })
    }

    async fn change_profile(
        &self,
        request: Request<proto::UpdateProfileRequest>,
    ) -> Result<proto::UpdateProfileResponse, Error> {
        let operation = audit::operation(request.extensions());
        let person = self.person(request.extensions()).await?;
        let change = ProfileChange::try_from(request.into_inner())?;
        let profile = self.0.change_profile(person.user_id, change, &operation).await?;
        Ok(proto::UpdateProfileResponse { profile: Some(profile.into()) })
    }

    async fn replace_password(
        &self,
        request: Request<proto::ChangePasswordRequest>,
    ) -> Result<proto::ChangePasswordResponse, Error> {
        let operation = audit::operation(request.extensions());
        let (person, from) = (self.person(request.extensions()).await?, address_of(request.extensions()));
        let PasswordUpdate { current, new } = request.into_inner().try_into()?;
        let ended = self.0.change_password(person, current, new, from, &operation).await?;
        Ok(proto::ChangePasswordResponse { ended_session_count: convert::count(ended) })
    }

    async fn end_all_sessions(
        &self,
        request: Request<proto::EndSessionsRequest>,
    ) -> Result<proto::EndSessionsResponse, Error> {
        let operation = audit::operation(request.extensions());
        self.person(request.extensions()).await?;
        let account = AccountRef::try_from(request.into_inner())?;
        let ended = self.0.end_sessions(account, &operation).await?;
        Ok(proto::EndSessionsResponse { ended_session_count: convert::count(ended) })
    }

    async fn ended_sessions(
        &self,
        request: Request<proto::ListEndedSessionsRequest>,
    ) -> Result<proto::ListEndedSessionsResponse, Error> {
        let list = EndedSessions::try_from(request.into_inner())?;
        let ended = self.0.ended_sessions(list.token.after, u64::from(list.page_size) + 1).await?;
        Ok(convert::ended_sessions(ended, &list))
    }
}

#[async_trait]
impl UserService for UserHandlers {
    async fn register(
        &self,
        request: Request<proto::RegisterRequest>,
    ) -> Result<Response<proto::RegisterResponse>, Status> {
        self.create_account(request).await.map(Response::new).map_err(status)
    }

    async fn login(&self, request: Request<proto::LoginRequest>) -> Result<Response<proto::LoginResponse>, Status> {
        self.open_session(request).await.map(Response::new).map_err(status)
    }

    async fn refresh_session(
        &self,
        request: Request<proto::RefreshSessionRequest>,
    ) -> Result<Response<proto::RefreshSessionResponse>, Status> {
        self.rotate_token(request).await.map(Response::new).map_err(status)
    }

    async fn logout(&self, request: Request<proto::LogoutRequest>) -> Result<Response<proto::LogoutResponse>, Status> {
        self.end_session(request).await.map(Response::new).map_err(status)
    }

    async fn get_profile(
        &self,
        request: Request<proto::GetProfileRequest>,
    ) -> Result<Response<proto::GetProfileResponse>, Status> {
        self.profile(request).await.map(Response::new).map_err(status)
    }

    async fn update_profile(
        &self,
        request: Request<proto::UpdateProfileRequest>,
    ) -> Result<Response<proto::UpdateProfileResponse>, Status> {
        self.change_profile(request).await.map(Response::new).map_err(status)
    }

    async fn change_password(
        &self,
        request: Request<proto::ChangePasswordRequest>,
    ) -> Result<Response<proto::ChangePasswordResponse>, Status> {
        self.replace_password(request).await.map(Response::new).map_err(status)
    }

    async fn end_sessions(
        &self,
        request: Request<proto::EndSessionsRequest>,
    ) -> Result<Response<proto::EndSessionsResponse>, Status> {
        self.end_all_sessions(request).await.map(Response::new).map_err(status)
    }

    async fn list_ended_sessions(
        &self,
        request: Request<proto::ListEndedSessionsRequest>,
    ) -> Result<Response<proto::ListEndedSessionsResponse>, Status> {
        self.ended_sessions(request).await.map(Response::new).map_err(status)
    }

    async fn list_signing_keys(
        &self,
        _request: Request<proto::ListSigningKeysRequest>,
    ) -> Result<Response<proto::ListSigningKeysResponse>, Status> {
        let keys = self.0.signing_keys().iter().map(|key| key.as_ref().into()).collect();
        Ok(Response::new(proto::ListSigningKeysResponse { keys }))
    }
}
