//! Events published to NATS: a real `nats-server`, without which these tests are skipped.

use async_nats::header::NATS_MESSAGE_ID;
use async_nats::jetstream::consumer::pull::{Ordered, OrderedConfig};
use async_nats::jetstream::stream::{Config, Stream};
use async_nats::jetstream::{self, Context};
use contracts::data::v1::append_result::Outcome::Stored;
use contracts::data::v1::{ListTraceEventsRequest, TraceEvent};
use futures_util::StreamExt;
use prost::Message;
use sea_orm::{FromQueryResult, Statement};
use storage::Database;
use testkit::NatsServer;

use crate::world::{GUARD, World, event, failed, seeds};

/// The stream as an operator creates it.
fn config() -> Config {
    Config { name: "SHOP".into(), subjects: vec!["ordermesh.events.>".into()], ..Config::default() }
}

/// A server with a stream, and a client of it.
async fn nats() -> Option<(NatsServer, Context, Stream)> {
    let server = NatsServer::start()?;
    let client = async_nats::connect(server.url()).await.expect("connected");
    let context = jetstream::new(client);
    let stream = context.create_stream(config()).await.expect("created");
    Some((server, context, stream))
}

/// A consumer of all messages of a stream.
struct Consumer(jetstream::consumer::pull::Ordered);

impl Consumer {
    async fn of(stream: &Stream) -> Self {
        let consumer: jetstream::consumer::Consumer<OrderedConfig> =
            stream.create_consumer(OrderedConfig::default()).await.expect("created");
        let messages: Ordered = consumer.messages().await.expect("its messages");
        Self(messages)
    }

    async fn message(&mut self) -> jetstream::Message {
        let message = tokio::time::timeout(GUARD, self.0.next()).await.expect("a message in time");
        message.expect("no end").expect("no error")
    }

    /// The ids of the next messages.
    async fn ids(&mut self, count: usize) -> Vec<String> {
        let mut ids = Vec::new();
        while ids.len() < count {
            ids.push(id(&self.message().await));
        }
        ids
    }
}

fn id(message: &jetstream::Message) -> String {
    let headers = message.headers.as_ref().expect("headers");
    headers.get(NATS_MESSAGE_ID).expect("an id").to_string()
}

fn many(count: u64) -> Vec<TraceEvent> {
    (0..count).map(|number| event(count - number)).collect()
}

fn ids(events: &[TraceEvent]) -> Vec<String> {
    events.iter().map(|event| event.event_id.clone()).collect()
}

async fn count(stream: &Stream) -> u64 {
    stream.get_info().await.expect("its state").state.messages
}

async fn execute(db: &Database, sql: &str) -> u64 {
    let statement = Statement::from_string(db.read().get_database_backend(), sql);
    db.execute(statement).await.expect("executed")
}

async fn texts(db: &Database, sql: &str) -> Vec<String> {
    #[derive(FromQueryResult)]
    struct Row {
        text: String,
    }
    let select = Statement::from_string(db.read().get_database_backend(), sql);
    let rows = Row::find_by_statement(select).all(db.read()).await.expect("read");
    rows.into_iter().map(|row| row.text).collect()
}

/// `None`: skipped.
macro_rules! nats_or_skip {
    () => {
        match nats().await {
            Some(nats) => nats,
            None => return,
        }
    };
}

