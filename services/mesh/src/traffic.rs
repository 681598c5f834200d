//! The traffic policy: what an operator changes, at run time and by a file, of how calls are made: shorter timeouts,
//! faults on purpose, shares and copies for other targets, and audited callers: calls of others are counted, not denied. It
//! can narrow what the contract allows, and widen nothing. A new file is taken whole, or rejected whole with one line while
//! the old one stays in force.

pub(crate) mod duration;
pub(crate) mod file;

use std::collections::HashMap;
use std::fmt;
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use http::{HeaderMap, HeaderName};
use kernel::{Clock, SystemClock, Timestamp};
use opentelemetry::global;
use parking_lot::{Mutex, RwLock};
use sha2::{Digest, Sha256};
use tokio_util::sync::CancellationToken;
use tonic::Code;

use crate::client::discovery::Addresses;
use crate::policy::{MethodPolicy, PolicyTable};

/// A longer file is rejected unread.
const MAX_FILE_BYTES: u64 = 256 * 1_024;

/// A fault that is injected into calls on purpose.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Fault {
    /// The share of calls that get it, in percent.
    pub percent: u8,
    /// The call waits for this long before it is sent.
    pub delay: Option<Duration>,
    /// The call fails with this status code, and is not sent.
    pub code: Option<Code>,
}

/// One of the targets between which calls are split.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Backend {
    /// The service itself, or a target of the file.
    pub name: String,
    /// The share of its weight in the sum of all weights.
    pub weight: u32,
    /// Of a target of the file; `None`: the service's own instances.
    pub addresses: Option<Addresses>,
}

/// The target to which calls are mirrored: it gets copies, whose responses are dropped.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Mirror {
    /// A target of the file.
    pub name: String,
    /// Its addresses.
    pub addresses: Addresses,
    /// The share of calls that are mirrored, in percent.
    pub percent: u8,
}

/// What a traffic policy changes of one method.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct TrafficRule {
    /// A shorter timeout than the contract's.
    pub timeout: Option<Duration>,
    /// A fault on purpose.
    pub fault: Option<Fault>,
    /// Between which targets calls are split; empty: they all go to the service.
    pub backends: Vec<Backend>,
    /// To which target calls are mirrored.
    pub mirror: Option<Mirror>,
    /// Callers that a stricter list would admit, by class or service; others are counted, and served.
    pub audited_callers: Option<Vec<String>>,
}

/// Headers of an operator's inbound call, with their values; all must match.
pub(crate) type Headers = Vec<(HeaderName, String)>;

/// A rule with its conditions.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct ConditionalRule {
    pub(crate) headers: Headers,
    pub(crate) rule: Arc<TrafficRule>,
}

/// The rules of a file, by the method's path, in the file's sequence.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(crate) struct Rules {
    pub(crate) by_path: HashMap<&'static str, Vec<ConditionalRule>>,
    /// As in the file.
    pub(crate) count: usize,
}

/// Which traffic policy is in force.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct TrafficState {
    /// The file; empty without one.
    pub file: String,
    /// The SHA-256 of the content in force, in hexadecimal; empty if none is.
    pub digest: String,
    /// When it came into force.
    pub loaded: Option<Timestamp>,
    /// Its rules.
    pub rules: usize,
    /// Why the file's present content is rejected; empty if it is in force.
    pub rejection: String,
}

struct Inner {
    policies: PolicyTable,
    allow_faults: bool,
    /// Read by each call: whether there are rules.
    is_set: AtomicBool,
    has_header_rules: AtomicBool,
    rules: RwLock<Arc<Rules>>,
    state: Mutex<TrafficState>,
    /// The file, as it was read when it was taken or rejected.
    last_read: Mutex<Option<Read>>,
}

/// A file's content, or why it cannot be read.
type Read = Result<Vec<u8>, String>;

