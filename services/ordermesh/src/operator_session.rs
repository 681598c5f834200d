//! Calls as the operator for as long as a command runs: an access token lives for minutes, so the session logs in again.

use contracts::user::v1::LoginRequest;
use contracts::user::v1::user_service_client::UserServiceClient;
use mesh::Channel;
use parking_lot::Mutex;
use tonic::{Code, Request, Response, Status};

use crate::data_dir::Login;
use crate::error::Error;
use crate::system::request;

/// What is reported as failed.
pub(crate) const LOG_IN: &str = "the log-in";

/// An operator's session.
pub(crate) struct OperatorSession {
    user: Channel,
    login: Login,
    token: Mutex<String>,
}

impl OperatorSession {
    /// Logs in.
    ///
    /// # Errors
    /// The log-in is rejected.
    pub(crate) async fn open(user: Channel, login: Login) -> Result<Self, Error> {
        let token = log_in(&user, &login).await.map_err(Error::rejected(LOG_IN))?;
        Ok(Self { user, login, token: Mutex::new(token) })
    }

    /// Logs in again.
    ///
    /// # Errors
    /// The log-in is rejected.
    pub(crate) async fn renew(&self) -> Result<(), Status> {
        let token = log_in(&self.user, &self.login).await?;
        *self.token.lock() = token;
        Ok(())
    }

    /// A request with the current token.
    pub(crate) fn request<T>(&self, message: T) -> Request<T> {
        request(message, &self.token.lock().clone(), None)
    }

    /// Makes a call; if the token has expired, again with a new one.
    ///
    /// # Errors
    /// The call is rejected, or the log-in.
    pub(crate) async fn call<M, R, F>(&self, message: M, call: impl Fn(Request<M>) -> F) -> Result<R, Status>
    where
        M: Clone,
        F: Future<Output = Result<Response<R>, Status>>,
    {
        let response = match call(self.request(message.clone())).await {
            Err(status) if status.code() == Code::Unauthenticated => {
                self.renew().await?;
                call(self.request(message)).await
            }
            response => response,
        };
        response.map(Response::into_inner)
    }
}

/// An access token of an account.
///
/// # Errors
/// The log-in is rejected.
pub(crate) async fn log_in(user: &Channel, login: &Login) -> Result<String, Status> {
    let message = LoginRequest { email: login.email.clone(), password: login.password.clone() };
    let response = UserServiceClient::new(user.clone()).login(mesh::untraced(message)).await?;
    Ok(response.into_inner().session.unwrap_or_default().access_token)
}

#[cfg(test)]
impl OperatorSession {
    /// One that is not used.
    pub(crate) fn none(user: Channel) -> Self {
        let login = Login { email: String::new(), password: String::new() };
        Self { user, login, token: Mutex::default() }
    }
}
