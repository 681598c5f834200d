//! The program. All of it is in the library beside it, where its tests reach it.

use std::process::ExitCode;

/// Fewer page faults and less contention than the system's allocator, for programs of many small messages.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    ordermesh::program()
}
