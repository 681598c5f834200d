//! PostgreSQL URLs with several hosts (libpq's connection URIs, PostgreSQL's documentation 34.1.1.3): a cluster whose primary may
//! be any of them. A connection goes to the primary on the highest timeline: each promotion begins a new one, so an old
//! primary that comes back, or was cut off from the others, is on a lower one. With two primaries on the highest timeline none
//! gets a connection.

mod url;

use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::future::BoxFuture;
use futures_util::stream::FuturesUnordered;
use parking_lot::Mutex;
use sea_orm::sqlx::postgres::{PgConnectOptions, PgConnection};
use sea_orm::sqlx::{self, ConnectOptions, Executor, Row};
use tokio::time::timeout;

use crate::error::{Error, is_starting};
use crate::hosts::url::Target;

/// Columns: read-only, a standby, the name of the primary's WAL file, which begins with its timeline, and the start of the
/// server: two addresses may lead to one server.
const ROLE: &str = "SELECT current_setting('transaction_read_only')::boolean, pg_is_in_recovery(), \
                    CASE WHEN pg_is_in_recovery() THEN NULL ELSE pg_walfile_name(pg_current_wal_lsn()) END, \
                    pg_postmaster_start_time()::text, (SELECT system_identifier FROM pg_control_system())";

/// Timeout of a connection to the last primary; after it the other hosts are asked too.
const PRIMARY_TIMEOUT: Duration = Duration::from_secs(1);
/// Timeout of the other hosts, from the response of the first primary on.
const OTHERS_TIMEOUT: Duration = Duration::from_secs(1);
/// The same when it was promoted since the last discovery.
const PROMOTED_TIMEOUT: Duration = Duration::from_millis(250);

/// The primary of the last connection.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub(crate) struct Primary {
    /// Its index in the URL.
    index: usize,
    /// The cluster's system identifier.
    system: i64,
    /// The highest timeline seen; 0 when none was.
    timeline: u32,
    /// There are two of them: none gets a connection.
    pub(crate) is_split: bool,
}

/// A server that may get a connection.
#[derive(Debug)]
struct Candidate<C> {
    index: usize,
    system: i64,
    timeline: u32,
    start_time: String,
    connection: C,
}

type Asked<'a> = BoxFuture<'a, Result<Candidate<PgConnection>, sqlx::Error>>;

/// The servers of a URL.
#[derive(Debug)]
pub(crate) struct Hosts {
    options: Vec<PgConnectOptions>,
    target: Target,
    primary: Mutex<Primary>,
    /// How often the primary was replaced, or a second one appeared: connections of before lead to an old one.
    fences: AtomicU64,
    /// How often a connection to the primary broke or was unresponsive: another host may have been promoted.
    requested: AtomicU64,
    /// The last of these requests that a successful discovery has answered.
    discovered: AtomicU64,
}

impl Hosts {
    /// The servers of a URL: see [`url::parse`].
    ///
    /// # Errors
    /// As [`url::parse`].
    pub(crate) fn parse(text: &str) -> Result<Self, Error> {
        let (options, target) = url::parse(text)?;
        Ok(Self {
            options,
            target,
            primary: Mutex::default(),
            fences: AtomicU64::new(0),
            requested: AtomicU64::new(0),
            discovered: AtomicU64::new(0),
        })
    }

    /// The same with other options.
    pub(crate) fn map(mut self, change: impl Fn(PgConnectOptions) -> PgConnectOptions) -> Self {
        self.options = self.options.into_iter().map(change).collect();
        self
    }

    /// Whether the primary may change.
    pub(crate) fn has_several(&self) -> bool {
        self.options.len() > 1
    }

    /// The primary of the last connection.
    pub(crate) fn primary(&self) -> Primary {
        *self.primary.lock()
    }

    /// How often the primary was replaced, or a second one appeared.
    pub(crate) fn fences(&self) -> u64 {
        self.fences.load(Ordering::Acquire)
    }

    /// The options of the host of the last connection.
    pub(crate) fn last(&self) -> PgConnectOptions {
        // There is at least one host.
        self.options.get(self.primary().index).cloned().unwrap_or_default()
    }

    /// The next connection is made by [`Hosts::discover`].
    pub(crate) fn require_discovery(&self) {
        self.requested.fetch_add(1, Ordering::AcqRel);
    }

    /// A connection to the last primary, if it is still the primary; else to the one that [`Hosts::discover`] finds.
    ///
    /// # Errors
    /// No host is a primary, or two are.
    pub(crate) async fn connect(&self) -> Result<PgConnection, sqlx::Error> {
        let last = self.primary();
        let is_required = self.requested.load(Ordering::Acquire) > self.discovered.load(Ordering::Acquire);
        if !self.has_several() || last.timeline == 0 || last.is_split || is_required {
            return self.discover().await;
        }
        let mut asked = self.ask(last.index);
        match timeout(PRIMARY_TIMEOUT, &mut asked).await {
            Ok(Ok(found)) => {
                // Another connection may have found its successor meanwhile.
                let known = self.primary();
                if (found.system, found.timeline) == (known.system, known.timeline) && !known.is_split {
                    return Ok(found.connection);
                }
                self.discover().await
            }
            Ok(Err(_)) => self.discover().await,
            Err(_elapsed) => {
                self.require_discovery();
                self.discover_after(Some((last.index, asked))).await
            }
        }
    }

