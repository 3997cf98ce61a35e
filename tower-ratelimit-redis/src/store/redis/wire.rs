//! What a script that checks is asked, and what it answers.

use redis_conn::{
    Error,
    raw::{Class, Reply},
};

use crate::{
    Policy, Revise,
    counter::{Charge, Now},
    counters::{Ask, corrupt},
    store::Asked,
};

/// What a script that checks answers of one subject.
pub(super) enum Answer {
    /// The units granted to each call, and the value as it is stored now.
    Decided { granted: Vec<u32>, value: Vec<u8> },
    /// An algorithm is stored that the script does not know.
    Unknown,
    /// The policy's revision changes what is stored.
    Revise { value: Vec<u8> },
    /// The value has no layout of ours.
    Corrupt,
}

/// What a call costs, as the script takes it.
pub(super) fn cost_of(policy: &Policy, charge: Charge) -> Vec<u8> {
    let mut cost = charge.units.to_le_bytes().to_vec();
    if policy.has_leases() {
        cost.extend_from_slice(&charge.permit.to_le_bytes());
    }
    cost
}

/// The time, and the answer for each subject. The value alone is the answer where a single call was admitted that costs so much.
pub(super) fn read(reply: Reply, cost: u32) -> Result<(Now, Vec<Answer>), Error> {
    if !reply.is_list() {
        let value = reply.bytes()?.unwrap_or_default();
        let at = value.last_chunk().ok_or_else(corrupt)?;
        let at = u64::from_le_bytes(*at);
        let granted = vec![cost];
        return Ok((
            Now { at, wall: at },
            vec![Answer::Decided { granted, value }],
        ));
    }
    let mut items = reply.list()?.into_iter();
    let at = items.next().map_or(Err(corrupt()), |now| now.int())?;
    let at = at.unsigned_abs();
    let mut answers = Vec::with_capacity(items.len() / 2);
    while let (Some(outcome), Some(value)) = (items.next(), items.next()) {
        answers.push(answer(outcome, value)?);
    }
    Ok((Now { at, wall: at }, answers))
}

fn answer(outcome: Reply, value: Reply) -> Result<Answer, Error> {
    let value = value.bytes()?.unwrap_or_default();
    Ok(match outcome.int() {
        Ok(-3) => Answer::Revise { value },
        Ok(-2) => Answer::Unknown,
        Ok(-1) => Answer::Corrupt,
        Ok(granted) => {
            let granted = u32::try_from(granted).map_err(|_| corrupt())?;
            let granted = vec![granted];
            Answer::Decided { granted, value }
        }
        Err(_) => {
            let granted = outcome.bytes()?.unwrap_or_default();
            let (granted, _) = granted.as_chunks::<4>();
            let granted = granted.iter().copied().map(u32::from_le_bytes).collect();
            Answer::Decided { granted, value }
        }
    })
}

impl Asked {
    /// A look may be sent twice.
    pub(super) fn class(self) -> Class {
        if self.charge.units == 0 {
            Class::Idempotent
        } else {
            Class::AtMostOnce
        }
    }

    /// How it is decided, as the script takes it; none if in no special way.
    pub(super) fn number(self, policy: &Policy) -> Option<u64> {
        let mut number = match self.ask {
            Ask::All => 0,
            Ask::AtMost => 1,
            Ask::Anyway => 2,
        };
        let special = [
            (self.charge.ahead, 4),
            (policy.on_revision() != Revise::Keep, 8),
            (policy.has_leases(), 16),
        ];
        number += special
            .iter()
            .filter(|(is, _)| *is)
            .map(|(_, bit)| bit)
            .sum::<u64>();
        (number > 0).then_some(number)
    }
}
