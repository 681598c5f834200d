//! Certificates of the platform: a CA, and for each service one certificate with its DNS names and ONE SPIFFE URI. Keys
//! are EC P-256. The results are PEM texts; the caller decides where to write them and with which permissions.
//!
//! ```
//! use std::time::Duration;
//! use certs::{CertificateAuthority, Names, Validity};
//! use kernel::Timestamp;
//!
//! let validity = Validity::from(Timestamp::from_micros(1_800_000_000_000_000), Duration::from_secs(90 * 86_400));
//! let ca = CertificateAuthority::new("ordermesh.local", validity)?;
//! let order = ca.issue(&Names::of_service("ordermesh.local", "order"), validity)?;
//! assert!(order.certificate_pem.starts_with("-----BEGIN CERTIFICATE-----"));
//! # Ok::<(), certs::Error>(())
//! ```

use std::time::Duration;

use kernel::Timestamp;
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, PKCS_ECDSA_P256_SHA256, SanType,
};
use time::OffsetDateTime;

/// Why a certificate cannot be created.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A name that no certificate can contain, or an invalid key.
    #[error("the certificate cannot be created")]
    Certificate(#[from] rcgen::Error),
    /// A date outside of the years 1 to 9999.
    #[error("the validity is out of range")]
    Validity,
}

/// The validity period of a certificate.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Validity {
    /// Not before.
    pub begins: Timestamp,
    /// Not after.
    pub ends: Timestamp,
}

impl Validity {
    /// Clocks differ: a certificate is valid a little before it is created.
    const CLOCK_SKEW: Duration = Duration::from_secs(300);

    /// From five minutes before `now` until `lifetime` after it.
    pub fn from(now: Timestamp, lifetime: Duration) -> Self {
        Self { begins: now.minus(Self::CLOCK_SKEW), ends: now.plus(lifetime) }
    }
}

/// The names in a certificate.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Names {
    /// The subject's common name, for humans.
    pub common_name: String,
    /// The names that clients connect to. An IP address becomes an iPAddress SAN.
    pub dns: Vec<String>,
    /// SPIFFE URIs. The mesh requires exactly one.
    pub uris: Vec<String>,
}

impl Names {
    /// The names of a service of the platform: `spiffe://<trust-domain>/service/<service>`, reached by its name or on
    /// this machine.
    pub fn of_service(trust_domain: &str, service: &str) -> Self {
        Self {
            common_name: service.to_owned(),
            dns: vec![service.to_owned(), "localhost".to_owned(), "127.0.0.1".to_owned(), "::1".to_owned()],
            uris: vec![format!("spiffe://{trust_domain}/service/{service}")],
        }
    }
}

/// A certificate and its key, as PEM.
#[derive(Clone)]
pub struct Issued {
    /// The certificate: public.
    pub certificate_pem: String,
    /// The private key: secret.
    pub key_pem: String,
}

impl std::fmt::Debug for Issued {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Issued").field("certificate_pem", &self.certificate_pem).finish_non_exhaustive()
    }
}

/// A certificate authority.
pub struct CertificateAuthority {
    certificate_pem: String,
    issuer: Issuer<'static, KeyPair>,
}

impl std::fmt::Debug for CertificateAuthority {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("CertificateAuthority").field("certificate_pem", &self.certificate_pem).finish_non_exhaustive()
    }
}

impl CertificateAuthority {
    /// Creates a CA with a new key.
    ///
    /// # Errors
    /// The validity is out of range.
    pub fn new(trust_domain: &str, validity: Validity) -> Result<Self, Error> {
        let params = ca_params(trust_domain, validity)?;
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
        let certificate_pem = params.self_signed(&key)?.pem();
        Ok(Self { certificate_pem, issuer: Issuer::new(params, key) })
    }

    /// Restores a CA of the same trust domain from [`CertificateAuthority::to_pem`], to issue further certificates.
    ///
    /// # Errors
    /// The key is invalid.
    pub fn restore(trust_domain: &str, pem: &Issued) -> Result<Self, Error> {
        let whenever = Validity { begins: Timestamp::default(), ends: Timestamp::default() };
        let params = ca_params(trust_domain, whenever)?;
        let key = KeyPair::from_pem(&pem.key_pem)?;
        Ok(Self { certificate_pem: pem.certificate_pem.clone(), issuer: Issuer::new(params, key) })
    }

