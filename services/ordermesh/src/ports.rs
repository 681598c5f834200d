//! Free ports for one more system on this machine: for `demo`, `chaos`, and tests.

use std::net::TcpListener;
use std::sync::atomic::{AtomicU16, Ordering};

use crate::service::Service;

/// More than the ports of a system span.
const SPAN: u16 = 2_000;
/// Bases begin above the ports that the documents use, and end below the kernel's ephemeral ports.
const FIRST: u16 = 19_000;
const SPANS: u16 = 6;
/// Several processes search at the same time: each begins at another one of these shifts.
const SHIFT: u16 = 100;
const SHIFTS: u16 = SPAN / SHIFT;

/// A port base for which every port is free now, in a system with this many instances of each service. The next
/// calls return others.
pub fn free_port_base(instances: u16) -> Option<u16> {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    let shift = u16::try_from(std::process::id() % u32::from(SHIFTS)).unwrap_or_default();
    let bases = (0..SPANS * SHIFTS).map(|_| {
        let number = NEXT.fetch_add(1, Ordering::Relaxed) % (SPANS * SHIFTS);
        FIRST + number % SPANS * SPAN + (shift + number / SPANS) % SHIFTS * SHIFT
    });
    let is_free = |address| TcpListener::bind(address).is_ok();
    bases.into_iter().find(|base| {
        Service::ALL.into_iter().all(|service| {
            (1..=service.instances(instances)).all(|instance| {
                is_free(service.address(*base, instance)) && is_free(service.admin_address(*base, instance))
            })
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bases_differ_and_their_ports_are_below_the_ephemeral_ones() {
        let bases: Vec<u16> = (0..4).map(|_| free_port_base(1).expect("free ports")).collect();
        let distinct: std::collections::BTreeSet<_> = bases.iter().collect();
        assert_eq!(distinct.len(), 4);
        let last = FIRST + (SPANS - 1) * SPAN + (SHIFTS - 1) * SHIFT;
        assert!(Service::Gateway.admin_address(last, 1).port() < 32_768);
        assert!(bases.iter().all(|base| (FIRST..=last).contains(base)), "{bases:?}");
    }
}
