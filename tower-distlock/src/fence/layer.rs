//! The layer.

use std::{any::type_name, fmt, sync::Arc};

use http::{HeaderName, request::Parts};
use tower_layer::Layer;

use super::Fence;
use crate::Locks;

/// The field in which a fence comes, if no other is set.
static FENCE: HeaderName = HeaderName::from_static("fence");

/// Refuses requests of a holder whose lock somebody else has by now: whose fence is less than one that was seen for the same resource.
///
/// A holder sends the [fence](crate::Held::fence) of its lock in the field `Fence` of each request. Of a request without that field it
/// is not known whether it may: it is refused too.
///
/// | a request | is answered |
/// |---|---|
/// | with a fence that is not less than all before | by the service behind |
/// | with a lesser one | 412 |
/// | without a fence | 428 |
/// | with what is no number | 400 |
/// | while the store does not answer | 503 |
///
/// ```
/// # use redis_conn::Backend;
/// # use tower_distlock::{FenceLayer, Locks};
/// let locks = Locks::new(&Backend::memory())?;
/// // One resource for each path.
/// let layer = FenceLayer::new(locks, |request: &http::request::Parts| request.uri.path().to_owned());
/// # let _ = layer;
/// # Ok::<(), redis_conn::Error>(())
/// ```
#[must_use = "a layer does nothing until it is added to a service"]
pub struct FenceLayer<F> {
    rules: Arc<Rules<F>>,
}

/// What a layer and its services share.
pub(super) struct Rules<F> {
    pub(super) locks: Locks,
    pub(super) field: HeaderName,
    pub(super) resource: F,
}

impl<F: Fn(&Parts) -> String> FenceLayer<F> {
    /// A layer for the resources that this closure names. A name may be of 4 KiB.
    pub fn new(locks: Locks, resource: F) -> Self {
        Self::with(locks, resource, FENCE.clone())
    }

    /// The same, with fences in another field.
    pub fn with(locks: Locks, resource: F, field: HeaderName) -> Self {
        let rules = Rules {
            locks,
            field,
            resource,
        };
        Self {
            rules: Arc::new(rules),
        }
    }
}

impl<S, F> Layer<S> for FenceLayer<F> {
    type Service = Fence<S, F>;

    fn layer(&self, inner: S) -> Self::Service {
        Fence::new(inner, Arc::clone(&self.rules))
    }
}

impl<F> Clone for FenceLayer<F> {
    fn clone(&self) -> Self {
        Self {
            rules: Arc::clone(&self.rules),
        }
    }
}

impl<F> fmt::Debug for FenceLayer<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FenceLayer")
            .field("rules", &self.rules)
            .finish()
    }
}

impl<F> fmt::Debug for Rules<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Rules")
            .field("field", &self.field)
            .field("resource", &format_args!("{}", type_name::<F>()))
            .finish_non_exhaustive()
    }
}
