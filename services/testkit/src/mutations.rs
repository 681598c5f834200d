//! Malformed messages for tests of decoders: messages of a misbehaving client, by proptest. Either any bytes that decode at all, or a
//! valid message with some bytes changed, cut or duplicated, which gets much further.
//!
//! A coverage-guided fuzzer would use the same bodies, but needs a nightly toolchain; these run everywhere.

use proptest::prelude::*;
use proptest::sample::Index;
use prost::Message;

/// A mutation of a valid message's bytes.
#[derive(Clone, Debug)]
enum Mutation {
    Set(Index, u8),
    Cut(Index, u8),
    Double(Index, u8),
    Insert(Index, Vec<u8>),
}

fn mutation() -> impl Strategy<Value = Mutation> {
    prop_oneof![
        4 => (any::<Index>(), any::<u8>()).prop_map(|(at, byte)| Mutation::Set(at, byte)),
        1 => (any::<Index>(), 1_u8..20).prop_map(|(at, count)| Mutation::Cut(at, count)),
        1 => (any::<Index>(), 1_u8..60).prop_map(|(at, count)| Mutation::Double(at, count)),
        1 => (any::<Index>(), prop::collection::vec(any::<u8>(), 1..20)).prop_map(|(at, new)| Mutation::Insert(at, new)),
    ]
}

fn apply(mut bytes: Vec<u8>, mutations: &[Mutation]) -> Vec<u8> {
    for mutation in mutations {
        if bytes.is_empty() {
            return bytes;
        }
        let range = |at: &Index, count: u8| {
            let start = at.index(bytes.len());
            start..(start + usize::from(count)).min(bytes.len())
        };
        match mutation {
            Mutation::Set(at, byte) => {
                let at = at.index(bytes.len());
                bytes[at] = *byte;
            }
            Mutation::Cut(at, count) => drop(bytes.drain(range(at, *count))),
            Mutation::Double(at, count) => bytes.extend_from_within(range(at, *count)),
            Mutation::Insert(at, new) => {
                let at = at.index(bytes.len());
                bytes.splice(at..at, new.iter().copied());
            }
        }
    }
    bytes
}

/// Mutations of this message, and arbitrary messages; bytes that do not decode are skipped.
pub fn mutations<M: Message + Default + std::fmt::Debug + Clone + 'static>(sound: M) -> impl Strategy<Value = M> {
    let bytes = sound.encode_to_vec();
    let changed = prop::collection::vec(mutation(), 0..6).prop_map(move |mutations| apply(bytes.clone(), &mutations));
    let any = prop::collection::vec(any::<u8>(), 0..200);
    let read = |bytes: Vec<u8>| M::decode(bytes.as_slice()).ok();
    prop_oneof![9 => changed, 1 => any].prop_filter_map("not a message", read)
}

/// A text for a field: valid at times, mostly odd.
pub fn text(sound: &'static str) -> impl Strategy<Value = String> {
    prop_oneof![
        3 => Just(sound.to_owned()),
        3 => any::<String>(),
        1 => Just(String::new()),
        1 => "[\\x00-\\x1f\u{202e}\u{feff}]{1,5}",
        1 => (250_usize..2_100).prop_map(|length| "x".repeat(length)),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    proptest! {
        #[test]
        fn changed_bytes_are_never_out_of_bounds(mutations in prop::collection::vec(mutation(), 0..20)) {
            let changed = apply(vec![1, 2, 3, 4], &mutations);
            prop_assert!(changed.len() < 4 + 20 * 60 * 20);
        }
    }
}
