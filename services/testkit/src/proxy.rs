//! A TCP proxy in front of a server: it can blackhole, close or reset its connections, and redirect new ones.

use std::net::SocketAddr;

use tokio::io::copy_bidirectional;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinHandle;

/// How existing connections end.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum End {
    /// They stay open but carry nothing: like a firewall that dropped its state, or a frozen peer.
    Blackhole,
    /// Both sides see a close (FIN).
    Closed,
    /// Both sides see a reset (RST).
    Reset,
}

#[derive(Clone, Copy)]
struct Target {
    address: SocketAddr,
    /// Counts the calls of `end`; connections of an earlier epoch have ended in the way of `end`.
    epoch: u64,
    end: End,
}

/// A proxy. It stops when it is dropped.
#[derive(Debug)]
pub struct Proxy {
    address: SocketAddr,
    target: watch::Sender<Target>,
    accepting: JoinHandle<()>,
}

impl std::fmt::Debug for Target {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} since {}", self.address, self.epoch)
    }
}

impl Proxy {
    /// Starts a proxy in front of an address.
    ///
    /// # Panics
    /// No port is free.
    pub async fn start(to: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("an address");
        let target = watch::Sender::new(Target { address: to, epoch: 0, end: End::Closed });
        let watched = target.subscribe();
        let accepting = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(carry(stream, watched.clone()));
            }
        });
        Self { address, target, accepting }
    }

    /// The address on which it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Ends the existing connections. New ones are carried as before.
    pub fn end(&self, end: End) {
        self.target.send_modify(|target| {
            target.epoch += 1;
            target.end = end;
        });
    }

    /// Redirects new connections to another server; existing ones stay.
    pub fn lead_to(&self, address: SocketAddr) {
        self.target.send_modify(|target| target.address = address);
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

async fn carry(mut near: TcpStream, mut target: watch::Receiver<Target>) {
    let made = *target.borrow_and_update();
    let Ok(mut far) = TcpStream::connect(made.address).await else { return };
    let ended = tokio::select! {
        _ = copy_bidirectional(&mut near, &mut far) => return,
        ended = target.wait_for(|now| now.epoch > made.epoch) => ended.map(|now| now.end),
    };
    match ended {
        Ok(End::Blackhole) => std::future::pending().await,
        // A socket that is closed with a linger time of zero sends a reset.
        Ok(End::Reset) => [near, far].iter().for_each(|stream| stream.set_zero_linger().expect("a socket")),
        Ok(End::Closed) | Err(_) => {}
    }
}
