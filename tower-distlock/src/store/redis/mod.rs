//! The store of the Redis backend.
