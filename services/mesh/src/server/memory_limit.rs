//! The process's memory limit: that of its control group (version 2, else version 1), and never more than the machine
//! has. Only for the default of the memory budget: a configured budget is not checked.

use std::path::{Path, PathBuf};

/// The part of the limit that requests and unsent responses may hold, in percent. The rest is for the program, what it
/// reads from databases, and its caches.
const DEFAULT_SHARE_PERCENT: u64 = 25;
/// When no limit can be determined.
const UNKNOWN_LIMIT_BYTES: u64 = 1_024 * 1_024 * 1_024;
/// Version 1 writes "no limit" as the greatest number of whole pages.
const V1_UNLIMITED_BYTES: u64 = 1 << 60;

/// The memory budget of a server that sets none, in bytes.
pub(crate) fn default_budget_bytes() -> usize {
    budget_of(limit_bytes(&|path| std::fs::read_to_string(path).ok()).unwrap_or(UNKNOWN_LIMIT_BYTES))
}

/// The memory budget of a process with this limit: a quarter.
pub fn budget_of(limit_bytes: u64) -> usize {
    usize::try_from(limit_bytes / 100 * DEFAULT_SHARE_PERCENT).unwrap_or(usize::MAX)
}

/// The smallest limit that applies. `read` reads a file.
fn limit_bytes(read: &dyn Fn(&Path) -> Option<String>) -> Option<u64> {
    let groups = read(Path::new("/proc/self/cgroup")).unwrap_or_default();
    let v2 = v2_path(&groups).and_then(|path| {
        // A limit may be set on any ancestor group; in a container the path may be the host's, and the root is the
        // container's own.
        let files = ancestors("/sys/fs/cgroup", path).map(|group| group.join("memory.max"));
        files.filter_map(|file| parse_v2(&read(&file)?)).min()
    });
    let v1 = || {
        let files = ancestors("/sys/fs/cgroup/memory", v1_path(&groups)?);
        files.filter_map(|group| parse_v1(&read(&group.join("memory.limit_in_bytes"))?)).min()
    };
    let machine = read(Path::new("/proc/meminfo")).and_then(|text| parse_meminfo(&text));
    v2.or_else(v1).into_iter().chain(machine).min()
}

/// The group and its ancestors, up to the root of the hierarchy.
fn ancestors(root: &'static str, path: &str) -> impl Iterator<Item = PathBuf> {
    let group = Path::new(root).join(path.trim_start_matches('/'));
    let groups: Vec<_> = group.ancestors().take_while(|group| group.starts_with(root)).map(Path::to_path_buf).collect();
    groups.into_iter()
}

/// `0::/path`
fn v2_path(groups: &str) -> Option<&str> {
    groups.lines().find_map(|line| line.strip_prefix("0::"))
}

/// `9:memory:/path`
fn v1_path(groups: &str) -> Option<&str> {
    groups.lines().find_map(|line| {
        let (_, rest) = line.split_once(':')?;
        let (controllers, path) = rest.split_once(':')?;
        controllers.split(',').any(|controller| controller == "memory").then_some(path)
    })
}

/// A number of bytes; `max` means no limit.
fn parse_v2(text: &str) -> Option<u64> {
    text.trim().parse().ok()
}

fn parse_v1(text: &str) -> Option<u64> {
    text.trim().parse().ok().filter(|bytes| *bytes < V1_UNLIMITED_BYTES)
}

/// `MemTotal:       16384 kB`
fn parse_meminfo(text: &str) -> Option<u64> {
    let total = text.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
    total.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()?.checked_mul(1_024)
}

#[cfg(test)]
mod tests;
