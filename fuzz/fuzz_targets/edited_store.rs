//! Opens a store that was closed cleanly and then damaged. Every key must have the state that it had before the damage, or be
//! `Error::Corrupt`. No key may have a wrong result, and no acknowledged key may be absent.
//!
//! A cleanly closed store has two close marks that point to the end of its log. If both are damaged too, the store looks as if
//! its process had died, and the damage can look like a torn write at the end. The states of all keys must then be those of the
//! same earlier moment.
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

/// Whether a key has the same state as before. The number of attempts of a released key can be forgotten at any time.
fn same(seen: &KeyState, before: &KeyState) -> bool {
    seen == before || seen.is_absent() && before.is_absent() && seen.attempt() == 0
}

/// Checks that every key has the same state as before, or has become unreadable.
fn compare(before: &BTreeMap<u8, Option<KeyState>>, after: &BTreeMap<u8, Option<KeyState>>, when: &str) {
    for (key, seen) in after {
        let Some(seen) = seen else { continue };
        match &before[key] {
            // No part of a state may change. Even a record that was moved keeps its version.
            Some(earlier) => {
                assert!(
                    same(seen, earlier),
                    "key {key}, {when}: {}; before {}",
                    summary(seen),
                    summary(earlier)
                )
            }
            None => panic!("key {key} was unreadable, and {when} it is {}", summary(seen)),
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
    let before = disk.bytes();
    let store = match options.open_simulated(&disk) {
        Ok(store) => store,
        Err(Error::Corrupt { .. } | Error::NotAStore { .. }) => {
            assert!(disk.bytes() == before, "a refused file was changed");
            return;
        }
        // Any other error needs a changed header with a valid checksum, which edits do not produce.
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
