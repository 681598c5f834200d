use super::*;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

async fn get(address: std::net::SocketAddr, path: &str) -> String {
    let mut stream = TcpStream::connect(address).await.expect("connects");
    let request = format!("GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.expect("written");
    let mut text = String::new();
    stream.read_to_string(&mut text).await.expect("read");
    text.lines().next().unwrap_or_default().to_owned()
}

#[tokio::test]
async fn connections_are_limited_and_a_closed_one_frees_its_slot() {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("an address");
    let (_ready, watched) = watch::channel(true);
    let server = tokio::spawn(serve_admin(listener, watched.clone(), watched, CancellationToken::new()));
    let mut silent = vec![];
    for _ in 0..MAX_CONNECTIONS {
        silent.push(TcpStream::connect(address).await.expect("connects"));
    }
    let mut rejected = TcpStream::connect(address).await.expect("connects");
    assert!(!matches!(rejected.read(&mut [0]).await, Ok(1..)), "closed");
    let mut left = silent.pop().expect("one of them");
    left.write_all(b"GET /livez HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").await.expect("written");
    left.read_to_end(&mut vec![]).await.expect("read");
    assert_eq!(get(address, "/livez").await, "HTTP/1.1 200 OK");
    server.abort();
}

#[tokio::test]
async fn readyz_reports_readiness_and_livez_reports_liveness() {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("an address");
    let (ready, watched) = watch::channel(false);
    let shutdown = CancellationToken::new();
    let (alive, is_alive) = watch::channel(true);
    let server = tokio::spawn(serve_admin(listener, watched, is_alive, shutdown.clone()));
    assert_eq!(get(address, "/livez").await, "HTTP/1.1 200 OK");
    assert_eq!(get(address, "/readyz").await, "HTTP/1.1 503 Service Unavailable");
    ready.send_replace(true);
    assert_eq!(get(address, "/readyz").await, "HTTP/1.1 200 OK");
    alive.send_replace(false);
    assert_eq!(get(address, "/livez").await, "HTTP/1.1 503 Service Unavailable");
    assert_eq!(get(address, "/else").await, "HTTP/1.1 404 Not Found");
    shutdown.cancel();
    server.await.expect("ends");
}
