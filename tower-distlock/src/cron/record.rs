//! What is kept of the last run.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use redis_conn::{Error, ErrorKind};
use serde::{Deserialize, Serialize};

use crate::store::notes::Note;

/// The last run of a job, by whichever process.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct LastRun {
    /// The scheduled instant.
    pub slot: SystemTime,
    /// What came of it.
    pub outcome: CronOutcome,
    /// The instance that ran it.
    pub instance: String,
    /// When it began, by the clock of that instance.
    pub started: SystemTime,
    /// How long it took, if it has ended.
    pub duration: Option<Duration>,
}

/// What came of a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum CronOutcome {
    /// It goes on.
    Running,
    /// It has ended well.
    Done,
    /// It has returned an error.
    Failed,
    /// It has panicked.
    Panicked,
    /// The lock was lost while it ran.
    Lost,
    /// Nobody knows of an end: its process died, or dropped it.
    Crashed,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Ended {
    Done,
    Failed,
    Panicked,
    Lost,
}

/// A run as it is stored, behind the layout and the slot of the note.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Recorded {
    pub(super) ended: Option<Ended>,
    pub(super) instance: String,
    /// By which the holder of the lock is known.
    pub(super) fence: u64,
    /// Microseconds since the epoch.
    pub(super) started: u64,
    pub(super) took: Option<u64>,
}

impl Recorded {
    pub(super) fn write(&self, slot: u64) -> Note {
        // Neither numbers nor texts can fail to be written.
        let value = serde_json::to_vec(self).unwrap_or_default();
        Note { slot, value }
    }

    /// The slot, and what is recorded of it.
    pub(super) fn read(note: &Note) -> Result<(u64, Self), Error> {
        let recorded = serde_json::from_slice(&note.value).map_err(|error| {
            let text =
                "what is stored of the last run is of a layout that this version does not know";
            Error::new(ErrorKind::Corrupt, text).with_source(error)
        });
        Ok((note.slot, recorded?))
    }

    pub(super) fn is_running(&self) -> bool {
        self.ended.is_none()
    }

    pub(super) fn told(self, slot: u64, is_held: bool) -> LastRun {
        let at = |micros| UNIX_EPOCH + Duration::from_micros(micros);
        LastRun {
            slot: at(slot),
            outcome: match self.ended {
                Some(Ended::Done) => CronOutcome::Done,
                Some(Ended::Failed) => CronOutcome::Failed,
                Some(Ended::Panicked) => CronOutcome::Panicked,
                Some(Ended::Lost) => CronOutcome::Lost,
                None if is_held => CronOutcome::Running,
                None => CronOutcome::Crashed,
            },
            instance: self.instance,
            started: at(self.started),
            duration: self.took.map(Duration::from_micros),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_an_earlier_version_wrote_is_read() {
        let value = br#"{"ended":"done","instance":"a:1","fence":7,"started":5,"took":9}"#;
        let note = Note {
            slot: 3,
            value: value.to_vec(),
        };
        let (slot, recorded) = Recorded::read(&note).unwrap();
        assert_eq!(recorded.write(slot), note);
        let last = recorded.told(slot, false);
        assert_eq!(last.outcome, CronOutcome::Done);
        assert_eq!(last.duration, Some(Duration::from_micros(9)));
        let note = Note {
            slot: 3,
            value: b"{\"ended\":\"sideways\"}".to_vec(),
        };
        let error = Recorded::read(&note).unwrap_err();
        assert_eq!(*error.kind(), ErrorKind::Corrupt);
    }
}
