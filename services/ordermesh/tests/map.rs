//! The invariants of services/README.md that are about absence: which crate depends on what, and which file names what.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

const SERVICES: [&str; 5] = ["user", "order", "payment", "data", "gateway-mock"];

/// Each crate of the workspace, and all that it depends on outside of its tests.
fn dependencies() -> BTreeMap<String, BTreeSet<String>> {
    let arguments = ["metadata", "--no-deps", "--format-version", "1", "--locked", "--offline"];
    let output = Command::new(env!("CARGO")).args(arguments).output().expect("cargo runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let metadata: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    let name = |value: &Value| value["name"].as_str().expect("a name").to_owned();
    let entry = |package: &Value| {
        let normal = package["dependencies"].as_array().expect("a list").iter().filter(|one| one["kind"].is_null());
        (name(package), normal.map(name).collect())
    };
    metadata["packages"].as_array().expect("a list").iter().map(entry).collect()
}

/// The crates that depend on `library`.
fn users_of(library: &str) -> Vec<String> {
    let all = dependencies().into_iter().filter(|(_, on)| on.contains(library));
    all.map(|(name, _)| name).collect()
}

#[test]
fn crates_depend_downwards_and_no_service_on_another() {
    // A crate may depend on those before it.
    let order = ["kernel", "telemetry", "storage", "driver", "mesh", "contracts", "chassis"];
    let all = dependencies();
    for (at, name) in order.iter().enumerate() {
        for above in order[at + 1..].iter().chain(&SERVICES).chain(&["ordermesh"]) {
            assert!(!all[*name].contains(*above), "{name} depends on {above}");
        }
    }
    for service in SERVICES {
        for other in SERVICES.iter().chain(&["ordermesh"]).filter(|other| **other != service) {
            assert!(!all[service].contains(*other), "{service} depends on {other}");
        }
    }
    assert!(all["mesh"].contains("telemetry") && !all["mesh"].contains("storage"), "the control case");
    assert!(SERVICES.iter().all(|service| all["ordermesh"].contains(*service)), "the control case");
}

#[test]
fn only_the_mesh_builds_servers_and_channels() {
    for library in ["hyper", "h2", "tower"] {
        assert_eq!(users_of(library), ["mesh"], "{library}");
    }
    let below = ["kernel", "storage"].map(|name| dependencies().remove(name).expect("a crate"));
    assert!(below.iter().all(|on| !on.contains("tonic")));
}

/// Every .rs file below the folder.
fn sources(folder: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(folder).expect("a folder").map(|entry| entry.expect("an entry").path());
    let files = entries.flat_map(|path| if path.is_dir() { sources(&path) } else { vec![path] });
    files.filter(|path| path.extension().is_some_and(|extension| extension == "rs")).collect()
}

#[test]
fn entities_stay_in_the_store() {
    assert_eq!(users_of("sea-orm"), ["data", "gateway-mock", "order", "payment", "storage", "user"]);
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let (mut inside, mut outside) = (0, vec![]);
    for service in ["services/user", "services/order", "services/payment", "services/data", "gateway-mock"] {
        for path in sources(&root.join(service).join("src")) {
            let text = std::fs::read_to_string(&path).expect("a source file");
            if !text.contains("crate::entity") {
                continue;
            }
            let name = path.strip_prefix(root.join(service).join("src")).expect("below").display().to_string();
            if name.contains("store") { inside += 1 } else { outside.push(format!("{service}: {name}")) }
        }
    }
    assert!(inside >= 5, "control: expected more inside: {inside}");
    assert_eq!(outside, [] as [String; 0]);
}
