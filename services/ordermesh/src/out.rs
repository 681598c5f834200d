//! The program's output. Nothing else in it writes to stdout or stderr: `println!` panics if the reader of a pipe has
//! exited, as in `ordermesh verify | head -1`. A report that cannot be written is an error, which ends its command;
//! lines of a running system are best effort.

use std::fmt::Display;
use std::io::{ErrorKind, Write};

use crate::error::Error;

/// A line of a command's report.
///
/// # Errors
/// It cannot be written.
pub(crate) fn line(text: impl Display) -> Result<(), Error> {
    print(format_args!("{text}\n"))
}

/// A part of a command's report, with its own line ends.
///
/// # Errors
/// It cannot be written.
pub(crate) fn text(text: impl Display) -> Result<(), Error> {
    print(format_args!("{text}"))
}

fn print(text: std::fmt::Arguments<'_>) -> Result<(), Error> {
    let mut stdout = std::io::stdout().lock();
    stdout
        .write_fmt(text)
        .and_then(|()| stdout.flush())
        .map_err(|error| if error.kind() == ErrorKind::BrokenPipe { Error::OutputClosed } else { Error::Output(error) })
}

/// A line of a program that continues whether or not it can be written: `ordermesh | head` keeps its system running.
pub(crate) fn say(text: impl Display) {
    let _ = writeln!(std::io::stdout(), "{text}");
}

/// A line to stderr, best effort. Secrets are masked: some errors quote their input.
pub(crate) fn complain(text: impl Display) {
    let _ = writeln!(std::io::stderr(), "{}", telemetry::masked(&text.to_string()));
}
