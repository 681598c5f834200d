//! The User Service: accounts, passwords, sessions, and the keys that sign access tokens.
//!
//! # Layout
//! - [`Config`] and [`run`]: settings and start-up
//! - `service`, `convert`: the calls (decode, act, encode) and the rules of their fields
//! - `users`: the use cases; start reading here
//! - `account`, `password`, `slots`, `session`, `token`, `keys`, `throttle`, `operator`: the domain, one file per
//!   concept
//! - `store`, `entity`, `migration`: the tables
//! - [`error`]: why a call is rejected
//!
//! It depends on no other service, so there is no `ports`.

mod account;
pub mod audit;
mod convert;
mod entity;
pub mod error;
mod keys;
mod migration;
mod operator;
mod password;
mod service;
mod session;
mod slots;
mod store;
mod throttle;
mod token;
mod users;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use chassis::settings::{duration, quota};
use chassis::{Chassis, Served, audit as chassis_audit};
use contracts::user::v1::user_service_server::UserServiceServer;
use kernel::{Clock, SystemClock, SystemIds, UserId};
use mesh::Quota;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tonic::service::Routes;

pub use error::Error;
pub use migration::MIGRATIONS;

use crate::keys::{KeyStore, OwnKeys};
use crate::operator::{Bootstrap, Credentials};
use crate::password::Passwords;
use crate::service::Service;
use crate::store::Store;
use crate::throttle::{Limits, Throttle};
use crate::users::{Lifetimes, Users};

/// How often expired sessions are deleted, and how many per batch.
const SWEEP_INTERVAL: Duration = Duration::from_secs(600);
const SWEEP_BATCH: u32 = 1_000;

/// The User Service's settings.
#[derive(clap::Args, Clone, Debug)]
pub struct Config {
    /// The settings common to all services.
    #[command(flatten)]
    pub common: chassis::Settings,
    /// bcrypt cost: 2 to the power of it rounds; 12 takes about 0.3 s of a processor
    #[arg(long, env = "ORDERMESH_USER_BCRYPT_COST", default_value_t = 12, value_parser = clap::value_parser!(u32).range(4..=20), value_name = "COST")]
    pub bcrypt_cost: u32,
    /// Maximum passwords waiting for a processor; when the queue is full, the newest one of the address with the most waiting is rejected
    #[arg(long, env = "ORDERMESH_USER_BCRYPT_QUEUE", default_value_t = 64, value_name = "COUNT")]
    pub bcrypt_queue: u16,
    /// Maximum failed log-ins in a row per account and address; also the maximum of concurrent ones
    #[arg(long, env = "ORDERMESH_USER_LOGIN_FAILURES", default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..), value_name = "COUNT")]
    pub login_failures: u32,
    /// How long it takes after that until one more log-in is admitted
    #[arg(long, env = "ORDERMESH_USER_LOGIN_FAILURE_INTERVAL", default_value = "10s", value_parser = duration, value_name = "DURATION")]
    pub login_failure_interval: Duration,
    /// Maximum pairs of account and address whose failures are remembered
    #[arg(long, env = "ORDERMESH_USER_LOGIN_FAILURES_REMEMBERED", default_value_t = 20_000, value_parser = clap::value_parser!(u32).range(1..), value_name = "COUNT")]
    pub login_failures_remembered: u32,
    /// Rate limit per caller for log-ins and for password changes, for example 20/s, 100/m [default: unlimited]
    #[arg(long, env = "ORDERMESH_USER_LOGIN_QUOTA", value_parser = quota, value_name = "COUNT/UNIT")]
    pub login_quota: Option<Quota>,
    /// Rate limit per caller for registrations [default: unlimited]
    #[arg(long, env = "ORDERMESH_USER_REGISTER_QUOTA", value_parser = quota, value_name = "COUNT/UNIT")]
    pub register_quota: Option<Quota>,
    /// Lifetime of an access token
    #[arg(long, env = "ORDERMESH_USER_ACCESS_TOKEN_LIFETIME", default_value = "15m", value_parser = duration, value_name = "DURATION")]
    pub access_token_lifetime: Duration,
    /// Lifetime of a session
    #[arg(long, env = "ORDERMESH_USER_SESSION_LIFETIME", default_value = "30d", value_parser = duration, value_name = "DURATION")]
    pub session_lifetime: Duration,
    /// How long the previous refresh token is still accepted, any number of times
    #[arg(long, env = "ORDERMESH_USER_REFRESH_GRACE", default_value = "30s", value_parser = duration, value_name = "DURATION")]
    pub refresh_grace: Duration,
    /// Folder of the keys that sign access tokens: SECONDS.pem (Unix time of creation), Ed25519 in PKCS#8 [default: DATA_DIR/keys]
    #[arg(long, env = "ORDERMESH_USER_KEYS_DIR", value_name = "DIR")]
    pub keys_dir: Option<PathBuf>,
    /// Generate the first key if there is none [default: true on SQLite, false on PostgreSQL]
    #[arg(long, env = "ORDERMESH_USER_GENERATE_KEYS", num_args = 0..=1, default_missing_value = "true", value_name = "BOOL")]
    pub generate_keys: Option<bool>,
    /// File with the line `EMAIL PASSWORD`: an operator's account that is created at startup if it is missing
    #[arg(long, env = "ORDERMESH_USER_BOOTSTRAP_OPERATOR_FILE", value_name = "FILE")]
    pub bootstrap_operator_file: Option<PathBuf>,
}

