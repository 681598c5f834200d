//! The User Service: accounts, passwords, sessions, and the keys that sign access tokens.
//!
//! # Layout
//! - [`run`]: start-up; `settings`: flags and environment
//! - `service`, `convert`: the calls (decode, domain, encode) and the rules of their fields
//! - `users`: the use cases; start reading here
//! - `account`, `password`, `hashing_permits`, `session`, `token`, `keys`, `throttle`, `operator`, `retention`: the domain, one
//!   file per concept
//! - `store`, `entity`, `migration`: the tables
//! - [`invariants`]: what `ordermesh verify` checks
//! - [`error`]: why a call is rejected
//!
//! It depends on no other service, so there is no `ports`.

#![expect(missing_docs, reason = "no other project depends on this crate: names say what there is to say")]

mod account;
mod convert;
mod entity;
pub mod error;
mod hashing_permits;
pub mod invariants;
mod keys;
mod migration;
mod operator;
mod password;
mod retention;
mod service;
mod session;
mod settings;
mod store;
mod throttle;
mod token;
mod users;

use std::sync::Arc;

use chassis::{Chassis, Served};
use contracts::user::v1::user_service_server::UserServiceServer;
use kernel::Clock;
use kernel::error::chain;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tonic::service::Routes;

pub use error::Error;
pub use migration::MIGRATIONS;
pub use operator::create_operator;
pub use settings::Config;

use crate::keys::{KeyStore, OwnKeys};
use crate::operator::{Bootstrap, Credentials};
use crate::password::Passwords;
use crate::service::UserHandlers;
use crate::store::Store;
use crate::throttle::Throttle;
use crate::users::Users;

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
    let operator = operator.map_err(|error| chassis::Error::Setting(chain(&error)))?;
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
    chassis.tasks.spawn(retention::run(store.clone(), chassis.clock.clone(), chassis.shutdown.clone()));
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
    let routes = Routes::new(UserServiceServer::new(UserHandlers(Arc::new(users))));
    let served = Served {
        routes,
        health_services: &["user.v1.UserService"],
        keys: Arc::new(OwnKeys(keys)),
        rate_limits: config.rate_limits(),
        driver: None,
    };
    chassis.serve(served, listener, admin).await
}

async fn open_keys(config: &Config, clock: Arc<dyn Clock>) -> Result<Arc<KeyStore>, chassis::Error> {
    let (directory, generate) = (config.keys_dir(), config.generate_keys());
    let open = tokio::task::spawn_blocking(move || KeyStore::open(directory, generate, clock));
    let opened = open.await.map_err(|error| chassis::Error::Service(error.to_string()))?;
    opened.map(Arc::new).map_err(|error| chassis::Error::Setting(chain(&error)))
}
