//! The program. Everything is in the library, where tests can call it.

use std::process::ExitCode;

/// Fewer page faults and less contention than the system's allocator, for many small messages.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    ordermesh::program()
}
