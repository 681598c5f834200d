//! NATS: the servers of a URL, an event as a message, and what a publication that failed means.
//!
//! A message's id is its event's, so that a stream drops one that it has already, within its duplicate window.

use std::time::Duration;

use async_nats::header::{HeaderMap, NATS_MESSAGE_ID};
use async_nats::jetstream::context::{CreateStreamError, PublishError, PublishErrorKind};
use async_nats::jetstream::{self, ErrorCode, stream};
use async_nats::{ConnectError, ConnectOptions, ServerAddr};
use chassis::relay::encode_event;
use kernel::Secret;
use percent_encoding::percent_decode_str;
use prost::Message;
use telemetry::TraceEvent;

use crate::trace_event_store::status_name;

/// What `--event-sink` takes.
const EXPECTED: &str = "--event-sink is nats://[USER:PASSWORD@]HOST[:PORT] or nats://TOKEN@HOST[:PORT], with TLS tls://…; \
     several servers of a cluster are separated by commas";
/// The stream that is created if no stream has the events' subjects.
const STREAM: &str = "ORDERMESH_EVENTS";
const SUBJECTS: &str = "ordermesh.events.>";
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// The servers of a cluster, and how to log in.
#[derive(Clone, Debug)]
pub(crate) struct Nats {
    /// Without credentials.
    servers: Vec<ServerAddr>,
    login: Login,
}

#[derive(Clone, PartialEq, Eq, Debug)]
enum Login {
    None,
    Token(Secret<String>),
    Password(Secret<(String, String)>),
}

impl Nats {
    /// Parses `--event-sink`; the error does not contain the URL.
    pub(crate) fn parse(urls: &str) -> Result<Self, &'static str> {
        let (mut servers, mut login) = (Vec::new(), Login::None);
        for url in urls.split(',') {
            let (server, of_server) = parse(url.trim()).ok_or(EXPECTED)?;
            servers.push(server);
            if login == Login::None {
                login = of_server;
            }
        }
        Ok(Self { servers, login })
    }

    /// A connection to one of the servers. It is not opened again by itself for long: its user does that.
    pub(crate) async fn connect(&self) -> Result<Connection, ConnectError> {
        let options = ConnectOptions::new()
            .name("ordermesh")
            .connection_timeout(CONNECT_TIMEOUT)
            .max_reconnects(self.servers.len())
            .ignore_discovered_servers();
        let options = match &self.login {
            Login::None => options,
            Login::Token(token) => options.token(token.expose().clone()),
            Login::Password(login) => {
                let (user, password) = login.expose().clone();
                options.user_and_password(user, password)
            }
        };
        let client = options.connect(self.servers.as_slice()).await?;
        Ok(Connection(jetstream::new(client)))
    }
}

fn parse(url: &str) -> Option<(ServerAddr, Login)> {
    if !url.starts_with("nats://") && !url.starts_with("tls://") {
        return None;
    }
    let mut url = url.parse::<ServerAddr>().ok()?.into_inner();
    let decoded = |text: &str| Some(percent_decode_str(text).decode_utf8().ok()?.into_owned());
    let user = decoded(url.username())?;
    let login = match url.password() {
        Some(password) => Login::Password(Secret::new((user, decoded(password)?))),
        None if user.is_empty() => Login::None,
        None => Login::Token(Secret::new(user)),
    };
    if !matches!(url.path(), "" | "/") || url.query().is_some() || url.fragment().is_some() {
        return None;
    }
    url.set_username("").ok()?;
    url.set_password(None).ok()?;
    let server = ServerAddr::from_url(url).ok()?;
    (!server.host().is_empty()).then_some((server, login))
}

/// What became of a message.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum Outcome {
    Stored,
    /// The stream had it already.
    Duplicate,
    /// The stream does not take this message, and will take others.
    Refused(String),
}

/// A connection to a server.
pub(crate) struct Connection(jetstream::Context);

impl Connection {
    /// Publishes events without waiting for each; returns the outcomes in the same order, up to the first event that
    /// has none, and why it has none.
    pub(crate) async fn publish(
        &self,
        events: impl Iterator<Item = &TraceEvent>,
    ) -> (Vec<Outcome>, Result<(), PublishError>) {
        let mut sent = Vec::new();
        for event in events {
            let payload = encode_event(event).encode_to_vec().into();
            let message = self.0.publish_with_headers(subject(event), headers(event), payload).await;
            let is_sent = message.as_ref().err().is_none_or(|error| refusal(error).is_some());
            sent.push(message);
            if !is_sent {
                break;
            }
        }
        let mut outcomes = Vec::with_capacity(sent.len());
        for message in sent {
            let acknowledged = match message {
                Ok(message) => message.await,
                Err(error) => Err(error),
            };
            outcomes.push(match acknowledged {
                Ok(acknowledged) if acknowledged.duplicate => Outcome::Duplicate,
                Ok(_) => Outcome::Stored,
                Err(error) => match refusal(&error) {
                    Some(refusal) => Outcome::Refused(refusal),
                    None => return (outcomes, Err(error)),
                },
            });
        }
        (outcomes, Ok(()))
    }