    /// Asks all hosts. A connection to the primary on the highest timeline.
    ///
    /// # Errors
    /// No host is a primary, or two are. If a server has answered with an error, it is that one.
    pub(crate) async fn discover(&self) -> Result<PgConnection, sqlx::Error> {
        self.discover_after(None).await
    }

    /// The same, with a host that was asked before and has not answered yet.
    async fn discover_after(&self, asked: Option<(usize, Asked<'_>)>) -> Result<PgConnection, sqlx::Error> {
        let request = self.requested.load(Ordering::Acquire);
        let (asked_index, asked) = asked.unzip();
        let others = (0..self.options.len()).filter(|index| asked_index != Some(*index)).map(|index| self.ask(index));
        let mut pending: FuturesUnordered<_> = asked.into_iter().chain(others).collect();
        let mut failures = Vec::new();
        let first = loop {
            match pending.next().await {
                Some(Ok(candidate)) => break candidate,
                Some(Err(error)) => failures.push(error),
                None => return Err(combined(failures)),
            }
        };
        // A higher timeline than the known one is the primary's, unless another one was promoted at the same time.
        let known = self.primary().timeline;
        let limit = if known > 0 && first.timeline > known { PROMOTED_TIMEOUT } else { OTHERS_TIMEOUT };
        let mut candidates = vec![first];
        let others = async {
            while let Some(answer) = pending.next().await {
                candidates.extend(answer.ok());
            }
        };
        // A host that does not answer in time is no primary.
        let _ = timeout(limit, others).await;
        let chosen = {
            let mut primary = self.primary.lock();
            let before = *primary;
            let chosen = choose(candidates, &mut primary, |index| self.name(index));
            let is_replaced = (primary.system, primary.timeline) != (before.system, before.timeline);
            if (before.timeline > 0 && is_replaced) || (primary.is_split && !before.is_split) {
                self.fences.fetch_add(1, Ordering::AcqRel);
            }
            chosen
        };
        if chosen.is_ok() {
            self.discovered.fetch_max(request, Ordering::AcqRel);
        }
        chosen.map_err(refused)
    }

    /// A connection to a host, if it may get one.
    fn ask(&self, index: usize) -> Asked<'_> {
        Box::pin(async move {
            let options = self.options.get(index).ok_or_else(|| refused("there is no such host".to_owned()))?;
            let mut connection = options.connect().await.map_err(|error| self.named(index, error))?;
            if self.target == Target::Any {
                return Ok(Candidate { index, system: 0, timeline: 0, start_time: String::new(), connection });
            }
            let role = connection.fetch_one(ROLE).await?;
            let (is_read_only, is_standby): (bool, bool) = (role.try_get(0)?, role.try_get(1)?);
            if is_standby {
                return Err(refused(format!("{} is a standby", self.name(index))));
            }
            if is_read_only && self.target == Target::ReadWrite {
                return Err(refused(format!("{} is read-only", self.name(index))));
            }
            let wal_file: String = role.try_get(2)?;
            let timeline = wal_file.get(..8).and_then(|timeline| u32::from_str_radix(timeline, 16).ok());
            let timeline = timeline.ok_or_else(|| sqlx::Error::Protocol(format!("a WAL file named {wal_file}")))?;
            let (start_time, system) = (role.try_get(3)?, role.try_get(4)?);
            Ok(Candidate { index, system, timeline, start_time, connection })
        })
    }

    fn name(&self, index: usize) -> String {
        let name = |host: &PgConnectOptions| match host.get_host() {
            ipv6 if ipv6.contains(':') => format!("[{ipv6}]:{}", host.get_port()),
            host_name => format!("{host_name}:{}", host.get_port()),
        };
        self.options.get(index).map(name).unwrap_or_default()
    }

    /// An I/O error names the host.
    fn named(&self, index: usize, error: sqlx::Error) -> sqlx::Error {
        if let sqlx::Error::Io(error) = &error {
            return sqlx::Error::Io(io::Error::new(error.kind(), format!("{}: {error}", self.name(index))));
        }
        error
    }
}

