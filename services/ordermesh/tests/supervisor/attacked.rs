//! Clients that exhaust a process's memory: it stays within its limit, and other clients are served.

use std::net::SocketAddr;

use contracts::common::v1::Money;
use contracts::data::v1 as data;
use contracts::data::v1::catalog_service_client::CatalogServiceClient;
use contracts::user::v1 as user;
use contracts::user::v1::user_service_client::UserServiceClient;
use mesh::{Channel, ClientConfig};
use prost::Message;
use tonic::{Code, Request};
use tonic_types::StatusExt;

use crate::attacker::{connect, send_message};
use crate::system::TestSystem;

const LIMIT_MIB: u64 = 256;
/// The source addresses of the attacks; well-behaved clients use 127.0.0.1.
const ATTACKERS: [[u8; 4]; 4] = [[127, 0, 0, 2], [127, 0, 0, 3], [127, 0, 0, 4], [127, 0, 0, 5]];

const LIST_PRODUCTS: &str = "/data.v1.CatalogService/ListProducts";
const BATCH_GET_PRODUCTS: &str = "/data.v1.CatalogService/BatchGetProducts";
const UPDATE_PROFILE: &str = "/user.v1.UserService/UpdateProfile";

fn channel(target: &'static str, system: &TestSystem, port: u16) -> Channel {
    let addresses = vec![format!("127.0.0.1:{}", system.port_base + port)];
    mesh::client(ClientConfig::new(target, addresses, contracts::POLICIES))
}

fn with_token<T>(message: T, token: &str) -> Request<T> {
    let mut request = Request::new(message);
    request.metadata_mut().insert("authorization", format!("Bearer {token}").parse().expect("a header"));
    request
}

/// The peak memory of a service's process.
fn peak_mib(system: &TestSystem, service: &str) -> u64 {
    let processes = system.processes_of(service);
    let [process] = processes[..] else { panic!("one process of {service}: {processes:?}") };
    let status = std::fs::read_to_string(format!("/proc/{process}/status")).expect("the process is running");
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).expect("its peak");
    peak.trim().trim_end_matches(" kB").parse::<u64>().expect("a number") / 1_024
}

/// Logs in to the operator account that the first start created; returns the access token.
async fn operator(system: &TestSystem, users: &mut UserServiceClient<Channel>) -> String {
    let file = std::fs::read_to_string(system.data_dir.join("operator.txt")).expect("made on the first start");
    let (email, password) = file.trim().split_once(' ').expect("both");
    let login = user::LoginRequest { email: email.into(), password: password.into() };
    users.login(login).await.expect("the operator").into_inner().session.expect("a session").access_token
}

/// Fills the catalogue for a page of maximum size: 200 products with 2,000 characters of three bytes.
async fn fill(catalog: &CatalogServiceClient<Channel>, operator: &str) {
    let upserts = (0..200).map(|number| {
        let product = data::Product {
            sku: format!("LONG-{number}"),
            name: "A long story".into(),
            description: "字".repeat(2_000),
            price: Some(Money { currency_code: "EUR".into(), minor_units: 100 }),
            ..Default::default()
        };
        let upsert = with_token(data::UpsertProductRequest { product: Some(product) }, operator);
        let mut catalog = catalog.clone();
        async move { catalog.upsert_product(upsert).await.map(drop) }
    });
    futures_util::future::try_join_all(upserts).await.expect("upserted");
    let page = data::ListProductsRequest { page_size: 200, ..Default::default() };
    let page = catalog.clone().list_products(page).await.expect("a page").into_inner();
    assert!(page.encoded_len() > 1_000_000, "{} bytes", page.encoded_len());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn unread_responses_stay_within_the_memory_limit_and_other_callers_are_served() {
    let (system, _) = TestSystem::with(1, &["--data.memory-limit", &format!("{LIMIT_MIB}MiB")]);
    let mut users = UserServiceClient::new(channel("user", &system, 101));
    let mut catalog = CatalogServiceClient::new(channel("data", &system, 401));
    fill(&catalog, &operator(&system, &mut users).await).await;
    let address = SocketAddr::from(([127, 0, 0, 1], system.port_base + 401));
    let page = data::ListProductsRequest { page_size: 200, ..Default::default() }.encode_to_vec();
    let (mut held, mut rejected) = (vec![], 0);
    for attacker in ATTACKERS {
        let sender = connect(attacker, address, 0).await.expect("connects");
        for _ in 0..64 {
            let (status, response) = send_message(&sender, LIST_PRODUCTS, "", &page).await.expect("headers");
            match status {
                None => held.push(response),
                Some(status) => {
                    assert_eq!(status.code(), Code::ResourceExhausted, "{status:?}");
                    rejected += 1;
                }
            }
        }
        let one = data::ListProductsRequest { page_size: 1, ..Default::default() };
        let page = catalog.list_products(one).await.expect("others are served").into_inner();
        assert_eq!(page.products.len(), 1);
    }
    // The control case: the memory limit was reached. Some responses were held, and then calls were rejected.
    assert!(held.len() >= 10 && rejected >= 100, "{} held, {rejected} rejected", held.len());
    let peak = peak_mib(&system, "data");
    assert!(peak < LIMIT_MIB, "{peak} MiB");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn excessively_repeated_fields_are_rejected_before_they_are_decoded() {
    let (user_limit, data_limit) = (format!("{LIMIT_MIB}MiB"), format!("{LIMIT_MIB}MiB"));
    let (system, _) = TestSystem::with(1, &["--user.memory-limit", &user_limit, "--data.memory-limit", &data_limit]);
    let mut users = UserServiceClient::new(channel("user", &system, 101));
    let token = operator(&system, &mut users).await;
    let paths = |count| {
        user::UpdateProfileRequest {
            profile: Some(user::Profile { display_name: "x".into(), ..Default::default() }),
            update_mask: Some(prost_types::FieldMask { paths: vec!["x".to_owned(); count] }),
        }
        .encode_to_vec()
    };
    let skus = |count| data::BatchGetProductsRequest { skus: vec![String::new(); count] }.encode_to_vec();
    let attacks = [
        (101, UPDATE_PROFILE, paths(349_000), Code::ResourceExhausted, None),
        (101, UPDATE_PROFILE, paths(21_000), Code::InvalidArgument, Some("update_mask.paths")),
        (401, BATCH_GET_PRODUCTS, skus(524_000), Code::ResourceExhausted, None),
        (401, BATCH_GET_PRODUCTS, skus(32_000), Code::InvalidArgument, Some("skus")),
    ];
    for (port, path, message, code, field) in attacks {
        let address = SocketAddr::from(([127, 0, 0, 1], system.port_base + port));
        let sender = connect(ATTACKERS[0], address, 65_535).await.expect("connects");
        let requested = futures_util::future::join_all((0..32).map(|_| send_message(&sender, path, &token, &message)));
        let profile = users.get_profile(with_token(user::GetProfileRequest {}, &token));
        let (requested, profile) = tokio::join!(requested, profile);
        profile.expect("others are served");
        for requested in requested {
            let (status, _) = requested.expect("headers");
            let status = status.expect("rejected in the headers");
            let violated = status.get_details_bad_request().map(|bad| bad.field_violations[0].field.clone());
            assert_eq!((status.code(), violated.as_deref()), (code, field), "{path}");
        }
    }
    for service in ["user", "data"] {
        let peak = peak_mib(&system, service);
        assert!(peak < LIMIT_MIB, "{service}: {peak} MiB");
    }
}