    /// Creates the stream, with the server's defaults.
    pub(crate) async fn create_stream(&self) -> Result<(), CreateStreamError> {
        let config = stream::Config {
            name: STREAM.to_owned(),
            subjects: vec![SUBJECTS.to_owned()],
            ..stream::Config::default()
        };
        self.0.create_stream(config).await?;
        tracing::info!(target: "ordermesh", "no stream of NATS had the subjects {SUBJECTS}: {STREAM} was created");
        Ok(())
    }
}

/// Type and status are words of the contract, without a character that a subject may not contain.
fn subject(event: &TraceEvent) -> String {
    format!("ordermesh.events.{}.{}", event.event_type, status_name(event.status))
}

fn headers(event: &TraceEvent) -> HeaderMap {
    let mut headers = HeaderMap::new();
    headers.insert(NATS_MESSAGE_ID, event.event_id.to_string());
    headers.insert("Content-Type", "application/protobuf; proto=data.v1.TraceEvent");
    headers.insert("traceparent", format!("00-{}-{}-01", event.trace_id, event.span_id));
    headers
}

/// Why this one message is not taken; `None`: others would fail too. A stream that is missing, full or without a leader
/// is such an outage: its messages wait.
fn refusal(error: &PublishError) -> Option<String> {
    let too_large = error.kind() == PublishErrorKind::MaxPayloadExceeded;
    let response = std::error::Error::source(error).and_then(|source| source.downcast_ref::<jetstream::Error>());
    let limits = [ErrorCode::STREAM_MESSAGE_EXCEEDS_MAXIMUM, ErrorCode::STREAM_HEADER_EXCEEDS_MAXIMUM];
    let refused = response.is_some_and(|response| limits.contains(&response.error_code()));
    (too_large || refused).then(|| response.map_or_else(|| error.to_string(), ToString::to_string))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn password(user: &str, password: &str) -> Login {
        Login::Password(Secret::new((user.into(), password.into())))
    }

    #[test]
    fn a_url_has_servers_and_credentials_which_are_removed_from_it() {
        for (url, servers, login) in [
            ("nats://h", vec!["nats://h"], Login::None),
            ("tls://h:4333/", vec!["tls://h:4333/"], Login::None),
            ("nats://to%40ken@h", vec!["nats://h"], Login::Token(Secret::new("to@ken".into()))),
            ("tls://u:p%2Cw@a:1, tls://b:2", vec!["tls://a:1", "tls://b:2"], password("u", "p,w")),
            ("nats://a,nats://u:p@[::1]:4222", vec!["nats://a", "nats://[::1]:4222"], password("u", "p")),
        ] {
            let nats = Nats::parse(url).expect(url);
            assert_eq!(nats.servers.iter().map(ServerAddr::as_url_str).collect::<Vec<_>>(), servers, "{url}");
            assert_eq!(nats.login, login, "{url}");
            let printed = format!("{nats:?}");
            assert!(!["to@ken", "to%40ken", "p,w", "p%2Cw"].iter().any(|secret| printed.contains(secret)), "{printed}");
        }
    }

    #[test]
    fn what_is_no_url_of_nats_is_rejected_and_not_quoted() {
        for url in [
            "",
            "h:4222",
            "s3cr3t",
            "http://u:s3cr3t@h",
            "ws://h",
            "nats://",
            "nats://u:s3cr3t@",
            "nats://u:s3cr3t@h:port",
            "nats://h/s3cr3t",
            "nats://h?tls=s3cr3t",
            "nats://h,",
            "nats://h,u:s3cr3t@h2",
            "nats://u:s3cr3t/x@h",
        ] {
            assert_eq!(Nats::parse(url).map(|_| ()), Err(EXPECTED), "{url}");
        }
    }

    #[test]
    fn only_a_limit_of_the_message_is_a_refusal() {
        let error = |code: u64| {
            let response = serde_json::json!({"code": 400, "err_code": code, "description": "why"});
            let response: jetstream::Error = serde_json::from_value(response).expect("an error of the API");
            PublishError::with_source(PublishErrorKind::Other, response)
        };
        assert_eq!(refusal(&error(10_054)).as_deref(), Some("why (code 400, error code 10054)"));
        assert!(refusal(&error(10_097)).is_some());
        assert!(refusal(&PublishError::new(PublishErrorKind::MaxPayloadExceeded)).is_some());
        // A full stream, a full account, a stream that is gone.
        for outage in [error(10_077), error(10_002), PublishError::new(PublishErrorKind::StreamNotFound)] {
            assert_eq!(refusal(&outage), None, "{outage}");
        }
    }
}
