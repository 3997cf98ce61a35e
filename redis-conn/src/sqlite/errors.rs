//! What SQLite's errors mean to a caller.

use rusqlite::ErrorCode;

use crate::{Error, ErrorKind};

/// Turns an error of a statement into the error of the job that ran it. A job that fails is rolled back, so none of these is ambiguous.
pub fn sql_error(error: rusqlite::Error) -> Error {
    let (kind, detail) = classify(&error);
    Error::new(kind, detail).with_source(error)
}

fn classify(error: &rusqlite::Error) -> (ErrorKind, &'static str) {
    use rusqlite::Error as Sql;
    match error {
        Sql::SqliteFailure(failure, _) => match failure.code {
            ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked => {
                (ErrorKind::Timeout, "other connections kept the file locked")
            }
            ErrorCode::DiskFull => (ErrorKind::Unavailable, "the disk is full"),
            ErrorCode::SystemIoFailure | ErrorCode::CannotOpen | ErrorCode::ReadOnly => {
                (ErrorKind::Unavailable, "the file cannot be read or written")
            }
            ErrorCode::OutOfMemory => (ErrorKind::Unavailable, "out of memory"),
            ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase => {
                (ErrorKind::Corrupt, "the file is damaged")
            }
            _ => (refused(failure.extended_code), "a statement failed"),
        },
        Sql::FromSqlConversionFailure(..)
        | Sql::IntegralValueOutOfRange(..)
        | Sql::InvalidColumnType(..) => (
            ErrorKind::Corrupt,
            "a stored value has another type than expected",
        ),
        _ => (refused(1), "a statement failed"),
    }
}

fn refused(code: i32) -> ErrorKind {
    ErrorKind::Server(format!("SQLITE_{code}").into())
}

/// Whether another connection holds a lock that was asked for.
pub(super) fn is_busy(error: &rusqlite::Error) -> bool {
    matches!(
        error.sqlite_error_code(),
        Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked)
    )
}
