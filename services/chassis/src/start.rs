//! From settings to a running server, and the drain back.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use kernel::{Clock, IdSource, SystemClock, SystemIds};
use mesh::{Channel, ClientConfig, Credentials, Gatekeeper, KeySource, Secret, ServerConfig};
use opentelemetry::global;
use storage::{Database, Migration};
use telemetry::EventSink;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tonic::service::Routes;

use crate::events::{self, Sink};
use crate::keys::{AUDIENCE, ISSUER, RemoteKeys};
use crate::relay::Relay;
use crate::settings::{DatabaseUrl, Settings, UserPeer};

/// How often a service asks its database whether it answers, and counts its outbox.
const HEALTH_INTERVAL: Duration = Duration::from_secs(2);

/// Why a service could not start, or ended.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The database.
    #[error("the {service} service's database cannot be used")]
    Database {
        /// The service.
        service: &'static str,
        /// Why.
        #[source]
        source: storage::Error,
    },
    /// The mesh secret is set and cannot be read.
    #[error("the mesh secret {path} cannot be read")]
    MeshSecret {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// A mesh secret is a secret of one machine.
    #[error("the mesh secret is for loopback listeners only, and {listen} is none: listen on 127.0.0.1")]
    NotLoopback {
        /// Where it should have listened.
        listen: SocketAddr,
    },
    /// The server ended.
    #[error("the server ended")]
    Serve(#[source] std::io::Error),
    /// Something of the service's own.
    #[error("{0}")]
    Service(String),
}

/// What a service is mounted on.
#[derive(Clone)]
pub struct Chassis {
    /// For example `order`.
    pub service: &'static str,
    /// For example `order-1`.
    pub instance: String,
    /// The service's own database.
    pub db: Database,
    /// Where its operations' events go.
    pub events: Arc<dyn EventSink>,
    /// The time.
    pub clock: Arc<dyn Clock>,
    /// New ids.
    pub ids: Arc<dyn IdSource>,
    /// Cancelled when the service is told to stop: start nothing new.
    pub shutdown: CancellationToken,
    /// The service's own background tasks: waited for while it stops.
    pub tasks: TaskTracker,
    settings: Settings,
    secret: Option<Secret>,
    /// Cancelled when the server has drained: the last events may be sent.
    drained: CancellationToken,
    /// The sink's writer.
    writer: TaskTracker,
    /// Cancelled when the writer has ended: the relay sends what is left.
    written: CancellationToken,
    /// The relay.
    relay: TaskTracker,
}

impl std::fmt::Debug for Chassis {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Chassis").field("instance", &self.instance).finish_non_exhaustive()
    }
}

impl Chassis {
    /// Opens the database, brings its schema up to date, and starts the relay.
    ///
    /// # Errors
    /// A database or a secret that cannot be used.
    pub async fn start(
        service: &'static str,
        settings: &Settings,
        migrations: &[Migration],
        shutdown: CancellationToken,
    ) -> Result<Self, Error> {
        let database = |source| Error::Database { service, source };
        let db = open_database(service, settings, migrations).await.map_err(database)?;
        let instance = instance(service, settings);
        let (sink, waiting) = Sink::new(service, &instance);
        let chassis = Self {
            service,
            db: db.clone(),
            events: Arc::new(sink),
            clock: Arc::new(SystemClock),
            ids: Arc::new(SystemIds),
            shutdown,
            tasks: TaskTracker::new(),
            secret: mesh_secret(settings)?,
            settings: settings.clone(),
            drained: CancellationToken::new(),
            writer: TaskTracker::new(),
            written: CancellationToken::new(),
            relay: TaskTracker::new(),
            instance,
        };
        chassis.writer.spawn(events::write(db.clone(), waiting, chassis.drained.clone()));
        let relay = Relay::new(db, &chassis.instance, chassis.data_channel());
        chassis.relay.spawn(relay.run(chassis.written.clone()));
        Ok(chassis)
    }

    /// A channel to the instances of a service of the platform.
    pub fn channel(&self, target: &'static str, addresses: &[String]) -> Channel {
        let credentials = match &self.secret {
            Some(secret) => Credentials::MeshSecret { service: self.service.to_owned(), secret: secret.clone() },
            None => Credentials::None,
        };
        self.channel_to(target, addresses.to_vec(), credentials)
    }

    /// A channel to the Data Service: every service sends it its events.
    pub fn data_channel(&self) -> Channel {
        self.channel("data", &self.settings.data_addresses)
    }

    /// The keys that verify access tokens, asked of the User Service.
    pub fn remote_keys(&self, user: &UserPeer) -> Arc<dyn KeySource> {
        Arc::new(RemoteKeys::new(self.channel("user", &user.user_addresses)))
    }

    /// A channel to somebody else's server, which gets none of our credentials.
    pub fn external_channel(&self, target: &'static str, addresses: Vec<String>) -> Channel {
        self.channel_to(target, addresses, Credentials::None)
    }

