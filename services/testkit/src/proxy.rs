//! A TCP proxy in front of a server: it can blackhole, close or reset its connections, redirect new ones, and close one at
//! a COMMIT.

use std::net::SocketAddr;
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
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

/// Where a connection is closed at a COMMIT.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum AtCommit {
    /// The server does not receive it.
    NotSent,
    /// The server has committed, and its response is lost.
    ResponseLost,
}

/// Where the connection that sends the next COMMIT is closed.
type Cut = Arc<Mutex<Option<AtCommit>>>;

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
    cut: Cut,
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
        let cut = Cut::default();
        let shared = cut.clone();
        let accepting = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(carry(stream, watched.clone(), shared.clone()));
            }
        });
        Self { address, target, cut, accepting }
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

    /// Closes the connection that sends the next COMMIT.
    pub fn cut(&self, at: AtCommit) {
        *self.cut.lock() = Some(at);
    }

    /// Whether the connection of [`Proxy::cut`] was closed.
    pub fn has_cut(&self) -> bool {
        self.cut.lock().is_none()
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

async fn carry(mut near: TcpStream, mut target: watch::Receiver<Target>, cut: Cut) {
    let made = *target.borrow_and_update();
    let Ok(mut far) = TcpStream::connect(made.address).await else { return };
    let ended = tokio::select! {
        _ = copy(&mut near, &mut far, &cut) => return,
        ended = target.wait_for(|now| now.epoch > made.epoch) => ended.map(|now| now.end),
    };
    match ended {
        Ok(End::Blackhole) => std::future::pending().await,
        // A socket that is closed with a linger time of zero sends a reset.
        Ok(End::Reset) => [near, far].iter().for_each(|stream| stream.set_zero_linger().expect("a socket")),
        Ok(End::Closed) | Err(_) => {}
    }
}

/// Until one side closes, or at the COMMIT.
async fn copy(near: &mut TcpStream, far: &mut TcpStream, cut: &Cut) -> std::io::Result<()> {
    let (mut from_near, mut from_far) = (vec![0; 1 << 16], vec![0; 1 << 16]);
    loop {
        tokio::select! {
            read = near.read(&mut from_near) => match read? {
                0 => return Ok(()),
                count => {
                    let at = cut_at(cut, &from_near[..count]);
                    if at == Some(AtCommit::NotSent) {
                        return Ok(());
                    }
                    far.write_all(&from_near[..count]).await?;
                    if at == Some(AtCommit::ResponseLost) {
                        return far.readable().await;
                    }
                }
            },
            read = far.read(&mut from_far) => match read? {
                0 => return Ok(()),
                count => near.write_all(&from_far[..count]).await?,
            },
        }
    }
}

/// A COMMIT is a message of its own (`Query`), which is never split: it is a few bytes.
fn cut_at(cut: &Cut, sent: &[u8]) -> Option<AtCommit> {
    if !sent.windows(7).any(|window| window == b"COMMIT\0") {
        return None;
    }
    cut.lock().take()
}
