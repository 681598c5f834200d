//! A system to attack: one instance of each service, started from the given program in a temporary folder.

use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;

use contracts::common::v1::Money;
use contracts::data::v1 as data;
use contracts::data::v1::catalog_service_client::CatalogServiceClient;
use contracts::user::v1 as user;
use contracts::user::v1::user_service_client::UserServiceClient;
use futures_util::StreamExt;
use kernel::{IdSource, SystemIds};
use mesh::{Channel, ClientConfig};
use tonic::Request;

use crate::regular::{Call, Caller};

/// The settings of the production overlay, with the memory limits of its pods.
pub(crate) const PRODUCTION: &[&str] = &[
    "--user.login-quota=60/m",
    "--user.register-quota=30/m",
    "--order.create-order-quota=10/s",
    "--user.memory-limit=256MiB",
    "--order.memory-limit=256MiB",
    "--payment.memory-limit=256MiB",
    "--data.memory-limit=256MiB",
];

/// Additional products in the catalogue: their number, and the length of their descriptions in characters of three
/// bytes.
pub(crate) type Fill = (usize, usize);

const PASSWORD: &str = "correct horse battery";
const ADA: &str = "ada@example.com";
const EVE: &str = "eve@example.com";

pub(crate) struct System {
    supervisor: Child,
    port_base: u16,
    _folder: tempfile::TempDir,
    regular: String,
    attacker: String,
}

impl Drop for System {
    fn drop(&mut self) {
        let _ = self.supervisor.kill();
        let _ = self.supervisor.wait();
    }
}

/// What an attack needs: the ports, and a token of its own.
#[derive(Clone)]
pub(crate) struct Target {
    port_base: u16,
    pub(crate) token: String,
}

impl Target {
    pub(crate) fn address(&self, port: u16) -> SocketAddr {
        ([127, 0, 0, 1], self.port_base + port).into()
    }

    /// The same, for a client without an account.
    pub(crate) fn anonymous(&self) -> Self {
        Self { token: String::new(), ..self.clone() }
    }

    /// A channel like the well-behaved client's.
    pub(crate) fn channel(&self, target: &'static str, port: u16) -> Channel {
        let addresses = vec![self.address(port).to_string()];
        mesh::client(ClientConfig { retries: false, ..ClientConfig::new(target, addresses, contracts::POLICIES) })
    }
}

impl System {
    pub(crate) async fn start(program: &str, arguments: &[&str], (products, characters): Fill) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let data_dir = folder.path().join("data");
        let port_base = ordermesh::ports::free_port_base(1).expect("free ports");
        let mut command = Command::new(program);
        command.args(["--instances", "1", "--port-base", &port_base.to_string()]).args(arguments);
        command.arg("--data-dir").arg(&data_dir).env("ORDERMESH_LOG", "error");
        let mut supervisor = command.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().expect("the program starts");
        let mut lines = BufReader::new(supervisor.stdout.take().expect("piped"));
        let mut output = String::new();
        while !output.contains("Ctrl-C ends the system") {
            assert!(lines.read_line(&mut output).expect("readable") > 0, "it ended: {output}");
        }
        std::thread::spawn(move || std::io::copy(&mut lines, &mut std::io::sink()));
        let tokens = (String::new(), String::new());
        let mut system = Self { supervisor, port_base, _folder: folder, regular: tokens.0, attacker: tokens.1 };
        let mut users = UserServiceClient::new(system.target().channel("user", 101));
        let operator = std::fs::read_to_string(data_dir.join("operator.txt")).expect("made on the first start");
        let (email, password) = operator.trim().split_once(' ').expect("both");
        let operator = log_in(&mut users, email, password).await;
        system.fill(&operator, products, characters).await;
        for email in [ADA, EVE] {
            let register = user::RegisterRequest {
                request_id: SystemIds.uuid().to_string(),
                email: email.into(),
                password: PASSWORD.into(),
                display_name: "Customer".into(),
            };
            users.register(register).await.expect("an account");
        }
        system.regular = log_in(&mut users, ADA, PASSWORD).await;
        system.attacker = log_in(&mut users, EVE, PASSWORD).await;
        system
    }

    async fn fill(&self, operator: &str, products: usize, characters: usize) {
        let catalog = CatalogServiceClient::new(self.target().channel("data", 401));
        let upsert = |number| {
            let product = data::Product {
                sku: format!("FILL-{number}"),
                name: "Something to read".into(),
                description: "字".repeat(characters),
                price: Some(Money { currency_code: "EUR".into(), minor_units: 100 }),
                ..Default::default()
            };
            let request = with_token(data::UpsertProductRequest { product: Some(product) }, operator);
            let mut catalog = catalog.clone();
            async move { catalog.upsert_product(request).await.map(drop).expect("upserted") }
        };
        futures_util::stream::iter(0..products).map(upsert).buffer_unordered(64).collect::<()>().await;
    }

    pub(crate) fn target(&self) -> Target {
        Target { port_base: self.port_base, token: self.attacker.clone() }
    }

    pub(crate) async fn caller(&self, call: Call) -> Arc<Caller> {
        let caller = Caller::new(call, Target { token: self.regular.clone(), ..self.target() }, (ADA, PASSWORD)).await;
        Arc::new(caller)
    }

    /// The peak memory of a service's process.
    pub(crate) fn peak_mib(&self, service: &str) -> u64 {
        let processes = std::fs::read_dir("/proc").expect("Linux").flatten();
        let read = |pid: u32, file: &str| std::fs::read_to_string(format!("/proc/{pid}/{file}")).unwrap_or_default();
        let is_it = |pid: &u32| {
            let is_child = read(*pid, "status").contains(&format!("PPid:\t{}\n", self.supervisor.id()));
            is_child && read(*pid, "cmdline").split('\0').nth(1) == Some(service)
        };
        let pid = processes.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).find(is_it);
        let status = read(pid.expect("the process is running"), "status");
        let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).expect("its peak");
        peak.trim().trim_end_matches(" kB").parse::<u64>().expect("a number") / 1_024
    }
}

pub(crate) fn with_token<T>(message: T, token: &str) -> Request<T> {
    let mut request = Request::new(message);
    request.metadata_mut().insert("authorization", format!("Bearer {token}").parse().expect("a header"));
    request
}

async fn log_in(users: &mut UserServiceClient<Channel>, email: &str, password: &str) -> String {
    let login = user::LoginRequest { email: email.into(), password: password.into() };
    users.login(login).await.expect("logged in").into_inner().session.expect("a session").access_token
}
