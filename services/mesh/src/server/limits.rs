//! What bounds callers and connections: who is counted (`caller_key`), what each caller holds (`usage`), fair shares of
//! what is held briefly (`shares`) and for long (`slots`), rates (`quota`, `resets`).

pub(crate) mod caller_key;
pub(crate) mod quota;
pub(crate) mod resets;
pub(crate) mod shares;
pub(crate) mod slots;
pub(crate) mod usage;
