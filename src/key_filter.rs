//! Which keys a walk over a store shows.

use crate::key::Key;
use crate::record::Liveness;
use crate::status::Status;

/// The conditions that a key must meet to be shown. Without any, every key is shown.
#[derive(Debug, Clone, Default)]
pub(crate) struct KeyFilter {
    /// The scope, or `Some(None)` for keys without one.
    pub(crate) scope: Option<Option<Box<[u8]>>>,
    pub(crate) status: Option<Status>,
    /// The store time before which the last record was written.
    pub(crate) changed_before_ms: Option<u64>,
}

impl KeyFilter {
    /// Whether a key with this last record may be shown, as far as the record alone decides that. Absent keys never are.
    pub(crate) fn admits_record(&self, key: Key<'_>, liveness: Liveness, time_ms: u64) -> bool {
        let is_completed = match liveness {
            Liveness::Completed | Liveness::CompletedWithoutResult => true,
            Liveness::Begun => false,
            Liveness::Gone | Liveness::Released | Liveness::Unreadable | Liveness::Message => return false,
        };
        self.status.is_none_or(|wanted| (wanted == Status::Completed) == is_completed)
            && self.changed_before_ms.is_none_or(|before_ms| time_ms < before_ms)
            && self.scope.as_ref().is_none_or(|wanted| wanted.as_deref() == key.scope_name())
    }

    /// Whether a key in this status may be shown.
    pub(crate) fn admits_status(&self, status: Status) -> bool {
        self.status.is_none_or(|wanted| wanted == status)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_condition_must_hold() {
        let key = Key::new("k").scope("s");
        let all = KeyFilter::default();
        let scoped = |scope: Option<&str>| KeyFilter {
            scope: Some(scope.map(|scope| scope.as_bytes().into())),
            ..KeyFilter::default()
        };
        for (filter, expected) in [
            (all.clone(), true),
            (scoped(Some("s")), true),
            (scoped(Some("")), false),
            (scoped(None), false),
            (KeyFilter { changed_before_ms: Some(7), ..all.clone() }, false),
            (KeyFilter { changed_before_ms: Some(8), ..all.clone() }, true),
            (KeyFilter { status: Some(Status::Completed), ..scoped(Some("s")) }, true),
            (KeyFilter { status: Some(Status::InDoubt), ..scoped(Some("s")) }, false),
        ] {
            assert_eq!(filter.admits_record(key, Liveness::Completed, 7), expected, "{filter:?}");
        }
        assert!(scoped(None).admits_record(Key::new("k"), Liveness::Begun, 7));
        for gone in [Liveness::Gone, Liveness::Released] {
            assert!(!all.admits_record(key, gone, 7), "an absent key is not shown");
        }
        let in_doubt = KeyFilter { status: Some(Status::InDoubt), ..all };
        assert!(in_doubt.admits_record(key, Liveness::Begun, 7));
        assert!(in_doubt.admits_status(Status::InDoubt) && !in_doubt.admits_status(Status::InProgress));
    }
}
