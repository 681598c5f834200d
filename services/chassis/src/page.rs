//! Pages of lists (AIP-158): opaque tokens, which hold the last key of the previous page, and pages that are limited by
//! count and by bytes.

use prost::Message;
use prost::encoding::key_len;

use crate::decode::Fields;
use crate::fingerprint::Fingerprint;
use crate::opaque::{Opaque, OpaqueError};

/// Maximum bytes of the entries in one response. gRPC clients of every language reject messages above 4 MiB by default;
/// the rest of a response needs less than the difference.
pub const MAX_ENTRIES_BYTES: usize = 3 * 1_024 * 1_024;

/// A page of a list.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Page<M> {
    /// The entries in the list's order.
    pub entries: Vec<M>,
    /// Empty on the last page.
    pub next_page_token: String,
}

impl<M: Message> Page<M> {
    /// Makes a page from the rows read, which are one more than `page_size` if there is a next page. A page ends before
    /// the entry that would exceed [`MAX_ENTRIES_BYTES`], and has at least one entry. `next` makes the token from the
    /// last entry.
    pub fn from_rows<T>(
        rows: impl IntoIterator<Item = T>,
        page_size: u32,
        encode: impl Fn(T) -> M,
        next: impl FnOnce(&M) -> String,
    ) -> Self {
        let page_size = usize::try_from(page_size).unwrap_or(usize::MAX);
        let (mut entries, mut bytes, mut has_next): (Vec<M>, usize, bool) = (Vec::new(), 0, false);
        for row in rows {
            has_next = entries.len() >= page_size;
            if has_next {
                break;
            }
            let entry = encode(row);
            bytes = bytes.saturating_add(entry_bytes(&entry));
            has_next = bytes > MAX_ENTRIES_BYTES && !entries.is_empty();
            if has_next {
                break;
            }
            entries.push(entry);
        }
        let next_page_token = entries.last().filter(|_| has_next).map(next).unwrap_or_default();
        Self { entries, next_page_token }
    }
}

/// The number of leading entries that fit into [`MAX_ENTRIES_BYTES`].
pub fn count_fitting<'a, M: Message + 'a>(entries: impl IntoIterator<Item = &'a M>) -> usize {
    let mut bytes = 0_usize;
    let fits = |entry: &&M| {
        bytes = bytes.saturating_add(entry_bytes(*entry));
        bytes <= MAX_ENTRIES_BYTES
    };
    entries.into_iter().take_while(fits).count()
}

/// The size of an entry of a repeated field on the wire, with its key and its length.
fn entry_bytes(entry: &impl Message) -> usize {
    let bytes = entry.encoded_len();
    key_len(1) + prost::length_delimiter_len(bytes) + bytes
}

/// The start of a page.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct PageToken<K> {
    tokens: Opaque,
    /// The last key of the previous page; `None` on the first page.
    pub after: Option<K>,
}

impl<K> PageToken<K> {
    /// Decodes a token; an invalid token, or one of other filters, is a violation of `page_token`. A token is not
    /// signed: its key is parsed by the rules of its field, so that no text reaches the database that the field would
    /// reject.
    pub fn decode(
        fields: &mut Fields,
        token: &str,
        filters: Fingerprint,
        parse: impl FnOnce(&str) -> Option<K>,
    ) -> Self {
        let tokens = Opaque::of(filters);
        if token.is_empty() {
            return Self { tokens, after: None };
        }
        let after = match tokens.decode(token).map(|key| parse(&key)) {
            Ok(Some(key)) => Some(key),
            Err(OpaqueError::FilterMismatch) => {
                fields.reject(
                    "page_token",
                    "PAGE_TOKEN_OF_OTHER_FILTERS",
                    "the token belongs to a list with other filters",
                );
                None
            }
            Ok(None) | Err(OpaqueError::Malformed) => {
                fields.reject("page_token", "INVALID_PAGE_TOKEN", "not a page token of this list");
                None
            }
        };
        Self { tokens, after }
    }

    /// The token of the next page, which starts after `key`.
    pub fn next(&self, key: &str) -> String {
        self.tokens.encode(key)
    }
}

