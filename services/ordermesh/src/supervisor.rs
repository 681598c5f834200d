//! A system on this machine: the gateway and a number of instances of each service, as child processes of this program.

use std::ffi::{OsStr, OsString};
use std::net::{SocketAddr, TcpListener};
use std::path::PathBuf;
use std::time::Duration;

use chassis::{DatabaseUrl, TrafficSettings};
use futures_util::future::join_all;
use kernel::{Clock, SystemClock};
use telemetry::{Environment, SetupError};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::certificates::Certificates;
use crate::child::{self, Misconfigured, Pids, Spec};
use crate::data_dir::DataDir;
use crate::error::Error;
use crate::forwarded_args::ForwardedArgs;
use crate::out;
use crate::probe;
use crate::service::Service;

/// The certificates are valid for 90 days.
const RENEW_INTERVAL: Duration = Duration::from_secs(30 * 86_400);
const LOOK_INTERVAL: Duration = Duration::from_secs(3_600);

/// The system to start.
#[derive(Clone, Debug)]
pub(crate) struct SystemConfig {
    /// The first port is a hundred above it.
    pub(crate) port_base: u16,
    /// The number of instances of each service.
    pub(crate) instances: u16,
    /// The folder of databases and secrets.
    pub(crate) data_dir: PathBuf,
    /// PostgreSQL for all services, instead of SQLite files.
    pub(crate) database_url: Option<DatabaseUrl>,
    /// Mutual TLS, with generated certificates, instead of a shared secret.
    pub(crate) tls: bool,
    /// The children's log filter.
    pub(crate) log: String,
    /// What is changed of the services' calls at run time.
    pub(crate) traffic: TrafficSettings,
    /// Forwarded settings of single services.
    pub(crate) forwarded: ForwardedArgs,
    /// Suppresses all output.
    pub(crate) quiet: bool,
    /// Restarts crashed children without backoff.
    pub(crate) restarts_at_once: bool,
}

/// A running system. Its processes are stopped when it is dropped.
#[derive(Debug)]
pub(crate) struct Supervisor {
    pub(crate) data_dir: DataDir,
    pids: Pids,
    misconfigured: Misconfigured,
    admins: Vec<SocketAddr>,
    /// In the order of shutdown: Order needs Payment and User while it drains, and all need the gateway or Data.
    groups: [Group; 3],
}

#[derive(Debug, Default)]
struct Group {
    children: TaskTracker,
    stop: CancellationToken,
}

impl Group {
    async fn stop(&self) {
        self.stop.cancel();
        self.children.close();
        self.children.wait().await;
    }
}

impl Supervisor {
    /// Starts the system's processes; they may not be ready yet.
    ///
    /// # Errors
    /// A port is taken; the data folder cannot be used. Then no process runs.
    pub(crate) fn start(config: &SystemConfig) -> Result<Self, Error> {
        // Validated here: a child that rejects a variable would be restarted again and again.
        let environment = Environment::of_process(None).map_err(SetupError::from)?;
        environment.check_files().map_err(SetupError::from)?;
        check_ports(config)?;
        let data_dir = DataDir::prepare(&config.data_dir)?;
        let certificates = if config.tls { Some(data_dir.certificates()?) } else { None };
        let program = std::env::current_exe().map_err(|source| Error::Spawn("this program".into(), source))?;
        let supervisor = Self {
            admins: each(config).map(|(service, instance)| service.admin_address(config.port_base, instance)).collect(),
            pids: Pids::default(),
            misconfigured: Misconfigured::default(),
            groups: Default::default(),
            data_dir,
        };
        for (service, instance) in each(config) {
            let group = match service {
                Service::Order => &supervisor.groups[0],
                Service::User | Service::Payment => &supervisor.groups[1],
                Service::Data | Service::Gateway => &supervisor.groups[2],
            };
            let spec = Spec {
                name: format!("{service}-{instance}"),
                program: program.clone(),
                args: args(config, &supervisor.data_dir, service),
                env: env(config, &supervisor.data_dir, certificates.as_ref(), service, instance)
                    .into_iter()
                    .chain(service_name(&environment, service))
                    .chain(config.forwarded.secrets_of(service))
                    .collect(),
                quiet: config.quiet,
                restarts_at_once: config.restarts_at_once,
                pids: supervisor.pids.clone(),
                misconfigured: supervisor.misconfigured.clone(),
            };
            group.children.spawn(child::keep(spec, group.stop.clone()));
        }
        if config.tls {
            let last = &supervisor.groups[2];
            last.children.spawn(renew(supervisor.data_dir.clone(), last.stop.clone()));
        }
        Ok(supervisor)
    }

