use certs::{CertificateAuthority, Issued, Names, Validity};
use kernel::SystemClock;
use tempfile::TempDir;

use super::*;

const DOMAIN: &str = "test.local";

fn ca() -> CertificateAuthority {
    CertificateAuthority::new(DOMAIN, Validity::from(SystemClock.now(), Duration::from_secs(86_400))).expect("a CA")
}

fn issue(ca: &CertificateAuthority, names: &Names, days: u64) -> Issued {
    let validity = Validity::from(SystemClock.now(), Duration::from_secs(days * 86_400));
    ca.issue(names, validity).expect("issued")
}

fn write(folder: &TempDir, ca: &CertificateAuthority, issued: &Issued) -> Files {
    let path = |name: &str| folder.path().join(name);
    let files = Files { certificate: path("own.pem"), key: path("own.key"), roots: path("ca.pem") };
    std::fs::write(&files.certificate, &issued.certificate_pem).expect("written");
    std::fs::write(&files.key, &issued.key_pem).expect("written");
    std::fs::write(&files.roots, ca.certificate_pem()).expect("written");
    files
}

#[test]
fn a_renewal_is_loaded_if_it_names_this_service_and_clients_would_accept_it() {
    let (folder, ca) = (tempfile::tempdir().expect("a folder"), ca());
    let ours = Names::of_service(DOMAIN, "order");
    let files = write(&folder, &ca, &issue(&ca, &ours, 1));
    let identity = Identity::load(files, DOMAIN, Arc::new(SystemClock)).expect("loaded");
    let days_left = || identity.expires_in().as_secs().div_ceil(86_400);
    let without_our_name = Names { dns: vec!["elsewhere".into()], ..ours.clone() };
    for names in [Names::of_service(DOMAIN, "data"), without_our_name] {
        write(&folder, &ca, &issue(&ca, &names, 7));
        assert!(identity.reload(None).is_some(), "expected to be rejected: {names:?}");
        assert_eq!((identity.service().as_str(), days_left()), ("order", 1));
    }
    write(&folder, &ca, &issue(&ca, &ours, 7));
    assert!(identity.reload(None).is_none(), "control: its own is loaded");
    assert_eq!(days_left(), 7);
}
