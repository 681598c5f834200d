//! Tests a follower against a scripted Data Service.

use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::{Arc, Mutex};

use contracts::common::v1::EventType;
use contracts::data::v1 as data;
use contracts::data::v1::trace_event_service_server::{TraceEventService, TraceEventServiceServer};
use contracts::user::v1 as user;
use contracts::user::v1::user_service_server::{UserService, UserServiceServer};
use futures_util::{Stream, stream};
use mesh::ClientConfig;
use tokio::net::TcpListener;
use tonic::{Request, Response};

use super::*;
use crate::system::System;

type Answer<T> = Result<Response<T>, Status>;
type Messages = Vec<Result<WatchTraceEventsResponse, Status>>;

/// The scripted streams, and the calls received.
#[derive(Clone, Default)]
struct Script {
    streams: Arc<Mutex<VecDeque<Messages>>>,
    /// The token and the cursor of each call.
    asked: Arc<Mutex<Vec<(String, String)>>>,
    logins: Arc<Mutex<VecDeque<Status>>>,
    tokens: Arc<Mutex<u32>>,
}

impl Script {
    /// Scripts streams, each of which begins with a bookmark; events have the cursors "1" and so on in their order.
    fn new(streams: impl IntoIterator<Item = Messages>) -> Self {
        Self { streams: Arc::new(Mutex::new(streams.into_iter().collect())), ..Self::default() }
    }

    fn cursors(&self) -> Vec<String> {
        self.asked.lock().expect("not poisoned").iter().map(|(_, cursor)| cursor.clone()).collect()
    }

    fn tokens(&self) -> Vec<String> {
        self.asked.lock().expect("not poisoned").iter().map(|(token, _)| token.clone()).collect()
    }

    async fn follower(&self) -> Follower {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("an address").to_string();
        let incoming = tonic::transport::server::TcpIncoming::from(listener);
        let services = tonic::transport::Server::builder()
            .add_service(TraceEventServiceServer::new(self.clone()))
            .add_service(UserServiceServer::new(self.clone()));
        tokio::spawn(services.serve_with_incoming(incoming));
        let channel = |service| mesh::client(ClientConfig::new(service, vec![address.clone()], contracts::POLICIES));
        let system = System::of_two(channel("user"), channel("data"));
        let session = Session::open(system).await.expect("a session");
        Follower::begin(session, Filter::default()).await.expect("a follower")
    }
}

fn bookmark(cursor: &str) -> Result<WatchTraceEventsResponse, Status> {
    Ok(WatchTraceEventsResponse { event: None, cursor: cursor.into() })
}

