//! `ordermesh certs`: a certificate authority in a folder, and a certificate for each service, as the mesh requires: EC
//! P-256, the service's DNS name, one SPIFFE URI. Called again it renews the certificates and keeps the CA, so
//! running services reload them without a restart, and peers trust both old and new ones.

use std::fs;
use std::io::{ErrorKind, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use certs::{CertificateAuthority, Issued, Names, Validity};
use chassis::settings::duration;
use clap::Args;
use kernel::{Clock, SystemClock};
use mesh::tls::{Files, Identity};

use crate::error::Error;
use crate::out;
use crate::service::Service;
use storage::ownership::{check_secret, check_unwritable};

/// The trust domain of local runs, and the default everywhere.
pub(crate) const TRUST_DOMAIN: &str = "ordermesh.local";
/// The default lifetime of a service's certificate.
const LIFETIME: Duration = Duration::from_secs(90 * 86_400);
const SHORTEST: Duration = Duration::from_secs(60);
const AUTHORITY_LIFETIME: Duration = Duration::from_secs(10 * 365 * 86_400);

/// The certificates to issue.
#[derive(Args, Clone, Debug)]
pub(crate) struct Options {
    /// Folder: ca.pem and ca.key, and SERVICE.pem and SERVICE.key; created if missing
    #[arg(long, default_value = "certs", value_name = "DIR")]
    dir: PathBuf,
    /// Trust domain of the services' SPIFFE IDs
    #[arg(long, default_value = TRUST_DOMAIN, value_name = "NAME")]
    trust_domain: String,
    /// Issue only for this service, instead of all: user, order, payment, data, gateway
    #[arg(long = "service", value_name = "SERVICE", value_parser = Service::ALL.map(Service::name))]
    services: Vec<String>,
    /// Additional DNS name or address, besides the service's name, localhost, 127.0.0.1 and ::1; may be given several times
    #[arg(long = "dns", value_name = "NAME")]
    dns: Vec<String>,
    /// Lifetime of the services' certificates; the CA's is ten years
    #[arg(long, default_value = "90d", value_parser = duration, value_name = "DURATION")]
    lifetime: Duration,
}

/// Issues the certificates.
///
/// # Errors
/// An invalid name; a folder that cannot be written to; a CA of another trust domain.
pub(crate) fn run(options: &Options) -> Result<(), Error> {
    let folder = Certificates::in_folder(options.dir.clone());
    let all: Vec<_> = Service::ALL.map(|service| service.name().to_owned()).into();
    let services = if options.services.is_empty() { &all } else { &options.services };
    let request =
        CertificateRequest { trust_domain: &options.trust_domain, dns: &options.dns, lifetime: options.lifetime };
    let is_new = folder.make(&request, services.iter().map(String::as_str))?;
    let dir = options.dir.display();
    let ca = if is_new { "a new CA; its key is ca.key: keep it on a host without services" } else { "kept" };
    out::line(format_args!("{dir}/ca.pem: {ca}"))?;
    for service in services {
        let name = format!("spiffe://{}/service/{service}", options.trust_domain);
        out::line(format_args!("{dir}/{service}.pem, {dir}/{service}.key: {name}, for {}", display(options.lifetime)))?;
    }
    Ok(())
}

fn display(lifetime: Duration) -> String {
    match lifetime.as_secs() / 86_400 {
        0 => format!("{} minutes", lifetime.as_secs() / 60),
        days => format!("{days} days"),
    }
}

/// The properties of the certificates to issue.
pub(crate) struct CertificateRequest<'a> {
    pub(crate) trust_domain: &'a str,
    pub(crate) dns: &'a [String],
    pub(crate) lifetime: Duration,
}

impl CertificateRequest<'_> {
    /// For a system on one machine.
    pub(crate) const LOCAL: Self = Self { trust_domain: TRUST_DOMAIN, dns: &[], lifetime: LIFETIME };

    fn check(&self) -> Result<(), Error> {
        // The characters that the SPIFFE standard permits in a trust domain.
        let is_name = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b".-_".contains(&byte);
        if self.trust_domain.is_empty() || self.trust_domain.len() > 255 || !self.trust_domain.bytes().all(is_name) {
            let trust_domain = self.trust_domain;
            return Err(Error::Usage(format!(
                "{trust_domain:?} is not a trust domain: lower-case letters, digits, '.', '-' and '_', for example shop.example"
            )));
        }
        let is_dns = |byte: u8| byte.is_ascii_alphanumeric() || b".-*".contains(&byte);
        let is_address = |name: &str| name.parse::<std::net::IpAddr>().is_ok();
        let is_sound = |name: &str| !name.is_empty() && name.len() <= 253 && name.bytes().all(is_dns);
        if let Some(name) = self.dns.iter().find(|name| !is_sound(name) && !is_address(name)) {
            return Err(Error::Usage(format!("{name:?} is not a DNS name or address")));
        }
        if !(SHORTEST..AUTHORITY_LIFETIME).contains(&self.lifetime) {
            return Err(Error::Usage(
                "a certificate's lifetime is at least a minute, and less than its CA's ten years".to_owned(),
            ));
        }
        Ok(())
    }
}

