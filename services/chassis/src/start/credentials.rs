//! The service's credentials: its certificate, or the mesh secret.

use std::sync::Arc;

use kernel::Clock;
use mesh::SharedSecret;
use mesh::tls::Identity;
use storage::ownership;

use super::Error;
use crate::settings::Settings;

/// The service's identity, from its certificate.
pub(super) fn identity(
    service: &'static str,
    settings: &Settings,
    clock: Arc<dyn Clock>,
) -> Result<Option<Identity>, Error> {
    let Some(files) = settings.tls.files() else { return Ok(None) };
    ownership::check_secret(&files.key)?;
    for public in [&files.certificate, &files.roots] {
        ownership::check_unwritable(public)?;
    }
    let certificate = files.certificate.clone();
    let identity = Identity::load(files, &settings.tls.trust_domain, clock)?;
    let named = identity.service();
    if named == service { Ok(Some(identity)) } else { Err(Error::NotOurs { certificate, named, service }) }
}

/// A shorter secret could be guessed.
const MIN_SECRET_BYTES: usize = 16;

pub(super) fn mesh_secret(settings: &Settings) -> Result<Option<SharedSecret>, Error> {
    let path = settings.mesh_secret_file.clone().unwrap_or_else(|| settings.data_dir.join("mesh.secret"));
    ownership::check_secret(&path)?;
    let read = std::fs::read_to_string(&path).and_then(|text| {
        let text = text.trim();
        if text.len() >= MIN_SECRET_BYTES && text.bytes().all(|byte| (b' '..=b'~').contains(&byte)) {
            return Ok(SharedSecret::new(text));
        }
        let rule = format!("a secret is one line of at least {MIN_SECRET_BYTES} characters, ASCII only");
        Err(std::io::Error::new(std::io::ErrorKind::InvalidData, rule))
    });
    match read {
        Ok(secret) => Ok(Some(secret)),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound && settings.mesh_secret_file.is_none() => Ok(None),
        Err(source) => Err(Error::MeshSecret { path, source }),
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;
    use std::time::Duration;

    use certs::{CertificateAuthority, Names, Validity};
    use clap::Parser;
    use kernel::SystemClock;

    use super::*;

    #[derive(Parser)]
    struct Cli {
        #[command(flatten)]
        settings: Settings,
    }

    /// Settings of a service with a certificate for the given name.
    fn settings_of(folder: &Path, named: &str) -> Settings {
        let validity = Validity::from(SystemClock.now(), Duration::from_secs(3_600));
        let ca = CertificateAuthority::new("ordermesh.local", validity).expect("a CA");
        let issued = ca.issue(&Names::of_service("ordermesh.local", named), validity).expect("issued");
        let write = |name: &str, text: &str| {
            let path = folder.join(name);
            testkit::write_secret(&path, text);
            path.display().to_string()
        };
        let files = [
            ("--tls-cert", write("own.pem", &issued.certificate_pem)),
            ("--tls-key", write("own.key", &issued.key_pem)),
            ("--tls-ca", write("ca.pem", ca.certificate_pem())),
        ];
        let flags = files.iter().flat_map(|(flag, path)| [(*flag).to_owned(), path.clone()]);
        Cli::try_parse_from(std::iter::once("service".to_owned()).chain(flags)).expect("settings").settings
    }

    #[test]
    fn a_certificate_of_another_service_is_rejected() {
        let folder = tempfile::tempdir().expect("a folder");
        let ours = identity("order", &settings_of(folder.path(), "order"), Arc::new(SystemClock));
        assert!(ours.is_ok_and(|identity| identity.is_some_and(|identity| identity.service() == "order")));
        let others = identity("order", &settings_of(folder.path(), "data"), Arc::new(SystemClock));
        let message = others.expect_err("another service's certificate").to_string();
        assert!(message.contains("`data`") && message.contains("`order`"), "{message}");
    }

    #[test]
    fn a_malformed_mesh_secret_is_rejected() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("mesh.secret");
        let flags = ["service", "--mesh-secret-file", path.to_str().expect("a path")];
        let settings = Cli::try_parse_from(flags).expect("settings").settings;
        for malformed in ["", "\n", "too short", "0123456789abcdef\n0123456789abcdef", "ünter the radar it is"] {
            testkit::write_secret(&path, malformed);
            let message = mesh_secret(&settings).expect_err("not a secret").to_string();
            assert!(message.contains("mesh.secret"), "{malformed:?}: {message}");
        }
        testkit::write_secret(&path, "0123456789abcdef\n");
        assert!(mesh_secret(&settings).expect("a secret").is_some());
    }

    #[test]
    fn a_secret_or_private_key_readable_by_others_is_rejected_with_a_hint() {
        use std::os::unix::fs::PermissionsExt;
        let folder = tempfile::tempdir().expect("a folder");
        let open = |path: &Path| {
            std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o644)).expect("own file");
            format!("chmod go= {}", path.display())
        };
        let secret = folder.path().join("mesh.secret");
        testkit::write_secret(&secret, "0123456789abcdef\n");
        let hint = open(&secret);
        let flags = ["service", "--data-dir", folder.path().to_str().expect("a path")];
        let rejected = mesh_secret(&Cli::try_parse_from(flags).expect("settings").settings).expect_err("readable");
        assert!(rejected.is_configuration() && rejected.to_string().ends_with(&hint), "{rejected}");
        let settings = settings_of(folder.path(), "order");
        let hint = open(&folder.path().join("own.key"));
        let rejected = identity("order", &settings, Arc::new(SystemClock)).expect_err("readable");
        assert!(rejected.is_configuration() && rejected.to_string().ends_with(&hint), "{rejected}");
    }
}
