//! Checks `compare_and_set` from every state to every other.

use oncekey::{CasOutcome, Error, Expected, Next, Status, Version};

use crate::common::{NONE, abandon, acquire};
use crate::each_store;

#[test]
fn compare_and_set_follows_the_state_table() {
    #[derive(Debug, Clone, Copy, PartialEq)]
    enum Target {
        Absent,
        InDoubt,
        Completed,
    }
    let statuses = [Status::Absent, Status::InProgress, Status::InDoubt, Status::Completed];
    each_store(|store, _| {
        for (at, from) in statuses.into_iter().enumerate() {
            for (to_at, to) in [Target::Absent, Target::InDoubt, Target::Completed].into_iter().enumerate() {
                let key = format!("{at}-{to_at}");
                let mut lease = (from != Status::Absent).then(|| acquire(store, &key));
                match from {
                    Status::InDoubt => lease = None,
                    Status::Completed => {
                        lease.as_mut().unwrap().complete(b"old").unwrap();
                    }
                    _ => {}
                }
                let seen = store.get(&key).unwrap();
                assert_eq!(seen.status(), from);
                let expected = match seen.version() {
                    Some(version) => Expected::Present { status: from, version },
                    None => Expected::Absent,
                };
                let next = match to {
                    Target::Absent => Next::Absent,
                    Target::InDoubt => Next::InDoubt { fingerprint: NONE },
                    Target::Completed => Next::Completed { fingerprint: NONE, result: b"new" },
                };
                let outcome = store.compare_and_set(&key, expected, next);
                let after = store.get(&key).unwrap();
                if from == Status::Completed && to != Target::Absent {
                    assert!(
                        matches!(outcome, Err(Error::Conflict { .. })),
                        "{from:?} to {to:?}: {outcome:?}"
                    );
                    assert_eq!(after.result(), Some(&b"old"[..]), "an acknowledged result changed");
                    continue;
                }
                let CasOutcome::Done(version) = outcome.unwrap() else { panic!("{from:?} to {to:?}") };
                let expected_after = match to {
                    Target::Absent => (Status::Absent, None),
                    Target::InDoubt => (Status::InDoubt, None),
                    Target::Completed => (Status::Completed, Some(&b"new"[..])),
                };
                assert_eq!((after.status(), after.result()), expected_after, "{from:?} to {to:?}");
                assert!(after.version().is_none_or(|after| after == version));
                if from == Status::InProgress {
                    let fenced = lease.unwrap().complete(b"late");
                    assert!(matches!(fenced, Err(Error::Fenced { .. })), "{from:?} to {to:?}");
                }
            }
        }
    });
}

#[test]
fn compare_and_set_changes_nothing_unless_everything_matches() {
    each_store(|store, _| {
        abandon(store, "k");
        let seen = store.get("k").unwrap();
        let version = seen.version().unwrap();
        let next = Next::Completed { fingerprint: NONE, result: b"r" };
        let wrong = [
            Expected::Absent,
            Expected::Present { status: Status::InProgress, version },
            Expected::Present { status: Status::InDoubt, version: Version::from_u64(version.as_u64() + 1) },
        ];
        for expected in wrong {
            let CasOutcome::Differs(found) = store.compare_and_set("k", expected, next).unwrap() else {
                panic!()
            };
            assert_eq!(found, seen);
        }
        let right = Expected::Present { status: Status::InDoubt, version };
        let foreign = Next::Completed { fingerprint: store.fingerprint(b"x"), result: b"r" };
        assert!(matches!(store.compare_and_set("k", right, foreign), Err(Error::Mismatch { .. })));
        assert_eq!(store.get("k").unwrap(), seen);
    });
}
