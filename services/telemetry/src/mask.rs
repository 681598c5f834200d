//! Masks secrets in texts from other sources: errors of libraries quote their input, which may be a URL with a
//! password, a header, or a key file. What cannot be distinguished from a secret is masked too.
//!
//! Masked are: user and password of a URL, whatever the password contains; values that are named like a secret
//! (`password=…`, `"token": "…"`, `authorization: …`); bearer and basic credentials; JSON web tokens; PEM blocks.
//! Start reading at [`masked`].

use std::borrow::Cow;
use std::error::Error;
use std::fmt;

use kernel::error::chain;

/// The replacement for a secret.
const MASK: &str = "***";

/// Suffixes of secrets' names. Compared without case, `-` and `_`.
const NAMES: [&str; 14] = [
    "password",
    "passwd",
    "passphrase",
    "pwd",
    "secret",
    "token",
    "apikey",
    "accesskey",
    "privatekey",
    "signingkey",
    "credential",
    "credentials",
    "authorization",
    "cookie",
];

/// A word of this length after `Bearer` is a token, and not part of a sentence.
const MIN_TOKEN_BYTES: usize = 16;

/// The text without its secrets. Defined for any text; what is already masked is unchanged.
pub fn masked(text: &str) -> Cow<'_, str> {
    let mut masked = String::new();
    let mut copied = 0;
    let mut at = 0;
    while at < text.len() {
        let Some((start, end)) = secret_at(text, at) else {
            at += text[at..].chars().next().map_or(1, char::len_utf8);
            continue;
        };
        if &text[start..end] != MASK {
            masked.push_str(&text[copied..start]);
            masked.push_str(MASK);
            copied = end;
        }
        at = end.max(at + 1);
        while !text.is_char_boundary(at) {
            at += 1;
        }
    }
    if copied == 0 && masked.is_empty() {
        return Cow::Borrowed(text);
    }
    masked.push_str(&text[copied..]);
    Cow::Owned(masked)
}

/// An error and its causes, without their secrets.
pub struct Masked<'a>(pub &'a (dyn Error + 'static));

impl fmt::Display for Masked<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&masked(&chain(self.0)))
    }
}

impl fmt::Debug for Masked<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// The range of the secret that is recognized by the text at a position.
fn secret_at(text: &str, at: usize) -> Option<(usize, usize)> {
    let rest = &text[at..];
    match rest.as_bytes()[0] {
        b'-' if rest.starts_with("-----BEGIN ") => Some((at, at + pem(rest))),
        b':' => credentials_after_colon(text, at),
        b'=' => after_name(text, at),
        b'e' if rest.starts_with("eyJ") => jwt(rest).map(|length| (at, at + length)),
        b'b' | b'B' => after_scheme(rest).map(|(start, end)| (at + start, at + end)),
        _ => None,
    }
}

/// To the end of the block, or to the end of the text: what follows an unfinished block may be its rest.
fn pem(rest: &str) -> usize {
    let Some(end) = rest.find("-----END ") else { return rest.len() };
    let label = end + "-----END ".len();
    rest[label..].find("-----").map_or(rest.len(), |dashes| label + dashes + "-----".len())
}

fn credentials_after_colon(text: &str, at: usize) -> Option<(usize, usize)> {
    if text[at..].starts_with("://") {
        return user_info(text, at + "://".len());
    }
    if ["postgres", "postgresql"].iter().any(|scheme| text[..at].ends_with(scheme)) {
        return user_info(text, at + 1);
    }
    after_name(text, at).or_else(|| password_of_pair(text, at))
}

/// User and password of a URL. An unencoded password may contain a delimiter of the authority, so the last `@` counts.
fn user_info(text: &str, start: usize) -> Option<(usize, usize)> {
    let rest = &text[start..];
    let word = rest.find(char::is_whitespace).unwrap_or(rest.len());
    if let Some(host) = rest[..word].rfind('@') {
        // In a query it may be part of a value, which continues after it.
        let is_in_query = rest[..host].split_once('?').is_some_and(|(_, query)| query.contains('='));
        let end = if is_in_query { rest[host..word].find('&').map_or(word, |next| host + next) } else { host };
        return (host > 0).then_some((start, start + end));
    }
    let authority = &rest[..rest[..word].find(['/', '?', '#', ',', '"', '\'', '`', '>', ')']).unwrap_or(word)];
    let port = authority.rsplit_once(':').filter(|(host, _)| !host.ends_with(':') && !authority.starts_with('['))?.1;
    // Our own sentences say HOST:PORT.
    if port == "PORT" || port.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    // Not a port: a password, with a blank in it, or without a host after it.
    let line = &rest[..rest.find("://").or_else(|| rest.find('\n')).unwrap_or(rest.len())];
    Some((start, start + line.rfind('@').unwrap_or(word)))
}

