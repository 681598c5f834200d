//! The settings of the User Service.

use std::path::PathBuf;
use std::time::Duration;

use chassis::settings::{duration, quota};
use chassis::{DatabaseUrl, Settings};
use mesh::Quota;

use crate::throttle::Limits;
use crate::users::Lifetimes;

/// The User Service's settings.
#[derive(clap::Args, Clone, Debug)]
pub struct Config {
    /// The settings common to all services.
    #[command(flatten)]
    pub common: Settings,
    /// bcrypt cost: 2 to the power of it rounds; 12 takes about 0.3 s of a processor
    #[arg(long, env = "ORDERMESH_USER_BCRYPT_COST", default_value_t = 12, value_parser = clap::value_parser!(u32).range(4..=20), value_name = "COST")]
    pub bcrypt_cost: u32,
    /// Maximum passwords waiting for a processor; when the queue is full, the newest one of the address with the most waiting is rejected
    #[arg(long, env = "ORDERMESH_USER_BCRYPT_QUEUE", default_value_t = 64, value_name = "COUNT")]
    pub bcrypt_queue: u16,
    /// Failed log-ins per account and client network that are admitted as a burst; also the maximum of concurrent ones
    #[arg(long, env = "ORDERMESH_USER_LOGIN_FAILURES", default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..), value_name = "COUNT")]
    pub login_failures: u32,
    /// How long it takes after that until one more log-in is admitted
    #[arg(long, env = "ORDERMESH_USER_LOGIN_FAILURE_INTERVAL", default_value = "10s", value_parser = duration, value_name = "DURATION")]
    pub login_failure_interval: Duration,
    /// Maximum pairs of account and client network whose failures are remembered
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
    pub(crate) fn keys_dir(&self) -> PathBuf {
        self.keys_dir.clone().unwrap_or_else(|| self.common.data_dir.join("keys"))
    }

    pub(crate) fn generate_keys(&self) -> bool {
        let on_one_machine = !self.common.database.url.as_ref().is_some_and(DatabaseUrl::is_server);
        self.generate_keys.unwrap_or(on_one_machine)
    }

    pub(crate) fn limits(&self) -> Limits {
        Limits {
            failures: self.login_failures,
            interval: self.login_failure_interval,
            max_remembered: usize::try_from(self.login_failures_remembered).unwrap_or(usize::MAX),
        }
    }

    /// Per caller and instance. Behind a load balancer that hides client addresses, all anonymous callers are one
    /// caller.
    pub(crate) fn rate_limits(&self) -> Vec<(&'static str, Quota)> {
        let login = self.login_quota.map(|quota| ("/user.v1.UserService/Login", quota));
        let change = self.login_quota.map(|quota| ("/user.v1.UserService/ChangePassword", quota));
        let register = self.register_quota.map(|quota| ("/user.v1.UserService/Register", quota));
        login.into_iter().chain(change).chain(register).collect()
    }

    pub(crate) fn lifetimes(&self) -> Lifetimes {
        Lifetimes {
            access_token: self.access_token_lifetime,
            session: self.session_lifetime,
            refresh_grace: self.refresh_grace,
        }
    }
}
