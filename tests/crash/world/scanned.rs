//! Checks a scan against the states of the keys.

use std::collections::BTreeMap;

use oncekey::{Error, Reader, Status, Store};

use super::{KEYS, name};

/// Checks that a scan shows exactly the keys that are not absent, each once, with what `get` says of it.
pub fn check(store: &Store) -> Result<(), String> {
    let mut shown = BTreeMap::new();
    for item in store.scan() {
        let key = match item {
            Ok(key) => key,
            Err(Error::Corrupt { .. }) => continue,
            Err(Error::Io { .. }) => return Ok(()),
            Err(error) => return Err(format!("scan: {error}")),
        };
        let name = key.key().name().to_vec();
        // A record whose sync has failed is listed by the tail, and the key is shown by its earlier record.
        let twice = shown.insert(name.clone(), key);
        if twice.is_some() && (!store.stats().poisoned || twice != shown.get(&name).cloned()) {
            return Err(format!("scan: {twice:?} is shown twice, and nothing was moved"));
        }
    }
    for key in 0..KEYS {
        let shown = shown.get(name(key).as_bytes());
        // The disk has failed, or the record cannot be read.
        let Ok(seen) = store.get(name(key)) else { continue };
        let expected = (!seen.is_absent()).then(|| {
            (seen.status(), seen.version(), seen.attempt(), seen.changed_at_ms(), seen.expires_at_ms())
        });
        let actual = shown.map(|key| {
            (key.status(), Some(key.version()), key.attempt(), Some(key.changed_at_ms()), key.expires_at_ms())
        });
        if actual != expected {
            return Err(format!("scan: {key} is shown as {shown:?}, and get returns {seen:?}"));
        }
        if seen.result().map(<[u8]>::len) != shown.and_then(oncekey::ScannedKey::result_bytes) {
            return Err(format!("scan: {key} is shown with another result: {shown:?}"));
        }
    }
    Ok(())
}

/// Checks that a reader of a crash's image shows what the store shows that was opened from it. Only the status of an
/// operation that has not ended differs.
pub fn check_beside(reader: &Reader, store: &Store) -> Result<(), String> {
    for key in 0..KEYS {
        let (seen, beside) = match (store.get(name(key)), reader.get(name(key))) {
            (Ok(seen), Ok(beside)) => (seen, beside),
            (Err(Error::Corrupt { .. }), Err(Error::Corrupt { .. })) => continue,
            (seen, beside) => return Err(format!("reader: {key} is {beside:?}, and get returns {seen:?}")),
        };
        let is_same = match beside.status() {
            Status::Begun | Status::InDoubt => {
                matches!(seen.status(), Status::InDoubt | Status::Stopped)
                    && (seen.version(), seen.attempt()) == (beside.version(), beside.attempt())
            }
            _ => seen == beside,
        };
        if !is_same {
            return Err(format!("reader: {key} is {beside:?}, and get returns {seen:?}"));
        }
    }
    let count = reader.scan().filter(Result::is_ok).count();
    let expected = store.scan().filter(Result::is_ok).count();
    if count == expected {
        Ok(())
    } else {
        Err(format!("reader: a scan shows {count} keys, and not {expected}"))
    }
}
