//! Proves that `stats` returns plausible figures while other threads change the store.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs, reason = "tests")]

mod common;

use std::sync::atomic::{AtomicBool, Ordering};

use common::{NONE, small};

/// An underflow is a panic in a debug build and an absurd figure in a release build.
#[test]
fn stats_are_plausible_while_segments_come_and_go() {
    let store = small().open_in_memory().unwrap();
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let looking: Vec<_> = (0..2)
            .map(|_| {
                scope.spawn(|| {
                    let mut looks = 0_u64;
                    while !stop.load(Ordering::Relaxed) {
                        let stats = store.stats();
                        assert!((1..1_000).contains(&stats.segments), "{stats:?}");
                        assert!(stats.dead_bytes <= stats.record_bytes, "{stats:?}");
                        assert!(!stats.poisoned && !stats.replaced, "{stats:?}");
                        looks += 1;
                    }
                    looks
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
        let looks: u64 = looking.into_iter().map(|thread| thread.join().unwrap()).sum();
        assert!(looks > 0);
    });
}