    fn channel_to(&self, target: &'static str, addresses: Vec<String>, credentials: Credentials) -> Channel {
        let events = Some(self.events.clone());
        mesh::client(ClientConfig { credentials, events, ..ClientConfig::new(target, addresses, contracts::POLICIES) })
    }

    /// Serves until told to stop, then drains: calls in flight end, background tasks end, the last events are sent.
    /// `keys` verify access tokens.
    ///
    /// # Errors
    /// The listener broke, or the settings allow no server there.
    pub async fn serve(
        self,
        routes: Routes,
        health_services: &'static [&'static str],
        keys: Arc<dyn KeySource>,
        listener: TcpListener,
        admin: Option<TcpListener>,
    ) -> Result<(), Error> {
        let listen = listener.local_addr().map_err(Error::Serve)?;
        if self.secret.is_some() && !listen.ip().is_loopback() {
            return Err(Error::NotLoopback { listen });
        }
        let mut gatekeeper = Gatekeeper::new(contracts::POLICIES).with_tokens(keys, ISSUER, AUDIENCE);
        if let Some(secret) = &self.secret {
            gatekeeper = gatekeeper.with_mesh_secret(secret.clone());
        }
        let config = ServerConfig {
            events: Some(self.events.clone()),
            descriptors: &[contracts::DESCRIPTORS],
            health_services,
            memory_budget_bytes: self.settings.memory_budget.map(|size| size.0),
            max_message_bytes: self.settings.max_message.0,
            trust_client_trace_context: self.settings.trust_client_trace_context,
            drain_timeout: self.settings.drain_timeout,
            ..ServerConfig::new(self.service, contracts::POLICIES, gatekeeper)
        };
        let (ready, is_ready) = watch::channel(true);
        self.tasks.spawn(watch_health(self.clone(), ready));
        if let Some(admin) = admin {
            tokio::spawn(mesh::serve_admin(admin, is_ready.clone(), self.drained.clone()));
        }
        tracing::info!(target: "ordermesh", "{} listens on {listen}", self.instance);
        let served = mesh::server(config, routes).serve(listener, is_ready, self.shutdown.clone()).await;
        self.shutdown.cancel();
        self.tasks.close();
        if tokio::time::timeout(self.settings.drain_timeout, self.tasks.wait()).await.is_err() {
            tracing::warn!(target: "ordermesh", "background tasks did not end in time");
        }
        self.drained.cancel();
        self.writer.close();
        self.writer.wait().await;
        self.written.cancel();
        self.relay.close();
        self.relay.wait().await;
        tracing::info!(target: "ordermesh", "{} has ended", self.instance);
        served.map_err(Error::Serve)
    }
}

/// A service's own database, with its schema up to date. On a server the tables live in a schema of the service's name.
///
/// # Errors
/// A database that cannot be used.
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
    let url = url.map_or_else(|| format!("sqlite://{}", file.display()), |url| url.as_str().to_owned());
    let db = Database::connect(&url, &options).await?;
    db.migrate(migrations).await?;
    Ok(db)
}

/// The instance's name.
pub fn instance(service: &str, settings: &Settings) -> String {
    settings.instance.clone().unwrap_or_else(|| format!("{service}-{}", std::process::id()))
}

/// Ready is: the own database answers, and the service is not told to stop. Never a peer.
async fn watch_health(chassis: Chassis, ready: watch::Sender<bool>) {
    let meter = global::meter("ordermesh");
    let waiting = meter.i64_gauge("ordermesh.outbox.events").with_description("Events that wait to be sent").build();
    let age = meter
        .f64_gauge("ordermesh.outbox.oldest")
        .with_unit("s")
        .with_description("Age of the oldest waiting event")
        .build();
    let refused = meter.i64_gauge("ordermesh.outbox.refused").with_description("Events that the store refused").build();
    loop {
        let backlog = tokio::time::timeout(HEALTH_INTERVAL, chassis.db.outbox().backlog()).await;
        let answers = matches!(backlog, Ok(Ok(_)));
        chassis.db.record_connections();
        ready.send_if_modified(|now| std::mem::replace(now, answers) != answers);
        if let Ok(Ok(backlog)) = backlog {
            let now = chassis.clock.now();
            waiting.record(backlog.waiting, &[]);
            age.record(backlog.oldest.map_or(0.0, |oldest| now.since(oldest).as_secs_f64()), &[]);
            refused.record(backlog.refused, &[]);
        }
        if tokio::time::timeout(HEALTH_INTERVAL, chassis.shutdown.cancelled()).await.is_ok() {
            // Draining: nobody is to be sent here any more.
            ready.send_replace(false);
            return;
        }
    }
}

fn mesh_secret(settings: &Settings) -> Result<Option<Secret>, Error> {
    let path = settings.mesh_secret_file.clone().unwrap_or_else(|| settings.data_dir.join("mesh.secret"));
    match std::fs::read_to_string(&path) {
        Ok(secret) => Ok(Some(Secret::new(secret.trim()))),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound && settings.mesh_secret_file.is_none() => Ok(None),
        Err(source) => Err(Error::MeshSecret { path, source }),
    }
}
