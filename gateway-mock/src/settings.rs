//! The gateway's settings.

use std::path::PathBuf;
use std::str::FromStr;
use std::sync::Arc;

use chassis::{DatabaseSettings, ServerSettings, TelemetrySettings, TlsSettings};
use kernel::SystemClock;
use mesh::SharedSecret;
use mesh::tls::Identity;
use storage::{Database, ownership};

use crate::error::SERVICE;
use crate::fault::FaultSettings;
use crate::migration::MIGRATIONS;

/// The gateway's settings, each a flag and an environment variable.
#[derive(clap::Args, Clone, Debug)]
pub struct Config {
    /// The gRPC server and its limits.
    #[command(flatten)]
    pub server: ServerSettings,
    /// Folder of the SQLite file
    #[arg(long, env = "ORDERMESH_DATA_DIR", default_value = "data", value_name = "DIR")]
    pub data_dir: PathBuf,
    /// The ledger.
    #[command(flatten)]
    pub database: DatabaseSettings,
    /// The gateway's certificate; merchants' certificates are optional.
    #[command(flatten)]
    pub tls: TlsSettings,
    /// Traces, metrics and logs.
    #[command(flatten)]
    pub telemetry: TelemetrySettings,
    /// The merchant's API key, 1 to 255 visible ASCII characters. Better set by environment or file: flags are visible to all local users
    #[arg(long, env = "GATEWAY_API_KEY", hide_env_values = true, value_name = "KEY")]
    pub api_key: Option<ApiKey>,
    /// File with the merchant's API key; read if --api-key is not set. One of the two is required
    #[arg(long, env = "GATEWAY_API_KEY_FILE", value_name = "FILE")]
    pub api_key_file: Option<PathBuf>,
    #[command(flatten)]
    pub faults: FaultSettings,
}

/// A merchant's API key.
#[derive(Clone, Debug)]
pub struct ApiKey(pub(crate) SharedSecret);

impl FromStr for ApiKey {
    type Err = String;

    fn from_str(key: &str) -> Result<Self, String> {
        let key = key.trim();
        if (1..=255).contains(&key.len()) && key.bytes().all(|byte| byte.is_ascii_graphic()) {
            Ok(Self(SharedSecret::new(key)))
        } else {
            Err("an API key is 1 to 255 visible ASCII characters".to_owned())
        }
    }
}

impl Config {
    /// The ledger, with its schema migrated.
    ///
    /// # Errors
    /// It cannot be used.
    pub async fn open_ledger(&self) -> Result<Database, storage::Error> {
        self.database.open(SERVICE, self.data_dir.join("gateway.db"), MIGRATIONS).await
    }

    pub(crate) fn api_key(&self) -> Result<SharedSecret, chassis::Error> {
        if let Some(ApiKey(key)) = &self.api_key {
            return Ok(key.clone());
        }
        let Some(path) = &self.api_key_file else {
            let hint = "an API key is required: set GATEWAY_API_KEY or GATEWAY_API_KEY_FILE";
            return Err(chassis::Error::Setting(hint.to_owned()));
        };
        ownership::check_secret(path)?;
        let text = std::fs::read_to_string(path).map_err(|error| error.to_string());
        let key = text.and_then(|text| text.parse::<ApiKey>());
        let unusable = |why| chassis::Error::Setting(format!("the API key's file {}: {why}", path.display()));
        key.map(|ApiKey(key)| key).map_err(unusable)
    }

    pub(crate) fn identity(&self) -> Result<Option<Identity>, chassis::Error> {
        let Some(files) = self.tls.files() else { return Ok(None) };
        ownership::check_secret(&files.key)?;
        Ok(Some(Identity::load(files, &self.tls.trust_domain, Arc::new(SystemClock))?))
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Cli {
        #[command(flatten)]
        config: Config,
    }

    fn config(flags: &[&str]) -> Config {
        Cli::try_parse_from([&["gateway"], flags].concat()).expect("flags").config
    }

    #[test]
    fn settings_do_not_show_their_secrets() {
        let config = config(&["--api-key=hunter2", "--database-url=postgres://gateway:hunter2@db/gateway"]);
        let shown = format!("{config:?}");
        assert!(!shown.contains("hunter2"), "{shown}");
        assert!(shown.contains("127.0.0.1:0"), "{shown}");
    }

    #[test]
    fn an_api_key_is_required_and_validated() {
        let missing = config(&[]).api_key().expect_err("no key");
        assert!(missing.is_configuration() && missing.to_string().contains("GATEWAY_API_KEY_FILE"), "{missing}");
        for key in ["", " ", "two words", "schl\u{fc}ssel"] {
            assert!(key.parse::<ApiKey>().is_err(), "{key}");
        }
        assert!(config(&["--api-key=test-key"]).api_key().is_ok());
        let missing = config(&["--api-key-file=no/such/file"]).api_key().expect_err("no file");
        assert!(missing.is_configuration() && missing.to_string().contains("no/such/file"), "{missing}");
    }
}
