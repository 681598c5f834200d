//! Opaque page tokens (AIP-158), which hold the last key of the page before.

use crate::decode::Fields;
use crate::fingerprint::Fingerprint;
use crate::opaque::{Opaque, OpaqueError};

/// A page's size and where it starts.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct PageToken {
    tokens: Opaque,
    /// The last key of the page before; `None` on the first page.
    pub after: Option<String>,
}

impl PageToken {
    /// Reads a token; one of other filters, or none of ours, is a violation of `page_token`.
    pub fn decode(fields: &mut Fields, token: &str, filters: Fingerprint) -> Self {
        let tokens = Opaque::of(filters);
        if token.is_empty() {
            return Self { tokens, after: None };
        }
        let after = tokens.decode(token).map_err(|error| match error {
            OpaqueError::OfOtherFilters => {
                fields.refuse(
                    "page_token",
                    "PAGE_TOKEN_OF_OTHER_FILTERS",
                    "the token belongs to a list with other filters",
                );
            }
            OpaqueError::Malformed => {
                fields.refuse("page_token", "INVALID_PAGE_TOKEN", "the token is not one that this list gave");
            }
        });
        Self { tokens, after: after.ok() }
    }

    /// The token of the next page, which starts after `key`.
    pub fn next(&self, key: &str) -> String {
        self.tokens.encode(key)
    }
}

/// The size of a page: 0 means `default`, more than `most` is taken as `most`, negative is a violation of `page_size`.
pub fn page_size(fields: &mut Fields, asked: i32, default: u32, most: u32) -> u32 {
    match u32::try_from(asked) {
        Ok(0) => default,
        Ok(size) => size.min(most),
        Err(_) => {
            fields.refuse("page_size", "NEGATIVE_PAGE_SIZE", "a page cannot have fewer than no entries");
            default
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn any_text_is_a_token_or_none_and_ours_are_read_back(token in any::<String>(), key in any::<String>()) {
            let filters = || Fingerprint::of("List/1").part("state", 1);
            let mut fields = Fields::default();
            let read = PageToken::decode(&mut fields, &token, filters());
            prop_assert!(token.is_empty() || read.after.is_some() || !fields.violations().is_empty());
            let mut fields = Fields::default();
            let again = PageToken::decode(&mut fields, &read.next(&key), filters());
            prop_assert_eq!(again.after, Some(key));
            prop_assert!(fields.violations().is_empty());
        }
    }

    use super::*;

    fn filters(text: &str) -> Fingerprint {
        Fingerprint::of("ListProducts/1").part("text", text)
    }

    #[test]
    fn a_token_reads_what_it_says_only_under_its_own_filters() {
        let mut fields = Fields::default();
        let first = PageToken::decode(&mut fields, "", filters("a"));
        let token = first.next("SKU 7");
        assert_eq!(PageToken::decode(&mut fields, &token, filters("a")).after.as_deref(), Some("SKU 7"));
        assert!(fields.violations().is_empty());
        PageToken::decode(&mut fields, &token, filters("b"));
        PageToken::decode(&mut fields, "nonsense!", filters("a"));
        let reasons: Vec<_> = fields.violations().iter().map(|violation| violation.reason).collect();
        assert_eq!(reasons, ["PAGE_TOKEN_OF_OTHER_FILTERS", "INVALID_PAGE_TOKEN"]);
    }

    #[test]
    fn a_page_has_a_default_a_most_and_never_less_than_nothing() {
        let mut fields = Fields::default();
        assert_eq!([0, 7, 1_000_000].map(|asked| page_size(&mut fields, asked, 50, 200)), [50, 7, 200]);
        assert!(fields.violations().is_empty());
        page_size(&mut fields, -1, 50, 200);
        assert_eq!(fields.violations().len(), 1);
    }
}
