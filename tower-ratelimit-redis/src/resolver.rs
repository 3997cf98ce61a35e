//! Which policy a request is limited by.

use std::{any::type_name, fmt, future::Future, pin::Pin, sync::Arc};

use http::request::Parts;

use crate::Policy;

/// Finds the policy of a request.
///
/// Closures `Fn(&mut Parts) -> Option<Policy>` implement it. Build each policy once, and hand out clones: they are cheap, and a
/// policy that is built anew for each request has to be prepared anew.
///
/// Who must look the policy up, in a cache or a database, implements the trait. What cannot be found there is for the resolver
/// to decide about: another policy, or none.
///
/// ```
/// use http::request::Parts;
/// use tower_ratelimit_redis::{Policy, PolicyResolver};
///
/// # #[derive(Clone)] struct Plans;
/// # impl Plans { async fn plan_of(&self, _: &str) -> Option<Policy> { None } }
/// struct ByPlan { plans: Plans, free: Policy }
///
/// impl PolicyResolver for ByPlan {
///     async fn resolve(&self, parts: &mut Parts) -> Option<Policy> {
///         let host = parts.uri.host()?;
///         let plan = self.plans.plan_of(host).await;
///         Some(plan.unwrap_or_else(|| self.free.clone()))
///     }
/// }
/// ```
#[diagnostic::on_unimplemented(
    message = "`{Self}` finds no policy",
    note = "a closure does if its argument has a type: `|parts: &mut Parts| Some(policy.clone())`"
)]
pub trait PolicyResolver: Send + Sync + 'static {
    /// The policy, or `None` if this request passes uncounted.
    fn resolve(&self, parts: &mut Parts) -> impl Future<Output = Option<Policy>> + Send;
}

impl<F> PolicyResolver for F
where
    F: Fn(&mut Parts) -> Option<Policy> + Send + Sync + 'static,
{
    fn resolve(&self, parts: &mut Parts) -> impl Future<Output = Option<Policy>> + Send {
        std::future::ready(self(parts))
    }
}

/// The policies of a layer.
#[derive(Clone)]
pub(crate) enum Policies {
    One(Policy),
    By(Arc<dyn Resolve>),
}

impl Policies {
    pub(crate) fn by(resolver: impl PolicyResolver) -> Self {
        Self::By(Arc::new(resolver))
    }

    /// That of a layer which has one policy.
    pub(crate) fn only(&self) -> Option<Policy> {
        match self {
            Self::One(policy) => Some(policy.clone()),
            Self::By(_) => None,
        }
    }

    pub(crate) async fn of(&self, parts: &mut Parts) -> Option<Policy> {
        match self {
            Self::One(policy) => Some(policy.clone()),
            Self::By(resolver) => resolver.resolve_boxed(parts).await,
        }
    }
}

impl fmt::Debug for Policies {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::One(policy) => policy.fmt(f),
            Self::By(resolver) => f.write_str(resolver.name()),
        }
    }
}

/// A resolver that is no type parameter of the layer.
pub(crate) trait Resolve: Send + Sync {
    fn resolve_boxed<'a>(
        &'a self,
        parts: &'a mut Parts,
    ) -> Pin<Box<dyn Future<Output = Option<Policy>> + Send + 'a>>;

    fn name(&self) -> &'static str;
}

impl<R: PolicyResolver> Resolve for R {
    fn resolve_boxed<'a>(
        &'a self,
        parts: &'a mut Parts,
    ) -> Pin<Box<dyn Future<Output = Option<Policy>> + Send + 'a>> {
        Box::pin(self.resolve(parts))
    }

    fn name(&self) -> &'static str {
        type_name::<R>()
    }
}