/// The size of a page: 0 means `default`, more than `max` means `max`, a negative number is a violation of
/// `page_size`.
pub fn page_size(fields: &mut Fields, requested: i32, default: u32, max: u32) -> u32 {
    match u32::try_from(requested) {
        Ok(0) => default,
        Ok(size) => size.min(max),
        Err(_) => {
            fields.reject("page_size", "NEGATIVE_PAGE_SIZE", "must not be negative");
            default
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn any_text_is_decoded_without_a_panic_and_encoded_tokens_are_read_back(token in any::<String>(), key in any::<String>()) {
            let filters = || Fingerprint::of("List/1").part("state", 1);
            let mut fields = Fields::default();
            let read = PageToken::decode(&mut fields, &token, filters(), any_text);
            prop_assert!(token.is_empty() || read.after.is_some() || !fields.violations().is_empty());
            let mut fields = Fields::default();
            let again = PageToken::decode(&mut fields, &read.next(&key), filters(), any_text);
            prop_assert_eq!(again.after, Some(key));
            prop_assert!(fields.violations().is_empty());
        }
    }

    use contracts::order::v1::{BatchGetStockResponse, Stock};

    use crate::decode::is_sku;

    use super::*;

    /// All pages of a list of entries with texts of these lengths, and the size of the largest response in bytes.
    fn pages(lengths: &[usize], page_size: u32) -> (Vec<Vec<usize>>, usize) {
        let entry = |index: usize| Stock { sku: "x".repeat(lengths[index]), on_hand: 1, reserved: index as i64 };
        let (mut pages, mut largest, mut start) = (Vec::new(), 0, 0);
        loop {
            // As a store reads: one row more than the page has.
            let rows = (start..lengths.len()).take(page_size as usize + 1);
            let page = Page::from_rows(rows, page_size, entry, |last| last.reserved.to_string());
            let ids: Vec<usize> = page.entries.iter().map(|stock| stock.reserved as usize).collect();
            largest = largest.max(BatchGetStockResponse { stocks: page.entries }.encoded_len());
            pages.push(ids);
            match page.next_page_token.parse::<usize>() {
                Ok(last) => start = last + 1,
                Err(_) => return (pages, largest),
            }
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(48))]
        #[test]
        fn short_pages_neither_lose_nor_repeat_entries_and_stay_within_the_byte_limit(
            lengths in proptest::collection::vec(0_usize..900_000, 0..24), page_size in 1_u32..12,
        ) {
            let (pages, largest) = pages(&lengths, page_size);
            prop_assert!(largest <= MAX_ENTRIES_BYTES, "{}", largest);
            prop_assert_eq!(pages.concat(), (0..lengths.len()).collect::<Vec<_>>());
            prop_assert!(pages.len() == 1 || pages.iter().all(|page| !page.is_empty()));
            prop_assert!(pages.iter().all(|page| page.len() <= page_size as usize));
        }
    }

    #[test]
    fn a_page_is_limited_by_count_and_bytes_and_has_a_token_only_if_there_is_a_next() {
        let of = |lengths: &[usize]| pages(lengths, 2).0;
        assert_eq!(of(&[]), [vec![]] as [Vec<usize>; 1]);
        assert_eq!(of(&[1, 1]), [[0, 1]]);
        assert_eq!(of(&[1, 1, 1]), [vec![0, 1], vec![2]]);
        let third = MAX_ENTRIES_BYTES / 3;
        assert_eq!(of(&[third, 2 * third, 1]), [vec![0], vec![1, 2]], "keys and lengths are counted too");
        assert_eq!(of(&[2 * MAX_ENTRIES_BYTES, 1]), [[0], [1]], "at least one entry, or the list would not advance");
    }

    #[test]
    fn the_leading_entries_that_fit_are_counted() {
        let stock = |bytes: usize| Stock { sku: "x".repeat(bytes), ..Default::default() };
        assert_eq!(count_fitting(&[stock(1), stock(MAX_ENTRIES_BYTES / 2), stock(MAX_ENTRIES_BYTES), stock(1)]), 2);
        assert_eq!(count_fitting(&[] as &[Stock]), 0);
    }

    fn any_text(key: &str) -> Option<String> {
        Some(key.to_owned())
    }

    #[test]
    fn a_token_with_a_key_that_its_field_rejects_is_invalid() {
        let parse = |key: &str| is_sku(key).then(|| key.to_owned());
        let first = PageToken::decode(&mut Fields::default(), "", filters("a"), parse);
        for (key, reasons) in
            [("SKU-7", vec![]), ("A\0B", vec!["INVALID_PAGE_TOKEN"]), ("", vec!["INVALID_PAGE_TOKEN"])]
        {
            let mut fields = Fields::default();
            let read = PageToken::decode(&mut fields, &first.next(key), filters("a"), parse);
            assert_eq!(read.after.is_some(), reasons.is_empty(), "{key:?}");
            assert_eq!(fields.violations().iter().map(|violation| violation.reason).collect::<Vec<_>>(), reasons);
        }
    }

    fn filters(text: &str) -> Fingerprint {
        Fingerprint::of("ListProducts/1").part("text", text)
    }

    #[test]
    fn a_token_is_valid_only_with_its_own_filters() {
        let mut fields = Fields::default();
        let first = PageToken::decode(&mut fields, "", filters("a"), any_text);
        let token = first.next("SKU 7");
        assert_eq!(PageToken::decode(&mut fields, &token, filters("a"), any_text).after.as_deref(), Some("SKU 7"));
        assert!(fields.violations().is_empty());
        PageToken::decode(&mut fields, &token, filters("b"), any_text);
        PageToken::decode(&mut fields, "nonsense!", filters("a"), any_text);
        let reasons: Vec<_> = fields.violations().iter().map(|violation| violation.reason).collect();
        assert_eq!(reasons, ["PAGE_TOKEN_OF_OTHER_FILTERS", "INVALID_PAGE_TOKEN"]);
    }

    #[test]
    fn a_page_size_has_a_default_and_a_maximum_and_is_never_negative() {
        let mut fields = Fields::default();
        assert_eq!([0, 7, 1_000_000].map(|requested| page_size(&mut fields, requested, 50, 200)), [50, 7, 200]);
        assert!(fields.violations().is_empty());
        page_size(&mut fields, -1, 50, 200);
        assert_eq!(fields.violations().len(), 1);
    }
}
