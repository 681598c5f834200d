//! A running User Service and its clients. There is no Data Service: events stay in the outbox, where the tests read
//! them.

use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use clap::Parser;
use contracts::user::v1 as proto;
use contracts::user::v1::user_service_client::UserServiceClient;
use kernel::IdSource;
use mesh::{Channel, ClientConfig};
use storage::Database;
use telemetry::TraceEvent;
use tempfile::TempDir;
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tonic::codegen::http::uri::PathAndQuery;
use tonic::metadata::MetadataValue;
use tonic::{Code, Request, Status};
use tonic_types::StatusExt;

pub(crate) const PASSWORD: &str = "correct horse";
const INSTANCE: &str = "user-1";

#[derive(Parser)]
#[command(args_override_self = true)]
struct Cli {
    #[command(flatten)]
    config: user::Config,
}

/// Settings for tests, with a cheap bcrypt.
pub(crate) fn config(data_dir: &Path, more: &[&str]) -> user::Config {
    let data_dir = data_dir.display().to_string();
    let flags = ["user", "--data-dir", &data_dir, "--instance", INSTANCE, "--data-addresses", "127.0.0.1:9"];
    // The last value of a flag wins.
    Cli::parse_from([&flags[..], &["--bcrypt-cost", "4"], more].concat()).config
}

/// One running instance.
pub(crate) struct World {
    folder: TempDir,
    address: SocketAddr,
    shutdown: CancellationToken,
    running: JoinHandle<Result<(), chassis::Error>>,
}

impl World {
    pub(crate) async fn start() -> Self {
        Self::start_with(tempfile::tempdir().expect("a folder"), &[]).await
    }

    pub(crate) async fn start_with(folder: TempDir, more: &[&str]) -> Self {
        let config = config(folder.path(), more);
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("an address");
        let shutdown = CancellationToken::new();
        let running = tokio::spawn(user::run(config, listener, None, shutdown.clone()));
        Self { folder, address, shutdown, running }
    }

    fn channel(&self) -> Channel {
        let addresses = vec![self.address.to_string()];
        mesh::client(ClientConfig::new("user", addresses, contracts::POLICIES))
    }

    pub(crate) fn client(&self) -> UserServiceClient<Channel> {
        UserServiceClient::new(self.channel())
    }

    pub(crate) async fn register(&self, request: proto::RegisterRequest) -> Result<proto::Profile, Status> {
        Ok(self.client().register(request).await?.into_inner().profile.expect("a profile"))
    }

    pub(crate) async fn login(&self, email: &str, password: &str) -> Result<(proto::Session, proto::Profile), Status> {
        let request = proto::LoginRequest { email: email.into(), password: password.into() };
        let response = self.client().login(request).await?.into_inner();
        Ok((response.session.expect("a session"), response.profile.expect("a profile")))
    }

    /// A Login with the message of another method: a number where the e-mail should be.
    pub(crate) async fn garbled_login(&self) -> Result<proto::LoginResponse, Status> {
        let mut client = tonic::client::Grpc::new(self.channel());
        let codec = tonic_prost::ProstCodec::<proto::ChangePasswordResponse, proto::LoginResponse>::default();
        let path = PathAndQuery::from_static("/user.v1.UserService/Login");
        client.ready().await.expect("ready");
        let garbled = Request::new(proto::ChangePasswordResponse { ended_session_count: 7 });
        client.unary(garbled, path, codec).await.map(tonic::Response::into_inner)
    }

    pub(crate) async fn ada_registers(&self) -> proto::Profile {
        self.register(ada()).await.expect("registered")
    }

    pub(crate) async fn ada_logs_in(&self) -> proto::Session {
        self.login("ada@example.com", PASSWORD).await.expect("logged in").0
    }

    pub(crate) async fn refresh(&self, session: &proto::Session) -> Result<proto::Session, Status> {
        let request = proto::RefreshSessionRequest { refresh_token: session.refresh_token.clone() };
        Ok(self.client().refresh_session(request).await?.into_inner().session.expect("a session"))
    }

    pub(crate) async fn logout(&self, session: &proto::Session) -> Result<(), Status> {
        let request = proto::LogoutRequest { refresh_token: session.refresh_token.clone() };
        self.client().logout(request).await.map(|_| ())
    }

    pub(crate) async fn profile(&self, session: &proto::Session) -> Result<proto::Profile, Status> {
        let response = self.client().get_profile(as_user(session, proto::GetProfileRequest {})).await?;
        Ok(response.into_inner().profile.expect("a profile"))
    }

    pub(crate) async fn update_profile(
        &self,
        session: &proto::Session,
        profile: proto::Profile,
        paths: &[&str],
    ) -> Result<proto::Profile, Status> {
        let paths = paths.iter().map(|path| (*path).to_owned()).collect();
        let update_mask = Some(prost_types::FieldMask { paths });
        let request = proto::UpdateProfileRequest { profile: Some(profile), update_mask };
        let response = self.client().update_profile(as_user(session, request)).await?;
        Ok(response.into_inner().profile.expect("a profile"))
    }

    pub(crate) async fn change_password(
        &self,
        session: &proto::Session,
        current: &str,
        new: &str,
    ) -> Result<i32, Status> {
        let request = proto::ChangePasswordRequest { current_password: current.into(), new_password: new.into() };
        let response = self.client().change_password(as_user(session, request)).await?;
        Ok(response.into_inner().ended_session_count)
    }

    /// Stops the instance after it has written its last events, and keeps its data.
    pub(crate) async fn stop(self) -> TempDir {
        self.shutdown.cancel();
        self.running.await.expect("no panic").expect("a clean end");
        self.folder
    }

    /// Stops the instance, and reads the events in its outbox.
    pub(crate) async fn events(self) -> Vec<TraceEvent> {
        let folder = self.stop().await;
        database(folder.path()).await.outbox().waiting(INSTANCE, 1_000).await.expect("events")
    }
}

pub(crate) async fn database(data_dir: &Path) -> Database {
    let url = format!("sqlite://{}", data_dir.join("user.db").display());
    Database::connect(&url, &storage::Options::default()).await.expect("it opens")
}

pub(crate) fn ada() -> proto::RegisterRequest {
    proto::RegisterRequest {
        request_id: kernel::SystemIds.uuid().to_string(),
        email: "ada@example.com".into(),
        password: PASSWORD.into(),
        display_name: "Ada".into(),
    }
}

pub(crate) fn as_user<T>(session: &proto::Session, message: T) -> Request<T> {
    let mut request = Request::new(message);
    let bearer = MetadataValue::try_from(format!("Bearer {}", session.access_token)).expect("ASCII");
    request.metadata_mut().insert("authorization", bearer);
    request
}

/// A rejection as a client sees it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Rejection {
    pub(crate) code: Code,
    pub(crate) reason: String,
    pub(crate) domain: String,
    pub(crate) message: String,
    pub(crate) violations: Vec<(String, String)>,
    pub(crate) retry_after: Option<Duration>,
}

pub(crate) fn rejection<T: std::fmt::Debug>(result: Result<T, Status>) -> Rejection {
    let status = result.expect_err("a rejection");
    let info = status.get_details_error_info().expect("ErrorInfo");
    let violations = status.get_details_bad_request().map(|bad| bad.field_violations).unwrap_or_default();
    Rejection {
        code: status.code(),
        reason: info.reason,
        domain: info.domain,
        message: status.message().to_owned(),
        violations: violations.into_iter().map(|violation| (violation.field, violation.reason)).collect(),
        retry_after: status.get_details_retry_info().and_then(|retry| retry.retry_delay),
    }
}
