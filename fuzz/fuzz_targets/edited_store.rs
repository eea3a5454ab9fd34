//! Opens a store that was closed cleanly and then damaged.
//!
//! A cleanly closed store has two close marks that point to the end of its log. As long as one of them is intact, reading a key must
//! return the state from before the damage, or fail with `Error::Corrupt`. A wrong result, or the absence of an acknowledged key, is
//! a failure.
//!
//! If both close marks are damaged, the store looks as if its process had died, and the damage can look like a torn write at the end.
//! Then the store may lose its newest changes, but for all keys together: there must be one earlier moment at which every key had
//! the state that it has now.
#![no_main]

use std::collections::BTreeMap;
use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;
use oncekey::simulation::SimulatedDisk;
use oncekey::{Error, Fingerprint, KeyState, Recorded};
use oncekey_fuzz::edits;
use oncekey_fuzz::input::Input;
use oncekey_fuzz::specimen::{Specimen, answers, summary};
use oncekey_fuzz::world::options;

static SPECIMEN: LazyLock<Specimen> = LazyLock::new(Specimen::make);

/// Whether a key has the same state as before. The store may drop the attempt count of a released key at any time.
fn same(seen: &KeyState, before: &KeyState) -> bool {
    seen == before || seen.is_absent() && before.is_absent() && seen.attempt() == 0
}

/// Checks that every key has the same state as before, or has become unreadable.
fn compare(before: &BTreeMap<u8, Option<KeyState>>, after: &BTreeMap<u8, Option<KeyState>>, when: &str) {
    for (key, seen) in after {
        let Some(seen) = seen else { continue };
        match &before[key] {
            // Apart from a dropped attempt count, no part of a state may change. Even a record that was moved keeps its version.
            Some(earlier) => {
                assert!(
                    same(seen, earlier),
                    "key {key}, {when}: {}; before {}",
                    summary(seen),
                    summary(earlier)
                )
            }
            None => panic!("key {key} was unreadable, but {when} it reads as {}", summary(seen)),
        }
    }
}

fuzz_target!(|data: &[u8]| {
    let specimen = &*SPECIMEN;
    let mut bytes = specimen.bytes.clone();
    edits::apply(&mut bytes, &mut Input(data));
    let has_close_mark = specimen.has_close_mark(&bytes);
    let disk = SimulatedDisk::holding(bytes);
    let options = options(&specimen.clock).create(false);
    let bytes_before = disk.bytes();
    let store = match options.open_simulated(&disk) {
        Ok(store) => store,
        Err(Error::Corrupt { .. } | Error::NotAStore { .. }) => {
            assert!(disk.bytes() == bytes_before, "a refused file was changed");
            return;
        }
        // Any other error would need a changed header whose checksum is valid. `edits::apply` never makes one.
        Err(error) => panic!("{error:?}"),
    };
    let first = answers(&store);
    if has_close_mark {
        for (key, seen) in &first {
            let expected = &specimen.answers[key];
            if let Some(seen) = seen {
                assert!(
                    same(seen, expected),
                    "key {key}, with a close mark: {}; before {}",
                    summary(seen),
                    summary(expected)
                );
            }
        }
    } else {
        let all: Vec<_> = first.iter().map(|(key, seen)| (key, seen.as_ref().map(summary))).collect();
        assert!(
            specimen.is_past_state(&first),
            "the keys are not in the states of one earlier moment: {all:?}"
        );
    }

    match store.record("after the damage", Fingerprint::NONE, b"works") {
        Ok(Recorded::Done(version)) => {
            assert!(!has_close_mark || version > specimen.highest, "version {version} was reused")
        }
        Ok(other) => panic!("{other:?}"),
        Err(Error::Corrupt { .. }) => {}
        Err(error) => panic!("{error:?}"),
    }
    compare(&first, &answers(&store), "after a record");
    match store.compact() {
        Ok(_) | Err(Error::Corrupt { .. }) => {}
        Err(error) => panic!("{error:?}"),
    }
    let compacted = answers(&store);
    compare(&first, &compacted, "after compaction");
    let lost = first.iter().find(|(key, seen)| seen.is_some() && compacted[key].is_none());
    assert!(lost.is_none(), "compaction made key {:?} unreadable", lost.map(|(key, _)| key));
    store.close().expect("the store cannot be closed");
    match options.open_simulated(&disk) {
        Ok(store) => compare(&first, &answers(&store), "opened again"),
        Err(Error::Corrupt { .. }) => {}
        Err(error) => panic!("opened again: {error:?}"),
    }
});
