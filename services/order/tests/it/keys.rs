//! While the User Service is down, holders of a token are served, even by an instance that has just started.

use tonic::Code;

use crate::system::{System, error_of, key_set, mugs, rejection};

#[tokio::test]
async fn an_instance_started_without_the_user_service_verifies_with_keys_fetched_by_another_instance() {
    let system = System::new().await;
    let ada = system.client("customer");
    ada.create(mugs(1)).await.expect("the keys are fetched");
    let fresh = system.another_instance_without_users(None).await;
    ada.at(&fresh).create(mugs(1)).await.expect("the key is cached");
}

#[tokio::test]
async fn an_instance_started_without_the_user_service_verifies_with_mounted_keys_only() {
    let system = System::new().await;
    let ada = system.client("customer");
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("keys.json");
    std::fs::write(&path, key_set("rfc8037")).expect("written");
    let fresh = system.another_instance_without_users(Some(path.clone())).await;
    ada.at(&fresh).create(mugs(1)).await.expect("the key is mounted");
    std::fs::write(&path, key_set("another")).expect("written");
    let fresh = system.another_instance_without_users(Some(path)).await;
    let status = ada.at(&fresh).create(mugs(1)).await.expect_err("control: an unknown key");
    assert_eq!(rejection(&status), error_of(Code::Unavailable, "KEYS_NOT_AVAILABLE", "mesh"));
}