/// A folder of certificates.
#[derive(Clone, Debug)]
pub(crate) struct Certificates(PathBuf);

impl Certificates {
    pub(crate) fn in_folder(folder: PathBuf) -> Self {
        Self(folder)
    }

    /// The root certificates that peers' certificates are verified against.
    pub(crate) fn roots(&self) -> PathBuf {
        self.0.join("ca.pem")
    }

    /// The files of a service's certificate.
    pub(crate) fn of(&self, service: &str) -> Files {
        Files {
            certificate: self.0.join(format!("{service}.pem")),
            key: self.0.join(format!("{service}.key")),
            roots: self.roots(),
        }
    }

    /// Creates a CA unless there is one, and issues certificates for services. Returns whether the CA is
    /// new.
    pub(crate) fn make<'a>(
        &self,
        request: &CertificateRequest<'_>,
        services: impl IntoIterator<Item = &'a str>,
    ) -> Result<bool, Error> {
        request.check()?;
        let made = |source| Error::Certificate { source };
        fs::DirBuilder::new().recursive(true).mode(0o700).create(&self.0).map_err(at(&self.0, "created"))?;
        check_unwritable(&self.0)?;
        check_secret(&self.0.join("ca.key"))?;
        let _alone = self.lock()?;
        let now = SystemClock.now();
        let (ca, is_new) = match self.kept()? {
            Some(kept) => (CertificateAuthority::restore(request.trust_domain, &kept).map_err(made)?, false),
            None => {
                let validity = Validity::from(now, AUTHORITY_LIFETIME);
                (CertificateAuthority::new(request.trust_domain, validity).map_err(made)?, true)
            }
        };
        // All are written to a temporary folder first, and loaded as peers will load them; only then do they replace
        // the old ones.
        let aside = tempfile::Builder::new().prefix(".new-").tempdir_in(&self.0).map_err(at(&self.0, "written to"))?;
        let new = Self(aside.path().to_owned());
        let pem = ca.to_pem();
        write(&new.0.join("ca.key"), &pem.key_pem, 0o600)?;
        write(&new.roots(), &pem.certificate_pem, 0o644)?;
        let mut names_of_files = if is_new { vec!["ca.key".to_owned(), "ca.pem".to_owned()] } else { vec![] };
        for service in services {
            let mut names = Names::of_service(request.trust_domain, service);
            names.dns.extend(request.dns.iter().cloned());
            let issued = ca.issue(&names, Validity::from(now, request.lifetime)).map_err(made)?;
            let files = new.of(service);
            write(&files.key, &issued.key_pem, 0o600)?;
            write(&files.certificate, &issued.certificate_pem, 0o644)?;
            // Fails for a CA of another trust domain, or whose key and certificate do not match.
            Identity::load(files, request.trust_domain, Arc::new(SystemClock)).map_err(chassis::Error::Tls)?;
            names_of_files.extend([format!("{service}.key"), format!("{service}.pem")]);
        }
        for name in names_of_files {
            fs::rename(new.0.join(&name), self.0.join(&name)).map_err(at(&self.0.join(&name), "written"))?;
        }
        Ok(is_new)
    }

    /// Serialises concurrent runs in one folder.
    fn lock(&self) -> Result<fs::File, Error> {
        let path = self.0.join(".lock");
        let file = fs::File::create(&path).map_err(at(&path, "written"))?;
        file.lock().map_err(at(&path, "locked"))?;
        Ok(file)
    }

    fn kept(&self) -> Result<Option<Issued>, Error> {
        let read = |path: PathBuf| match fs::read_to_string(&path) {
            Ok(text) => Ok(Some(text)),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
            Err(source) => Err(Error::File { path, action: "read", source }),
        };
        match (read(self.roots())?, read(self.0.join("ca.key"))?) {
            (Some(certificate_pem), Some(key_pem)) => Ok(Some(Issued { certificate_pem, key_pem })),
            (None, None) => Ok(None),
            (None, Some(_)) => Err(Error::Usage(format!(
                "{} has a CA's key, ca.key, but not its certificate, ca.pem: restore it, or remove the key to start anew",
                self.0.display()
            ))),
            (Some(_), None) => Err(Error::Usage(format!(
                "{} has a CA's certificate but not its key, ca.key: issue certificates where the key is",
                self.0.display()
            ))),
        }
    }
}

