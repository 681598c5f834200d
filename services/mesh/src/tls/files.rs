//! The PEM files of an identity, and why they cannot be used.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::RootCertStore;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;

/// The PEM files of an identity.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Files {
    /// This process's certificate, and the intermediates, if any.
    pub certificate: PathBuf,
    /// The certificate's private key.
    pub key: PathBuf,
    /// The roots that verify peers' certificates.
    pub roots: PathBuf,
}

/// Why an identity cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file does not exist, or may not be read.
    #[error("{path} cannot be read")]
    File {
        /// The file.
        path: PathBuf,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// A file lacks its expected content.
    #[error("{path} has no {what} in it")]
    Empty {
        /// The file.
        path: PathBuf,
        /// The missing content.
        what: &'static str,
    },
    /// The files now belong to another service.
    #[error("the certificate {path} is that of `{named}`, and was that of `{service}`")]
    OtherService {
        /// The certificate's file.
        path: PathBuf,
        /// The service that it names.
        named: String,
        /// The service that it named before.
        service: String,
    },
    /// The certificate, its key and the roots do not match, or the certificate has expired.
    #[error("the certificate {path} is not valid{}", advice(.source))]
    Certificate {
        /// The certificate's file.
        path: PathBuf,
        /// The cause.
        #[source]
        source: rustls::Error,
    },
}

/// What to check, when a certificate's dates are the cause.
pub(crate) fn advice(error: &rustls::Error) -> &'static str {
    use rustls::{AlertDescription, CertificateError as Bad};
    let is_about_time = matches!(
        error,
        rustls::Error::InvalidCertificate(
            Bad::Expired | Bad::ExpiredContext { .. } | Bad::NotValidYet | Bad::NotValidYetContext { .. },
        ) | rustls::Error::AlertReceived(AlertDescription::CertificateExpired)
    );
    if is_about_time { "; renew the certificate, or compare the clocks of both machines" } else { "" }
}

/// The bytes of the three files.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct FileContents {
    pub(crate) certificate: Vec<u8>,
    pub(crate) key: Vec<u8>,
    pub(crate) roots: Vec<u8>,
}

/// A file's bytes.
pub(crate) fn file(path: &PathBuf) -> Result<Vec<u8>, Error> {
    std::fs::read(path).map_err(|source| Error::File { path: path.clone(), source })
}

/// The roots in a file's text.
pub(crate) fn roots_of(pem: &[u8], path: &Path) -> Result<Arc<RootCertStore>, Error> {
    let mut roots = RootCertStore::empty();
    let (added, _ignored) = roots.add_parsable_certificates(CertificateDer::pem_slice_iter(pem).filter_map(Result::ok));
    if added == 0 {
        return Err(Error::Empty { path: path.to_path_buf(), what: "certificate" });
    }
    Ok(Arc::new(roots))
}

pub(crate) fn read(files: &Files) -> Result<FileContents, Error> {
    Ok(FileContents { certificate: file(&files.certificate)?, key: file(&files.key)?, roots: file(&files.roots)? })
}
