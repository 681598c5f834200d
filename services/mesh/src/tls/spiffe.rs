//! The SPIFFE ID in a certificate: exactly one, `spiffe://<trust-domain>/service/<name>`. The certificate's chain is
//! verified elsewhere, and before.

use std::sync::Arc;

use kernel::Timestamp;
use rustls::pki_types::CertificateDer;
use x509_cert::Certificate;
use x509_cert::der::Decode;
use x509_cert::ext::pkix::SubjectAltName;
use x509_cert::ext::pkix::name::GeneralName;

/// Why a certificate's name is rejected.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub(crate) enum NameError {
    #[error("the certificate cannot be read")]
    Unreadable,
    #[error("the certificate has no URI in its subjectAltName")]
    Missing,
    #[error("the certificate has more than one URI in its subjectAltName")]
    Several,
    #[error("the certificate's URI is not spiffe://<this trust domain>/service/<name>")]
    Foreign,
    #[error("the certificate's SPIFFE ID is another service's")]
    OtherService,
}

/// A rejected name as rustls's error.
pub(crate) fn name_error(error: NameError) -> rustls::Error {
    rustls::Error::InvalidCertificate(rustls::CertificateError::Other(rustls::OtherError(Arc::new(error))))
}

/// The service that a certificate names.
pub(crate) fn service_of(certificate: &CertificateDer<'_>, trust_domain: &str) -> Result<String, NameError> {
    let certificate = Certificate::from_der(certificate).map_err(|_| NameError::Unreadable)?;
    let names = certificate.tbs_certificate.get::<SubjectAltName>().map_err(|_| NameError::Unreadable)?;
    let names = names.map(|(_critical, names)| names.0).unwrap_or_default();
    let mut uris = names.iter().filter_map(|name| match name {
        GeneralName::UniformResourceIdentifier(uri) => Some(uri.as_str()),
        GeneralName::OtherName(_)
        | GeneralName::Rfc822Name(_)
        | GeneralName::DnsName(_)
        | GeneralName::DirectoryName(_)
        | GeneralName::EdiPartyName(_)
        | GeneralName::IpAddress(_)
        | GeneralName::RegisteredId(_) => None,
    });
    let uri = uris.next().ok_or(NameError::Missing)?;
    if uris.next().is_some() {
        return Err(NameError::Several);
    }
    service_in(uri, trust_domain).map(str::to_owned).ok_or(NameError::Foreign)
}

/// When a certificate expires.
pub(crate) fn not_after(certificate: &CertificateDer<'_>) -> Result<Timestamp, NameError> {
    let certificate = Certificate::from_der(certificate).map_err(|_| NameError::Unreadable)?;
    let end = certificate.tbs_certificate.validity.not_after.to_unix_duration();
    Ok(Timestamp::from_micros(i64::try_from(end.as_micros()).unwrap_or(i64::MAX)))
}

fn service_in<'u>(uri: &'u str, trust_domain: &str) -> Option<&'u str> {
    let name = uri.strip_prefix("spiffe://")?.strip_prefix(trust_domain)?.strip_prefix("/service/")?;
    let plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    ((1..=63).contains(&name.len()) && name.bytes().all(plain)).then_some(name)
}

#[cfg(test)]
mod tests;