/// The traffic policy of an instance. Clones share it.
#[derive(Clone)]
pub struct TrafficPolicy(Arc<Inner>);

impl fmt::Debug for TrafficPolicy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TrafficPolicy").field("state", &self.state()).finish_non_exhaustive()
    }
}

impl TrafficPolicy {
    /// Without rules. `policies` is the contract's whole table; a file with faults is rejected unless they are allowed.
    pub fn new(policies: PolicyTable, allow_faults: bool) -> Self {
        Self(Arc::new(Inner {
            policies,
            allow_faults,
            is_set: AtomicBool::new(false),
            has_header_rules: AtomicBool::new(false),
            rules: RwLock::default(),
            state: Mutex::default(),
            last_read: Mutex::default(),
        }))
    }

    /// Of an instance without a traffic policy.
    pub fn none() -> Self {
        Self::new(PolicyTable(&[]), false)
    }

    /// Which policy is in force.
    pub fn state(&self) -> TrafficState {
        self.0.state.lock().clone()
    }

    /// The rule of a method for calls without a header of an operator's.
    pub fn rule(&self, policy: &MethodPolicy) -> Option<Arc<TrafficRule>> {
        self.rule_for(policy, None)
    }

    /// The first rule whose conditions are met. `headers` are those of the operator's call that is being served.
    pub(crate) fn rule_for(&self, policy: &MethodPolicy, headers: Option<&HeaderMap>) -> Option<Arc<TrafficRule>> {
        if !self.0.is_set.load(Ordering::Relaxed) {
            return None;
        }
        let rules = self.0.rules.read();
        let matches = |(name, value): &(HeaderName, String)| {
            headers.is_some_and(|headers| headers.get(name).is_some_and(|found| found.as_bytes() == value.as_bytes()))
        };
        let of_method = rules.by_path.get(policy.path)?;
        of_method.iter().find(|rule| rule.headers.iter().all(matches)).map(|found| found.rule.clone())
    }

    /// Whether a rule sends calls to this target.
    pub(crate) fn has_backend(&self, name: &str, addresses: &Addresses) -> bool {
        let rules = self.0.rules.read();
        let mut backends = rules.by_path.values().flatten().flat_map(|rule| &rule.rule.backends);
        backends.any(|backend| backend.name == name && backend.addresses.as_ref() == Some(addresses))
    }

    /// Whether a rule mirrors calls to this target.
    pub(crate) fn has_mirror(&self, name: &str, addresses: &Addresses) -> bool {
        let rules = self.0.rules.read();
        let mut mirrors = rules.by_path.values().flatten().filter_map(|rule| rule.rule.mirror.as_ref());
        mirrors.any(|mirror| mirror.name == name && mirror.addresses == *addresses)
    }

    /// Whether a rule depends on headers.
    pub(crate) fn has_header_rules(&self) -> bool {
        self.0.has_header_rules.load(Ordering::Relaxed)
    }

    /// Takes a file's content whole, or rejects it whole.
    ///
    /// # Errors
    /// Why it is rejected, in one line with the position.
    pub fn apply(&self, file: &str, content: &[u8]) -> Result<(), String> {
        let taken = std::str::from_utf8(content)
            .map_err(|_| "it is not UTF-8".to_owned())
            .and_then(|text| file::rules(text, self.0.policies, self.0.allow_faults));
        match taken {
            Ok(rules) => {
                let state = TrafficState {
                    file: file.to_owned(),
                    digest: digest(content),
                    loaded: Some(SystemClock.now()),
                    rules: rules.count,
                    rejection: String::new(),
                };
                let has_header_rules = rules.by_path.values().flatten().any(|rule| !rule.headers.is_empty());
                let is_set = !rules.by_path.is_empty();
                *self.0.rules.write() = Arc::new(rules);
                self.0.has_header_rules.store(has_header_rules, Ordering::Relaxed);
                self.0.is_set.store(is_set, Ordering::Relaxed);
                *self.0.state.lock() = state;
                Ok(())
            }
            Err(why) => {
                self.reject(file, &why);
                Err(why)
            }
        }
    }