/// `user:password@host` without a scheme.
fn password_of_pair(text: &str, colon: usize) -> Option<(usize, usize)> {
    let start = colon + 1;
    let word = text[start..].find(char::is_whitespace).unwrap_or(text.len() - start);
    let is_after_name =
        text[..colon].chars().next_back().is_some_and(|before| before.is_alphanumeric() || before == '_');
    let at = text[start..start + word].rfind('@').filter(|at| *at > 0)?;
    is_after_name.then_some((start, start + at))
}

/// The value of a name that is a secret's: after `=`, or after `:` if a value and not a sentence follows.
fn after_name(text: &str, at: usize) -> Option<(usize, usize)> {
    let before = text[..at].trim_end_matches(['"', '\'', '\\', ' ']);
    let name: String = before
        .chars()
        .rev()
        .take_while(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.'))
        .filter(char::is_ascii_alphanumeric)
        .map(|c| c.to_ascii_lowercase())
        .collect::<Vec<_>>()
        .into_iter()
        .rev()
        .collect();
    let name = NAMES.into_iter().find(|secret| name.ends_with(secret))?;
    let after = &text[at + 1..];
    let value = after.trim_start_matches(' ');
    let start = at + 1 + (after.len() - value.len());
    let is_header = matches!(name, "authorization" | "cookie");
    let quotes = value.trim_start_matches('\\');
    let escapes = value.len() - quotes.len();
    let quote = quotes.chars().next().filter(|c| matches!(c, '"' | '\'' | '`'));
    if text.as_bytes()[at] == b':' && value.len() < after.len() && quote.is_none() && !is_header {
        return None;
    }
    let (start, length) = match quote {
        Some(quote) => {
            let inside = escapes + 1;
            (start + inside, end_of_quoted(&value[inside..], quote))
        }
        None if is_header => (start, value.find(['\n', '\r', '"', ',', ';']).unwrap_or(value.len())),
        None => (
            start,
            value.find(|c: char| c.is_whitespace() || matches!(c, '&' | ',' | ';' | '"' | '\'')).unwrap_or(value.len()),
        ),
    };
    (length > 0).then_some((start, start + length))
}

/// The position of the closing quote, which is not an escaped one.
fn end_of_quoted(text: &str, quote: char) -> usize {
    let mut is_escaped = false;
    for (at, c) in text.char_indices() {
        if c == quote && !is_escaped {
            return at;
        }
        is_escaped = c == '\\' && !is_escaped;
    }
    text.len()
}

/// Three parts, or two: header and claims are as sensitive as the whole.
fn jwt(rest: &str) -> Option<usize> {
    let is_part = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.' | '=');
    let length = rest.find(|c| !is_part(c)).unwrap_or(rest.len());
    rest[..length].trim_end_matches('.').contains('.').then_some(length)
}

/// The credentials after `Bearer` or `Basic`.
fn after_scheme(rest: &str) -> Option<(usize, usize)> {
    let scheme = ["bearer ", "basic "]
        .into_iter()
        .find(|scheme| rest.get(..scheme.len()).is_some_and(|start| start.eq_ignore_ascii_case(scheme)))?;
    let value = &rest[scheme.len()..];
    let is_token = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '.' | '_' | '~' | '+' | '/' | '=');
    let length = value.find(|c| !is_token(c)).unwrap_or(value.len());
    let token = &value[..length];
    let is_word = length < MIN_TOKEN_BYTES && !token.bytes().any(|byte| byte.is_ascii_digit());
    (!is_word).then_some((scheme.len(), scheme.len() + length))
}

#[cfg(test)]
mod tests;
