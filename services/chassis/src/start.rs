//! Start-up, from settings to a running server, and the drain.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::BoxFuture;
use kernel::{Clock, IdSource, SystemClock, SystemIds, Timestamp};
use mesh::tls::Identity;
use mesh::{
    Addresses, Authorizer, Channel, ClientConfig, Credentials, KeySource, Monitor, Quota, ServerConfig, SharedSecret,
    TrafficPolicy,
};
use parking_lot::Mutex;
use storage::ownership;
use storage::{Database, Migration};
use telemetry::EventSink;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tonic::service::Routes;

use crate::admin::{self, Admin, ReadDriver};
use crate::events::{self, Sink};
use crate::health;
use crate::keys::{AUDIENCE, ISSUER, RemoteKeys};
use crate::relay::Relay;
use crate::settings::{Settings, UserPeer};

mod credentials;
mod error;

use credentials::{identity, mesh_secret};
pub use error::Error;

/// The minimum time that background tasks get to end when calls have used up the drain timeout.
const MIN_TASK_TIME: Duration = Duration::from_secs(1);
/// The time for the last events after that. With a pre-drain delay of 5 s, a drain of 10 s and 4 s for telemetry, shutdown takes
/// at most 25 s.
const FLUSH_TIMEOUT: Duration = Duration::from_secs(4);
/// How often the certificate is checked for renewal.
const CERTIFICATE_INTERVAL: Duration = Duration::from_secs(10);

/// How often the traffic policy's file is read. Twice the same content is taken.
const TRAFFIC_POLICY_INTERVAL: Duration = Duration::from_secs(1);

