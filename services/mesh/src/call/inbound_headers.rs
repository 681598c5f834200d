//! The headers of the operator's call that is being served, for rules of the traffic policy that match them.

use std::sync::Arc;

use http::HeaderMap;

tokio::task_local! {
    static OPERATOR_HEADERS: Arc<HeaderMap>;
}

/// Does a part of the work of an operator's call with these headers.
pub(crate) fn with_headers<F: Future>(headers: HeaderMap, work: F) -> impl Future<Output = F::Output> {
    OPERATOR_HEADERS.scope(Arc::new(headers), work)
}

/// The headers, while an operator's call is being served and a rule matches headers.
pub(crate) fn operator_headers() -> Option<Arc<HeaderMap>> {
    OPERATOR_HEADERS.try_with(Arc::clone).ok()
}
