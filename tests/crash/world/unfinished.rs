//! Checks the list of unfinished operations against the states of the keys.

use std::collections::BTreeMap;

use oncekey::{Error, Status, Store, UnfinishedOperation};

use super::{KEYS, name};

/// Checks that `unfinished` lists exactly the keys that are in progress or in doubt, with what `get` says of each, and that
/// the counts agree. A key that cannot be read may be either.
pub fn check(store: &Store) -> Result<(), String> {
    let mut listed = BTreeMap::new();
    let mut unreadable = 0;
    let mut last_ms = 0;
    for item in store.unfinished().map_err(|error| format!("unfinished: {error}"))? {
        let operation = match item {
            Ok(operation) => operation,
            Err(Error::Corrupt { .. }) => {
                unreadable += 1;
                continue;
            }
            Err(Error::Io { .. }) => return Ok(()),
            Err(error) => return Err(format!("unfinished: {error}")),
        };
        if operation.since_ms() < last_ms {
            return Err(format!("unfinished: {operation:?} is listed after one of {last_ms} ms"));
        }
        last_ms = operation.since_ms();
        let key = operation.key().name().to_vec();
        if let Some(twice) = listed.insert(key, operation) {
            return Err(format!("unfinished: {twice:?} is listed twice"));
        }
    }
    let count = listed.len() + unreadable;
    if store.stats().unfinished != count {
        return Err(format!("unfinished: {count} are listed and {} counted", store.stats().unfinished));
    }
    let mut unknown = 0;
    for key in 0..KEYS {
        let name = name(key);
        match (store.get(&name), listed.remove(name.as_bytes())) {
            (Ok(seen), listed) => {
                let is_unfinished =
                    matches!(seen.status(), Status::InProgress | Status::InDoubt | Status::Stopped);
                let of = |operation: &UnfinishedOperation| {
                    (
                        operation.status(),
                        Some(operation.version()),
                        operation.attempt(),
                        Some(operation.since_ms()),
                    )
                };
                let expected = (seen.status(), seen.version(), seen.attempt(), seen.changed_at_ms());
                if listed.as_ref().map(of) != is_unfinished.then_some(expected) {
                    return Err(format!(
                        "unfinished: {key} is listed as {listed:?}, and get returns {seen:?}"
                    ));
                }
            }
            // The disk has failed: what is not durable is not returned.
            (Err(Error::Poisoned { .. } | Error::Io { .. } | Error::Corrupt { .. }), listed) => {
                unknown += usize::from(listed.is_none());
            }
            (Err(error), _) => return Err(format!("unfinished: {key}: {error}")),
        }
    }
    if !listed.is_empty() || unreadable > unknown {
        return Err(format!(
            "unfinished: {listed:?} and {unreadable} unreadable ones are listed, and no key is theirs"
        ));
    }
    Ok(())
}
