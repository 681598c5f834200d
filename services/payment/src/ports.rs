//! The interfaces to the payment gateway and to the Order Service, which late results are confirmed to. Traits, so that
//! tests and the crash suite can substitute them; and their gRPC clients.
//!
//! A real gateway without tombstones maps onto [`Gateway`] as follows (Stripe): `create_charge` creates a PaymentIntent
//! under the charge key and then confirms it (two calls, the intent's id stored with the payment); `cancel_charge`
//! cancels that intent, creating it first if there is none, so that a late confirmation fails; `refund_charge` creates
//! a Refund with the refund key as its idempotency key; `get_charge` retrieves the intent. Stripe drops idempotency
//! keys after a day: after that the intent's own state, not its key, prevents a second charge.

use std::fmt;
use std::time::Duration;

use contracts::gateway::v1 as proto;
use contracts::gateway::v1::payment_gateway_service_client::PaymentGatewayServiceClient;
use contracts::order::v1::ConfirmPaymentRequest;
use contracts::order::v1::payment_confirmation_service_client::PaymentConfirmationServiceClient;
use futures_util::future::BoxFuture;
use kernel::{Money, OrderId};
use mesh::Channel;
use telemetry::ErrorType;
use tonic::metadata::{Ascii, MetadataValue};
use tonic::{Code, Request, Status};

use crate::payment::{DeclineCode, PaymentMethod, shortened};
use crate::settings::ApiKey;

/// Maximum bytes of an external message that are kept.
const MAX_MESSAGE_BYTES: usize = 200;
/// Page size of reads of the ledger.
const LEDGER_PAGE: i32 = 1_000;

/// The status of a charge, as the gateway reports it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ChargeStatus {
    /// Charged.
    Succeeded,
    /// Declined by the issuer.
    Declined(DeclineCode),
    /// A tombstone.
    Cancelled,
    /// Charged and refunded.
    Refunded,
}

impl ChargeStatus {
    /// The name in the gateway's contract.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Succeeded => "SUCCEEDED",
            Self::Declined(_) => "DECLINED",
            Self::Cancelled => "CANCELLED",
            Self::Refunded => "REFUNDED",
        }
    }
}

/// A row of the gateway's ledger.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Charge {
    pub charge_id: String,
    pub charge_key: String,
    pub status: ChargeStatus,
    /// The amount that was, or would have been, charged. None on a tombstone.
    pub amount: Option<Money>,
}

/// A page of the gateway's ledger.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct LedgerPage {
    /// Ordered by key.
    pub charges: Vec<Charge>,
    /// The next page's token; None on the last page.
    pub next: Option<String>,
}

/// A request to charge.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ChargeCommand {
    /// The idempotency key: one key, one charge.
    pub charge_key: String,
    /// The amount to charge.
    pub amount: Money,
    /// The payment method to charge.
    pub payment_method: PaymentMethod,
    /// The address for the receipt.
    pub receipt_email: String,
}

/// The gateway's response to a refund.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum RefundOutcome {
    Refunded,
    /// The gateway refuses the refund under this key; its reason.
    Refused(String),
}

/// No definite response: none at all, or an error, whatever its code.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct NoResponse {
    /// The type of the error.
    pub error_type: ErrorType,
    /// A reason and a sentence.
    pub message: String,
    /// The gateway has no such row: a definite response only for GetCharge.
    pub is_not_found: bool,
}

