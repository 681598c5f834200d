//! The mesh under a generated client, here that of grpc.health: asks whether a service is well, over all its instances.
//! `cargo run -p mesh --example client -- 127.0.0.1:7101 127.0.0.1:7102`, or `-- dns:users.default.svc:7101`.

use std::time::Duration;

use mesh::{Access, Addresses, ClientConfig, Idempotency, MethodPolicy, PolicyTable, client};
use tonic_health::pb::{HealthCheckRequest, health_client::HealthClient};

// A contract's build makes this table. The call may be repeated, for a second at most.
#[rustfmt::skip]
const POLICIES: PolicyTable = PolicyTable(&[MethodPolicy {
    path: "/grpc.health.v1.Health/Check", event: None, no_event: "an example", allow: &[Access::Public], callers: &[],
    timeout: Some(Duration::from_secs(1)), idempotency: Idempotency::NoSideEffects, streaming: false,
    max_message_bytes: None, limits: &[],
}]);

fn addresses(args: Vec<String>) -> Addresses {
    let dns = args.first().and_then(|arg| arg.strip_prefix("dns:")?.rsplit_once(':'));
    match dns.map(|(host, port)| (host.to_owned(), port.parse())) {
        Some((host, Ok(port))) => Addresses::Dns { host, port },
        _ => Addresses::Fixed(args),
    }
}

#[tokio::main]
async fn main() -> Result<(), tonic::Status> {
    let channel = client(ClientConfig::new("health", addresses(std::env::args().skip(1).collect()), POLICIES));
    let mut health = HealthClient::new(channel);
    let answer = health.check(HealthCheckRequest { service: String::new() }).await?;
    println!("{:?}", answer.into_inner().status());
    Ok(())
}
