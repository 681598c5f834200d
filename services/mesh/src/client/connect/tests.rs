use super::*;
use futures_util::FutureExt;
use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};

#[tokio::test(start_paused = true)]
async fn an_instance_is_connected_only_after_its_first_bytes() {
    let (ours, mut theirs) = duplex(1 << 16);
    let mut connecting = Box::pin(handshake(ours, "a:1"));
    assert!(timeout(10 * CONNECT_TIMEOUT, &mut connecting).await.is_err(), "no server yet");
    assert_eq!(theirs.read_u8().await.expect("the preface"), b'P', "although the client has sent its preface");
    theirs.write_all(&SETTINGS).await.expect("room");
    assert!(connecting.await.is_ok());
}

#[tokio::test(start_paused = true)]
async fn a_connection_closed_before_its_first_bytes_is_a_failure() {
    let (ours, theirs) = duplex(1 << 16);
    let mut connecting = Box::pin(handshake(ours, "a:1"));
    assert!(connecting.as_mut().now_or_never().is_none());
    drop(theirs);
    assert!(connecting.await.is_err());
}

#[tokio::test(start_paused = true)]
async fn a_plaintext_client_reports_a_tls_server() {
    let (ours, mut theirs) = duplex(1 << 16);
    let mut connecting = Box::pin(handshake(ours, "a:1"));
    assert!(connecting.as_mut().now_or_never().is_none());
    // A fatal alert: decode_error.
    theirs.write_all(&[TLS_ALERT, 3, 3, 0, 2, 2, 50]).await.expect("room");
    drop(theirs);
    let why = connecting.await.err().expect("a failure");
    assert!(why.contains("it speaks TLS"), "{why}");
}

#[test]
fn a_certificate_rejected_for_its_dates_points_to_the_clocks() {
    use rustls::{AlertDescription, CertificateError, Error};
    let failed = |error: Error| io::Error::new(io::ErrorKind::InvalidData, error);
    for about_time in [CertificateError::NotValidYet, CertificateError::Expired] {
        let why = tls_error(&failed(Error::InvalidCertificate(about_time)));
        assert!(why.contains("compare the clocks"), "{why}");
    }
    // The server rejects ours.
    let why = read_error(&failed(Error::AlertReceived(AlertDescription::CertificateExpired)));
    assert!(why.contains("compare the clocks"), "{why}");
    let why = tls_error(&failed(Error::InvalidCertificate(CertificateError::UnknownIssuer)));
    assert!(!why.contains("clock"), "control: {why}");
}
