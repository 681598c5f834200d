//! A random subset of a target's instances, to which this client connects (gRFC A68, random subsetting): with hundreds of
//! clients and instances the connections do not grow with the product of both.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::num::NonZeroUsize;

use crate::client::rng::Rng;

/// Which instances are in the subset.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Subset {
    /// All of them without.
    size: Option<NonZeroUsize>,
    /// This client's: each client has another subset.
    seed: u64,
}

impl Subset {
    pub(crate) fn new(size: Option<NonZeroUsize>, rng: &dyn Rng) -> Self {
        Self { size, seed: rng.fraction().to_bits() }
    }

    /// The addresses with the lowest hashes. So an instance that is added or removed changes at most one of the subset.
    pub(crate) fn of(&self, mut addresses: Vec<String>) -> Vec<String> {
        if let Some(size) = self.size.map(NonZeroUsize::get).filter(|size| *size < addresses.len()) {
            addresses.sort_by_cached_key(|address| self.hash(address));
            addresses.truncate(size);
        }
        addresses
    }

    fn hash(&self, address: &str) -> u64 {
        let mut hasher = DefaultHasher::new();
        (self.seed, address).hash(&mut hasher);
        hasher.finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;

    fn instances(count: usize) -> Vec<String> {
        (0..count).map(|n| format!("10.0.0.{n}:7000")).collect()
    }

    fn subset(size: usize, seed: u64) -> Subset {
        Subset { size: NonZeroUsize::new(size), seed }
    }

    #[test]
    fn clients_per_instance_differ_by_a_factor_of_two_at_most() {
        let mut clients = BTreeMap::<String, u32>::new();
        for seed in 0..200 {
            let chosen = subset(20, seed).of(instances(50));
            assert_eq!(chosen.len(), 20);
            chosen.into_iter().for_each(|address| *clients.entry(address).or_default() += 1);
        }
        // Each client's calls are spread evenly over its subset, by the choice of two.
        let (least, most) = (clients.values().min().expect("some"), clients.values().max().expect("some"));
        assert_eq!(clients.len(), 50);
        assert!(*most <= least * 2, "{least} to {most} clients of an instance");
    }

    #[test]
    fn a_change_of_one_instance_changes_at_most_one_of_the_subset() {
        let subset = subset(20, 7);
        let before = subset.of(instances(50));
        for gone in instances(50) {
            let left = instances(50).into_iter().filter(|address| *address != gone).collect();
            let after = subset.of(left);
            let kept = before.iter().filter(|address| after.contains(address)).count();
            assert_eq!(kept, if before.contains(&gone) { 19 } else { 20 }, "without {gone}");
            assert_eq!(after.len(), 20);
        }
    }

    #[test]
    fn without_a_size_and_with_fewer_instances_all_are_used() {
        assert_eq!(subset(0, 7).of(instances(50)), instances(50));
        assert_eq!(subset(20, 7).of(instances(20)), instances(20));
        assert_eq!(subset(20, 7).of(instances(3)), instances(3));
    }
}
