//! Opening a store that was closed cleanly and then damaged: every answer is the one that it gave before, or an error that
//! says that the file is corrupt. Never another result, never "absent" for what was acknowledged.
//!
//! A cleanly closed store says twice where its log ends. If both marks are gone too, it looks like one whose process died, and
//! the damage like the end of it: then it must still be some moment of the past as a whole.
#![no_main]

use std::collections::BTreeMap;
use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;
use oncekey::simulation::SimulatedDisk;
use oncekey::{Error, Fingerprint, Recorded, KeyState};
use oncekey_fuzz::edits;
use oncekey_fuzz::input::Input;
use oncekey_fuzz::specimen::{Specimen, answers, told};
use oncekey_fuzz::world::options;

static SPECIMEN: LazyLock<Specimen> = LazyLock::new(Specimen::make);

/// Of a released key the count of attempts may be given up at any time.
fn same(seen: &KeyState, before: &KeyState) -> bool {
    seen == before || seen.is_absent() && before.is_absent() && seen.attempt() == 0
}

/// What was answered once is answered again, or not any more; and nothing else.
fn compare(before: &BTreeMap<u8, Option<KeyState>>, after: &BTreeMap<u8, Option<KeyState>>, when: &str) {
    for (key, seen) in after {
        let Some(seen) = seen else { continue };
        match &before[key] {
            // A record that was moved keeps its version; nothing of an answer may change.
            Some(earlier) => {
                assert!(same(seen, earlier), "key {key}, {when}: {}; before {}", told(seen), told(earlier))
            }
            None => panic!("key {key} was unreadable, and {when} it is {}", told(seen)),
        }
    }
}

fuzz_target!(|data: &[u8]| {
    let specimen = &*SPECIMEN;
    let mut bytes = specimen.bytes.clone();
    edits::apply(&mut bytes, &mut Input(data));
    let marked = specimen.is_marked(&bytes);
    let disk = SimulatedDisk::holding(bytes);
    let options = options(&specimen.clock).create(false);
    let before = disk.bytes();
    let store = match options.open_simulated(&disk) {
        Ok(store) => store,
        Err(Error::Corrupt { .. } | Error::NotAStore { .. }) => {
            assert!(disk.bytes() == before, "a file that was refused was changed");
            return;
        }
        // A header is sealed, so nothing in it can say this.
        Err(error) => panic!("{error:?}"),
    };
    let first = answers(&store);
    if marked {
        for (key, seen) in &first {
            let right = &specimen.answers[key];
            if let Some(seen) = seen {
                assert!(
                    same(seen, right),
                    "key {key}, and a close mark is there: {}; it was {}",
                    told(seen),
                    told(right)
                );
            }
        }
    } else {
        let all: Vec<_> = first.iter().map(|(key, seen)| (key, seen.as_ref().map(told))).collect();
        assert!(specimen.was_once(&first), "a state that never was: {all:?}");
    }

    match store.record("after the damage", Fingerprint::NONE, b"works") {
        Ok(Recorded::Done(version)) => assert!(!marked || version > specimen.highest, "{version} again"),
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
