//! The calls: decode, act, encode.

use std::sync::Arc;

use chassis::audit;
use contracts::user::v1 as pb;
use contracts::user::v1::user_service_server::UserService;
use tonic::{Request, Response, Status};

use crate::account::Registration;
use crate::convert::{self, EndedSessions, address_of};
use crate::error::{Error, status};
use crate::users::{Person, Users};

/// The gRPC service over the domain.
pub(crate) struct Service(pub(crate) Arc<Users>);

impl Service {
    /// The authenticated person who is calling, whose session has not ended.
    async fn person(&self, extensions: &tonic::Extensions) -> Result<Person, Status> {
        let person = convert::person(extensions).map_err(status)?;
        self.0.live(person).await.map_err(status)
    }
}

#[tonic::async_trait]
impl UserService for Service {
    async fn register(&self, request: Request<pb::RegisterRequest>) -> Result<Response<pb::RegisterResponse>, Status> {
        let (operation, from) = (audit::operation(request.extensions()), address_of(request.extensions()));
        let registration = Registration::try_from(request.into_inner()).map_err(refused)?;
        let profile = self.0.register(registration, from, &operation).await.map_err(status)?;
        Ok(Response::new(pb::RegisterResponse { profile: Some(profile.into()) }))
    }

    async fn login(&self, request: Request<pb::LoginRequest>) -> Result<Response<pb::LoginResponse>, Status> {
        let (operation, from) = (mesh::operation(request.extensions()), address_of(request.extensions()));
        let (email, password) = convert::login(request.into_inner()).map_err(refused)?;
        let (tokens, profile) = self.0.login(&email, password, from, &operation).await.map_err(status)?;
        Ok(Response::new(pb::LoginResponse { session: Some(tokens.into()), profile: Some(profile.into()) }))
    }

    async fn refresh_session(
        &self,
        request: Request<pb::RefreshSessionRequest>,
    ) -> Result<Response<pb::RefreshSessionResponse>, Status> {
        let token = convert::refresh_token(&request.into_inner().refresh_token).map_err(refused)?;
        let tokens = self.0.refresh(token).await.map_err(status)?;
        Ok(Response::new(pb::RefreshSessionResponse { session: Some(tokens.into()) }))
    }

    async fn logout(&self, request: Request<pb::LogoutRequest>) -> Result<Response<pb::LogoutResponse>, Status> {
        let operation = audit::operation(request.extensions());
        let token = convert::refresh_token(&request.into_inner().refresh_token).map_err(refused)?;
        self.0.logout(token, &operation).await.map_err(status)?;
        Ok(Response::new(pb::LogoutResponse {}))
    }

    async fn get_profile(
        &self,
        request: Request<pb::GetProfileRequest>,
    ) -> Result<Response<pb::GetProfileResponse>, Status> {
        let person = self.person(request.extensions()).await?;
        let profile = self.0.profile(person.user_id).await.map_err(status)?;
        Ok(Response::new(pb::GetProfileResponse { profile: Some(profile.into()) }))
    }

    async fn update_profile(
        &self,
        request: Request<pb::UpdateProfileRequest>,
    ) -> Result<Response<pb::UpdateProfileResponse>, Status> {
        let operation = audit::operation(request.extensions());
        let person = self.person(request.extensions()).await?;
        let change = convert::profile_change(request.into_inner()).map_err(refused)?;
        let profile = self.0.change_profile(person.user_id, change, &operation).await.map_err(status)?;
        Ok(Response::new(pb::UpdateProfileResponse { profile: Some(profile.into()) }))
    }

    async fn change_password(
        &self,
        request: Request<pb::ChangePasswordRequest>,
    ) -> Result<Response<pb::ChangePasswordResponse>, Status> {
        let operation = audit::operation(request.extensions());
        let (person, from) = (self.person(request.extensions()).await?, address_of(request.extensions()));
        let (current, new) = convert::password_change(request.into_inner()).map_err(refused)?;
        let ended = self.0.change_password(person, current, new, from, &operation).await.map_err(status)?;
        let ended_session_count = i32::try_from(ended).unwrap_or(i32::MAX);
        Ok(Response::new(pb::ChangePasswordResponse { ended_session_count }))
    }

    async fn end_sessions(
        &self,
        request: Request<pb::EndSessionsRequest>,
    ) -> Result<Response<pb::EndSessionsResponse>, Status> {
        let operation = audit::operation(request.extensions());
        self.person(request.extensions()).await?;
        let whose = convert::whose(request.into_inner()).map_err(refused)?;
        let ended = self.0.end_sessions(whose, &operation).await.map_err(status)?;
        let ended_session_count = i32::try_from(ended).unwrap_or(i32::MAX);
        Ok(Response::new(pb::EndSessionsResponse { ended_session_count }))
    }

    async fn list_ended_sessions(
        &self,
        request: Request<pb::ListEndedSessionsRequest>,
    ) -> Result<Response<pb::ListEndedSessionsResponse>, Status> {
        let EndedSessions { token, page_size } = EndedSessions::try_from(request.into_inner()).map_err(refused)?;
        let limit = u64::from(page_size) + 1;
        let mut ended = self.0.ended_sessions(token.after, limit).await.map_err(status)?;
        let is_cut = ended.len() > usize::try_from(page_size).unwrap_or(usize::MAX);
        if is_cut {
            ended.pop();
        }
        let next_page_token = ended.last().filter(|_| is_cut).map(|last| token.next(&last.to_string()));
        let session_ids = ended.iter().map(ToString::to_string).collect();
        let next_page_token = next_page_token.unwrap_or_default();
        Ok(Response::new(pb::ListEndedSessionsResponse { session_ids, next_page_token }))
    }

    async fn list_signing_keys(
        &self,
        _request: Request<pb::ListSigningKeysRequest>,
    ) -> Result<Response<pb::ListSigningKeysResponse>, Status> {
        let keys = self.0.signing_keys().iter().map(|key| key.as_ref().into()).collect();
        Ok(Response::new(pb::ListSigningKeysResponse { keys }))
    }
}

fn refused(invalid: chassis::Invalid) -> Status {
    status(Error::Invalid(invalid))
}