fn event(cursor: &str) -> Result<WatchTraceEventsResponse, Status> {
    let event = TraceEvent { event_id: cursor.into(), r#type: EventType::UserLogin.into(), ..Default::default() };
    Ok(WatchTraceEventsResponse { event: Some(event), cursor: cursor.into() })
}

#[tonic::async_trait]
impl TraceEventService for Script {
    type WatchTraceEventsStream = Pin<Box<dyn Stream<Item = Result<WatchTraceEventsResponse, Status>> + Send>>;

    async fn watch_trace_events(
        &self,
        request: Request<data::WatchTraceEventsRequest>,
    ) -> Answer<Self::WatchTraceEventsStream> {
        let bearer = request.metadata().get("authorization").and_then(|bearer| bearer.to_str().ok());
        let token = bearer.unwrap_or_default().to_owned();
        self.asked.lock().expect("not poisoned").push((token, request.into_inner().after_cursor));
        let messages = self.streams.lock().expect("not poisoned").pop_front().expect("a scripted stream");
        match messages.first() {
            // The call itself is rejected.
            Some(Err(status)) => Err(status.clone()),
            _ => Ok(Response::new(Box::pin(stream::iter(messages)))),
        }
    }
    async fn append_trace_events(
        &self,
        _: Request<data::AppendTraceEventsRequest>,
    ) -> Answer<data::AppendTraceEventsResponse> {
        Err(Status::unimplemented("not here"))
    }
    async fn list_trace_events(
        &self,
        _: Request<data::ListTraceEventsRequest>,
    ) -> Answer<data::ListTraceEventsResponse> {
        Err(Status::unimplemented("not here"))
    }
    async fn summarize_trace_events(
        &self,
        _: Request<data::SummarizeTraceEventsRequest>,
    ) -> Answer<data::SummarizeTraceEventsResponse> {
        Err(Status::unimplemented("not here"))
    }
}

#[tonic::async_trait]
impl UserService for Script {
    async fn login(&self, _: Request<user::LoginRequest>) -> Answer<user::LoginResponse> {
        if let Some(refused) = self.logins.lock().expect("not poisoned").pop_front() {
            return Err(refused);
        }
        let mut tokens = self.tokens.lock().expect("not poisoned");
        *tokens += 1;
        let session = user::Session { access_token: format!("token-{tokens}"), ..Default::default() };
        Ok(Response::new(user::LoginResponse { session: Some(session), ..Default::default() }))
    }
    async fn list_signing_keys(
        &self,
        _: Request<user::ListSigningKeysRequest>,
    ) -> Answer<user::ListSigningKeysResponse> {
        Err(Status::unimplemented("not here"))
    }
    async fn end_sessions(&self, _: Request<user::EndSessionsRequest>) -> Answer<user::EndSessionsResponse> {
        Err(Status::unimplemented("not here"))
    }
    async fn list_ended_sessions(
        &self,
        _: Request<user::ListEndedSessionsRequest>,
    ) -> Answer<user::ListEndedSessionsResponse> {
        Err(Status::unimplemented("not here"))
    }
    async fn register(&self, _: Request<user::RegisterRequest>) -> Answer<user::RegisterResponse> {
        Err(Status::unimplemented("not here"))
    }
    async fn refresh_session(&self, _: Request<user::RefreshSessionRequest>) -> Answer<user::RefreshSessionResponse> {
        Err(Status::unimplemented("not here"))
    }
    async fn logout(&self, _: Request<user::LogoutRequest>) -> Answer<user::LogoutResponse> {
        Err(Status::unimplemented("not here"))
    }
    async fn get_profile(&self, _: Request<user::GetProfileRequest>) -> Answer<user::GetProfileResponse> {
        Err(Status::unimplemented("not here"))
    }
    async fn update_profile(&self, _: Request<user::UpdateProfileRequest>) -> Answer<user::UpdateProfileResponse> {
        Err(Status::unimplemented("not here"))
    }
    async fn change_password(&self, _: Request<user::ChangePasswordRequest>) -> Answer<user::ChangePasswordResponse> {
        Err(Status::unimplemented("not here"))
    }
}

#[tokio::test]
async fn however_a_stream_ends_it_is_resumed_after_the_last_message() {
    let script = Script::new([
        vec![bookmark("now")],
        vec![bookmark("now"), event("1"), event("2"), Err(Status::unavailable("draining"))],
        // The call is rejected.
        vec![Err(Status::unavailable("too many followers"))],
        vec![bookmark("2"), bookmark("past"), Err(Status::resource_exhausted("not read"))],
        // A connection that breaks, and a stream that ends without a status.
        vec![bookmark("past"), event("3"), Err(Status::unknown("connection reset"))],
        vec![bookmark("3")],
        vec![bookmark("3"), event("4")],
    ]);
    let mut follower = script.follower().await;
    for expected in ["1", "2", "3", "4"] {
        assert_eq!(follower.next().await.expect("an event").event_id, expected);
    }
    assert_eq!(script.cursors(), ["", "now", "2", "2", "past", "3", "3"]);
}

#[tokio::test]
async fn an_expired_token_is_renewed_by_a_log_in() {
    let ended = || Err(Status::unauthenticated("the token has ended"));
    let script = Script::new([
        vec![bookmark("now")],
        vec![bookmark("now"), event("1"), ended()],
        vec![bookmark("1"), event("2"), ended()],
        vec![bookmark("2"), event("3")],
    ]);
    let mut follower = script.follower().await;
    assert_eq!(follower.next().await.expect("an event").event_id, "1");
    // The first log-in fails.
    script.logins.lock().expect("not poisoned").push_back(Status::resource_exhausted("later"));
    for expected in ["2", "3"] {
        assert_eq!(follower.next().await.expect("an event").event_id, expected);
    }
    let tokens: Vec<_> = script.tokens().iter().map(|token| token.trim_start_matches("Bearer ").to_owned()).collect();
    assert_eq!(tokens, ["token-1", "token-1", "token-1", "token-2"]);
}

#[tokio::test]
async fn a_status_that_a_retry_cannot_change_ends_the_follower() {
    for last in [Status::out_of_range("the cursor has expired"), Status::permission_denied("no operator")] {
        let script = Script::new([vec![bookmark("now")], vec![bookmark("now"), event("1"), Err(last.clone())]]);
        let mut follower = script.follower().await;
        assert_eq!(follower.next().await.expect("an event").event_id, "1");
        let error = follower.next().await.expect_err("the end").to_string();
        assert!(error.contains(last.message()), "{error}");
    }
}
