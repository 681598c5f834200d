//! Start-up, from settings to a running server, and the drain.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use kernel::{Clock, IdSource, SystemClock, SystemIds};
use mesh::tls::Identity;
use mesh::{Addresses, Authorizer, Channel, ClientConfig, Credentials, KeySource, Quota, ServerConfig, SharedSecret};
use storage::ownership::{self, Exposed};
use storage::{Database, Migration};
use telemetry::EventSink;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tonic::service::Routes;

use crate::events::{self, Sink};
use crate::health;
use crate::keys::{AUDIENCE, ISSUER, RemoteKeys};
use crate::relay::Relay;
use crate::settings::{DatabaseUrl, Settings, UserPeer};

/// The least time that background tasks get to end when calls have used up the drain timeout.
const LAST_MOMENT: Duration = Duration::from_secs(1);
/// The time for the last events after that. With a notice of 5 s, a drain of 10 s and 4 s for telemetry, shutdown takes
/// at most 25 s.
const FLUSH: Duration = Duration::from_secs(4);
/// How often the certificate is checked for renewal.
const CERTIFICATE_INTERVAL: Duration = Duration::from_secs(10);

/// Why a service could not start, or why it ended.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The database cannot be used.
    #[error("the {service} service's database cannot be used")]
    Database {
        /// The service.
        service: &'static str,
        /// The cause.
        #[source]
        source: storage::Error,
    },
    /// A folder, a secret or a private key that another user can read or change.
    #[error(transparent)]
    Exposed(#[from] Exposed),
    /// The mesh secret is set but cannot be read.
    #[error("the mesh secret {path} cannot be read")]
    MeshSecret {
        /// The file.
        path: PathBuf,
        /// The cause.
        #[source]
        source: std::io::Error,
    },
    /// The initial keys for verifying access tokens cannot be read.
    #[error("the token keys {path} cannot be read")]
    TokenKeys {
        /// The file.
        path: PathBuf,
        /// The cause.
        #[source]
        source: std::io::Error,
    },
    /// The certificate, the key or the roots cannot be used.
    #[error("mutual TLS cannot be used")]
    Tls(#[from] mesh::tls::Error),
    /// The certificate is valid, but names another service.
    #[error("the certificate {certificate} names `{named}`, but this service is `{service}`")]
    NotOurs {
        /// The file.
        certificate: PathBuf,
        /// The service that it names.
        named: String,
        /// This service.
        service: &'static str,
    },
    /// The mesh secret never leaves the machine.
    #[error("the mesh secret is for loopback listeners only, and {listen} is not one: listen on 127.0.0.1")]
    NotLoopback {
        /// The listen address.
        listen: SocketAddr,
    },
    /// Shutdown was requested while the service waited for its database.
    #[error("shutdown was requested before the service had started")]
    Stopped,
    /// The server failed.
    #[error("the server failed")]
    Serve(#[source] std::io::Error),
    /// A setting of the service itself, or a file that it names, is wrong.
    #[error("{0}")]
    Setting(String),
    /// Another error of the service itself.
    #[error("{0}")]
    Service(String),
}

impl Error {
    /// Whether a setting, or what it refers to, is wrong: another start with the same settings fails in the same way.
    pub fn is_configuration(&self) -> bool {
        match self {
            Self::Database { source, .. } => source.is_configuration(),
            Self::Exposed(_)
            | Self::MeshSecret { .. }
            | Self::TokenKeys { .. }
            | Self::Tls(_)
            | Self::NotOurs { .. }
            | Self::NotLoopback { .. }
            | Self::Setting(_) => true,
            Self::Stopped | Self::Serve(_) | Self::Service(_) => false,
        }
    }
}

/// What a service serves on its port.
pub struct Served {
    /// The handlers.
    pub routes: Routes,
    /// The names of the services in `routes`: health reports them, reflection lists them.
    pub health_services: &'static [&'static str],
    /// The keys that verify access tokens.
    pub keys: Arc<dyn KeySource>,
    /// Rate limits per caller and method, by path.
    pub rate_limits: Vec<(&'static str, Quota)>,
}

/// What every service is built on.
#[derive(Clone)]
pub struct Chassis {
    /// The service's name, for example `order`.
    pub service: &'static str,
    /// The instance's name, for example `order-1`.
    pub instance: String,
    /// The service's own database.
    pub db: Database,
    /// The sink of the events of its operations.
    pub events: Arc<dyn EventSink>,
    /// The clock.
    pub clock: Arc<dyn Clock>,
    /// The source of new ids.
    pub ids: Arc<dyn IdSource>,
    /// Cancelled when the pre-drain delay has passed: start nothing new.
    pub shutdown: CancellationToken,
    /// The service's own background tasks, which shutdown waits for.
    pub tasks: TaskTracker,
    settings: Settings,
    /// Cancelled when shutdown is requested; the service still serves during the pre-drain delay.
    shutdown_requested: CancellationToken,
    identity: Option<Identity>,
    secret: Option<SharedSecret>,
    /// Cancelled when the server has drained: the last events can be sent.
    drained: CancellationToken,
    /// The task of the sink's writer.
    writer: TaskTracker,
    /// Cancelled when the writer has ended: the relay sends what is left.
    written: CancellationToken,
    /// The relay's task.
    relay: TaskTracker,
}

impl std::fmt::Debug for Chassis {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Chassis").field("instance", &self.instance).finish_non_exhaustive()
    }
}

impl Chassis {
    /// Opens the database, migrates its schema, and starts the relay.
    ///
    /// # Errors
    /// The database or a secret cannot be used.
    pub async fn start(
        service: &'static str,
        settings: &Settings,
        migrations: &[Migration],
        shutdown: CancellationToken,
    ) -> Result<Self, Error> {
        let database = |source| Error::Database { service, source };
        ownership::check_unwritable(&settings.data_dir)?;
        let clock: Arc<dyn Clock> = Arc::new(SystemClock);
        let identity = identity(service, settings, clock.clone())?;
        let secret = if identity.is_some() { None } else { mesh_secret(settings)? };
        let opening = open_database(service, settings, migrations);
        let db = shutdown.run_until_cancelled(opening).await.ok_or(Error::Stopped)?.map_err(database)?;
        let instance = instance(service, settings);
        let (sink, waiting) = Sink::new(service, &instance);
        let chassis = Self {
            service,
            db: db.clone(),
            events: Arc::new(sink),
            clock,
            ids: Arc::new(SystemIds),
            shutdown: CancellationToken::new(),
            shutdown_requested: shutdown,
            tasks: TaskTracker::new(),
            identity,
            secret,
            settings: settings.clone(),
            drained: CancellationToken::new(),
            writer: TaskTracker::new(),
            written: CancellationToken::new(),
            relay: TaskTracker::new(),
            instance,
        };
        tokio::spawn(after_the_notice(
            chassis.shutdown_requested.clone(),
            settings.drain_notice,
            chassis.shutdown.clone(),
        ));
        if let Some(identity) = chassis.identity.clone() {
            chassis.tasks.spawn(identity.follow(CERTIFICATE_INTERVAL, chassis.shutdown.clone()));
        }
        chassis.writer.spawn(events::write(db.clone(), waiting, chassis.drained.clone()));
        let relay = Relay::new(db, &chassis.instance, chassis.data_channel());
        chassis.relay.spawn(relay.run(chassis.written.clone()));
        Ok(chassis)
    }

    /// A channel to the instances of another service of the platform.
    pub fn channel(&self, target: &'static str, addresses: &Addresses) -> Channel {
        let credentials = match &self.secret {
            Some(secret) => Credentials::MeshSecret { service: self.service.to_owned(), secret: secret.clone() },
            None => Credentials::None,
        };
        self.channel_to(target, addresses, credentials, true)
    }

    /// A channel to the Data Service, which stores the events of every service.
    pub fn data_channel(&self) -> Channel {
        self.channel("data", &self.settings.data_addresses)
    }

    /// The keys that verify access tokens, fetched from the User Service.
    ///
    /// # Errors
    /// The file of token keys cannot be read.
    pub fn remote_keys(&self, user: &UserPeer) -> Result<Arc<dyn KeySource>, Error> {
        let mounted = user.token_keys.as_deref();
        if let Some(mounted) = mounted {
            ownership::check_unwritable(mounted)?;
        }
        let keys = RemoteKeys::new(self.channel("user", &user.user_addresses), mounted, &self.settings.data_dir);
        let path = || mounted.map_or_else(PathBuf::new, Path::to_owned);
        Ok(Arc::new(keys.map_err(|source| Error::TokenKeys { path: path(), source })?))
    }

    /// A channel to a server outside the platform, which gets no mesh credentials.
    pub fn external_channel(&self, target: &'static str, addresses: &Addresses) -> Channel {
        self.channel_to(target, addresses, Credentials::None, false)
    }

    fn channel_to(
        &self,
        target: &'static str,
        addresses: &Addresses,
        credentials: Credentials,
        is_platform: bool,
    ) -> Channel {
        let events = Some(self.events.clone());
        let tls = self.identity.as_ref().map(|identity| identity.client(target));
        let config = ClientConfig::new(target, addresses.clone(), contracts::POLICIES);
        mesh::client(ClientConfig { credentials, events, is_platform, tls, ..config })
    }

    /// Serves until shutdown is requested, then drains: calls in flight end, background tasks end, the last events are
    /// sent.
    ///
    /// # Errors
    /// The listener failed, or the settings allow no server on that address.
    pub async fn serve(self, served: Served, listener: TcpListener, admin: Option<TcpListener>) -> Result<(), Error> {
        let listen = listener.local_addr().map_err(Error::Serve)?;
        if self.secret.is_some() && !listen.ip().is_loopback() {
            return Err(Error::NotLoopback { listen });
        }
        if self.secret.is_none() && self.identity.is_none() {
            tracing::warn!(target: "ordermesh", "neither a certificate nor a mesh secret is set: calls of other services are rejected as unauthenticated");
        }
        let mut authorizer = Authorizer::new(contracts::POLICIES).with_tokens(served.keys, ISSUER, AUDIENCE);
        if let Some(secret) = &self.secret {
            authorizer = authorizer.with_mesh_secret(secret.clone());
        }
        let settings = &self.settings;
        let budget = settings.memory_budget.map(|size| size.0);
        let of_limit = || settings.memory_limit.map(|limit| mesh::budget_of(limit.0.try_into().unwrap_or(u64::MAX)));
        let config = ServerConfig {
            tls: self.identity.as_ref().map(Identity::server),
            events: Some(self.events.clone()),
            descriptors: &[contracts::DESCRIPTORS],
            reflection: settings.reflection,
            services: served.health_services,
            rate_limits: served.rate_limits,
            trusted_proxies: settings.trusted_proxies.clone().unwrap_or_default().0,
            max_concurrency: settings.max_concurrency,
            max_streams: settings.max_streams,
            max_connections: settings.max_connections,
            memory_budget_bytes: budget.or_else(of_limit),
            max_message_bytes: settings.max_message.0,
            trust_client_trace_context: settings.trust_client_trace_context,
            drain_notice: settings.drain_notice,
            drain_timeout: settings.drain_timeout,
            ..ServerConfig::new(self.service, contracts::POLICIES, authorizer)
        };
        let ((ready, is_ready), (alive, is_alive)) = (watch::channel(true), watch::channel(true));
        let health = health::Health { ready, alive };
        self.tasks.spawn(health::watch(self.db.clone(), self.clock.clone(), self.shutdown_requested.clone(), health));
        if let Some(admin) = admin {
            tokio::spawn(mesh::serve_admin(admin, is_ready.clone(), is_alive, self.drained.clone()));
        }
        tracing::info!(target: "ordermesh", "{} listens on {listen}", self.instance);
        let (shutdown_requested, in_all) =
            (self.shutdown_requested.clone(), self.settings.drain_notice + self.settings.drain_timeout);
        let end = tokio::spawn(async move {
            shutdown_requested.cancelled().await;
            Instant::now() + in_all
        });
        let result =
            mesh::server(config, served.routes).serve(listener, is_ready, self.shutdown_requested.clone()).await;
        // Also when the server failed without a requested shutdown.
        self.shutdown_requested.cancel();
        self.shutdown.cancel();
        self.tasks.close();
        // The tasks' deadline began with the server's, so the time that the server has used is gone for them too.
        let end = end.await.unwrap_or_else(|_| Instant::now()).max(Instant::now() + LAST_MOMENT);
        if tokio::time::timeout_at(end, self.tasks.wait()).await.is_err() {
            tracing::warn!(target: "ordermesh", "background tasks did not end in time");
        }
        self.drained.cancel();
        if tokio::time::timeout(FLUSH, self.flush()).await.is_err() {
            tracing::warn!(target: "ordermesh", "the last events were not written and sent in time; those in the outbox are sent by another instance");
        }
        tracing::info!(target: "ordermesh", "{} has ended", self.instance);
        result.map_err(Error::Serve)
    }
}

impl Chassis {
    /// Writes the last events to the outbox, and sends them to the Data Service.
    async fn flush(&self) {
        self.writer.close();
        self.writer.wait().await;
        self.written.cancel();
        self.relay.close();
        self.relay.wait().await;
    }
}

/// A service's own database, with its schema migrated. On a database server the tables are in a schema with the
/// service's name.
///
/// # Errors
/// The database cannot be used.
pub async fn open_database(
    service: &str,
    settings: &Settings,
    migrations: &[Migration],
) -> Result<Database, storage::Error> {
    let file = settings.data_dir.join(format!("{service}.db"));
    let url = settings.database.url.as_ref();
    let options = storage::Options {
        max_connections: settings.database.connections,
        acquire_timeout: settings.database.acquire_timeout,
        statement_timeout: settings.database.statement_timeout,
        schema: url.is_some_and(DatabaseUrl::is_server).then(|| service.to_owned()),
    };
    let url = url.map_or_else(|| storage::sqlite_url(&file), |url| url.as_str().to_owned());
    storage::patiently(|| async {
        let db = Database::connect(&url, &options).await?;
        db.migrate(migrations).await?;
        Ok(db)
    })
    .await
}

/// The instance's name: as set, or from the service and the process id.
pub fn instance(service: &str, settings: &Settings) -> String {
    settings.instance.clone().unwrap_or_else(|| format!("{service}-{}", std::process::id()))
}

/// Background work continues during the pre-drain delay: work that arrives until then is still done here.
async fn after_the_notice(shutdown_requested: CancellationToken, notice: Duration, shutdown: CancellationToken) {
    shutdown_requested.cancelled().await;
    tokio::time::sleep(notice).await;
    shutdown.cancel();
}

/// The service's identity, from its certificate.
fn identity(service: &'static str, settings: &Settings, clock: Arc<dyn Clock>) -> Result<Option<Identity>, Error> {
    let Some(files) = settings.tls.files() else { return Ok(None) };
    ownership::check_secret(&files.key)?;
    for public in [&files.certificate, &files.roots] {
        ownership::check_unwritable(public)?;
    }
    let certificate = files.certificate.clone();
    let identity = Identity::load(files, &settings.tls.trust_domain, clock)?;
    let named = identity.service();
    if named == service { Ok(Some(identity)) } else { Err(Error::NotOurs { certificate, named, service }) }
}

/// A shorter secret could be guessed.
const LEAST_SECRET_BYTES: usize = 16;

fn mesh_secret(settings: &Settings) -> Result<Option<SharedSecret>, Error> {
    let path = settings.mesh_secret_file.clone().unwrap_or_else(|| settings.data_dir.join("mesh.secret"));
    ownership::check_secret(&path)?;
    let read = std::fs::read_to_string(&path).and_then(|text| {
        let text = text.trim();
        if text.len() >= LEAST_SECRET_BYTES && text.bytes().all(|byte| (b' '..=b'~').contains(&byte)) {
            return Ok(SharedSecret::new(text));
        }
        let shutdown_requested =
            format!("a secret is one line of at least {LEAST_SECRET_BYTES} characters, ASCII only");
        Err(std::io::Error::new(std::io::ErrorKind::InvalidData, shutdown_requested))
    });
    match read {
        Ok(secret) => Ok(Some(secret)),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound && settings.mesh_secret_file.is_none() => Ok(None),
        Err(source) => Err(Error::MeshSecret { path, source }),
    }
}

#[cfg(test)]
mod tests {
    use certs::{Authority, Names, Validity};
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Cli {
        #[command(flatten)]
        settings: Settings,
    }

    /// Settings of a service with a certificate for the given name.
    fn settings_of(folder: &Path, named: &str) -> Settings {
        let validity = Validity::from(SystemClock.now(), Duration::from_secs(3_600));
        let authority = Authority::new("ordermesh.local", validity).expect("an authority");
        let issued = authority.issue(&Names::of_service("ordermesh.local", named), validity).expect("issued");
        let write = |name: &str, text: &str| {
            let path = folder.join(name);
            testdb::write_secret(&path, text);
            path.display().to_string()
        };
        let files = [
            ("--tls-cert", write("own.pem", &issued.certificate_pem)),
            ("--tls-key", write("own.key", &issued.key_pem)),
            ("--tls-ca", write("ca.pem", authority.certificate_pem())),
        ];
        let flags = files.iter().flat_map(|(flag, path)| [(*flag).to_owned(), path.clone()]);
        Cli::try_parse_from(std::iter::once("service".to_owned()).chain(flags)).expect("settings").settings
    }

    #[test]
    fn a_certificate_of_another_service_is_rejected() {
        let folder = tempfile::tempdir().expect("a folder");
        let ours = identity("order", &settings_of(folder.path(), "order"), Arc::new(SystemClock));
        assert!(ours.is_ok_and(|identity| identity.is_some_and(|identity| identity.service() == "order")));
        let others = identity("order", &settings_of(folder.path(), "data"), Arc::new(SystemClock));
        let message = others.expect_err("another service's certificate").to_string();
        assert!(message.contains("`data`") && message.contains("`order`"), "{message}");
    }

    #[test]
    fn a_malformed_mesh_secret_is_rejected() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("mesh.secret");
        let flags = ["service", "--mesh-secret-file", path.to_str().expect("a path")];
        let settings = Cli::try_parse_from(flags).expect("settings").settings;
        for wrong in ["", "\n", "too short", "0123456789abcdef\n0123456789abcdef", "ünter the radar it is"] {
            testdb::write_secret(&path, wrong);
            let message = mesh_secret(&settings).expect_err("not a secret").to_string();
            assert!(message.contains("mesh.secret"), "{wrong:?}: {message}");
        }
        testdb::write_secret(&path, "0123456789abcdef\n");
        assert!(mesh_secret(&settings).expect("a secret").is_some());
    }

    #[test]
    fn a_secret_or_private_key_readable_by_others_is_rejected_with_a_hint() {
        use std::os::unix::fs::PermissionsExt;
        let folder = tempfile::tempdir().expect("a folder");
        let open = |path: &Path| {
            std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o644)).expect("own file");
            format!("chmod go= {}", path.display())
        };
        let secret = folder.path().join("mesh.secret");
        testdb::write_secret(&secret, "0123456789abcdef\n");
        let hint = open(&secret);
        let flags = ["service", "--data-dir", folder.path().to_str().expect("a path")];
        let refused = mesh_secret(&Cli::try_parse_from(flags).expect("settings").settings).expect_err("readable");
        assert!(refused.is_configuration() && refused.to_string().ends_with(&hint), "{refused}");
        let settings = settings_of(folder.path(), "order");
        let hint = open(&folder.path().join("own.key"));
        let refused = identity("order", &settings, Arc::new(SystemClock)).expect_err("readable");
        assert!(refused.is_configuration() && refused.to_string().ends_with(&hint), "{refused}");
    }

    #[tokio::test(start_paused = true)]
    async fn background_work_continues_during_the_pre_drain_delay() {
        let (shutdown_requested, shutdown) = (CancellationToken::new(), CancellationToken::new());
        let began = Instant::now();
        tokio::spawn(after_the_notice(shutdown_requested.clone(), Duration::from_secs(5), shutdown.clone()));
        shutdown_requested.cancel();
        shutdown.cancelled().await;
        assert_eq!(began.elapsed(), Duration::from_secs(5));
    }
}