/// The connection to the primary on the highest timeline, which becomes the known one.
///
/// # Errors
/// What is wrong with the primaries: there are two, they are of two clusters, or all are old ones.
fn choose<C>(candidates: Vec<Candidate<C>>, known: &mut Primary, name: impl Fn(usize) -> String) -> Result<C, String> {
    let names = |candidates: &[Candidate<C>]| {
        let mut indexes: Vec<usize> = candidates.iter().map(|candidate| candidate.index).collect();
        indexes.sort_unstable();
        indexes.into_iter().map(&name).collect::<Vec<_>>().join(" and ")
    };
    let system = candidates.first().map(|first| first.system).unwrap_or_default();
    if candidates.iter().any(|candidate| candidate.system != system) {
        return Err(format!("{} are primaries of different clusters", names(&candidates)));
    }
    // A new cluster in the place of the old one (pg_upgrade, initdb) begins with timeline 1.
    let known_timeline = if known.system == system { known.timeline } else { 0 };
    let highest = candidates.iter().map(|candidate| candidate.timeline).max().unwrap_or_default();
    if highest < known_timeline {
        let old = names(&candidates);
        return Err(format!(
            "{old}: an old primary, on timeline {highest}; the current one, on timeline {known_timeline}, does not answer"
        ));
    }
    let (mut newest, _old): (Vec<_>, Vec<_>) =
        candidates.into_iter().partition(|candidate| candidate.timeline == highest);
    let is_split = newest.windows(2).any(|pair| matches!(pair, [one, other] if one.start_time != other.start_time));
    *known = Primary { system, timeline: highest, is_split, ..*known };
    if is_split {
        return Err(format!("split brain: {} are primaries on timeline {highest}; demote one", names(&newest)));
    }
    let first = newest.swap_remove(0);
    known.index = first.index;
    Ok(first.connection)
}

/// Like a server that does not listen: it is tried again.
fn refused(why: String) -> sqlx::Error {
    sqlx::Error::Io(io::Error::new(io::ErrorKind::ConnectionRefused, why))
}

/// All errors in one, to be tried again, if one of the hosts may come up; else the first one: a wrong password or database is
/// no reason to wait.
fn combined(mut failures: Vec<sqlx::Error>) -> sqlx::Error {
    if failures.len() == 1 || !failures.iter().any(is_starting) {
        return failures.swap_remove(0);
    }
    let text = |error: &sqlx::Error| if let sqlx::Error::Io(io) = error { io.to_string() } else { error.to_string() };
    refused(failures.iter().map(text).collect::<Vec<_>>().join("; "))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chosen(candidates: &[(usize, u32, &str)], known: &mut Primary) -> Result<usize, String> {
        chosen_of(7, candidates, known)
    }

    fn chosen_of(system: i64, candidates: &[(usize, u32, &str)], known: &mut Primary) -> Result<usize, String> {
        let candidate = |&(index, timeline, start_time): &(usize, u32, &str)| Candidate {
            index,
            system,
            timeline,
            start_time: start_time.to_owned(),
            connection: index,
        };
        choose(candidates.iter().map(candidate).collect(), known, |index| format!("pg-{index}"))
    }

    #[test]
    fn the_primary_on_the_highest_timeline_is_chosen_and_an_old_one_never_again() {
        let mut known = Primary::default();
        assert_eq!(chosen(&[(0, 1, "a")], &mut known), Ok(0));
        assert_eq!(chosen(&[(0, 1, "a"), (2, 2, "c")], &mut known), Ok(2));
        assert_eq!(known, Primary { index: 2, system: 7, timeline: 2, is_split: false });
        let old = chosen(&[(0, 1, "a")], &mut known).expect_err("an old primary");
        assert!(old.contains("pg-0: an old primary, on timeline 1; the current one, on timeline 2,"), "{old}");
        assert_eq!(known, Primary { index: 2, system: 7, timeline: 2, is_split: false });
    }

    #[test]
    fn a_new_cluster_in_the_place_of_the_old_one_begins_its_timelines_anew() {
        let mut known = Primary::default();
        assert_eq!(chosen(&[(0, 3, "a")], &mut known), Ok(0));
        assert_eq!(chosen_of(8, &[(1, 1, "b")], &mut known), Ok(1));
        assert_eq!(known, Primary { index: 1, system: 8, timeline: 1, is_split: false });
        let of = |index, system| Candidate { index, system, timeline: 1, start_time: "b".into(), connection: index };
        let mixed = choose(vec![of(1, 8), of(0, 7)], &mut known, |index| format!("pg-{index}"));
        assert_eq!(mixed.expect_err("two clusters"), "pg-0 and pg-1 are primaries of different clusters");
    }

    #[test]
    fn a_host_that_may_come_up_is_waited_for_whatever_the_others_answer() {
        let malformed = || sqlx::Error::Protocol("a wrong answer".into());
        assert!(is_starting(&combined(vec![malformed(), refused("a is a standby".into())])));
        assert!(!is_starting(&combined(vec![malformed(), malformed()])));
        let text = combined(vec![malformed(), refused("a is a standby".into())]).to_string();
        assert!(text.contains("a wrong answer") && text.contains("a is a standby"), "{text}");
    }

    #[test]
    fn of_two_primaries_on_one_timeline_none_is_chosen_until_one_is_gone() {
        let mut known = Primary::default();
        assert_eq!(chosen(&[(0, 2, "a")], &mut known), Ok(0));
        let split = chosen(&[(0, 2, "a"), (1, 2, "b")], &mut known).expect_err("a split");
        assert_eq!(split, "split brain: pg-0 and pg-1 are primaries on timeline 2; demote one");
        assert!(known.is_split);
        assert_eq!(chosen(&[(1, 2, "b")], &mut known), Ok(1));
        assert!(!known.is_split);
        // Two addresses of one server are none.
        assert_eq!(chosen(&[(0, 2, "b"), (1, 2, "b")], &mut known), Ok(0));
    }
}
