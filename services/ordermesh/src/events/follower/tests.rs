//! Tests a follower against a scripted Data Service.

use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::Arc;

use contracts::common::v1::EventType;
use contracts::data::v1 as data;
use contracts::data::v1::trace_event_service_server::{TraceEventService, TraceEventServiceServer};
use contracts::user::v1 as user;
use contracts::user::v1::user_service_server::UserServiceServer;
use futures_util::{Stream, stream};
use mesh::ClientConfig;
use parking_lot::Mutex;
use testkit::FakeUserService;
use tokio::net::TcpListener;
use tonic::{Request, Response};

use super::*;
use crate::system::System;

type Rpc<T> = Result<Response<T>, Status>;
type Messages = Vec<Result<WatchTraceEventsResponse, Status>>;

/// The scripted streams, and the calls received.
#[derive(Clone, Default)]
struct Script {
    streams: Arc<Mutex<VecDeque<Messages>>>,
    /// The token and the cursor of each call.
    requests: Arc<Mutex<Vec<(String, String)>>>,
    logins: Arc<Mutex<VecDeque<Status>>>,
    tokens: Arc<Mutex<u32>>,
}

impl Script {
    /// Scripts streams, each of which begins with a bookmark; events have the cursors "1" and so on in their order.
    fn new(streams: impl IntoIterator<Item = Messages>) -> Self {
        Self { streams: Arc::new(Mutex::new(streams.into_iter().collect())), ..Self::default() }
    }

    fn cursors(&self) -> Vec<String> {
        self.requests.lock().iter().map(|(_, cursor)| cursor.clone()).collect()
    }

    fn tokens(&self) -> Vec<String> {
        self.requests.lock().iter().map(|(token, _)| token.clone()).collect()
    }

    /// Tokens "token-1" and so on, after the scripted failures.
    fn log_in(&self) -> Result<user::LoginResponse, Status> {
        if let Some(status) = self.logins.lock().pop_front() {
            return Err(status);
        }
        let mut tokens = self.tokens.lock();
        *tokens += 1;
        let session = user::Session { access_token: format!("token-{tokens}"), ..Default::default() };
        Ok(user::LoginResponse { session: Some(session), ..Default::default() })
    }

    async fn follower(&self) -> Follower {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("an address").to_string();
        let incoming = tonic::transport::server::TcpIncoming::from(listener);
        let script = self.clone();
        let users = FakeUserService::with_login(move |_| script.log_in());
        let services = tonic::transport::Server::builder()
            .add_service(TraceEventServiceServer::new(self.clone()))
            .add_service(UserServiceServer::new(users));
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
    ) -> Rpc<Self::WatchTraceEventsStream> {
        let bearer = request.metadata().get("authorization").and_then(|bearer| bearer.to_str().ok());
        let token = bearer.unwrap_or_default().to_owned();
        self.requests.lock().push((token, request.into_inner().after_cursor));
        let messages = self.streams.lock().pop_front().expect("a scripted stream");
        match messages.first() {
            // The call itself is rejected.
            Some(Err(status)) => Err(status.clone()),
            _ => Ok(Response::new(Box::pin(stream::iter(messages)))),
        }
    }
    async fn append_trace_events(
        &self,
        _: Request<data::AppendTraceEventsRequest>,
    ) -> Rpc<data::AppendTraceEventsResponse> {
        Err(Status::unimplemented("not faked"))
    }
    async fn list_trace_events(&self, _: Request<data::ListTraceEventsRequest>) -> Rpc<data::ListTraceEventsResponse> {
        Err(Status::unimplemented("not faked"))
    }
    async fn summarize_trace_events(
        &self,
        _: Request<data::SummarizeTraceEventsRequest>,
    ) -> Rpc<data::SummarizeTraceEventsResponse> {
        Err(Status::unimplemented("not faked"))
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
    script.logins.lock().push_back(Status::resource_exhausted("later"));
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