#[tokio::test]
async fn every_stored_event_is_published_once_in_order_also_those_stored_before() {
    let (server, _, stream) = nats_or_skip!();
    let world = World::new().await;
    let before = [event(900), failed(event(800), "TIMEOUT")];
    world.append(before.to_vec()).await;
    let world = world.restart(&["--event-sink", &server.url()], seeds()).await;
    // More than two blocks.
    let after = many(450);
    world.append(after.clone()).await;
    let mut consumer = Consumer::of(&stream).await;
    for (event, subject) in before.iter().zip(["order_creation.success", "order_creation.failed"]) {
        let message = consumer.message().await;
        assert_eq!(message.subject.as_str(), format!("ordermesh.events.{subject}"));
        assert_eq!(TraceEvent::decode(message.payload.clone()).as_ref(), Ok(event));
        assert_eq!(id(&message), event.event_id);
        let headers = message.headers.as_ref().expect("headers");
        let traceparent = headers.get("traceparent").expect("a trace").as_str();
        assert_eq!(traceparent, format!("00-{}-{}-01", event.trace_id, event.span_id));
        let content_type = headers.get("Content-Type").expect("a type").as_str();
        assert_eq!(content_type, "application/protobuf; proto=data.v1.TraceEvent");
    }
    assert_eq!(consumer.ids(450).await, ids(&after));
    // A restart repeats nothing.
    let world = world.restart(&["--event-sink", &server.url()], vec![]).await;
    let last = event(0);
    world.append(vec![last.clone()]).await;
    assert_eq!(consumer.ids(1).await, [last.event_id]);
    assert_eq!(count(&stream).await, 453);
}

#[tokio::test]
async fn a_stream_is_created_if_none_has_the_subjects() {
    let Some(server) = NatsServer::start() else { return };
    let client = async_nats::connect(server.url()).await.expect("connected");
    let mut created = client.subscribe("$JS.EVENT.ADVISORY.STREAM.CREATED.*").await.expect("subscribed");
    client.flush().await.expect("subscribed");
    let world = World::with(&["--event-sink", &server.url()], seeds()).await;
    let events = many(3);
    world.append(events.clone()).await;
    tokio::time::timeout(GUARD, created.next()).await.expect("created in time").expect("an advisory");
    let stream = jetstream::new(client).get_stream("ORDERMESH_EVENTS").await.expect("created");
    assert_eq!(stream.cached_info().config.subjects, ["ordermesh.events.>"]);
    assert_eq!(Consumer::of(&stream).await.ids(3).await, ids(&events));
}

/// As after a crash between the acknowledgements and the change of the cursor.
#[tokio::test]
async fn messages_repeated_after_a_crash_are_dropped_by_the_stream() {
    let (server, context, stream) = nats_or_skip!();
    let world = World::with(&["--event-sink", &server.url()], seeds()).await;
    let events = many(250);
    world.append(events.clone()).await;
    let mut consumer = Consumer::of(&stream).await;
    assert_eq!(consumer.ids(250).await, ids(&events));
    // Without JetStream: what is published, and not what is stored.
    let mut published = context.client().subscribe("ordermesh.events.>").await.expect("subscribed");
    context.client().flush().await.expect("subscribed");
    let crash = async |db: &Database| {
        let sql = "UPDATE event_sink SET position = '0 00000000-0000-0000-0000-000000000000'";
        assert_eq!(execute(db, sql).await, 1);
    };
    let world = world.restart_after(crash, &["--event-sink", &server.url()], vec![]).await;
    let last = event(0);
    world.append(vec![last.clone()]).await;
    for expected in ids(&events).iter().chain([&last.event_id]) {
        let message = tokio::time::timeout(GUARD, published.next()).await.expect("in time").expect("no end");
        let headers = message.headers.expect("headers");
        assert_eq!(headers.get(NATS_MESSAGE_ID).expect("an id").as_str(), expected);
    }
    assert_eq!(consumer.ids(1).await, [last.event_id]);
    assert_eq!(count(&stream).await, 251);
}

#[tokio::test]
async fn while_nats_is_away_events_are_stored_and_afterwards_published() {
    let (mut server, _, stream) = nats_or_skip!();
    let world = World::with(&["--event-sink", &server.url()], seeds()).await;
    let mut events = many(5);
    world.append(events.clone()).await;
    assert_eq!(Consumer::of(&stream).await.ids(5).await, ids(&events));
    server.kill();
    for _ in 0..10 {
        let more = many(30);
        assert_eq!(world.append(more.clone()).await, [Stored; 30]);
        events.extend(more);
    }
    world.list(ListTraceEventsRequest::default()).await.expect("a list");
    // It also starts without NATS.
    let world = world.restart(&["--event-sink", &server.url()], vec![]).await;
    let last = event(0);
    world.append(vec![last.clone()]).await;
    events.push(last);
    server.restart();
    let client = async_nats::connect(server.url()).await.expect("connected");
    let stream = jetstream::new(client).get_stream("SHOP").await.expect("kept");
    assert_eq!(Consumer::of(&stream).await.ids(events.len()).await, ids(&events));
    assert_eq!(count(&stream).await, 306);
}

