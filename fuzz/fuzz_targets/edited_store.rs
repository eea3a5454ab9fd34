//! Opens a store that was closed cleanly and then damaged. Every key has the state that it had before, or is
//! `Error::Corrupt`. It never has another result, and an acknowledged key is never absent.
//!
//! A cleanly closed store has two marks that point to the end of its log. If both are damaged too, the store looks like one
//! whose process died, and the damage can look like its torn end. The keys must then have the states of one moment of the past.
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

/// Whether a key has the same state as before. The store may forget the number of attempts of a released key at any time.
fn same(seen: &KeyState, before: &KeyState) -> bool {
    seen == before || seen.is_absent() && before.is_absent() && seen.attempt() == 0
}

/// Checks that every key has the same state as before, or has become unreadable.
fn compare(before: &BTreeMap<u8, Option<KeyState>>, after: &BTreeMap<u8, Option<KeyState>>, when: &str) {
    for (key, seen) in after {
        let Some(seen) = seen else { continue };
        match &before[key] {
            // Nothing of a state may change, not even the version of a record that was moved.
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
    let marked = specimen.has_close_mark(&bytes);
    let disk = SimulatedDisk::holding(bytes);
    let options = options(&specimen.clock).create(false);
    let before = disk.bytes();
    let store = match options.open_simulated(&disk) {
        Ok(store) => store,
        Err(Error::Corrupt { .. } | Error::NotAStore { .. }) => {
            assert!(disk.bytes() == before, "a refused file was changed");
            return;
        }
        // Any other error would need a header with a valid checksum, and edits do not produce one.
        Err(error) => panic!("{error:?}"),
    };
    let first = answers(&store);
    if marked {
        for (key, seen) in &first {
            let right = &specimen.answers[key];
            if let Some(seen) = seen {
                assert!(
                    same(seen, right),
                    "key {key}, with a close mark: {}; before {}",
                    summary(seen),
                    summary(right)
                );
            }
        }
    } else {
        let all: Vec<_> = first.iter().map(|(key, seen)| (key, seen.as_ref().map(summary))).collect();
        assert!(specimen.is_past_state(&first), "not a state of the past: {all:?}");
    }

    match store.record("after the damage", Fingerprint::NONE, b"works") {
        Ok(Recorded::Done(version)) => {
            assert!(!marked || version > specimen.highest, "version {version} was used before")
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
    store.close().expect("it closes");
    match options.open_simulated(&disk) {
        Ok(store) => compare(&first, &answers(&store), "opened again"),
        Err(Error::Corrupt { .. }) => {}
        Err(error) => panic!("opened again: {error:?}"),
    }
});