fn write(path: &Path, text: &str, mode: u32) -> Result<(), Error> {
    let written = (|| {
        let mut file = fs::OpenOptions::new().write(true).create_new(true).mode(mode).open(path)?;
        // Independent of the umask: certificates are public.
        file.set_permissions(fs::Permissions::from_mode(mode))?;
        file.write_all(text.as_bytes())?;
        file.sync_all()
    })();
    written.map_err(at(path, "written"))
}

fn at(path: &Path, action: &'static str) -> impl FnOnce(std::io::Error) -> Error {
    let path = path.to_owned();
    move |source| Error::File { path, action, source }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn make(folder: &Path, trust_domain: &str) -> Result<bool, Error> {
        let request = CertificateRequest { trust_domain, ..CertificateRequest::LOCAL };
        Certificates::in_folder(folder.to_owned()).make(&request, ["order", "data"])
    }

    #[test]
    fn a_second_run_renews_the_certificates_and_keeps_the_ca() {
        let temporary = tempfile::tempdir().expect("a folder");
        let folder = temporary.path().join("certs");
        let read = |name: &str| fs::read_to_string(folder.join(name)).expect("readable");
        assert!(make(&folder, TRUST_DOMAIN).expect("made"));
        let before = ["ca.pem", "ca.key", "order.pem", "order.key"].map(read);
        assert!(!make(&folder, TRUST_DOMAIN).expect("made"));
        let after = ["ca.pem", "ca.key", "order.pem", "order.key"].map(read);
        assert_eq!(before[..2], after[..2]);
        assert!(before[2] != after[2] && before[3] != after[3]);
        for key in ["ca.key", "order.key", "data.key"] {
            let mode = fs::metadata(folder.join(key)).expect("the key exists").permissions().mode();
            assert_eq!(mode & 0o777, 0o600, "{key}");
        }
    }

    #[test]
    fn unusable_certificates_are_not_issued() {
        let temporary = tempfile::tempdir().expect("a folder");
        let folder = Certificates::in_folder(temporary.path().join("certs"));
        let dns = |name: &str| vec![name.to_owned()];
        let (blank, slash, good) = (dns("a b"), dns("a/b"), dns("api.shop.example"));
        let wrong = [
            CertificateRequest { trust_domain: "", ..CertificateRequest::LOCAL },
            CertificateRequest { trust_domain: "spiffe://x", ..CertificateRequest::LOCAL },
            CertificateRequest { dns: &blank, ..CertificateRequest::LOCAL },
            CertificateRequest { dns: &slash, ..CertificateRequest::LOCAL },
            CertificateRequest { lifetime: Duration::ZERO, ..CertificateRequest::LOCAL },
            CertificateRequest { lifetime: AUTHORITY_LIFETIME * 10, ..CertificateRequest::LOCAL },
        ];
        for request in wrong {
            assert!(folder.make(&request, ["order"]).is_err());
        }
        assert!(!temporary.path().join("certs").exists());
        assert!(folder.make(&CertificateRequest { dns: &good, ..CertificateRequest::LOCAL }, ["order"]).is_ok());
    }

    #[test]
    fn a_ca_of_another_trust_domain_is_not_used() {
        let temporary = tempfile::tempdir().expect("a folder");
        make(temporary.path(), TRUST_DOMAIN).expect("made");
        let before = fs::read(temporary.path().join("order.key")).expect("readable");
        let error = make(temporary.path(), "elsewhere.example").expect_err("another's CA").report();
        assert_eq!(fs::read(temporary.path().join("order.key")).expect("readable"), before, "nothing has changed");
        assert!(error.contains("order.pem"), "{error}");
        fs::rename(temporary.path().join("ca.pem"), temporary.path().join("away")).expect("renamed");
        let error = make(temporary.path(), TRUST_DOMAIN).expect_err("a CA's key is never replaced").report();
        assert!(error.contains("ca.pem"), "{error}");
        fs::rename(temporary.path().join("away"), temporary.path().join("ca.pem")).expect("renamed");
        fs::remove_file(temporary.path().join("ca.key")).expect("removed");
        let error = make(temporary.path(), TRUST_DOMAIN).expect_err("no key").report();
        assert!(error.contains("ca.key"), "{error}");
    }
}
