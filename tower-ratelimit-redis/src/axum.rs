//! The extractors of axum.

use std::{convert::Infallible, fmt};

use ::axum::{
    extract::{FromRequestParts, OptionalFromRequestParts},
    response::{IntoResponse, Response},
};
use http::{StatusCode, request::Parts};

use crate::Decision;

/// The request passed no [`RateLimitLayer`](crate::RateLimitLayer), or passed it uncounted, so there is no [`Decision`].
#[derive(Clone, Copy, Debug, Default)]
#[non_exhaustive]
pub struct DecisionRejection {}

impl DecisionRejection {
    /// The status of the response: 500, since the router is at fault.
    #[must_use]
    pub fn status(&self) -> StatusCode {
        StatusCode::INTERNAL_SERVER_ERROR
    }

    /// The body of the response.
    #[must_use]
    pub fn body_text(&self) -> String {
        self.to_string()
    }
}

impl fmt::Display for DecisionRejection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("no rate limit decision: is RateLimitLayer mounted around this route?")
    }
}

impl std::error::Error for DecisionRejection {}

impl IntoResponse for DecisionRejection {
    fn into_response(self) -> Response {
        (self.status(), self.body_text()).into_response()
    }
}

impl<S: Sync> FromRequestParts<S> for Decision {
    type Rejection = DecisionRejection;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Self::Rejection> {
        parts.extensions.get().cloned().ok_or(DecisionRejection {})
    }
}

impl<S: Sync> OptionalFromRequestParts<S> for Decision {
    type Rejection = Infallible;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Option<Self>, Infallible> {
        Ok(parts.extensions.get().cloned())
    }
}
