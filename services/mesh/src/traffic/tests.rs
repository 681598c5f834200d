use std::time::Duration;

use tokio_util::sync::CancellationToken;

use super::*;
use crate::policy::METHOD;

const POLICIES: PolicyTable =
    PolicyTable(&[MethodPolicy { path: "/shop.v1.Shop/Buy", timeout: Some(Duration::from_secs(5)), ..METHOD }]);
const BUY: &MethodPolicy = &POLICIES.0[0];

fn timeout(seconds: u64) -> String {
    format!("rules:\n- matches: [{{ method: {{ service: shop.v1.Shop }} }}]\n  timeouts: {{ request: {seconds}s }}\n")
}

fn timeout_of(policy: &TrafficPolicy) -> Option<u64> {
    Some(policy.rule(BUY)?.timeout?.as_secs())
}

#[test]
fn a_rejected_file_changes_nothing_and_the_state_says_why() {
    let policy = TrafficPolicy::new(POLICIES, false);
    assert_eq!((timeout_of(&policy), policy.state()), (None, TrafficState::default()));
    policy.apply("a.yaml", timeout(2).as_bytes()).expect("valid");
    let state = policy.state();
    assert_eq!((timeout_of(&policy), state.rules, state.rejection.as_str()), (Some(2), 1, ""));
    assert!(state.loaded.is_some() && state.digest.len() == 64);

    policy.apply("a.yaml", b"rules: [").expect_err("broken");
    policy.apply("a.yaml", timeout(9).as_bytes()).expect_err("longer than the contract's");
    policy.apply("a.yaml", b"\xff").expect_err("not UTF-8");
    let rejected = policy.state();
    assert_eq!((timeout_of(&policy), &rejected.digest), (Some(2), &state.digest));
    assert_eq!(rejected.rejection, "it is not UTF-8");

    policy.apply("a.yaml", b"").expect("no rules");
    assert_eq!((timeout_of(&policy), policy.state().rejection.as_str()), (None, ""));
}

#[test]
fn a_rule_with_headers_applies_only_while_an_operators_call_with_them_is_served() {
    let policy = TrafficPolicy::new(POLICIES, false);
    assert!(!policy.has_header_rules());
    let text = "rules:\n- matches: [{ method: { service: shop.v1.Shop }, headers: [{ name: x-test, value: a }, { name: x-more, value: b }] }]\n  timeouts: { request: 1s }\n"
        .to_owned()
        + &timeout(3)["rules:\n".len()..];
    policy.apply("a.yaml", text.as_bytes()).expect("valid");
    assert!(policy.has_header_rules());
    let seconds = |headers: Option<&[(&'static str, &'static str)]>| {
        let headers: Option<HeaderMap> = headers.map(|headers| {
            headers
                .iter()
                .map(|(name, value)| (HeaderName::from_static(name), http::HeaderValue::from_static(value)))
                .collect()
        });
        policy.rule_for(BUY, headers.as_ref()).and_then(|rule| rule.timeout).map(|timeout| timeout.as_secs())
    };
    assert_eq!(seconds(None), Some(3));
    assert_eq!(seconds(Some(&[("x-test", "a")])), Some(3));
    assert_eq!(seconds(Some(&[("x-test", "a"), ("x-more", "c")])), Some(3));
    assert_eq!(seconds(Some(&[("x-test", "a"), ("x-more", "b")])), Some(1));
}

#[tokio::test]
async fn the_file_is_followed_and_the_policy_stays_while_it_cannot_be_read() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("traffic.yaml");
    let policy = TrafficPolicy::new(POLICIES, false);
    policy.load(&path);
    assert!(policy.state().rejection.contains("cannot be read"), "{:?}", policy.state());
    std::fs::write(&path, timeout(2)).expect("written");
    policy.load(&path);
    assert_eq!((timeout_of(&policy), policy.state().rejection.as_str()), (Some(2), ""));

    let stop = CancellationToken::new();
    let following = tokio::spawn(policy.clone().follow(path.clone(), Duration::from_millis(2), stop.clone()));
    let until = async |is_so: &dyn Fn(&TrafficPolicy) -> bool| {
        let waiting = async {
            while !is_so(&policy) {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(20), waiting).await.expect("in time");
    };
    // Replaced as a whole, like a ConfigMap.
    let replace = |text: &str| {
        std::fs::write(folder.path().join("new"), text).expect("written");
        std::fs::rename(folder.path().join("new"), &path).expect("replaced");
    };
    replace(&timeout(3));
    until(&|policy| timeout_of(policy) == Some(3)).await;
    replace("rules: [");
    until(&|policy| !policy.state().rejection.is_empty()).await;
    assert_eq!(timeout_of(&policy), Some(3));
    std::fs::remove_file(&path).expect("removed");
    until(&|policy| policy.state().rejection.contains("cannot be read")).await;
    assert_eq!(timeout_of(&policy), Some(3));
    replace(&timeout(3));
    until(&|policy| policy.state().rejection.is_empty()).await;
    replace(&"#".repeat(usize::try_from(MAX_FILE_BYTES).expect("small") + 1));
    until(&|policy| policy.state().rejection.contains("longer than 256 KiB")).await;
    assert_eq!(timeout_of(&policy), Some(3));
    std::fs::remove_file(&path).expect("removed");
    std::fs::create_dir(&path).expect("a folder");
    until(&|policy| policy.state().rejection == "it is not a file").await;
    stop.cancel();
    following.await.expect("it ends");
}
