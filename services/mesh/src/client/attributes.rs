//! Attributes of a call that its caller sets, for example the order id.

use smallvec::SmallVec;

/// The attribute with the number of a call's attempt, from 2, when earlier calls for the same purpose have failed.
pub const ATTEMPT: &str = "attempt";

/// Attributes of a call: of its client operation, and so of its event. Those that are columns of an event
/// ([`telemetry::COLUMNS`]) are sent to mesh services, whose operations then have them too.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct CallAttributes(SmallVec<[(&'static str, String); 3]>);

impl CallAttributes {
    /// None yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds an attribute. Never a secret.
    #[must_use]
    pub fn with(mut self, name: &'static str, value: impl ToString) -> Self {
        self.0.push((name, value.to_string()));
        self
    }

    /// A request with these in its extensions.
    pub fn request<T>(self, message: T) -> tonic::Request<T> {
        let mut request = tonic::Request::new(message);
        request.extensions_mut().insert(self);
        request
    }

    /// The affinity key of a split: evenly distributed, the same for all calls of one order.
    pub(crate) fn affinity_key(&self) -> Option<u64> {
        let (_, value) = self.iter().find(|(name, _)| *name == telemetry::ORDER_ID)?;
        // The last bytes of a UUID are random.
        let (_, low) = value.parse::<uuid::Uuid>().ok()?.as_u64_pair();
        Some(low)
    }

    /// Names and values.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (&'static str, &str)> {
        self.0.iter().map(|(name, value)| (*name, value.as_str()))
    }
}
