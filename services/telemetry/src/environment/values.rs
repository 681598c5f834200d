//! The specification's value types: case-insensitive choices, numbers, durations in milliseconds, lists of `key=value`.

use std::ffi::OsString;
use std::ops::RangeInclusive;
use std::time::Duration;

use crate::environment::VariableError;

/// The largest integer that the specification requires, 2³¹ − 1; more than 24 days in milliseconds. Also stands for "no
/// limit".
pub(super) const MAX_MILLIS: u64 = i32::MAX as u64;
/// Queues are allocated as a whole: a million spans take some hundred MiB.
const MAX_COUNT: u64 = 1_000_000;

/// The format of `OTEL_RESOURCE_ATTRIBUTES`.
pub(super) const ATTRIBUTES: &str = "key=value,key=value, percent-encoded (%2C for a comma) as UTF-8";

/// The variables, by name.
pub(super) struct Variables<'a>(&'a dyn Fn(&str) -> Option<OsString>);

impl<'a> Variables<'a> {
    pub(super) fn new(variable: &'a dyn Fn(&str) -> Option<OsString>) -> Self {
        Self(variable)
    }

    /// A variable's text without surrounding white space; `None` when it is unset or empty.
    pub(super) fn text(&self, name: &str) -> Result<Option<String>, VariableError> {
        let Some(value) = (self.0)(name) else { return Ok(None) };
        let Ok(text) = value.into_string() else {
            return Err(VariableError::new(name, "is not UTF-8", "UTF-8"));
        };
        let text = text.trim();
        Ok((!text.is_empty()).then(|| text.to_owned()))
    }

    /// One of several names, in upper or lower case.
    pub(super) fn choice<T: Copy>(&self, name: &str, choices: &[(&str, T)]) -> Result<Option<T>, VariableError> {
        let Some(text) = self.text(name)? else { return Ok(None) };
        let chosen = choices.iter().find(|(choice, _)| choice.eq_ignore_ascii_case(&text));
        let allowed = || choices.iter().map(|(choice, _)| *choice).collect::<Vec<_>>().join(", ");
        chosen.map(|(_, value)| Some(*value)).ok_or_else(|| VariableError::value(name, &text, allowed()))
    }

    pub(super) fn boolean(&self, name: &str) -> Result<Option<bool>, VariableError> {
        self.choice(name, &[("true", true), ("false", false)])
    }

    pub(super) fn number(&self, name: &str, range: RangeInclusive<u64>) -> Result<Option<u64>, VariableError> {
        let Some(text) = self.text(name)? else { return Ok(None) };
        match text.parse() {
            Ok(number) if range.contains(&number) => Ok(Some(number)),
            Ok(_) | Err(_) => {
                let allowed = format!("a whole number from {} to {}", range.start(), range.end());
                Err(VariableError::value(name, &text, allowed))
            }
        }
    }

    /// A positive count.
    pub(super) fn count(&self, name: &str) -> Result<Option<usize>, VariableError> {
        Ok(self.number(name, 1..=MAX_COUNT)?.map(|count| usize::try_from(count).unwrap_or(usize::MAX)))
    }

    /// An interval, in milliseconds. Zero is rejected: it would be a busy loop.
    pub(super) fn duration(&self, name: &str) -> Result<Option<Duration>, VariableError> {
        Ok(self.millis(name, 1)?.map(Duration::from_millis))
    }

    /// A timeout, in milliseconds; zero means no limit.
    pub(super) fn timeout(&self, name: &str) -> Result<Option<Duration>, VariableError> {
        let millis = self.millis(name, 0)?;
        Ok(millis.map(|millis| Duration::from_millis(if millis == 0 { MAX_MILLIS } else { millis })))
    }

    fn millis(&self, name: &str, min: u64) -> Result<Option<u64>, VariableError> {
        let in_milliseconds =
            |error: VariableError| VariableError { allowed: format!("{}, in milliseconds", error.allowed), ..error };
        self.number(name, min..=MAX_MILLIS).map_err(in_milliseconds)
    }
}

/// A list of `key=value` with percent-encoded values. An error gives the position of the malformed entry, not its text,
/// which may be a secret.
pub(super) fn pairs(
    name: &str,
    variables: &Variables<'_>,
    allowed: &str,
) -> Result<Vec<(String, String)>, VariableError> {
    let Some(text) = variables.text(name)? else { return Ok(Vec::new()) };
    let entries = text.split(',').enumerate().filter(|(_, entry)| !entry.trim().is_empty());
    let pairs = entries.map(|(index, entry)| {
        pair(entry).ok_or_else(|| VariableError::new(name, format!("is malformed in entry {}", index + 1), allowed))
    });
    pairs.collect()
}

fn pair(entry: &str) -> Option<(String, String)> {
    let (key, value) = entry.split_once('=')?;
    let (key, value) = (decoded(key.trim())?, decoded(value.trim())?);
    (!key.is_empty()).then_some((key, value))
}

fn decoded(text: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        if byte != b'%' {
            bytes.push(byte);
            continue;
        }
        let mut digit = || char::from(rest.next()?).to_digit(16).and_then(|digit| u8::try_from(digit).ok());
        bytes.push(digit()? << 4 | digit()?);
    }
    String::from_utf8(bytes).ok()
}