    /// The root certificate, which all services trust.
    pub fn certificate_pem(&self) -> &str {
        &self.certificate_pem
    }

    /// The certificate and key, for [`CertificateAuthority::restore`]. With this key, certificates of any service can
    /// be issued.
    pub fn to_pem(&self) -> Issued {
        Issued { certificate_pem: self.certificate_pem.clone(), key_pem: self.issuer.key().serialize_pem() }
    }

    /// Issues a certificate for a new key, valid for clients and servers.
    ///
    /// # Errors
    /// A name that no certificate can contain, or a validity out of range.
    pub fn issue(&self, names: &Names, validity: Validity) -> Result<Issued, Error> {
        let mut params = CertificateParams::new(names.dns.clone())?;
        for uri in &names.uris {
            params.subject_alt_names.push(SanType::URI(uri.as_str().try_into()?));
        }
        params.distinguished_name = DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, names.common_name.as_str());
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        params.use_authority_key_identifier_extension = true;
        (params.not_before, params.not_after) = (date(validity.begins)?, date(validity.ends)?);
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
        let certificate_pem = params.signed_by(&key, &self.issuer)?.pem();
        Ok(Issued { certificate_pem, key_pem: key.serialize_pem() })
    }
}

/// The issuer's name and key identifier must be the same after a restore.
fn ca_params(trust_domain: &str, validity: Validity) -> Result<CertificateParams, Error> {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, format!("{trust_domain} CA"));
    // It signs services' certificates, but no further CAs.
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    (params.not_before, params.not_after) = (date(validity.begins)?, date(validity.ends)?);
    Ok(params)
}

fn date(instant: Timestamp) -> Result<OffsetDateTime, Error> {
    let date = OffsetDateTime::from_unix_timestamp(instant.as_micros().div_euclid(1_000_000));
    // rcgen panics at a negative year.
    date.ok().filter(|date| (1..=9_999).contains(&date.year())).ok_or(Error::Validity)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn validity() -> Validity {
        Validity::from(Timestamp::from_micros(1_800_000_000_000_000), Duration::from_secs(86_400))
    }

    #[test]
    fn a_restored_ca_has_the_same_root_and_key() {
        let ca = CertificateAuthority::new("test.local", validity()).expect("made");
        let restored = CertificateAuthority::restore("test.local", &ca.to_pem()).expect("restored");
        assert_eq!(restored.certificate_pem(), ca.certificate_pem());
        assert_eq!(restored.to_pem().key_pem, ca.to_pem().key_pem);
        restored.issue(&Names::of_service("test.local", "order"), validity()).expect("issues");
    }

    #[test]
    fn a_non_ascii_name_is_rejected() {
        let ca = CertificateAuthority::new("test.local", validity()).expect("made");
        let names = Names { uris: vec!["spiffe://test.local/ö".into()], ..Names::default() };
        assert!(matches!(ca.issue(&names, validity()), Err(Error::Certificate(_))));
    }

    #[test]
    fn a_date_outside_of_the_years_1_to_9999_is_rejected() {
        const YEAR_1: i64 = -62_135_596_800;
        const YEAR_10_000: i64 = 253_402_300_800;
        let at = |seconds: i64| Timestamp::from_micros(seconds * 1_000_000);
        let new =
            |begins, ends| CertificateAuthority::new("test.local", Validity { begins: at(begins), ends: at(ends) });
        for before in [YEAR_1 - 1, 2 * YEAR_1, 100 * YEAR_1] {
            assert!(matches!(new(before, 0), Err(Error::Validity)), "{before}");
        }
        for after in [YEAR_10_000, 2 * YEAR_10_000] {
            assert!(matches!(new(0, after), Err(Error::Validity)), "{after}");
        }
        new(YEAR_1, YEAR_10_000 - 1).expect("made");
    }

    #[test]
    fn debug_shows_no_key() {
        let ca = CertificateAuthority::new("test.local", validity()).expect("made");
        let issued = ca.issue(&Names::of_service("test.local", "order"), validity()).expect("issued");
        assert!(!format!("{ca:?} {issued:?}").contains("PRIVATE"));
    }
}