impl fmt::Display for NoResponse {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for NoResponse {}

impl NoResponse {
    /// A response that cannot be used.
    pub fn new(message: impl Into<String>) -> Self {
        Self { error_type: ErrorType::MalformedAnswer, message: message.into(), is_not_found: false }
    }
}

impl From<Status> for NoResponse {
    fn from(status: Status) -> Self {
        let error = mesh::event_error(&status);
        let message = shortened(&format!("{}: {}", error.reason, error.message), MAX_MESSAGE_BYTES);
        let error_type = ErrorType::named(&error.error_type).unwrap_or(ErrorType::Unknown);
        Self { error_type, message, is_not_found: status.code() == Code::NotFound }
    }
}

/// The payment gateway. Every call has its own timeout.
pub trait Gateway: Send + Sync + 'static {
    /// Charges, once per key.
    fn create_charge(&self, command: ChargeCommand) -> BoxFuture<'_, Result<Charge, NoResponse>>;
    /// Makes certain that a key is never charged from now on, and returns the charge under it.
    fn cancel_charge(&self, charge_key: String) -> BoxFuture<'_, Result<Charge, NoResponse>>;
    /// Refunds a charge, once per refund key.
    fn refund_charge(&self, charge_key: String, refund_key: String)
    -> BoxFuture<'_, Result<RefundOutcome, NoResponse>>;
    /// The charge under a key.
    fn get_charge(&self, charge_key: String) -> BoxFuture<'_, Result<Charge, NoResponse>>;
    /// A page of the ledger; the first has an empty token.
    fn list_charges(&self, page_token: String) -> BoxFuture<'_, Result<LedgerPage, NoResponse>>;
}

/// Receives results that come after the call's response.
pub trait Confirmations: Send + Sync + 'static {
    /// Confirms that an order's payment has a result.
    fn confirm(&self, order_id: OrderId) -> BoxFuture<'_, Result<(), NoResponse>>;
}

/// The gateway over gRPC.
#[derive(Clone)]
pub struct GrpcGateway {
    channel: Channel,
    api_key: MetadataValue<Ascii>,
    timeout: Duration,
}

impl fmt::Debug for GrpcGateway {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("GrpcGateway").field("timeout", &self.timeout).finish_non_exhaustive()
    }
}

impl GrpcGateway {
    /// A client on a channel, with the merchant's API key. Each call has this timeout.
    pub fn new(channel: Channel, api_key: ApiKey, timeout: Duration) -> Self {
        let mut api_key = api_key.into_inner();
        api_key.set_sensitive(true);
        Self { channel, api_key, timeout }
    }

    fn client(&self) -> PaymentGatewayServiceClient<Channel> {
        PaymentGatewayServiceClient::new(self.channel.clone())
    }

    fn request<M>(&self, message: M) -> Request<M> {
        let mut request = Request::new(message);
        request.set_timeout(self.timeout);
        request.metadata_mut().insert("x-api-key", self.api_key.clone());
        request
    }
}

impl Gateway for GrpcGateway {
    fn create_charge(&self, command: ChargeCommand) -> BoxFuture<'_, Result<Charge, NoResponse>> {
        Box::pin(async move {
            let request = self.request(proto::CreateChargeRequest {
                charge_key: command.charge_key,
                amount: Some(chassis::to_proto::money(command.amount)),
                payment_method: command.payment_method.expose().to_owned(),
                receipt_email: command.receipt_email,
            });
            read(self.client().create_charge(request).await?.into_inner().charge)
        })
    }

    fn cancel_charge(&self, charge_key: String) -> BoxFuture<'_, Result<Charge, NoResponse>> {
        Box::pin(async move {
            let request = self.request(proto::CancelChargeRequest { charge_key });
            read(self.client().cancel_charge(request).await?.into_inner().charge)
        })
    }

    fn refund_charge(
        &self,
        charge_key: String,
        refund_key: String,
    ) -> BoxFuture<'_, Result<RefundOutcome, NoResponse>> {
        Box::pin(async move {
            let request = self.request(proto::RefundChargeRequest { charge_key, refund_key });
            let answer = self.client().refund_charge(request).await?.into_inner();
            // The ledger takes precedence over the flag: a refunded charge is refunded, under whichever key.
            match (read(answer.charge)?.status, answer.refunded) {
                (ChargeStatus::Refunded, _) => Ok(RefundOutcome::Refunded),
                (ChargeStatus::Succeeded, false) => {
                    Ok(RefundOutcome::Refused(shortened(&answer.refusal, MAX_MESSAGE_BYTES)))
                }
                (status, refunded) => {
                    Err(NoResponse::new(format!("refunded is {refunded}, and yet the charge is {}", status.name())))
                }
            }
        })
    }

    fn get_charge(&self, charge_key: String) -> BoxFuture<'_, Result<Charge, NoResponse>> {
        Box::pin(async move {
            let request = self.request(proto::GetChargeRequest { charge_key });
            read(self.client().get_charge(request).await?.into_inner().charge)
        })
    }

    fn list_charges(&self, page_token: String) -> BoxFuture<'_, Result<LedgerPage, NoResponse>> {
        Box::pin(async move {
            let request = self.request(proto::ListChargesRequest { page_size: LEDGER_PAGE, page_token });
            let page = self.client().list_charges(request).await?.into_inner();
            let charges = page.charges.into_iter().map(|charge| read(Some(charge))).collect::<Result<_, _>>()?;
            Ok(LedgerPage { charges, next: Some(page.next_page_token).filter(|token| !token.is_empty()) })
        })
    }
}

