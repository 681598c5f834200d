//! Blank and misleading texts, and normal forms of equal-looking ones. By Unicode's properties, not by a list of bad
//! characters.

use std::borrow::Cow;

use unicode_normalization::{UnicodeNormalization, is_nfc};
use unicode_properties::{GeneralCategory, UnicodeGeneralCategory};

/// Whether nothing of it is visible: it is empty, or consists of blanks, controls, format and ignorable characters.
pub fn is_blank(text: &str) -> bool {
    text.chars().all(is_invisible)
}

fn is_invisible(c: char) -> bool {
    let category = c.general_category();
    c.is_whitespace()
        || matches!(category, GeneralCategory::Control | GeneralCategory::Format | GeneralCategory::SpaceSeparator)
        || is_ignorable(c)
        // The braille pattern without dots.
        || c == '\u{2800}'
}

/// Default_Ignorable_Code_Point of Unicode 16 (DerivedCoreProperties.txt), except those of the category Format.
fn is_ignorable(c: char) -> bool {
    matches!(
        c,
        '\u{34f}'
            | '\u{115f}'..='\u{1160}'
            | '\u{17b4}'..='\u{17b5}'
            | '\u{180b}'..='\u{180f}'
            | '\u{2065}'
            | '\u{3164}'
            | '\u{fe00}'..='\u{fe0f}'
            | '\u{ffa0}'
            | '\u{fff0}'..='\u{fff8}'
            | '\u{e0000}'..='\u{e0fff}'
    )
}

/// The first character that changes how the surrounding text reads: one that embeds, overrides or isolates a direction
/// (UAX #9, and Trojan Source, CVE-2021-42574), that ends a line or a paragraph, that annotates, or one of the
/// deprecated format characters (UTR #20). Joiners and directional marks are not among them: they belong to words in
/// many languages and to emoji.
pub fn misleading(text: &str) -> Option<char> {
    text.chars().find(|c| {
        matches!(
            c,
            '\u{2028}'..='\u{2029}'
                | '\u{202a}'..='\u{202e}'
                | '\u{2066}'..='\u{2069}'
                | '\u{206a}'..='\u{206f}'
                | '\u{fff9}'..='\u{fffb}'
        )
    })
}

/// The text in Normalization Form C (UAX #15), which is the same for all equivalent texts.
pub fn nfc(text: &str) -> Cow<'_, str> {
    if is_nfc(text) { Cow::Borrowed(text) } else { Cow::Owned(text.nfc().collect()) }
}

/// The key of a search: in lower case and in Normalization Form C.
pub fn search_key(text: &str) -> String {
    nfc(&text.to_lowercase()).into_owned()
}

/// A search key in Normalization Form D, to match keys that were stored before normalization was added.
pub fn decomposed(key: &str) -> String {
    key.nfd().collect()
}

/// The form in which passwords are compared: OpaqueString of RFC 8265, section 4.2. Every space is U+0020, then
/// Normalization Form C is applied, as NIST SP 800-63B requires.
pub fn opaque(text: &str) -> String {
    let is_other_space = |c: char| c.general_category() == GeneralCategory::SpaceSeparator;
    text.chars().map(|c| if is_other_space(c) { ' ' } else { c }).nfc().collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn blanks_and_invisible_characters_are_blank() {
        for text in [
            "",
            " ",
            "\t\n",
            "\u{a0}",
            "\u{3000}",
            "\u{200b}",
            "\u{feff}",
            "\u{200d}\u{200c}",
            "\u{ad}",
            "\u{3164}",
            "\u{115f}",
            "\u{2800}",
            "\u{fe0f}",
            "\u{e0020}",
            "\u{34f}",
            "\u{2060} \u{202e}",
            "\u{0}",
        ] {
            assert!(is_blank(text), "{text:?}");
        }
        for text in ["a", " . ", "می\u{200c}خواهم", "👩\u{200d}🚀", "0", "ß", "\u{200b}x"] {
            assert!(!is_blank(text), "{text:?}");
        }
    }

    #[test]
    fn direction_changes_and_line_breaks_are_misleading_and_joiners_and_marks_are_not() {
        for c in ['\u{202a}', '\u{202e}', '\u{2066}', '\u{2069}', '\u{2028}', '\u{2029}', '\u{206a}', '\u{fff9}'] {
            assert_eq!(misleading(&format!("Ada{c}Lovelace")), Some(c));
        }
        for text in ["می\u{200c}خواهم", "👩\u{200d}🚀", "שלום\u{200f}!", "🏴\u{e0067}\u{e007f}", "Straße 1", "a\u{ad}b"]
        {
            assert_eq!(misleading(text), None, "{text:?}");
        }
    }

    #[test]
    fn a_password_has_one_form_on_every_keyboard() {
        assert_eq!(opaque("Zu\u{308}rich\u{a0}caf\u{e9}"), "Z\u{fc}rich caf\u{e9}");
        assert_eq!(opaque("A\u{30a}ngstro\u{308}m \u{212b}"), "\u{c5}ngstr\u{f6}m \u{c5}");
        assert_eq!(opaque("correct horse"), "correct horse");
        assert_ne!(opaque("Correct horse"), opaque("correct horse"), "case is kept");
        assert_ne!(opaque("\u{ff43}"), opaque("c"), "width is kept");
    }

    proptest! {
        #[test]
        fn normalization_is_idempotent(text in any::<String>()) {
            prop_assert_eq!(opaque(&opaque(&text)), opaque(&text));
            prop_assert_eq!(nfc(&nfc(&text)).into_owned(), nfc(&text).into_owned());
        }

        #[test]
        fn equivalent_texts_have_the_same_key_and_password(text in any::<String>()) {
            let other = decomposed(&text);
            prop_assert_eq!(search_key(&other), search_key(&text));
            prop_assert_eq!(opaque(&other), opaque(&text));
            prop_assert_eq!(is_blank(&other), is_blank(&text));
        }
    }
}