    /// Completes when every process is ready.
    pub(crate) async fn ready(&self) {
        join_all(self.admins.iter().map(|admin| probe::until_ready(*admin))).await;
    }

    /// Completes with the name of a process that exited because of invalid settings.
    pub(crate) async fn misconfigured(&self) -> String {
        self.misconfigured.name().await
    }

    /// The number of processes.
    pub(crate) fn processes(&self) -> usize {
        self.admins.len()
    }

    /// The running processes of a service's instances.
    pub(crate) fn pids_of(&self, service: Service) -> Vec<u32> {
        self.pids.of(service.name())
    }

    /// SIGKILL of all processes; none is restarted.
    pub(crate) async fn kill(self) {
        self.groups.iter().for_each(|group| group.stop.cancel());
        self.pids.kill_all();
        self.stop().await;
    }

    /// Drains all processes, dependents first.
    pub(crate) async fn stop(self) {
        for group in &self.groups {
            group.stop().await;
        }
    }
}

/// Renews the certificates long before they expire; the services reload them on their own.
async fn renew(data_dir: DataDir, stop: CancellationToken) {
    let mut due = SystemClock.now().plus(RENEW_INTERVAL);
    // Compares wall-clock times: the monotonic clock stops while a laptop is suspended.
    while stop.run_until_cancelled(tokio::time::sleep(LOOK_INTERVAL)).await.is_some() {
        if SystemClock.now() < due {
            continue;
        }
        match data_dir.certificates() {
            Ok(_) => due = SystemClock.now().plus(RENEW_INTERVAL),
            Err(error) => out::say(format_args!("ordermesh: renewing the certificates failed: {}", error.report())),
        }
    }
}

/// Every process of the system.
fn each(config: &SystemConfig) -> impl Iterator<Item = (Service, u16)> {
    let instances_per_service = config.instances;
    // The gateway and Data first: the others depend on them.
    let order = [Service::Gateway, Service::Data, Service::User, Service::Payment, Service::Order];
    order.into_iter().flat_map(move |service| {
        (1..=service.instances(instances_per_service)).map(move |instance| (service, instance))
    })
}

/// The flags of a service's processes; forwarded settings come last.
fn args(config: &SystemConfig, data_dir: &DataDir, service: Service) -> Vec<OsString> {
    let mut args: Vec<OsString> = vec![service.name().into()];
    match service {
        Service::User => {
            if let Some(file) = data_dir.operator_file() {
                args.extend(["--bootstrap-operator-file".into(), file.into()]);
            }
        }
        // Both insert only into empty tables.
        Service::Data | Service::Order => args.push("--demo-catalog".into()),
        Service::Payment | Service::Gateway => {}
    }
    args.extend(config.forwarded.of(service).iter().cloned());
    args
}