    fn reject(&self, file: &str, why: &str) {
        let mut state = self.0.state.lock();
        file.clone_into(&mut state.file);
        why.clone_into(&mut state.rejection);
    }

    /// Reads the file now: the policy is in force before the first call.
    pub fn load(&self, path: &Path) {
        self.take(path, read(path));
    }

    /// Reads the file every `every` until the shutdown. New content is logged, and accepted or rejected once two reads in a
    /// row agree: it may be being written. The policy in force stays while the file cannot be read.
    pub async fn follow(self, path: PathBuf, every: Duration, shutdown: CancellationToken) {
        let mut before = None;
        while shutdown.run_until_cancelled(tokio::time::sleep(every)).await.is_some() {
            let read_from = path.clone();
            // Files may be on a slow disk.
            let read = tokio::task::spawn_blocking(move || read(&read_from)).await;
            let read = read.unwrap_or_else(|_| Err("it cannot be read".to_owned()));
            if before.as_ref() == Some(&read) {
                self.take(&path, read);
            } else {
                before = Some(read);
            }
        }
    }

    fn take(&self, path: &Path, read: Read) {
        if self.0.last_read.lock().as_ref() == Some(&read) {
            return;
        }
        let file = path.display().to_string();
        match read.as_ref().map_err(Clone::clone).and_then(|content| self.apply(&file, content)) {
            Ok(()) => {
                let state = self.state();
                tracing::info!(target: "ordermesh", file, rules = state.rules, digest = &state.digest[..12], "the traffic policy is in force");
            }
            Err(why) => {
                // A file that cannot be read was not given to `apply`.
                self.reject(&file, &why);
                tracing::error!(target: "ordermesh", "the traffic policy {file} is rejected, the previous one stays in force: {why}");
            }
        }
        *self.0.last_read.lock() = Some(read);
    }

    /// Exports, while a clone exists, whether the file's present content is rejected, and the number of rules in force.
    pub fn export(&self) {
        let observe = |name: &'static str, description: &'static str, read: fn(&TrafficState) -> usize| {
            let weak = Arc::downgrade(&self.0);
            let meter = global::meter("mesh");
            let gauge = meter.u64_observable_gauge(name).with_description(description);
            gauge
                .with_callback(move |observer| {
                    let Some(inner) = weak.upgrade() else { return };
                    let value = read(&inner.state.lock());
                    observer.observe(u64::try_from(value).unwrap_or(u64::MAX), &[]);
                })
                .build();
        };
        observe("mesh.traffic_policy.rules", "Rules of the traffic policy in force", |state| state.rules);
        observe(
            "mesh.traffic_policy.refused",
            "1 while the traffic policy's file is rejected, and an older one is in force",
            |state| usize::from(!state.rejection.is_empty()),
        );
    }
}

fn digest(content: &[u8]) -> String {
    Sha256::digest(content).iter().fold(String::new(), |text, byte| format!("{text}{byte:02x}"))
}

fn read(path: &Path) -> Read {
    let unreadable = |error: std::io::Error| format!("it cannot be read: {error}");
    // Opening a pipe would wait for its writer.
    if !std::fs::metadata(path).map_err(unreadable)?.is_file() {
        return Err("it is not a file".to_owned());
    }
    let mut content = Vec::new();
    let mut bounded = std::fs::File::open(path).map_err(unreadable)?.take(MAX_FILE_BYTES + 1);
    let length = bounded.read_to_end(&mut content).map_err(unreadable)?;
    if u64::try_from(length).is_ok_and(|length| length > MAX_FILE_BYTES) {
        return Err(format!("it is longer than {} KiB", MAX_FILE_BYTES / 1_024));
    }
    Ok(content)
}

#[cfg(test)]
mod tests;
