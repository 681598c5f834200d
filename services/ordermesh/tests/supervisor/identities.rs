//! Every rpc of the contract with every identity, on both transports: the contract's policies alone decide which
//! callers are admitted.

use std::sync::Arc;

use contracts::POLICIES;
use contracts::user::v1 as user;
use contracts::user::v1::user_service_client::UserServiceClient;
use kernel::{IdSource, SystemClock, SystemIds};
use mesh::tls::{Files, Identity, Trust};
use mesh::{Access, Channel, ClientConfig, MethodPolicy, Role};
use tonic::client::Grpc;
use tonic::{Code, Request, Status};
use tonic_prost::ProstCodec;
use tonic_types::StatusExt;

use crate::system::TestSystem;

/// Ports relative to the base; the first part of a package's name is its service.
const SERVICES: [(&str, u16); 5] = [("user", 101), ("order", 201), ("payment", 301), ("data", 401), ("gateway", 501)];
const TRUST_DOMAIN: &str = "ordermesh.local";

/// The identity that a caller is authenticated as.
#[derive(Clone, Copy)]
enum Caller {
    Person(Role),
    Service(&'static str),
    /// Unauthenticated, for this reason.
    Unknown(&'static str),
}

/// Presented credentials.
struct Credentials {
    what: String,
    /// The certificate's service.
    certificate: Option<&'static str>,
    headers: Vec<(&'static str, String)>,
    is: Caller,
}

impl Credentials {
    fn headers(what: &str, headers: &[(&'static str, &str)], is: Caller) -> Self {
        let headers = headers.iter().map(|(name, value)| (*name, (*value).to_owned())).collect();
        Self { what: what.to_owned(), certificate: None, headers, is }
    }

    fn certificate(name: &'static str, headers: &[(&'static str, &str)]) -> Self {
        let what = format!("{name}'s certificate with {headers:?}");
        Self { certificate: Some(name), ..Self::headers(&what, headers, Caller::Service(name)) }
    }
}

/// The gatekeeper's rejection; `None` if the caller is admitted.
fn expected_rejection(policy: &MethodPolicy, caller: Caller) -> Option<(Code, &'static str)> {
    let allows = |access| policy.allow.contains(&access);
    if allows(Access::Public) {
        return None;
    }
    match caller {
        Caller::Unknown(reason) => Some((Code::Unauthenticated, reason)),
        Caller::Person(role) => {
            let access = if role == Role::Operator { Access::Operator } else { Access::Customer };
            (!allows(access)).then_some((Code::PermissionDenied, "ROLE_NOT_ALLOWED"))
        }
        Caller::Service(name) => {
            let is_in = allows(Access::Service) && policy.callers.contains(&name);
            (!is_in).then_some((Code::PermissionDenied, "CALLER_NOT_ALLOWED"))
        }
    }
}

/// A running system, and the tokens of a customer and its operator.
struct Doors {
    system: TestSystem,
    has_tls: bool,
    customer: String,
    operator: String,
    secret: String,
}

impl Doors {
    async fn open(has_tls: bool) -> Self {
        let (system, _) = TestSystem::with(1, if has_tls { &["--tls"] } else { &[] });
        let read = |name: &str| std::fs::read_to_string(system.data_dir.join(name)).unwrap_or_default();
        let (secret, operator) = (read("mesh.secret").trim().to_owned(), read("operator.txt"));
        let mut doors = Self { system, has_tls, customer: String::new(), operator: String::new(), secret };
        let mut users = UserServiceClient::new(doors.channel(SERVICES[0], None));
        let (email, password) = operator.trim().split_once(' ').expect("both");
        doors.operator = log_in(&mut users, email, password).await;
        let register = user::RegisterRequest {
            request_id: SystemIds.uuid().to_string(),
            email: "ada@example.com".into(),
            password: "correct horse battery".into(),
            display_name: "Ada".into(),
        };
        users.register(register).await.expect("an account");
        doors.customer = log_in(&mut users, "ada@example.com", "correct horse battery").await;
        doors
    }

    fn channel(&self, (target, port): (&'static str, u16), certificate: Option<&str>) -> Channel {
        let folder = self.system.data_dir.join("certs");
        let file = |name: &str| folder.join(name);
        let tls = self.has_tls.then(|| match certificate {
            None => Trust::load(file("ca.pem"), TRUST_DOMAIN, Arc::new(SystemClock)).expect("roots").client(target),
            Some(name) => {
                let (certificate, key) = (file(&format!("{name}.pem")), file(&format!("{name}.key")));
                let files = Files { certificate, key, roots: file("ca.pem") };
                Identity::load(files, TRUST_DOMAIN, Arc::new(SystemClock)).expect("an identity").client(target)
            }
        });
        let addresses = vec![format!("127.0.0.1:{}", self.system.port_base + port)];
        mesh::client(ClientConfig { tls, retries: false, ..ClientConfig::new(target, addresses, POLICIES) })
    }

    /// The credentials that can be presented on either transport.
    fn persons(&self) -> Vec<Credentials> {
        let [customer, operator] = [&self.customer, &self.operator].map(|token| format!("Bearer {token}"));
        let bearer = |what, token: &str, is| Credentials::headers(what, &[("authorization", token)], is);
        vec![
            Credentials::headers("nothing", &[], Caller::Unknown("TOKEN_MISSING")),
            bearer("a bad token", "Bearer abc", Caller::Unknown("TOKEN_MALFORMED")),
            bearer("a customer's token", &customer, Caller::Person(Role::Customer)),
            bearer("an operator's token", &operator, Caller::Person(Role::Operator)),
            Credentials::headers("a name alone", &[("x-ordermesh-service", "order")], Caller::Unknown("TOKEN_MISSING")),
        ]
    }

    fn all(&self) -> Vec<Credentials> {
        const SECRET: &str = "x-ordermesh-secret";
        const SERVICE: &str = "x-ordermesh-service";
        const NONE: Caller = Caller::Unknown("INVALID_MESH_SECRET");
        let (secret, operator) = (self.secret.as_str(), format!("Bearer {}", self.operator));
        let mut all = self.persons();
        if self.has_tls {
            for (name, _) in SERVICES {
                all.push(Credentials::certificate(name, &[]));
                all.push(Credentials::certificate(name, &[(SECRET, "a guess"), (SERVICE, "order")]));
                all.push(Credentials::certificate(name, &[("authorization", &operator)]));
            }
            all.push(Credentials::headers("a secret alone", &[(SECRET, "a guess"), (SERVICE, "order")], NONE));
            return all;
        }
        for name in ["user", "order", "payment", "data", "gateway", "evil", "ORDER"] {
            let credentials = [(SECRET, secret), (SERVICE, name)];
            all.push(Credentials::headers(&format!("the secret as {name}"), &credentials, Caller::Service(name)));
        }
        let order = Caller::Service("order");
        all.extend([
            Credentials::headers("the secret without a name", &[(SECRET, secret)], NONE),
            Credentials::headers("the secret with an empty name", &[(SECRET, secret), (SERVICE, "")], NONE),
            Credentials::headers("a wrong secret", &[(SECRET, "a guess"), (SERVICE, "order")], NONE),
            Credentials::headers("an empty secret", &[(SECRET, ""), (SERVICE, "order")], NONE),
            Credentials::headers(
                "the secret with an operator's token",
                &[(SECRET, secret), (SERVICE, "order"), ("authorization", &operator)],
                order,
            ),
            Credentials::headers(
                "a wrong secret with an operator's token",
                &[(SECRET, "a guess"), (SERVICE, "order"), ("authorization", &operator)],
                NONE,
            ),
        ]);
        all
    }
}

async fn log_in(users: &mut UserServiceClient<Channel>, email: &str, password: &str) -> String {
    let login = user::LoginRequest { email: email.into(), password: password.into() };
    users.login(login).await.expect("logged in").into_inner().session.expect("a session").access_token
}

/// Makes a call with an empty message; returns the status if it is rejected before a response begins.
async fn call(channel: &Channel, path: &str, headers: &[(&'static str, String)]) -> Option<Status> {
    let mut request = Request::new(());
    for (name, value) in headers {
        request.metadata_mut().insert(*name, value.parse().expect("a header"));
    }
    let mut grpc = Grpc::new(channel.clone());
    grpc.ready().await.expect("ready");
    let path = path.parse().expect("a path");
    grpc.server_streaming(request, path, ProstCodec::<(), ()>::default()).await.err()
}

fn reason(status: &Status) -> (Code, String) {
    (status.code(), status.get_details_error_info().map(|info| info.reason).unwrap_or_default())
}

/// The services that serve a method. The platform's own serve those of the mesh.
fn homes(policy: &MethodPolicy) -> Vec<(&'static str, u16)> {
    let package = policy.name().split('.').next().expect("a package");
    let is_home = |name| if package == "mesh" { name != "gateway" } else { name == package };
    let homes: Vec<_> = SERVICES.into_iter().filter(|(name, _)| is_home(*name)).collect();
    assert!(!homes.is_empty(), "{package} is a service of the system");
    homes
}

/// The gatekeeper's reasons, and three for calls that did not reach it.
const GATEKEEPERS: [&str; 11] = [
    "UNREACHABLE",
    "CONNECTION_LOST",
    "KEYS_NOT_AVAILABLE",
    "TOKEN_MISSING",
    "TOKEN_MALFORMED",
    "TOKEN_INVALID",
    "TOKEN_EXPIRED",
    "SESSION_ENDED",
    "ROLE_NOT_ALLOWED",
    "CALLER_NOT_ALLOWED",
    "INVALID_MESH_SECRET",
];

async fn every_rpc_by_every_identity(has_tls: bool) {
    let doors = Doors::open(has_tls).await;
    let (mut cells, mut let_in, mut wrong) = (0, 0, vec![]);
    let all = doors.all();
    for credentials in &all {
        let channels = SERVICES.map(|service| (service.0, doors.channel(service, credentials.certificate)));
        for (policy, home) in
            POLICIES.0.iter().flat_map(|policy| homes(policy).into_iter().map(move |(home, _)| (policy, home)))
        {
            let channel = &channels.iter().find(|(name, _)| *name == home).expect("a channel").1;
            let response = call(channel, policy.path, &credentials.headers).await.as_ref().map(reason);
            let by_gatekeeper = response.filter(|(_, reason)| GATEKEEPERS.contains(&reason.as_str()));
            let expected = expected_rejection(policy, credentials.is).map(|(code, reason)| (code, reason.to_owned()));
            cells += 1;
            let_in += usize::from(expected.is_none());
            if by_gatekeeper != expected {
                wrong.push(format!(
                    "{} at {home} by {}: {by_gatekeeper:?}, not {expected:?}",
                    policy.path, credentials.what
                ));
            }
        }
    }
    assert_eq!(wrong, [] as [String; 0]);
    assert_eq!(cells, all.len() * POLICIES.0.iter().map(|policy| homes(policy).len()).sum::<usize>());
    assert!(let_in > 100 && cells - let_in > 100, "{let_in} of {cells} are admitted");
}

#[tokio::test]
async fn the_contract_decides_for_every_rpc_which_identities_are_admitted() {
    every_rpc_by_every_identity(false).await;
}

#[tokio::test]
async fn the_contract_decides_for_every_rpc_which_identities_are_admitted_with_tls() {
    every_rpc_by_every_identity(true).await;
}

#[tokio::test]
async fn a_port_serves_only_the_exact_paths_of_its_services_methods() {
    let doors = Doors::open(false).await;
    let operator = vec![("authorization", format!("Bearer {}", doors.operator))];
    let none = Some((Code::Unimplemented, "METHOD_NOT_FOUND".to_owned()));
    let mut foreign = 0;
    for service in SERVICES {
        let channel = doors.channel(service, None);
        for policy in POLICIES.0.iter().filter(|policy| !homes(policy).contains(&service)) {
            let response = call(&channel, policy.path, &operator).await.as_ref().map(reason);
            assert_eq!(response, none, "{} at {}", policy.path, service.0);
            foreign += 1;
        }
        for policy in POLICIES.0.iter().filter(|policy| homes(policy).contains(&service)) {
            let name = policy.name();
            let (full_name, method) = name.split_once('/').expect("both");
            let spellings = [
                format!("//{name}"),
                format!("/{full_name}//{method}"),
                format!("/{name}/"),
                format!("/x/../{name}"),
                format!("/{full_name}/./{method}"),
                format!("/{}/{method}", full_name.to_uppercase()),
                format!("/{full_name}/{}", method.to_lowercase()),
                format!("/{full_name}/{method}%20"),
                format!("/{}", name.replace('/', "%2F")),
            ];
            for path in spellings {
                assert_eq!(call(&channel, &path, &operator).await.as_ref().map(reason), none, "{path}");
            }
            // The part after a question mark does not belong to the path.
            let anonymously =
                call(&channel, &format!("{}?x=/{full_name}/Other", policy.path), &[]).await.as_ref().map(reason);
            let by_gatekeeper = anonymously.filter(|(_, reason)| GATEKEEPERS.contains(&reason.as_str()));
            let expected = expected_rejection(policy, Caller::Unknown("TOKEN_MISSING"));
            assert_eq!(by_gatekeeper, expected.map(|(code, reason)| (code, reason.to_owned())), "{}?", policy.path);
        }
    }
    assert_eq!(foreign, POLICIES.0.iter().map(|policy| SERVICES.len() - homes(policy).len()).sum::<usize>());
}
