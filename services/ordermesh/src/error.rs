//! The program's errors, worded for the user at the terminal.

use std::io::ErrorKind;
use std::net::SocketAddr;
use std::path::PathBuf;

use tonic::Status;
use tonic_types::StatusExt;

use crate::text::printable;

/// Why the program exits with an error.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    #[error("{}: {who} cannot listen on it; {hint}", why_not(.address, .source))]
    Listen { who: String, address: SocketAddr, hint: &'static str, source: std::io::Error },
    #[error("the data folder {path} cannot be created or written to; choose another with --data-dir")]
    DataFolder { path: PathBuf, source: std::io::Error },
    #[error("the database cannot be used; start it, or correct --database-url (ORDERMESH_DATABASE_URL)")]
    Database(#[source] storage::Error),
    #[error("{path} cannot be {action}")]
    File { path: PathBuf, action: &'static str, source: std::io::Error },
    #[error(transparent)]
    Exposed(#[from] storage::ownership::Exposed),
    #[error("{0} cannot be started")]
    Spawn(String, #[source] std::io::Error),
    #[error("{0} exited because of invalid settings, see its message above; it is not restarted")]
    Misconfigured(String),
    #[error("signal handlers cannot be installed")]
    Signal(#[source] std::io::Error),
    #[error("telemetry cannot be set up")]
    Telemetry(#[from] telemetry::SetupError),
    #[error("the service failed")]
    Service(#[from] chassis::Error),
    #[error(
        "no {service} service answers at {address}; start a system with `ordermesh`, or select one with --port-base and --data-dir"
    )]
    NoSystem { service: &'static str, address: SocketAddr },
    #[error("{path} does not contain an operator's e-mail and password; set the system's --data-dir")]
    OperatorFile { path: PathBuf },
    #[error("the addresses of {name} cannot be looked up")]
    Lookup { name: String, source: std::io::Error },
    #[error("no free ports for another system were found on this machine")]
    NoFreePorts,
    #[error("the system was not ready within {0} s")]
    NotReady(u64),
    #[error("{what} failed: {}", describe(.status))]
    Rejected { what: &'static str, status: Box<Status> },
    #[error("the certificates cannot be issued")]
    Certificate { source: certs::Error },
    #[error("the system's root certificates cannot be used: set their file with --tls-ca")]
    Roots(#[source] mesh::tls::Error),
    #[error("the account was not created")]
    Account(#[from] user::Error),
    #[error("the {service} service's store cannot be opened")]
    Store { service: &'static str, source: storage::Error },
    #[error("the promises cannot be checked")]
    Unchecked(#[from] crate::promises::Unchecked),
    #[error("promises are broken {count} times")]
    Broken { count: usize },
    #[error("{0}")]
    Usage(String),
    /// Arguments, as the parser words it.
    #[error("{0}")]
    Arguments(String),
    /// `ordermesh … | head`: the reader has closed the pipe.
    #[error("the output is closed")]
    OutputClosed,
    #[error("the output cannot be written")]
    Output(#[source] std::io::Error),
    #[error("{failed} of {finished} scenarios failed")]
    Demo { failed: usize, finished: usize },
}

impl Error {
    pub(crate) fn rejected(what: &'static str) -> impl FnOnce(Status) -> Self {
        move |status| Self::Rejected { what, status: Box::new(status) }
    }

    /// The process's exit code: 1, or 2 if it could not even start its work (as for invalid arguments). If its output
    /// was closed, the code that a shell reports for a process killed by SIGPIPE: not success, because the work may be
    /// incomplete.
    pub(crate) fn exit_code(&self) -> u8 {
        if matches!(self, Self::OutputClosed) {
            128 + 13
        } else if matches!(
            self,
            Self::Unchecked(_)
                | Self::Usage(_)
                | Self::Arguments(_)
                | Self::Exposed(_)
                | Self::DataFolder { .. }
                | Self::Store { .. }
                | Self::Misconfigured(_)
        ) || self.is_configuration()
        {
            2
        } else {
            1
        }
    }

    /// Whether a service rejected a setting or an environment variable.
    fn is_configuration(&self) -> bool {
        if matches!(self, Self::Telemetry(error) if error.is_setting()) {
            return true;
        }
        matches!(self, Self::Database(error) if error.is_configuration())
            || matches!(self, Self::Service(error) if error.is_configuration())
    }

    /// The error and its causes, one per line.
    pub(crate) fn report(&self) -> String {
        if let Self::Arguments(text) = self {
            return text.clone();
        }
        let causes = kernel::error::texts(self).into_iter().skip(1);
        causes.fold(format!("error: {self}"), |text, cause| format!("{text}\n  because {cause}"))
    }
}

/// Why a process cannot listen on an address.
fn why_not(address: &SocketAddr, error: &std::io::Error) -> String {
    let kind = error.kind();
    if kind == ErrorKind::AddrInUse {
        format!("{address} is taken")
    } else if kind == ErrorKind::AddrNotAvailable {
        format!("{address} is not an address of this machine")
    } else if kind == ErrorKind::PermissionDenied {
        format!("{address} is not permitted to this user (ports below 1024 are root's)")
    } else {
        format!("{address} cannot be used")
    }
}

/// A status's code, reason and message.
pub(crate) fn describe(status: &Status) -> String {
    let reason = reason(status);
    let reason = if reason.is_empty() { String::new() } else { format!(" {reason}") };
    format!("{:?}{reason}: {}", status.code(), printable(status.message()))
}

/// The ErrorInfo's reason; empty if there is none.
pub(crate) fn reason(status: &Status) -> String {
    status.get_details_error_info().map(|info| info.reason).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_that_cannot_be_listened_on_is_reported_with_the_reason() {
        for (kind, why) in [
            (ErrorKind::AddrInUse, "127.0.0.1:80 is taken: data-1 cannot listen on it"),
            (ErrorKind::AddrNotAvailable, "127.0.0.1:80 is not an address of this machine: data-1"),
            (ErrorKind::PermissionDenied, "127.0.0.1:80 is not permitted to this user (ports below 1024"),
            (ErrorKind::OutOfMemory, "127.0.0.1:80 cannot be used: data-1"),
        ] {
            let address = ([127, 0, 0, 1], 80).into();
            let error = Error::Listen { who: "data-1".into(), address, hint: "choose another", source: kind.into() };
            assert!(error.to_string().starts_with(why) && error.to_string().ends_with("; choose another"), "{error}");
        }
    }
}
