//! A name's addresses over time, from a scripted resolver.

use super::*;
use crate::client::endpoints::Endpoints;
use crate::client::endpoints::tests::{dns, endpoints_of};
use std::sync::Arc;

use parking_lot::Mutex;
/// Answers what was set last.
#[derive(Default)]
struct Script(Mutex<Option<Vec<&'static str>>>);

impl Script {
    fn set_serving(&self, addresses: Option<Vec<&'static str>>) {
        *self.0.lock() = addresses;
    }
}

impl Resolve for Script {
    fn lookup(&self, host: String, port: u16) -> BoxFuture<'static, io::Result<Vec<SocketAddr>>> {
        assert_eq!((host.as_str(), port), ("data", 7401));
        let response = self.0.lock().clone();
        let parse = |texts: Vec<&str>| texts.into_iter().map(|text| text.parse().expect("an address")).collect();
        Box::pin(std::future::ready(response.map(parse).ok_or_else(|| io::Error::other("SERVFAIL"))))
    }
}

fn addresses(target: &Endpoints) -> Vec<String> {
    target.list().iter().map(|endpoint| endpoint.address().to_owned()).collect()
}

/// Lets the look-up of this instant complete.
async fn settled() {
    tokio::time::sleep(Duration::from_millis(1)).await;
}

#[tokio::test(start_paused = true)]
async fn new_addresses_are_used_old_ones_are_dropped_and_an_error_or_an_empty_answer_changes_nothing() {
    let script = Arc::new(Script::default());
    script.set_serving(Some(vec!["10.0.0.1:7401", "10.0.0.2:7401"]));
    let target = dns(script.clone());
    settled().await;
    let old = target.list();
    assert_eq!(addresses(&target), ["10.0.0.1:7401", "10.0.0.2:7401"]);
    script.set_serving(Some(vec!["10.0.0.3:7401", "10.0.0.2:7401"]));
    tokio::time::sleep(INTERVAL).await;
    assert_eq!(addresses(&target), ["10.0.0.2:7401", "10.0.0.3:7401"]);
    assert_eq!((old[0].removed.is_cancelled(), old[1].removed.is_cancelled()), (true, false));
    for nothing in [None, Some(vec![])] {
        script.set_serving(nothing);
        tokio::time::sleep(INTERVAL).await;
        assert_eq!(addresses(&target), ["10.0.0.2:7401", "10.0.0.3:7401"]);
    }
    script.set_serving(Some(vec!["10.0.0.4:7401"]));
    tokio::time::sleep(INTERVAL).await;
    assert_eq!(addresses(&target), ["10.0.0.4:7401"]);
}

#[tokio::test(start_paused = true)]
async fn a_call_waits_for_the_first_answer_and_fails_if_it_is_an_error() {
    let target = dns(Arc::new(Script::default()));
    let Err(failure) = target.pick(&[]).await else { panic!("no instance") };
    assert!(failure.status.message().contains("looking up data: SERVFAIL"), "{}", failure.status.message());
}

#[tokio::test(start_paused = true)]
async fn no_look_ups_happen_for_a_dropped_target() {
    let target = endpoints_of(&[]);
    let script = Arc::new(Script::default());
    let following = tokio::spawn(follow(Arc::downgrade(&target), target.closed(), script, "data".into(), 7401));
    settled().await;
    target.closed().cancel();
    following.await.expect("ends");
}

#[test]
fn addresses_are_a_list_or_a_name_and_print_as_they_are_parsed() {
    let read = |text: &str| text.parse::<Addresses>();
    let list = read("127.0.0.1:7201, [::1]:7202,order:7000").expect("a list");
    assert_eq!(list, Addresses::Fixed(vec!["127.0.0.1:7201".into(), "[::1]:7202".into(), "order:7000".into()]));
    let name = read("dns:///order-mesh.shop.svc.cluster.local.:7000").expect("a name");
    assert_eq!(name, Addresses::Dns { host: "order-mesh.shop.svc.cluster.local.".into(), port: 7000 });
    let ipv6 = read("dns:///[::1]:7000").expect("an address");
    assert_eq!(ipv6, Addresses::Dns { host: "::1".into(), port: 7000 });
    assert_eq!(read("dns:7000"), Ok(Addresses::Fixed(vec!["dns:7000".into()])), "a host of that name");
    for addresses in [list, name, ipv6] {
        assert_eq!(read(&addresses.to_string()), Ok(addresses));
    }
    let nonsense = ["a:b:1", "::1:7000", "[::1:7000", "user@h:1", "*:1", "x:+80", "127.0.0.1:0", "dns:///"];
    let wrong =
        ["", "order", "order:", ":7000", "order:http", "a:1,,b:2", "dns://8.8.8.8/order:7000", "dns:///a:1,b:2"];
    for wrong in wrong.into_iter().chain(nonsense) {
        assert_eq!(read(wrong), Err(AddressesError), "{wrong}");
    }
}

#[tokio::test(start_paused = true)]
async fn an_instance_with_an_address_of_each_family_is_one_instance() {
    let script = Arc::new(Script::default());
    script.set_serving(Some(vec!["[fd00::1]:7401", "10.0.0.1:7401", "[fd00::2]:7401", "10.0.0.2:7401"]));
    let target = dns(script.clone());
    settled().await;
    assert_eq!(addresses(&target), ["10.0.0.1:7401", "10.0.0.2:7401"]);
    // Some pods predate the dual-stack cluster, or are IPv6-only: the family that includes all of them.
    script.set_serving(Some(vec!["[fd00::1]:7401", "10.0.0.1:7401", "[fd00::2]:7401"]));
    tokio::time::sleep(INTERVAL).await;
    assert_eq!(addresses(&target), ["[fd00::1]:7401", "[fd00::2]:7401"]);
}
