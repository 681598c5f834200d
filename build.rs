//! Compiles proto/ to typed clients and servers, a descriptor set, and the mesh's policy table. Pure Rust: no protoc to
//! install.

use std::fmt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use prost_reflect::DescriptorPool;

#[path = "proto/policy_table.rs"]
mod policy_table;

const PROTO: &str = "proto";

/// Messages with a secret field: their Debug is written by hand, in proto/redact.rs. A test finds every field whose
/// comment calls it a secret.
const WITH_SECRETS: [&str; 9] = [
    "user.v1.RegisterRequest",
    "user.v1.LoginRequest",
    "user.v1.RefreshSessionRequest",
    "user.v1.LogoutRequest",
    "user.v1.ChangePasswordRequest",
    "user.v1.Session",
    "order.v1.CreateOrderRequest",
    "payment.v1.ProcessPaymentRequest",
    "gateway.v1.CreateChargeRequest",
];

enum BuildError {
    NoOutDir,
    Read(PathBuf, std::io::Error),
    Compile(protox::Error),
    Descriptors(prost_reflect::DescriptorError),
    Policy(policy_table::TableError),
    Write(PathBuf, std::io::Error),
    Generate(std::io::Error),
}

impl fmt::Display for BuildError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoOutDir => f.write_str("OUT_DIR is not set; cargo sets it"),
            Self::Read(path, error) => write!(f, "{} cannot be read: {error}", path.display()),
            // Its Debug shows the position in the .proto file, its Display does not.
            Self::Compile(error) => write!(f, "the contract does not compile: {error:?}"),
            Self::Descriptors(error) => write!(f, "the contract's descriptors are inconsistent: {error}"),
            Self::Policy(error) => write!(f, "policy: {error}"),
            Self::Write(path, error) => write!(f, "{} cannot be written: {error}", path.display()),
            Self::Generate(error) => write!(f, "the code cannot be generated: {error}"),
        }
    }
}

fn main() -> ExitCode {
    println!("cargo::rerun-if-changed={PROTO}");
    match build() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            println!("cargo::error={}", error.to_string().replace('\n', " "));
            ExitCode::FAILURE
        }
    }
}

fn build() -> Result<(), BuildError> {
    let out_dir = PathBuf::from(std::env::var_os("OUT_DIR").ok_or(BuildError::NoOutDir)?);
    let mut files = Vec::new();
    find_protos(Path::new(PROTO), &mut files)?;
    files.sort();

    let mut compiler = protox::Compiler::new([PROTO]).map_err(BuildError::Compile)?;
    compiler.include_imports(true).include_source_info(true).open_files(&files).map_err(BuildError::Compile)?;
    // Encoded by the compiler itself: prost's types would drop the options, which are extensions.
    let encoded = compiler.encode_file_descriptor_set();
    let pool = DescriptorPool::decode(encoded.as_slice()).map_err(BuildError::Descriptors)?;
    let rows = policy_table::rows(&pool).map_err(BuildError::Policy)?;

    write(out_dir.join("policies.rs"), policy_table::render(&rows).as_bytes())?;
    write(out_dir.join("descriptor.bin"), &encoded)?;
    tonic_prost_build::configure()
        .skip_debug(WITH_SECRETS)
        // Without `XClient::connect`: only the mesh creates channels.
        .build_transport(false)
        .emit_rerun_if_changed(false)
        .compile_fds(compiler.file_descriptor_set())
        .map_err(BuildError::Generate)
}

fn find_protos(folder: &Path, found: &mut Vec<PathBuf>) -> Result<(), BuildError> {
    let unreadable = |error| BuildError::Read(folder.to_owned(), error);
    for entry in std::fs::read_dir(folder).map_err(unreadable)? {
        let path = entry.map_err(unreadable)?.path();
        if path.is_dir() {
            find_protos(&path, found)?;
        } else if path.extension().is_some_and(|extension| extension == "proto") {
            found.push(path);
        }
    }
    Ok(())
}

fn write(path: PathBuf, content: &[u8]) -> Result<(), BuildError> {
    std::fs::write(&path, content).map_err(|error| BuildError::Write(path, error))
}