/// Decodes a charge. An invalid one is no definite response.
fn read(charge: Option<proto::Charge>) -> Result<Charge, NoResponse> {
    let Some(charge) = charge else { return Err(NoResponse::new("the answer has no charge")) };
    let status = match charge.status() {
        proto::ChargeStatus::Succeeded => ChargeStatus::Succeeded,
        proto::ChargeStatus::Declined => ChargeStatus::Declined(decline(charge.decline_code())),
        proto::ChargeStatus::Cancelled => ChargeStatus::Cancelled,
        proto::ChargeStatus::Refunded => ChargeStatus::Refunded,
        proto::ChargeStatus::Unspecified => {
            return Err(NoResponse::new("the answer has a charge of an unknown status"));
        }
    };
    let amount =
        charge.amount.and_then(|amount| Some(Money::new(amount.currency_code.parse().ok()?, amount.minor_units)));
    // PostgreSQL rejects NUL, for example.
    let charge_id = shortened(&charge.charge_id, MAX_MESSAGE_BYTES);
    Ok(Charge { charge_id, charge_key: charge.charge_key, status, amount })
}

/// A decline code added by a later gateway is still a decline.
fn decline(code: proto::DeclineCode) -> DeclineCode {
    match code {
        proto::DeclineCode::Unspecified | proto::DeclineCode::GenericDecline => DeclineCode::GenericDecline,
        proto::DeclineCode::InsufficientFunds => DeclineCode::InsufficientFunds,
        proto::DeclineCode::ExpiredCard => DeclineCode::ExpiredCard,
        proto::DeclineCode::IncorrectCvc => DeclineCode::IncorrectCvc,
        proto::DeclineCode::LostCard => DeclineCode::LostCard,
        proto::DeclineCode::StolenCard => DeclineCode::StolenCard,
        proto::DeclineCode::ProcessingError => DeclineCode::ProcessingError,
        proto::DeclineCode::InvalidPaymentMethod => DeclineCode::InvalidPaymentDetails,
        proto::DeclineCode::Fraudulent => DeclineCode::Fraudulent,
    }
}

/// The Order Service over gRPC.
#[derive(Clone, Debug)]
pub struct GrpcConfirmations(Channel);

impl GrpcConfirmations {
    /// A client on a channel to the Order Service.
    pub fn new(order: Channel) -> Self {
        Self(order)
    }
}

impl Confirmations for GrpcConfirmations {
    fn confirm(&self, order_id: OrderId) -> BoxFuture<'_, Result<(), NoResponse>> {
        Box::pin(async move {
            let request = ConfirmPaymentRequest { order_id: order_id.to_string() };
            PaymentConfirmationServiceClient::new(self.0.clone()).confirm_payment(request).await?;
            Ok(())
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_invalid_charge_is_no_definite_response() {
        assert!(read(None).is_err());
        assert!(read(Some(proto::Charge::default())).is_err());
        let declined =
            proto::Charge { status: proto::ChargeStatus::Declined.into(), decline_code: 99, ..Default::default() };
        let status = read(Some(declined)).expect("readable").status;
        assert_eq!(status, ChargeStatus::Declined(DeclineCode::GenericDecline));
    }

    #[test]
    fn an_error_status_of_any_code_is_no_definite_response() {
        let no_response = NoResponse::from(Status::failed_precondition("x".repeat(1_000)));
        assert_eq!(no_response.message.len(), MAX_MESSAGE_BYTES);
        assert!(!no_response.is_not_found);
        assert!(NoResponse::from(Status::not_found("no row")).is_not_found);
    }
}
