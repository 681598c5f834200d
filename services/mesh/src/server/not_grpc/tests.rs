use super::*;

fn status(method: Method, content_type: Option<&str>) -> Option<u16> {
    let mut request = http::Request::builder().method(method).uri("/t.T/Call");
    if let Some(content_type) = content_type {
        request = request.header(header::CONTENT_TYPE, content_type);
    }
    not_grpc(&request.body(Body::empty()).expect("a request")).map(|response| response.status().as_u16())
}

#[test]
fn grpc_is_recognized_by_its_method_and_content_type() {
    #[rustfmt::skip]
    let table = [
        (Method::POST,    Some("application/grpc"),                      None),
        (Method::POST,    Some("application/grpc+proto"),                None),
        (Method::POST,    Some("Application/GRPC"),                      None),
        (Method::POST,    Some("application/grpc; charset=utf-8"),       None),
        (Method::POST,    Some("application/grpc+proto ;v=1"),           None),
        (Method::POST,    Some("application/grpc+json"),                 Some(415)),
        (Method::POST,    Some("application/grpc-web"),                  Some(415)),
        (Method::POST,    Some("application/grpc-web+proto"),            Some(415)),
        (Method::POST,    Some("application/grpcfoo"),                   Some(415)),
        (Method::POST,    Some("application/json"),                      Some(415)),
        (Method::POST,    Some("application/connect+proto"),             Some(415)),
        (Method::POST,    Some("text/plain; a=application/grpc"),        Some(415)),
        (Method::POST,    Some(""),                                      Some(415)),
        (Method::POST,    None,                                          Some(415)),
        (Method::GET,     Some("application/grpc"),                      Some(405)),
        (Method::HEAD,    None,                                          Some(405)),
        (Method::OPTIONS, None,                                          Some(405)),
        (Method::CONNECT, Some("application/grpc"),                      Some(405)),
    ];
    for (method, content_type, expected) in table {
        assert_eq!(status(method.clone(), content_type), expected, "{method} {content_type:?}");
    }
}