/// The environment of a process: addresses, and the locations of secrets.
fn env(
    config: &SystemConfig,
    data_dir: &DataDir,
    certificates: Option<&Certificates>,
    service: Service,
    instance: u16,
) -> Vec<(String, OsString)> {
    let mut env: Vec<(String, OsString)> = vec![
        ("ORDERMESH_LISTEN".into(), service.address(config.port_base, instance).to_string().into()),
        ("ORDERMESH_ADMIN_LISTEN".into(), service.admin_address(config.port_base, instance).to_string().into()),
        ("ORDERMESH_INSTANCE".into(), format!("{service}-{instance}").into()),
        ("ORDERMESH_LOG".into(), config.log.clone().into()),
        ("ORDERMESH_TRUST_CLIENT_TRACE_CONTEXT".into(), "true".into()),
        ("ORDERMESH_DATA_DIR".into(), data_dir.path().into()),
    ];
    if let Some(certificates) = certificates {
        let files = certificates.of(service.name());
        env.push(("ORDERMESH_TLS_CERT".into(), files.certificate.into()));
        env.push(("ORDERMESH_TLS_KEY".into(), files.key.into()));
        env.push(("ORDERMESH_TLS_CA".into(), files.roots.into()));
    }
    if let Some(url) = &config.database_url {
        env.push(("ORDERMESH_DATABASE_URL".into(), url.as_str().into()));
        // All instances are on this machine, and share the keys' folder.
        env.push(("ORDERMESH_USER_GENERATE_KEYS".into(), "true".into()));
    }
    if service == Service::Gateway {
        // It is external: it has neither the mesh secret nor the services' addresses.
        env.push(("GATEWAY_API_KEY_FILE".into(), data_dir.gateway_key().into()));
        return env;
    }
    if let Some(file) = &config.traffic.traffic_policy {
        env.push(("ORDERMESH_TRAFFIC_POLICY".into(), file.into()));
    }
    env.push(("ORDERMESH_ALLOW_FAULTS".into(), config.traffic.allow_faults.to_string().into()));
    if certificates.is_none() {
        env.push(("ORDERMESH_MESH_SECRET_FILE".into(), data_dir.path().join("mesh.secret").into()));
    }
    for peer in [Service::User, Service::Order, Service::Payment, Service::Data] {
        let addresses = peer.addresses(config.port_base, config.instances).join(",");
        env.push((format!("ORDERMESH_{}_ADDRESSES", peer.name().to_uppercase()), addresses.into()));
    }
    if service == Service::Payment {
        let gateway = Service::Gateway.addresses(config.port_base, 1).join(",");
        env.push(("ORDERMESH_PAYMENT_GATEWAY_ADDRESSES".into(), gateway.into()));
        env.push(("ORDERMESH_PAYMENT_GATEWAY_API_KEY_FILE".into(), data_dir.gateway_key().into()));
    }
    env
}

/// Whether the system sets this variable of its processes, whatever it has inherited.
pub(crate) fn is_provided(variable: &OsStr) -> bool {
    const PROVIDED: [&str; 10] = [
        "LISTEN",
        "ADMIN_LISTEN",
        "INSTANCE",
        "LOG",
        "TRUST_CLIENT_TRACE_CONTEXT",
        "DATA_DIR",
        "DATABASE_URL",
        "USER_GENERATE_KEYS",
        "PAYMENT_GATEWAY_ADDRESSES",
        "PAYMENT_GATEWAY_API_KEY_FILE",
    ];
    let name = variable.to_str().unwrap_or_default();
    name == "GATEWAY_API_KEY_FILE"
        || name.strip_prefix("ORDERMESH_").is_some_and(|name| {
            let peer = name.strip_suffix("_ADDRESSES").map(str::to_lowercase);
            PROVIDED.contains(&name) || peer.is_some_and(|peer| Service::named(&peer).is_some())
        })
}

/// `service.name` of a service's processes: the inherited name is that of the whole system, and becomes a prefix.
fn service_name(environment: &Environment, service: Service) -> Option<(String, OsString)> {
    let prefix = environment.service_name()?;
    Some(("OTEL_SERVICE_NAME".to_owned(), format!("{prefix}-{service}").into()))
}

