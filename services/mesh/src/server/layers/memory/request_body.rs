//! A request's body, admitted frame by frame: no message exceeds its limit, none follows a unary request's only one, no
//! field has too many elements, and all bytes read are charged to the memory budget.

use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use tonic::body::Body;
use tonic::{Code, Status};

use crate::body::{Frames, NextFrame, poll_frame};
use crate::policy::FieldLimit;
use crate::server::layers::concurrency::request_buffer::Pieces;
use crate::server::layers::memory::budget::{Account, out_of_memory};
use crate::server::layers::memory::field_limits::count_elements;
use crate::server::limits::shares::Shares;
use crate::server::rejections::{Cause, Rejections};
use crate::status::{REQUEST_CARDINALITY, mesh_status, status};

/// The cost of a byte on the wire while its call is served: in the HTTP/2 stack, the decoder's buffer, the decoded
/// message.
const COST_FACTOR: usize = 4;
/// The cost of a call that waits for its request: its task, its span, its headers' values, a buffer of the HTTP/2 stack
/// that one frame keeps alive; and, for each header, its entry.
const WAITING_CALL_BYTES: usize = 24 * 1024;
const HEADER_BYTES: usize = 160;
/// The cost of an element of a repeated field besides its bytes: text or a small message, in a list that grows by
/// doubling.
const ELEMENT_BYTES: usize = 64;
/// gRPC's length prefix, before each message.
const PREFIX_BYTES: usize = 5;

/// Reads each message's length from the frames, however they are cut.
pub(crate) struct Prefixes {
    limit_bytes: usize,
    /// Whether another message may follow.
    is_stream: bool,
    prefix: [u8; PREFIX_BYTES],
    read: usize,
    message_left: usize,
    has_message: bool,
}

/// Why a request's messages are rejected.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum MessageError {
    /// A message of this many bytes.
    TooLong(usize),
    /// Data follows the only message.
    More,
}

impl Prefixes {
    pub(crate) fn new(limit_bytes: usize, is_stream: bool) -> Self {
        Self { limit_bytes, is_stream, prefix: [0; PREFIX_BYTES], read: 0, message_left: 0, has_message: false }
    }

    pub(crate) fn check(&mut self, mut data: &[u8]) -> Result<(), MessageError> {
        loop {
            let skipped = self.message_left.min(data.len());
            self.message_left -= skipped;
            data = &data[skipped..];
            if data.is_empty() {
                return Ok(());
            }
            if self.has_message && !self.is_stream {
                return Err(MessageError::More);
            }
            let wanted = (PREFIX_BYTES - self.read).min(data.len());
            self.prefix[self.read..self.read + wanted].copy_from_slice(&data[..wanted]);
            self.read += wanted;
            data = &data[wanted..];
            if self.read == PREFIX_BYTES {
                let [_compressed, a, b, c, d] = self.prefix;
                self.message_left = usize::try_from(u32::from_be_bytes([a, b, c, d])).unwrap_or(usize::MAX);
                (self.read, self.has_message) = (0, true);
                if self.message_left > self.limit_bytes {
                    return Err(MessageError::TooLong(self.message_left));
                }
            }
        }
    }

    /// The only message is complete.
    fn is_complete(&self) -> bool {
        self.has_message && self.message_left == 0
    }
}

/// The frames of a request.
pub(crate) struct AdmittedBody {
    account: Arc<Account>,
    /// Charged while the body is awaited. Most requests arrive with their headers.
    waiting_bytes: usize,
    waiting_budget: Arc<Shares>,
    waiting: Option<Account>,
    prefixes: Prefixes,
    limits: &'static [FieldLimit],
    /// A message with limited fields, as far as it has arrived.
    message: Pieces,
    rejections: Arc<Rejections>,
}

impl AdmittedBody {
    pub(crate) fn new(
        headers: usize,
        prefixes: Prefixes,
        limits: &'static [FieldLimit],
        account: Arc<Account>,
        waiting_budget: Arc<Shares>,
        rejections: Arc<Rejections>,
    ) -> Self {
        let waiting_bytes = WAITING_CALL_BYTES + headers * HEADER_BYTES;
        let message = Pieces::default();
        Self { account, waiting_bytes, waiting_budget, waiting: None, prefixes, limits, message, rejections }
    }

    fn admit(&mut self, data: &Bytes) -> Result<(), Status> {
        match self.prefixes.check(data) {
            Ok(()) => {}
            Err(MessageError::TooLong(length)) => {
                self.rejections.count(Cause::MessageTooLarge);
                let limit = self.prefixes.limit_bytes;
                let message = format!("a message of {length} bytes is longer than the limit of {limit} bytes");
                return Err(mesh_status(Code::ResourceExhausted, "MESSAGE_TOO_LARGE", message));
            }
            Err(MessageError::More) => {
                let message = "this method takes a single request message, and more data followed it";
                return Err(mesh_status(Code::Unimplemented, REQUEST_CARDINALITY, message));
            }
        }
        self.take(data.len().saturating_mul(COST_FACTOR))?;
        if self.limits.is_empty() {
            return Ok(());
        }
        self.message.push(data.clone());
        if self.prefixes.is_complete() { self.check_fields() } else { Ok(()) }
    }

    fn check_fields(&mut self) -> Result<(), Status> {
        let whole = self.message.take();
        let message = whole.get(PREFIX_BYTES..).unwrap_or_default();
        let elements =
            count_elements(message, self.limits).map_err(|too_many| status(self.rejections.service, &too_many))?;
        self.take(elements * ELEMENT_BYTES)
    }

    /// Charges the call for its waiting, once.
    fn wait(&mut self) -> Result<(), Status> {
        if self.waiting.is_some() {
            return Ok(());
        }
        let waiting = Account::new(self.waiting_budget.clone(), self.account.caller().clone());
        waiting.take_for_request(self.waiting_bytes).map_err(|full| {
            self.rejections.count(Cause::Memory);
            out_of_memory(full)
        })?;
        self.waiting = Some(waiting);
        Ok(())
    }

    fn take(&mut self, bytes: usize) -> Result<(), Status> {
        self.account.take_for_request(bytes).map_err(|full| {
            self.rejections.count(Cause::Memory);
            out_of_memory(full)
        })
    }
}

impl Frames for AdmittedBody {
    fn poll_next(&mut self, inner: &mut Body, cx: &mut Context<'_>) -> Poll<NextFrame> {
        let Poll::Ready(frame) = poll_frame(inner, cx) else {
            return self.wait().map_or_else(|rejection| Poll::Ready(Some(Err(rejection))), |()| Poll::Pending);
        };
        if let Some(Ok(frame)) = &frame
            && let Some(data) = frame.data_ref()
            && let Err(rejection) = self.admit(data)
        {
            return Poll::Ready(Some(Err(rejection)));
        }
        Poll::Ready(frame)
    }
}

#[cfg(test)]
mod tests;
