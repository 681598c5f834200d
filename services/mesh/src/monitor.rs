//! Live statistics of the calls that one instance serves and makes, and taps: statistics of the calls that it serves and makes, and taps. The servers
//! and channels of a process share a [`Monitor`]; they register when they are built, and are read on request. A call adds
//! to its statistics under the lock of its method, and reads whether a tap is open.

pub(crate) mod observed;
pub(crate) mod readings;
pub(crate) mod snapshot;
pub(crate) mod statistics;
pub(crate) mod tap;

use std::fmt;
use std::sync::{Arc, Weak};

use parking_lot::Mutex;
use tokio::time::Instant;

use crate::monitor::readings::{Readings, TargetReading};
use crate::monitor::snapshot::{ServerSnapshot, Snapshot};
use crate::monitor::tap::{Tap, TapFilter, Taps, TooManyTaps};

/// A server or a channel that can be read.
pub(crate) trait Source: Send + Sync {
    /// Its state now.
    fn read(&self, now: Instant) -> Reading;
}

/// The state of a source.
pub(crate) enum Reading {
    Server(ServerSnapshot),
    Target(TargetReading),
}

/// Observes the calls of one instance. Clones share it.
#[derive(Clone)]
pub struct Monitor(Arc<Inner>);

struct Inner {
    service: &'static str,
    sources: Mutex<Vec<Weak<dyn Source>>>,
    taps: Arc<Taps>,
}

impl fmt::Debug for Monitor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Monitor").field("service", &self.0.service).finish_non_exhaustive()
    }
}

impl Monitor {
    /// For an instance of this service.
    pub fn new(service: &'static str) -> Self {
        Self(Arc::new(Inner { service, sources: Mutex::default(), taps: Arc::default() }))
    }

    /// The instance's service.
    pub(crate) fn service(&self) -> &'static str {
        self.0.service
    }

    /// Reads a source in every snapshot while it exists.
    pub(crate) fn register(&self, source: &Arc<impl Source + 'static>) {
        let source: Weak<dyn Source> = Arc::<_>::downgrade(source) as Weak<dyn Source>;
        let mut sources = self.0.sources.lock();
        sources.retain(|source| source.strong_count() > 0);
        sources.push(source);
    }

    pub(crate) fn taps(&self) -> &Arc<Taps> {
        &self.0.taps
    }

    /// The statistics of all calls, and the limits in use. Channels to the same target are one.
    pub fn snapshot(&self) -> Snapshot {
        let now = Instant::now();
        let sources: Vec<_> = self.0.sources.lock().iter().filter_map(Weak::upgrade).collect();
        let mut readings = Readings::default();
        for source in sources {
            match source.read(now) {
                Reading::Server(server) => readings.add_server(server),
                Reading::Target(target) => readings.add_target(target),
            }
        }
        readings.finish()
    }

    /// Reports calls as they end, from now on.
    ///
    /// # Errors
    /// There are too many taps already.
    pub fn tap(&self, filter: TapFilter) -> Result<Tap, TooManyTaps> {
        self.0.taps.open(filter)
    }
}
