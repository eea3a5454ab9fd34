//! Opens arbitrary bytes as a store, and uses the store if it opens. There must be no panic and no hang, and the memory used
//! must be bounded by the size of the file. The first byte determines whether the rest is the file itself or its sparse
//! encoding, and which checksums are recomputed so that the fuzzer gets past them.
#![no_main]

use libfuzzer_sys::fuzz_target;
use oncekey::simulation::SimulatedDisk;
use oncekey::{Begin, Error, Fingerprint, Options, Recorded, Store};
use oncekey_fuzz::allocated::{Counting, peak};
use oncekey_fuzz::input::Input;
use oncekey_fuzz::seal::{self, Seals};
use oncekey_fuzz::world::{START_MS, name};
use oncekey_fuzz::{SEGMENT_BYTES, sparse};

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// The maximum memory for opening a store, in addition to [`PER_BYTE`] for each byte of the file: an empty index and log, and
/// the slot of a new store.
const FIXED_BYTES: usize = 4 << 20;
/// The maximum memory for each byte of the file. A record of 88 bytes has a footer entry, an index entry, and a few bytes in
/// temporary tables.
const PER_BYTE: usize = 16;

fuzz_target!(|data: &[u8]| {
    let Some((mode, rest)) = data.split_first() else { return };
    let mut file = if mode & 1 == 0 { rest.to_vec() } else { sparse::decode(Input(rest)) };
    let seals = Seals { blocks: mode & 2 != 0, frames: mode & 4 != 0, chain: mode & 8 != 0 };
    seal::file(&mut file, seals);

    let length = file.len();
    let disk = SimulatedDisk::holding(file);
    let clock = oncekey::ManualClock::new(START_MS);
    let options = Options::new()
        .segment_size(SEGMENT_BYTES as u64)
        .accept_clock_jump(oncekey::ClockJump::Elapsed)
        .create(mode & 16 == 0)
        .manual_clock(clock.clone());
    let before = disk.bytes();
    let (opened, taken) = peak(|| options.open_simulated(&disk));
    assert!(taken <= FIXED_BYTES + PER_BYTE * length, "{taken} bytes of memory for a file of {length}");
    let store = match opened {
        Ok(store) => store,
        Err(
            Error::Corrupt { .. }
            | Error::NotAStore { .. }
            | Error::Unsupported { .. }
            | Error::Clock { .. }
            | Error::Copy { .. },
        ) => {
            assert!(disk.bytes() == before, "a refused file was changed");
            return;
        }
        Err(_) => return,
    };
    for key in 0..8 {
        let _ = store.get(&name(key));
    }
    let _ = store.stats();
    let recorded = matches!(store.record("fuzz", Fingerprint::NONE, b"result"), Ok(Recorded::Done(_)));
    let expires_ms = store.get("fuzz").ok().and_then(|seen| seen.expires_at_ms()).unwrap_or(u64::MAX);
    // Expiry depends on store time, which depends on times in the file. Any of these times can be forged.
    let check_kept = |store: &Store| {
        let seen = store.get("fuzz");
        let now_ms = store.stats().store_time_ms;
        match seen {
            Ok(seen) if seen.is_completed() => {
                assert!(seen.result().is_none_or(|result| result == b"result"))
            }
            Ok(seen) => assert!(
                now_ms >= expires_ms,
                "the key expires at {expires_ms}, but at {now_ms} it is already {seen:?}"
            ),
            Err(Error::Corrupt { .. }) => {}
            Err(error) => panic!("{error:?}"),
        }
    };
    if recorded {
        check_kept(&store);
    }
    if let Ok(Begin::Acquired(mut lease)) = store.begin(&name(1), Fingerprint::NONE) {
        let _ = lease.complete(b"done");
    }
    let _ = store.forget(&name(2));
    clock.advance(std::time::Duration::from_secs(3_600));
    let _ = store.compact();
    if recorded {
        check_kept(&store);
    }
    if store.close().is_ok()
        && recorded
        && let Ok(store) = options.open_simulated(&disk)
    {
        check_kept(&store);
    }
});
