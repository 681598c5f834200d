//! The trace events' log records.

use std::sync::OnceLock;

use opentelemetry_sdk::logs::SdkLogger;

static INSTALLED: OnceLock<(Option<SdkLogger>, bool)> = OnceLock::new();

/// Stores what log records are made with, and whether spans are exported.
pub(crate) fn install(logger: Option<SdkLogger>, exports_spans: bool) {
    let _ = INSTALLED.set((logger, exports_spans));
}