#[tokio::test]
async fn a_refused_message_is_kept_apart_until_the_stream_takes_it() {
    let (server, context, stream) = nats_or_skip!();
    let small = Config { max_message_size: 2_000, ..config() };
    context.update_stream(small).await.expect("updated");
    let world = World::with(&["--event-sink", &server.url()], seeds()).await;
    let large = TraceEvent { attributes: [("note".to_owned(), "x".repeat(3_000))].into(), ..event(2) };
    let events = [event(3), large.clone(), event(1)];
    world.append(events.to_vec()).await;
    let mut consumer = Consumer::of(&stream).await;
    assert_eq!(consumer.ids(2).await, [events[0].event_id.clone(), events[2].event_id.clone()]);
    // Acknowledged, and therefore counted, with the position of the next block.
    let next = event(0);
    world.append(vec![next.clone()]).await;
    assert_eq!(consumer.ids(1).await, [next.event_id]);
    let refused = "SELECT refusal AS text FROM event_sink_refused";
    let kept = texts(&world.database().await, refused).await;
    assert!(kept.len() == 1 && kept[0].contains("message size exceeds maximum allowed"), "{kept:?}");
    context.update_stream(config()).await.expect("updated");
    let world = world.restart(&["--event-sink", &server.url()], vec![]).await;
    assert_eq!(consumer.ids(1).await, [large.event_id]);
    let last = event(0);
    world.append(vec![last.clone()]).await;
    assert_eq!(consumer.ids(1).await, [last.event_id]);
    assert_eq!(texts(&world.database().await, refused).await, [] as [String; 0]);
}

#[tokio::test]
async fn one_instance_publishes_and_another_takes_over() {
    let (server, context, stream) = nats_or_skip!();
    let mut published = context.client().subscribe("ordermesh.events.>").await.expect("subscribed");
    let url = server.url();
    let settings = |instance| ["--event-sink", &url, "--instance", instance];
    let first = World::with(&settings("data-1"), seeds()).await;
    let mut consumer = Consumer::of(&stream).await;
    let mut events = vec![event(500)];
    first.append(events.clone()).await;
    assert_eq!(consumer.ids(1).await, ids(&events));
    let second = first.beside_with(&settings("data-2")).await;
    let db = second.database().await;
    let owner = "SELECT lease_owner AS text FROM event_sink";
    for _ in 0..10 {
        let (one, two) = (event(400), event(300));
        first.append(vec![one.clone()]).await;
        second.append(vec![two.clone()]).await;
        assert_eq!(consumer.ids(2).await, ids(&[one.clone(), two.clone()]));
        assert_eq!(texts(&db, owner).await, ["data-1"]);
        events.extend([one, two]);
    }
    // A clean end frees the lease, and after a crash it expires.
    drop(first);
    let last = event(200);
    second.append(vec![last.clone()]).await;
    events.push(last);
    assert_eq!(consumer.ids(1).await, ids(&events[21..]));
    let crash = async |db: &Database| {
        assert_eq!(execute(db, "UPDATE event_sink SET lease_owner = 'data-0', lease_until = 1").await, 1);
    };
    let third = second.restart_after(crash, &settings("data-3"), vec![]).await;
    let last = event(100);
    third.append(vec![last.clone()]).await;
    events.push(last);
    assert_eq!(consumer.ids(1).await, ids(&events[22..]));
    assert_eq!(texts(&db, owner).await, ["data-3"]);
    // Nothing was published twice.
    for expected in ids(&events) {
        let message = tokio::time::timeout(GUARD, published.next()).await.expect("in time").expect("no end");
        assert_eq!(message.headers.expect("headers").get(NATS_MESSAGE_ID).expect("an id").as_str(), expected);
    }
}
