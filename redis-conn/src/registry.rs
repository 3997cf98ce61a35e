//! State that all handles of one backend share, also in process.

use std::{
    any::Any,
    collections::HashMap,
    fmt,
    sync::{Arc, Mutex, PoisonError},
};

use crate::{Error, ErrorKind};

type Shared = Arc<dyn Any + Send + Sync>;
/// Namespace, crate letter, name.
type Place = (Box<str>, char, Box<str>);

/// Values by namespace, crate letter and name. Two handles that ask for the same place get the same value.
#[derive(Default)]
pub(crate) struct Registry {
    places: Mutex<HashMap<Place, Shared>>,
}

impl Registry {
    pub(crate) fn get_or_insert<T: Any + Send + Sync>(
        &self,
        namespace: &str,
        letter: char,
        name: &str,
        make: impl FnOnce() -> T,
    ) -> Result<Arc<T>, Error> {
        let mut places = self.places.lock().unwrap_or_else(PoisonError::into_inner);
        let place = places
            .entry((namespace.into(), letter, name.into()))
            .or_insert_with(|| Arc::new(make()));
        Arc::clone(place).downcast().map_err(|_| {
            Error::new(
                ErrorKind::Config,
                format!(
                    "{name:?} is in use with another type in namespace {namespace:?}; expected {}",
                    std::any::type_name::<T>()
                ),
            )
        })
    }
}

impl fmt::Debug for Registry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let places = self.places.lock().unwrap_or_else(PoisonError::into_inner);
        f.debug_set().entries(places.keys()).finish()
    }
}
