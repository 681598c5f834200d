//! Calls for a duration, with a number of calls in flight.

use std::time::{Duration, Instant};

use futures_util::future::join_all;
use hdrhistogram::Histogram;
use tonic::Request;
use tonic::body::Body;
use tonic::client::GrpcService;
use tonic::codegen::StdError;
use tonic_prost::ProstCodec;

use crate::stacks::PATH;

/// The result of one stack in one round.
pub(crate) struct Round {
    pub(crate) calls: u64,
    /// Microseconds.
    pub(crate) p50: f64,
    pub(crate) p99: f64,
    pub(crate) server_cpu_micros: u64,
    pub(crate) client_cpu_micros: u64,
}

/// The calls' durations, in tenths of a microsecond.
pub(crate) async fn run<C>(channel: &C, in_flight: usize, time: Duration) -> Histogram<u64>
where
    C: GrpcService<Body> + Clone + Send + 'static,
    C::ResponseBody: http_body::Body<Data = bytes::Bytes> + Send + 'static,
    <C::ResponseBody as http_body::Body>::Error: Into<StdError> + Send,
    C::Future: Send,
{
    let end = Instant::now() + time;
    let workers = (0..in_flight).map(|_| {
        let mut echo = tonic::client::Grpc::new(channel.clone());
        tokio::spawn(async move {
            let mut took = Histogram::<u64>::new(3).expect("three digits");
            let text = "x".repeat(64);
            while Instant::now() < end {
                let began = Instant::now();
                echo.ready().await.map_err(Into::into).expect("ready");
                let path = http::uri::PathAndQuery::from_static(PATH);
                let codec = ProstCodec::<String, String>::default();
                let answer = echo.unary(Request::new(text.clone()), path, codec).await.expect("answered");
                assert_eq!(answer.get_ref().len(), text.len());
                let tenths = u64::try_from(began.elapsed().as_nanos() / 100).unwrap_or(u64::MAX);
                took.record(tenths).expect("it grows");
            }
            took
        })
    });
    let mut all = Histogram::<u64>::new(3).expect("three digits");
    for took in join_all(workers).await {
        all.add(took.expect("no panic")).expect("alike");
    }
    all
}
