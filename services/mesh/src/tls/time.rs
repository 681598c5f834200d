//! The platform's clock for rustls.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use kernel::Clock;
use rustls::pki_types::UnixTime;
use rustls::time_provider::TimeProvider;

/// The platform's clock for rustls.
pub(crate) struct Time(pub(crate) Arc<dyn Clock>);

impl Time {
    pub(crate) fn now(&self) -> UnixTime {
        let seconds = self.0.now().as_micros().div_euclid(1_000_000);
        UnixTime::since_unix_epoch(Duration::from_secs(u64::try_from(seconds).unwrap_or(0)))
    }
}

impl TimeProvider for Time {
    fn current_time(&self) -> Option<UnixTime> {
        Some(self.now())
    }
}

impl fmt::Debug for Time {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Time")
    }
}
