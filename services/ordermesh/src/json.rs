//! Output as JSON, for programs that read it.

use std::sync::LazyLock;

use clap::ValueEnum;
use prost::Message;
use prost_reflect::{DescriptorPool, DynamicMessage};
use serde::Serialize;

use crate::error::Error;
use crate::out;

/// The output format of commands that print a report.
#[derive(ValueEnum, Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Format {
    /// For people
    Text,
    /// For programs: a JSON object, or one per line where the output has no end
    Json,
}

static CONTRACTS: LazyLock<DescriptorPool> = LazyLock::new(|| {
    // The build has decoded the same descriptors.
    DescriptorPool::decode(contracts::DESCRIPTORS).unwrap_or_default()
});

/// The JSON encoding of protocol buffers, on one line: as `grpcurl` prints it. `name` is the message's full name.
pub(crate) fn message(name: &str, message: &impl Message) -> String {
    let described = CONTRACTS.get_message_by_name(name);
    let dynamic =
        described.and_then(|descriptor| DynamicMessage::decode(descriptor, message.encode_to_vec().as_slice()).ok());
    dynamic.and_then(|dynamic| serde_json::to_string(&dynamic).ok()).unwrap_or_default()
}

/// Prints a value.
///
/// # Errors
/// The output cannot be written.
pub(crate) fn print(value: &impl Serialize) -> Result<(), Error> {
    // Texts and numbers always have a JSON encoding.
    out::line(serde_json::to_string_pretty(value).unwrap_or_default())
}

/// Prints a value on one line.
///
/// # Errors
/// The output cannot be written.
pub(crate) fn print_line(value: &impl Serialize) -> Result<(), Error> {
    out::line(serde_json::to_string(value).unwrap_or_default())
}
