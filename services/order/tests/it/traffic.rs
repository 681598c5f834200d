//! The traffic policy of a whole service: a file that is followed.

use std::path::Path;

use contracts::common::v1::EventType;
use contracts::mesh::v1::{GetSnapshotRequest, ListRoutesRequest, TrafficPolicyState};
use tonic::{Code, Status};

use crate::system::{Client, System, SystemOptions, error_of, mugs, rejection};
use crate::world::GUARD;

const LOOKUPS_FAIL: &str = "
rules:
- matches: [{ method: { service: data.v1.CatalogService, method: BatchGetProducts } }]
  timeouts: { request: 1s }
  ordermesh: { fault: { percent: 100, code: UNAVAILABLE } }
";

/// Replaces a file as a whole, like a ConfigMap.
fn replace(path: &Path, text: &str) {
    let new = path.with_extension("new");
    std::fs::write(&new, text).expect("written");
    std::fs::rename(new, path).expect("replaced");
}

async fn state(operator: &Client) -> TrafficPolicyState {
    let response = operator.mesh_admin().get_snapshot(operator.request(GetSnapshotRequest::default())).await;
    response.expect("a snapshot").into_inner().traffic_policy.expect("a policy")
}

async fn until(operator: &Client, is_so: impl Fn(&TrafficPolicyState) -> bool) -> TrafficPolicyState {
    let waiting = async {
        loop {
            let state = state(operator).await;
            if is_so(&state) {
                return state;
            }
            tokio::time::sleep(std::time::Duration::from_millis(50)).await;
        }
    };
    tokio::time::timeout(GUARD, waiting).await.expect("in time")
}

#[tokio::test]
async fn a_fault_is_injected_while_the_file_says_so_and_its_event_names_it() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("traffic.yaml");
    replace(&file, LOOKUPS_FAIL);
    let traffic = chassis::TrafficSettings { traffic_policy: Some(file.clone()), allow_faults: true };
    let system = System::with(SystemOptions { traffic, ..SystemOptions::default() }).await;
    let (ada, operator) = (system.client("customer"), system.client("operator"));

    let status: Status = ada.create(mugs(1)).await.expect_err("the lookup fails");
    assert_eq!(rejection(&status), error_of(Code::Unavailable, "LOOKUP_FAILED", "order"), "before the first call");
    let lookup = system.data.failure(EventType::DataLookup, "CONNECTION_ERROR").await;
    assert_eq!(lookup.attributes["ordermesh.fault"], "code UNAVAILABLE");
    let before = state(&operator).await;
    assert_eq!((before.rule_count, before.refusal.as_str(), before.digest.len()), (1, "", 64));
    assert!(before.file.ends_with("traffic.yaml") && before.load_time.is_some());
    let routes = operator.mesh_admin().list_routes(operator.request(ListRoutesRequest {})).await.expect("routes");
    let rules: Vec<_> = routes.into_inner().routes.into_iter().filter(|route| route.traffic_rule.is_some()).collect();
    assert_eq!(rules, [], "a rule for calls to another service is none of this one's methods");

    replace(&file, "rules: [");
    let refused = until(&operator, |state| !state.refusal.is_empty()).await;
    assert!(refused.refusal.contains("line 1") && refused.digest == before.digest, "{refused:?}");
    ada.create(mugs(1)).await.expect_err("the policy before is in force");

    replace(&file, "rules: []");
    until(&operator, |state| state.rule_count == 0).await;
    ada.create(mugs(1)).await.expect("an order");
}

#[tokio::test]
async fn a_file_with_faults_is_refused_unless_they_are_allowed_and_the_service_serves() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("traffic.yaml");
    replace(&file, LOOKUPS_FAIL);
    let traffic = chassis::TrafficSettings { traffic_policy: Some(file), allow_faults: false };
    let system = System::with(SystemOptions { traffic, ..SystemOptions::default() }).await;
    system.client("customer").create(mugs(1)).await.expect("an order");
    let state = state(&system.client("operator")).await;
    assert!(state.refusal.contains("--allow-faults") && state.digest.is_empty(), "{state:?}");
}

#[tokio::test]
async fn the_routes_show_what_the_policy_changes_of_them() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("traffic.yaml");
    replace(
        &file,
        "
rules:
- matches: [{ method: { service: order.v1.PaymentConfirmationService } }]
  timeouts: { request: 1s500ms }
  ordermesh: { audit: { callers: [payment] }, fault: { percent: 7, delay: 20ms } }
",
    );
    let traffic = chassis::TrafficSettings { traffic_policy: Some(file), allow_faults: true };
    let system = System::with(SystemOptions { traffic, ..SystemOptions::default() }).await;
    let operator = system.client("operator");
    let routes = operator.mesh_admin().list_routes(operator.request(ListRoutesRequest {})).await.expect("routes");
    let changed: Vec<_> =
        routes.into_inner().routes.into_iter().filter_map(|route| Some((route.method, route.traffic_rule?))).collect();
    let [(method, rule)] = &changed[..] else { panic!("{changed:?}") };
    assert_eq!(method, "order.v1.PaymentConfirmationService/ConfirmPayment");
    let timeout = rule.timeout.expect("a timeout");
    assert_eq!(
        (timeout.seconds, timeout.nanos, &rule.audited_callers[..]),
        (1, 500_000_000, &["payment".to_owned()][..])
    );
    let fault = rule.fault.clone().expect("a fault");
    assert_eq!((fault.percent, fault.delay.map(|delay| delay.nanos), fault.code.as_str()), (7, Some(20_000_000), ""));
}
