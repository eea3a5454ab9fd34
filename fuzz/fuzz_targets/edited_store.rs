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
use oncekey::{Error, Fingerprint, Recorded, Snapshot};
use oncekey_fuzz::edits;
use oncekey_fuzz::input::Input;
use oncekey_fuzz::specimen::{Specimen, answers};
use oncekey_fuzz::world::options;

static SPECIMEN: LazyLock<Specimen> = LazyLock::new(Specimen::make);

/// What was answered once is answered again, or not any more; and nothing else.
fn compare(before: &BTreeMap<u8, Option<Snapshot>>, after: &BTreeMap<u8, Option<Snapshot>>, when: &str) {
    for (key, seen) in after {
        let Some(seen) = seen else { continue };
        let earlier = before[key]
            .as_ref()
            .unwrap_or_else(|| panic!("key {key} was unreadable, and {when} it is {seen:?}"));
        // A record that was moved keeps its version; nothing of an answer may change.
        assert_eq!(seen, earlier, "key {key}, {when}");
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
            if let Some(seen) = seen {
                assert_eq!(seen, &specimen.answers[key], "key {key}, and a close mark is there");
            }
        }
    } else {
        assert!(specimen.was_once(&first), "a state that never was: {first:?}");
    }

    match store.record("after the damage", Fingerprint::NONE, b"works") {
        Ok(Recorded::Done(version)) => assert!(!marked || version > specimen.highest, "{version} again"),
        Ok(other) => panic!("{other:?}"),
        Err(Error::Corrupt { .. }) => {}
        Err(error) => panic!("{error:?}"),
    }
    compare(&first, &answers(&store), "after a record");
    match store.compact() {
        Ok(()) | Err(Error::Corrupt { .. }) => {}
        Err(error) => panic!("{error:?}"),
    }
    let compacted = answers(&store);
    compare(&first, &compacted, "after compaction");
    let lost = first.iter().find(|(key, seen)| seen.is_some() && compacted[key].is_none());
    assert!(lost.is_none(), "compaction made it unreadable: {lost:?}");
    store.close().expect("it closes");
    match options.open_simulated(&disk) {
        Ok(store) => compare(&first, &answers(&store), "opened again"),
        Err(Error::Corrupt { .. }) => {}
        Err(error) => panic!("opened again: {error:?}"),
    }
});