/// What a service serves on its port.
pub struct Served {
    pub routes: Routes,
    /// The names of the services in `routes`: health reports them, reflection lists them.
    pub health_services: &'static [&'static str],
    /// The keys that verify access tokens.
    pub keys: Arc<dyn KeySource>,
    /// Rate limits per caller and method, by path.
    pub rate_limits: Vec<(&'static str, Quota)>,
    /// The work in the background, if the service has any.
    pub driver: Option<ReadDriver>,
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
    pub clock: Arc<dyn Clock>,
    /// The source of new ids.
    pub ids: Arc<dyn IdSource>,
    /// Cancelled when the pre-drain delay has passed: start nothing new.
    pub shutdown: CancellationToken,
    /// The service's own background tasks, which shutdown waits for.
    pub tasks: TaskTracker,
    settings: Settings,
    /// Observes the calls of the server and of all channels.
    monitor: Monitor,
    /// What is changed of calls at run time.
    traffic: TrafficPolicy,
    started: Timestamp,
    /// Cancelled when shutdown is requested; the service still serves during the pre-drain delay.
    shutdown_requested: CancellationToken,
    identity: Option<Identity>,
    secret: Option<SharedSecret>,
    /// Cancelled when the server has drained: the last events can be sent.
    drained: CancellationToken,
    /// The input of the sink's writer, until that is started.
    unwritten: Arc<Mutex<Option<events::Writer>>>,
    /// The task of the sink's writer.
    writer: TaskTracker,
    /// Cancelled when the writer has ended: the relay sends what is left.
    written: CancellationToken,
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
        let opening = settings.open_database(service, migrations);
        let db = shutdown.run_until_cancelled(opening).await.ok_or(Error::Stopped)?.map_err(database)?;
        let instance = settings.server.instance_of(service);
        let (sink, waiting) = Sink::new(service, &instance);
        let chassis = Self {
            service,
            db: db.clone(),
            events: Arc::new(sink),
            clock: clock.clone(),
            ids: Arc::new(SystemIds),
            shutdown: CancellationToken::new(),
            shutdown_requested: shutdown,
            tasks: TaskTracker::new(),
            identity,
            secret,
            settings: settings.clone(),
            monitor: Monitor::new(service),
            traffic: TrafficPolicy::new(contracts::POLICIES, settings.traffic.allow_faults),
            started: clock.now(),
            drained: CancellationToken::new(),
            unwritten: Arc::new(Mutex::new(Some(waiting))),
            writer: TaskTracker::new(),
            written: CancellationToken::new(),
            relay: TaskTracker::new(),
            instance,
        };
        tokio::spawn(cancel_after_delay(
            chassis.shutdown_requested.clone(),
            settings.server.pre_drain_delay,
            chassis.shutdown.clone(),
        ));
        if let Some(identity) = chassis.identity.clone() {
            chassis.tasks.spawn(identity.follow(CERTIFICATE_INTERVAL, chassis.shutdown.clone()));
        }
        if let Some(file) = &settings.traffic.traffic_policy {
            chassis.traffic.load(file);
            chassis.traffic.export();
            let follow =
                chassis.traffic.clone().follow(file.clone(), TRAFFIC_POLICY_INTERVAL, chassis.shutdown.clone());
            chassis.tasks.spawn(follow);
        }
        let relay = Relay::new(db, &chassis.instance, chassis.data_channel());
        chassis.relay.spawn(relay.run(chassis.written.clone()));
        Ok(chassis)
    }

    /// Stores the events of operations that no transaction has written: in the outbox unless this was called before the
    /// service serves.
    pub fn store_events(&self, store: events::Store) {
        if let Some(waiting) = self.unwritten.lock().take() {
            self.writer.spawn(events::write(store, waiting, self.drained.clone()));
        }
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
        is_mesh_service: bool,
    ) -> Channel {
        let events = Some(self.events.clone());
        let tls = self.identity.as_ref().map(|identity| identity.client(target));
        let config = ClientConfig::new(target, addresses.clone(), contracts::POLICIES);
        let (monitor, traffic) = (self.monitor.clone(), self.traffic.clone());
        let subset_size = self.settings.subset_size.filter(|_| is_mesh_service);
        mesh::client(ClientConfig {
            credentials,
            events,
            monitor,
            traffic,
            is_mesh_service,
            subset_size,
            tls,
            ..config
        })
    }

    /// Serves until shutdown is requested, then drains: calls in flight end, background tasks end, the last events are
    /// sent.
    ///
    /// # Errors
    /// The listener failed, or the settings allow no server on that address.
    pub fn serve(
        self,
        served: Served,
        listener: TcpListener,
        admin: Option<TcpListener>,
    ) -> BoxFuture<'static, Result<(), Error>> {
        // Boxed, so that it is compiled here and not by each service.
        Box::pin(self.serve_until_shutdown(served, listener, admin))
    }

    async fn serve_until_shutdown(
        self,
        served: Served,
        listener: TcpListener,
        admin_listener: Option<TcpListener>,
    ) -> Result<(), Error> {
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
        let services = [served.health_services, &[admin::SERVICE_NAME]].concat();
        let config = ServerConfig {
            tls: self.identity.as_ref().map(Identity::server),
            events: Some(self.events.clone()),
            descriptors: &[contracts::DESCRIPTORS],
            monitor: self.monitor.clone(),
            traffic: self.traffic.clone(),
            store_id: self.store_id().await,
            services: services.clone(),
            rate_limits: served.rate_limits.clone(),
            trust_client_trace_context: settings.telemetry.trust_client_trace_context,
            ..settings.server.configure(ServerConfig::new(self.service, contracts::POLICIES, authorizer))
        };
        let admin = Admin {
            service: self.service,
            instance: self.instance.clone(),
            monitor: self.monitor.clone(),
            traffic: self.traffic.clone(),
            identity: self.identity.clone(),
            driver: served.driver,
            started: self.started,
            clock: self.clock.clone(),
            db: self.db.clone(),
            policies: contracts::POLICIES.of(&services),
            quotas: served.rate_limits,
            max_message_bytes: config.max_message_bytes,
            shutdown_requested: self.shutdown_requested.clone(),
            shutdown: self.shutdown.clone(),
        };
        let routes = served.routes.add_service(admin.into_server());
        self.store_events(events::in_outbox(self.db.clone()));
        let ((ready, is_ready), (alive, is_alive)) = (watch::channel(true), watch::channel(true));
        let health = health::Health { ready, alive };
        self.tasks.spawn(health::watch(self.db.clone(), self.clock.clone(), self.shutdown_requested.clone(), health));
        if let Some(admin_listener) = admin_listener {
            tokio::spawn(mesh::serve_admin(admin_listener, is_ready.clone(), is_alive, self.drained.clone()));
        }
        tracing::info!(target: "ordermesh", "{} listens on {listen}", self.instance);
        let (shutdown_requested, drain) =
            (self.shutdown_requested.clone(), settings.server.pre_drain_delay + settings.server.drain_timeout);
        let end = tokio::spawn(async move {
            shutdown_requested.cancelled().await;
            Instant::now() + drain
        });
        let result = mesh::server(config, routes).serve(listener, is_ready, self.shutdown_requested.clone()).await;
        // Also when the server failed without a requested shutdown.
        self.shutdown_requested.cancel();
        self.shutdown.cancel();
        self.tasks.close();
        // The tasks' deadline began with the server's, so the time that the server has used is gone for them too.
        let end = end.await.unwrap_or_else(|_| Instant::now()).max(Instant::now() + MIN_TASK_TIME);
        if tokio::time::timeout_at(end, self.tasks.wait()).await.is_err() {
            tracing::warn!(target: "ordermesh", "background tasks did not end in time");
        }
        self.drained.cancel();
        if tokio::time::timeout(FLUSH_TIMEOUT, self.flush()).await.is_err() {
            tracing::warn!(target: "ordermesh", "the last events were not written and sent in time; those in the outbox are sent by another instance");
        }
        tracing::info!(target: "ordermesh", "{} has ended", self.instance);
        result.map_err(Error::Serve)
    }
}

impl Chassis {
    /// The id of the database, for callers that split their calls; `None` if it has none.
    async fn store_id(&self) -> Option<String> {
        let id = self.db.store_id().await;
        id.inspect_err(|error| tracing::warn!(target: "ordermesh", "the database shows no id, callers cannot split their calls: {error}")).ok()
    }

    /// Writes the last events to the outbox, and sends them to the Data Service.
    async fn flush(&self) {
        self.writer.close();
        self.writer.wait().await;
        self.written.cancel();
        self.relay.close();
        self.relay.wait().await;
    }
}

/// Background work continues during the pre-drain delay: work that arrives until then is still done here.
async fn cancel_after_delay(shutdown_requested: CancellationToken, delay: Duration, shutdown: CancellationToken) {
    shutdown_requested.cancelled().await;
    tokio::time::sleep(delay).await;
    shutdown.cancel();
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn background_work_continues_during_the_pre_drain_delay() {
        let (shutdown_requested, shutdown) = (CancellationToken::new(), CancellationToken::new());
        let began = Instant::now();
        tokio::spawn(cancel_after_delay(shutdown_requested.clone(), Duration::from_secs(5), shutdown.clone()));
        shutdown_requested.cancel();
        shutdown.cancelled().await;
        assert_eq!(began.elapsed(), Duration::from_secs(5));
    }
}