/// Checks every port before anything is started: a half-started system is of no use.
fn check_ports(config: &SystemConfig) -> Result<(), Error> {
    for (service, instance) in each(config) {
        for address in [service.address(config.port_base, instance), service.admin_address(config.port_base, instance)]
        {
            TcpListener::bind(address).map_err(|source| Error::Listen {
                who: format!("{service}-{instance}"),
                address,
                hint: "choose other ports with --port-base (and another --data-dir), for example --port-base 17000",
                source,
            })?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(port_base: u16, data_dir: PathBuf) -> SystemConfig {
        let (_, forwarded) = crate::forwarded_args::split(["--order.lease".into(), "1s".into()]);
        SystemConfig {
            port_base,
            instances: 2,
            data_dir,
            database_url: None,
            tls: false,
            log: "warn".into(),
            traffic: TrafficSettings::default(),
            forwarded,
            quiet: true,
            restarts_at_once: false,
        }
    }

    #[test]
    fn a_taken_port_is_reported_and_nothing_is_started() {
        let temporary = tempfile::tempdir().expect("a folder");
        let base = crate::ports::free_port_base(2).expect("free ports");
        let _taken = TcpListener::bind(Service::Payment.admin_address(base, 2)).expect("free");
        let data_dir = temporary.path().join("data");
        let error = Supervisor::start(&config(base, data_dir.clone())).expect_err("the port is taken").to_string();
        let port = Service::Payment.admin_address(base, 2).to_string();
        assert!(error.contains(&port) && error.contains("payment-2") && error.contains("--port-base"), "{error}");
        assert!(!data_dir.exists());
    }

    #[test]
    fn the_environments_service_name_becomes_a_prefix() {
        let named = |name: &'static str| {
            let environment = Environment::read(None, |variable| (variable == name).then(|| "shop".into()));
            service_name(&environment.expect("good"), Service::Order)
        };
        let expected = Some(("OTEL_SERVICE_NAME".to_owned(), OsString::from("shop-order")));
        assert_eq!(named("OTEL_SERVICE_NAME"), expected);
        assert_eq!(named("OTEL_NOTHING"), None);
    }

    #[test]
    fn each_process_gets_its_address_all_addresses_and_its_forwarded_settings() {
        let temporary = tempfile::tempdir().expect("a folder");
        let config = config(7000, temporary.path().join("data"));
        let data_dir = DataDir::prepare(&config.data_dir).expect("prepared");
        let env = env(&config, &data_dir, None, Service::Order, 2);
        let value = |name: &str| env.iter().find(|(key, _)| key == name).and_then(|(_, value)| value.to_str());
        assert_eq!(value("ORDERMESH_LISTEN"), Some("127.0.0.1:7202"));
        assert_eq!(value("ORDERMESH_ADMIN_LISTEN"), Some("127.0.0.1:8202"));
        assert_eq!(value("ORDERMESH_DATA_ADDRESSES"), Some("127.0.0.1:7401,127.0.0.1:7402"));
        assert_eq!(args(&config, &data_dir, Service::Order), ["order", "--demo-catalog", "--lease", "1s"]);
        assert_eq!(args(&config, &data_dir, Service::Payment), ["payment"]);
    }

    #[test]
    fn every_variable_that_a_process_gets_is_known_as_the_systems() {
        let temporary = tempfile::tempdir().expect("a folder");
        let url = "postgres://u@h/d".parse().expect("a URL");
        let config = SystemConfig { database_url: Some(url), ..config(7000, temporary.path().join("data")) };
        let data_dir = DataDir::prepare(&config.data_dir).expect("prepared");
        for service in Service::ALL {
            for (name, _) in env(&config, &data_dir, None, service, 1) {
                let name = OsStr::new(&name);
                assert!(is_provided(name) || child::is_removed(name), "{name:?}");
            }
        }
        assert!(!is_provided(OsStr::new("ORDERMESH_MEMORY_LIMIT")));
    }
}
