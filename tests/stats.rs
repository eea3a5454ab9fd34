//! Checks that `stats` returns plausible figures while other threads change the store.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs, reason = "tests")]

mod common;

use std::sync::atomic::{AtomicBool, Ordering};

use common::{NONE, small};

/// An underflow of a counter panics in a debug build, and makes the figure absurdly large in a release build.
#[test]
fn stats_are_plausible_while_segments_are_added_and_retired() {
    let store = small().open_in_memory().unwrap();
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let readers: Vec<_> = (0..2)
            .map(|_| {
                scope.spawn(|| {
                    let mut reads = 0_u64;
                    while !stop.load(Ordering::Relaxed) {
                        let stats = store.stats();
                        assert!((1..1_000).contains(&stats.segments), "{stats:?}");
                        assert!(stats.dead_bytes <= stats.record_bytes, "{stats:?}");
                        assert!(!stats.poisoned && !stats.replaced, "{stats:?}");
                        reads += 1;
                    }
                    reads
                })
            })
            .collect();
        for number in 0..3_000_u32 {
            store.record(&number.to_le_bytes(), NONE, &[1; 12_000]).unwrap();
            store.forget(&number.to_le_bytes()).unwrap();
            if number % 8 == 0 {
                store.compact().unwrap();
            }
        }
        stop.store(true, Ordering::Relaxed);
        let reads: u64 = readers.into_iter().map(|thread| thread.join().unwrap()).sum();
        assert!(reads > 0);
    });
}
