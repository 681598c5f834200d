//! Nobody can log in for a while: who has a token is served all the same, also by an instance that has just started.

use tonic::Code;

use crate::system::{System, is, key_set, mugs, refusal};

#[tokio::test]
async fn an_instance_that_starts_without_the_user_service_verifies_with_the_keys_that_another_fetched() {
    let system = System::new().await;
    let ada = system.person("customer");
    ada.create(mugs(1)).await.expect("the keys are fetched");
    let fresh = system.another_instance_without_users(None).await;
    ada.at(&fresh).create(mugs(1)).await.expect("it knows her key");
}

#[tokio::test]
async fn an_instance_that_starts_without_the_user_service_verifies_with_the_mounted_keys_alone() {
    let system = System::new().await;
    let ada = system.person("customer");
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("keys.json");
    std::fs::write(&path, key_set("rfc8037")).expect("written");
    let fresh = system.another_instance_without_users(Some(path.clone())).await;
    ada.at(&fresh).create(mugs(1)).await.expect("it knows her key");
    std::fs::write(&path, key_set("another")).expect("written");
    let fresh = system.another_instance_without_users(Some(path)).await;
    let status = ada.at(&fresh).create(mugs(1)).await.expect_err("the twin: a key that is unknown here");
    assert_eq!(refusal(&status), is(Code::Unavailable, "KEYS_NOT_AVAILABLE", "mesh"));
}
