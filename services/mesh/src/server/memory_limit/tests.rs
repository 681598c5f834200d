use super::*;

fn limit(files: &[(&str, &str)]) -> Option<u64> {
    limit_bytes(&|path| files.iter().find(|(name, _)| Path::new(name) == path).map(|(_, text)| (*text).to_owned()))
}

const MACHINE: (&str, &str) = ("/proc/meminfo", "MemTotal:       16384 kB\nMemFree:        1 kB\n");
const V2: (&str, &str) = ("/proc/self/cgroup", "0::/pods/one\n");
const V1: (&str, &str) = ("/proc/self/cgroup", "10:cpu,cpuacct:/x\n9:memory:/pods/one\n0::/\n");

#[test]
fn the_smallest_limit_of_all_ancestor_groups_applies() {
    let mine = ("/sys/fs/cgroup/pods/one/memory.max", "max\n");
    let above = ("/sys/fs/cgroup/pods/memory.max", "4096000\n");
    let root = ("/sys/fs/cgroup/memory.max", "8192000\n");
    assert_eq!(limit(&[V2, mine, above, root, MACHINE]), Some(4_096_000));
    assert_eq!(limit(&[V2, root, MACHINE]), Some(8_192_000), "in a container the path may be the host's");
}

#[test]
fn version_1_is_read_when_version_2_has_no_limit() {
    let mine = ("/sys/fs/cgroup/memory/pods/one/memory.limit_in_bytes", "2048000\n");
    let unlimited = ("/sys/fs/cgroup/memory/memory.limit_in_bytes", "9223372036854771712\n");
    assert_eq!(limit(&[V1, mine, unlimited, MACHINE]), Some(2_048_000));
    assert_eq!(limit(&[V1, unlimited, MACHINE]), Some(16_384 * 1_024), "only the machine's limit");
}

#[test]
fn a_limit_above_the_machines_memory_is_ignored() {
    let mine = ("/sys/fs/cgroup/pods/one/memory.max", "99999999999");
    assert_eq!(limit(&[V2, mine, MACHINE]), Some(16_384 * 1_024));
    assert_eq!(limit(&[]), None);
}

#[test]
fn the_budget_is_a_quarter() {
    assert_eq!(budget_of(4_000), 1_000);
    assert_eq!(budget_of(UNKNOWN_LIMIT_BYTES), 268_435_450);
    assert!(default_budget_bytes() > 0, "this machine's");
}

#[test]
fn a_limit_that_is_not_a_number_is_ignored() {
    for text in ["", "max", "-1", "1.5", "99999999999999999999999999"] {
        assert_eq!((parse_v2(text), parse_v1(text)), (None, None), "{text}");
    }
    assert_eq!(parse_meminfo("MemTotal: 18446744073709551615 kB"), None, "it overflows");
    assert_eq!(parse_meminfo("MemFree: 1 kB"), None);
}