impl Config {
    fn keys_dir(&self) -> PathBuf {
        self.keys_dir.clone().unwrap_or_else(|| self.common.data_dir.join("keys"))
    }

    fn generate_keys(&self) -> bool {
        let on_one_machine = !self.common.database.url.as_ref().is_some_and(chassis::DatabaseUrl::is_server);
        self.generate_keys.unwrap_or(on_one_machine)
    }

    fn limits(&self) -> Limits {
        Limits {
            failures: self.login_failures,
            interval: self.login_failure_interval,
            max_remembered: usize::try_from(self.login_failures_remembered).unwrap_or(usize::MAX),
        }
    }

    /// Per caller and instance. Behind a load balancer that hides client addresses, all anonymous callers are one
    /// caller.
    fn rate_limits(&self) -> Vec<(&'static str, Quota)> {
        let login = self.login_quota.map(|quota| ("/user.v1.UserService/Login", quota));
        let change = self.login_quota.map(|quota| ("/user.v1.UserService/ChangePassword", quota));
        let register = self.register_quota.map(|quota| ("/user.v1.UserService/Register", quota));
        login.into_iter().chain(change).chain(register).collect()
    }

    fn lifetimes(&self) -> Lifetimes {
        Lifetimes {
            access_token: self.access_token_lifetime,
            session: self.session_lifetime,
            refresh_grace: self.refresh_grace,
        }
    }
}

/// Serves until shutdown is requested.
///
/// # Errors
/// The database, the signing keys or the operator's file cannot be used, or the listener failed.
pub async fn run(
    config: Config,
    listener: TcpListener,
    admin: Option<TcpListener>,
    shutdown: CancellationToken,
) -> Result<(), chassis::Error> {
    let operator = config.bootstrap_operator_file.as_deref().map(Credentials::from_file).transpose();
    let operator = operator.map_err(|error| chassis::Error::Setting(kernel::error::chain(&error)))?;
    let chassis = Chassis::start("user", &config.common, migration::MIGRATIONS, shutdown).await?;
    let keys = open_keys(&config, chassis.clock.clone()).await?;
    let store = Store::new(chassis.db.clone());
    let passwords = Passwords::new(config.bcrypt_cost, config.bcrypt_queue.into());
    let bootstrap = operator.map(|credentials| {
        let (bootstrap, work) = Bootstrap::new(store.clone(), passwords.clone(), credentials, chassis.events.clone());
        chassis.tasks.spawn(work);
        bootstrap
    });
    chassis.tasks.spawn(keys.clone().keep_reloading(chassis.shutdown.clone()));
    chassis.tasks.spawn(sweep(store.clone(), chassis.clock.clone(), chassis.shutdown.clone()));
    let users = Users {
        store,
        passwords,
        throttle: Throttle::new(config.limits(), chassis.clock.clone()),
        keys: keys.clone(),
        bootstrap,
        clock: chassis.clock.clone(),
        ids: chassis.ids.clone(),
        lifetimes: config.lifetimes(),
    };
    let routes = Routes::new(UserServiceServer::new(Service(Arc::new(users))));
    let served = Served {
        routes,
        health_services: &["user.v1.UserService"],
        keys: Arc::new(OwnKeys(keys)),
        rate_limits: config.rate_limits(),
    };
    chassis.serve(served, listener, admin).await
}

/// Creates an operator's account in the database of these settings, after migrating its schema. For `ordermesh operator
/// create`: no call creates an operator.
///
/// # Errors
/// The e-mail or the password breaks the rules, the e-mail is taken, or the database failed.
pub async fn create_operator(config: &Config, email: &str, password: &str) -> Result<UserId, Error> {
    let credentials = Credentials::checked(email, password)?;
    let db = config.common.open_database("user", migration::MIGRATIONS).await?;
    let passwords = Passwords::new(config.bcrypt_cost, 0);
    let operation = chassis_audit::of_command(operator::CREATE, Arc::new(chassis_audit::CommandSink("user")));
    operator::create(&Store::new(db), &passwords, credentials, &SystemClock, &SystemIds, &operation).await
}

async fn open_keys(config: &Config, clock: Arc<dyn Clock>) -> Result<Arc<KeyStore>, chassis::Error> {
    let (directory, generate) = (config.keys_dir(), config.generate_keys());
    let open = tokio::task::spawn_blocking(move || KeyStore::open(directory, generate, clock));
    let opened = open.await.map_err(|error| chassis::Error::Service(error.to_string()))?;
    opened.map(Arc::new).map_err(|error| chassis::Error::Setting(kernel::error::chain(&error)))
}

/// Deletes expired sessions.
async fn sweep(store: Store, clock: Arc<dyn Clock>, stop: CancellationToken) {
    while tokio::time::timeout(SWEEP_INTERVAL, stop.cancelled()).await.is_err() {
        loop {
            match store.delete_expired_sessions(clock.now(), SWEEP_BATCH).await {
                Ok(deleted) if deleted == u64::from(SWEEP_BATCH) && !stop.is_cancelled() => {}
                Ok(_) => break,
                Err(error) => {
                    tracing::warn!(target: "ordermesh", "expired sessions could not be deleted: {}", kernel::error::chain(&error));
                    break;
                }
            }
        }
    }
}
