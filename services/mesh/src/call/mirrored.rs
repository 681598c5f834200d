//! Whether the call that is being served is a mirrored one: the calls that are made for it are marked too, and not mirrored again.

tokio::task_local! {
    static MIRRORED: ();
}

/// Does a part of the work of a mirrored call.
pub(crate) fn with_mirrored<F: Future>(work: F) -> impl Future<Output = F::Output> {
    MIRRORED.scope((), work)
}

/// Whether a mirrored call is being served.
pub(crate) fn is_mirrored() -> bool {
    MIRRORED.try_with(|()| ()).is_ok()
}
