//! Debug output of messages with secrets, without the secrets, because it may be logged.
//!
//! build.rs omits their derived Debug. Each message is destructured field by field, so that a new field fails to compile
//! until the author has decided whether it is a secret.

use std::fmt::{Debug, Formatter, Result};

use crate::gateway::v1::CreateChargeRequest;
use crate::order::v1::CreateOrderRequest;
use crate::payment::v1::ProcessPaymentRequest;
use crate::user::v1::{
    ChangePasswordRequest, LoginRequest, LogoutRequest, RefreshSessionRequest, RegisterRequest, Session,
};

impl Debug for RegisterRequest {
    fn fmt(&self, f: &mut Formatter<'_>) -> Result {
        let Self { request_id, email, password: _, display_name } = self;
        f.debug_struct("RegisterRequest")
            .field("request_id", request_id)
            .field("email", email)
            .field("display_name", display_name)
            .finish_non_exhaustive()
    }
}

impl Debug for LoginRequest {
    fn fmt(&self, f: &mut Formatter<'_>) -> Result {
        let Self { email, password: _ } = self;
        f.debug_struct("LoginRequest").field("email", email).finish_non_exhaustive()
    }
}

impl Debug for RefreshSessionRequest {
    fn fmt(&self, f: &mut Formatter<'_>) -> Result {
        let Self { refresh_token: _ } = self;
        f.debug_struct("RefreshSessionRequest").finish_non_exhaustive()
    }
}

impl Debug for LogoutRequest {
    fn fmt(&self, f: &mut Formatter<'_>) -> Result {
        let Self { refresh_token: _ } = self;
        f.debug_struct("LogoutRequest").finish_non_exhaustive()
    }
}

impl Debug for ChangePasswordRequest {
    fn fmt(&self, f: &mut Formatter<'_>) -> Result {
        let Self { current_password: _, new_password: _ } = self;
        f.debug_struct("ChangePasswordRequest").finish_non_exhaustive()
    }
}

impl Debug for Session {
    fn fmt(&self, f: &mut Formatter<'_>) -> Result {
        let Self { session_id, access_token: _, access_token_expire_time, refresh_token: _, refresh_token_expire_time } =
            self;
        f.debug_struct("Session")
            .field("session_id", session_id)
            .field("access_token_expire_time", access_token_expire_time)
            .field("refresh_token_expire_time", refresh_token_expire_time)
            .finish_non_exhaustive()
    }
}

impl Debug for CreateOrderRequest {
    fn fmt(&self, f: &mut Formatter<'_>) -> Result {
        let Self { request_id, items, payment_method: _, shipping_address, contact_email, expected_total } = self;
        f.debug_struct("CreateOrderRequest")
            .field("request_id", request_id)
            .field("items", items)
            .field("shipping_address", shipping_address)
            .field("contact_email", contact_email)
            .field("expected_total", expected_total)
            .finish_non_exhaustive()
    }
}

impl Debug for ProcessPaymentRequest {
    fn fmt(&self, f: &mut Formatter<'_>) -> Result {
        let Self { order_id, user_id, amount, payment_method: _, contact_email } = self;
        f.debug_struct("ProcessPaymentRequest")
            .field("order_id", order_id)
            .field("user_id", user_id)
            .field("amount", amount)
            .field("contact_email", contact_email)
            .finish_non_exhaustive()
    }
}

impl Debug for CreateChargeRequest {
    fn fmt(&self, f: &mut Formatter<'_>) -> Result {
        let Self { charge_key, amount, payment_method: _, receipt_email } = self;
        f.debug_struct("CreateChargeRequest")
            .field("charge_key", charge_key)
            .field("amount", amount)
            .field("receipt_email", receipt_email)
            .finish_non_exhaustive()
    }
}
