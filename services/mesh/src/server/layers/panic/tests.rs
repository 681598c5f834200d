use super::*;
use tonic::Status;
use tower::{Layer, Service, ServiceExt, service_fn};

#[tokio::test]
async fn a_panic_before_the_handlers_future_exists_is_caught_like_one_inside_it() {
    let at_once = catch_panic().layer(service_fn(|_: Request| -> ServerFuture { panic!("at once") }));
    let later = catch_panic().layer(service_fn(|_: Request| -> ServerFuture { Box::pin(async { panic!("later") }) }));
    for mut service in [at_once.boxed(), later.boxed()] {
        let response = service.call(Request::default()).await.expect("a response");
        let status = Status::from_header_map(response.headers()).expect("a status");
        assert_eq!((status.code(), status.message()), (Code::Internal, "internal error"));
    }
}
