//! Orders that are created in one batch: each gets the result that it gets alone.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use futures_util::future::join_all;
use kernel::{OrderId, RequestId, UserId};
use order::Error;
use order::order::{CreateOrder, Order};
use order::store::UnpaidLimits;
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};
use testkit::{AtCommit, Proxy};
use tokio::sync::Notify;

use crate::fakes::Reply;
use crate::world::{World, new_request, new_user, order_of};

/// A command in a form that can be generated: the customer, the number of an earlier command that it repeats, if any,
/// and the quantities.
#[derive(Clone, Debug)]
struct Draft {
    customer: usize,
    repeats: Option<usize>,
    mugs: u32,
    plates: u32,
    vase: bool,
}

fn draft() -> impl Strategy<Value = Draft> {
    let repeats = prop_oneof![4 => Just(None), 1 => (0..30usize).prop_map(Some)];
    (0..3usize, repeats, 0..4u32, 0..4u32, prop::bool::weighted(0.1))
        .prop_map(|(customer, repeats, mugs, plates, vase)| Draft { customer, repeats, mugs, plates, vase })
}

fn commands(drafts: &[Draft]) -> Vec<(usize, CreateOrder)> {
    let mut commands: Vec<(usize, CreateOrder)> = Vec::new();
    for draft in drafts {
        let repeated = draft.repeats.and_then(|number| commands.get(number).cloned());
        commands.push(repeated.unwrap_or_else(|| {
            // The vase is in dollars: never together with the others.
            let items = if draft.vase {
                vec![("VASE", 1)]
            } else {
                [("MUG", draft.mugs), ("PLATE", draft.plates)].into_iter().filter(|(_, n)| *n > 0).collect()
            };
            let items = if items.is_empty() { vec![("MUG", 1)] } else { items };
            (draft.customer, CreateOrder { request_id: new_request(), ..order_of(&items) })
        }));
    }
    commands
}

/// For each command: `created`, or the reason of its rejection. A repeated command runs in a later batch than the first
/// one: it is created or rejected as the first one was, but possibly for another reason, which is left out.
fn results(commands: &[(usize, CreateOrder)], all: Vec<Result<Order, Error>>) -> Vec<String> {
    let mut first: HashMap<RequestId, OrderId> = HashMap::new();
    let mut seen: HashSet<RequestId> = HashSet::new();
    commands
        .iter()
        .zip(all)
        .map(|((_, command), result)| (seen.insert(command.request_id), command, result))
        .map(|(is_first, command, result)| match result {
            Ok(order) => {
                let is_same = *first.entry(command.request_id).or_insert(order.id) == order.id;
                assert!(is_same, "one order per request");
                "created".to_owned()
            }
            Err(Error::InsufficientStock { .. } | Error::TooMuchUnpaid { .. }) if !is_first => "rejected".to_owned(),
            Err(Error::InsufficientStock { skus }) => format!("short of {skus}"),
            Err(Error::TooMuchUnpaid { limit }) => format!("more than {limit}"),
            Err(other) => panic!("{other:?}"),
        })
        .collect()
}

/// The payments' results are held back, so that only the commands change anything.
async fn world(limits: UnpaidLimits) -> (World, Vec<Arc<Notify>>) {
    undecided(World::new().await, limits)
}

fn undecided(mut world: World, limits: UnpaidLimits) -> (World, Vec<Arc<Notify>>) {
    world.orders.store = world.store.clone().with_unpaid_limits(limits);
    let gates: Vec<_> = (0..40).map(|_| Arc::new(Notify::new())).collect();
    world.payments.script(gates.iter().map(Reply::response_held).collect::<Vec<_>>());
    (world, gates)
}

async fn compare(drafts: &[Draft], limits: UnpaidLimits) {
    let users: [UserId; 3] = [(); 3].map(|()| new_user());
    let commands = commands(drafts);
    let ((together, gates), (apart, others)) = (world(limits).await, world(limits).await);
    let all = commands.iter().map(|(customer, command)| together.create_for(users[*customer], command.clone()));
    let batched = results(&commands, join_all(all).await);
    let mut one_by_one = Vec::new();
    for (customer, command) in &commands {
        one_by_one.push(apart.create_for(users[*customer], command.clone()).await);
    }
    assert_eq!(batched, results(&commands, one_by_one), "{drafts:?}");
    for sku in ["MUG", "PLATE", "VASE"] {
        assert_eq!(together.stock(sku).await, apart.stock(sku).await, "{sku} of {drafts:?}");
    }
    gates.iter().chain(&others).for_each(|gate| gate.notify_one());
    tokio::join!(together.settle(), apart.settle());
}

#[test]
fn a_batch_of_orders_has_the_results_of_the_same_orders_one_by_one() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    let limits = prop_oneof![Just(UnpaidLimits::default()), Just(UnpaidLimits { orders: Some(3), units: Some(8) })];
    // On PostgreSQL each case has two schemas.
    let mut runner = TestRunner::new(Config { cases: 24, failure_persistence: None, ..Config::default() });
    let outcome = runner.run(&(prop::collection::vec(draft(), 1..30), limits), |(drafts, limits)| {
        runtime.block_on(compare(&drafts, limits));
        Ok(())
    });
    outcome.expect("equal results");
}

#[tokio::test]
async fn orders_whose_commit_had_no_response_exist_once_when_they_are_requested_again() {
    let Some(server) = testkit::Server::start_on_tcp(&[]) else { return };
    for (at, is_committed) in [(AtCommit::NotSent, false), (AtCommit::ResponseLost, true)] {
        let proxy = Proxy::start(([127, 0, 0, 1], server.port()).into()).await;
        let url = format!("postgres://postgres@{}/postgres", proxy.address());
        let database = testkit::TestDatabase { url, schema: Some(testkit::unique("commit")) };
        let (world, gates) = undecided(World::on(database, None).await, UnpaidLimits::default());
        let commands: Vec<_> =
            (0..5).map(|_| CreateOrder { request_id: new_request(), ..order_of(&[("MUG", 1)]) }).collect();
        let user = new_user();
        let create = || join_all(commands.iter().map(|command| world.create_for(user, command.clone())));
        proxy.cut(at);
        // If the COMMIT was not sent, the commands of that batch fail; how many are in it is not deterministic. If only
        // its response was lost, their orders are found.
        let failed: Vec<Error> = create().await.into_iter().filter_map(Result::err).collect();
        assert!(proxy.has_cut(), "{at:?}");
        assert_eq!(failed.is_empty(), is_committed, "{at:?}: {failed:?}");
        for error in &failed {
            assert_eq!(mesh::status("order", error).code(), tonic::Code::Unavailable, "{at:?}: {error:?}");
        }
        let reserved = 5 - i64::try_from(failed.len()).expect("few");
        assert_eq!(world.stock("MUG").await, (10, reserved), "{at:?}: the whole batch or nothing of it");
        let ids: HashSet<OrderId> = create().await.into_iter().map(|result| result.expect("created").id).collect();
        assert_eq!((ids.len(), world.stock("MUG").await), (5, (10, 5)), "{at:?}: once each");
        gates.iter().for_each(|gate| gate.notify_one());
        world.settle().await;
    }
}
