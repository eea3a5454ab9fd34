//! Checks, on the real file system, that everything that was acknowledged survives a SIGKILL at a random moment.
//!
//! A child process uses the store with several threads. Before each call that changes the store it announces the call
//! through a pipe, and afterwards it writes the outcome. The parent kills the child at a random moment, opens the store and
//! compares: no acknowledged change is lost, an atomic batch took effect as a whole or not at all, and the list of
//! unfinished operations has exactly those that began and did not end. All rounds use the same file, so its slots are
//! reused many times.
//!
//! - `protocol` has what both processes share: the keys, the results and the messages.
//! - `child` is the process that is killed. `batches` are its turns that commit batches.
//! - `listener` starts the child, reads its messages and kills it.
//! - `model` computes the states that each key may have, and compares the store with them.
//!
//! A run has 30 rounds by default. This runs a thousand, as before a release:
//!
//! ```text
//! ONCEKEY_ROUNDS=1000 cargo test --release --all-features --test kill -- --nocapture
//! ```
//!
//! `ONCEKEY_SEED=n` determines the calls and the moments of the kills, but not how threads interleave, so it reproduces a
//! failure only in part. The files of a failed run are kept.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    missing_docs,
    unreachable_pub,
    reason = "tests"
)]

mod batches;
mod child;
#[path = "../common/mod.rs"]
mod common;
mod listener;
mod model;
mod protocol;

use std::path::PathBuf;

use common::random::{Random, number_from, seed};
use common::small;

use listener::run_and_kill;
use model::Model;
use protocol::{MAX_RESULT_BYTES, SEED, all_keys};

const ROUNDS: &str = "ONCEKEY_ROUNDS";

/// The files of the test. If the test fails, they are kept, and the command that repeats it is printed.
struct Scene {
    directory: Option<tempfile::TempDir>,
    seed: u64,
    rounds: usize,
}

impl Scene {
    fn file(&self, name: &str) -> PathBuf {
        self.directory.as_ref().unwrap().path().join(name)
    }
}

impl Drop for Scene {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let kept = self.directory.take().unwrap().keep();
            let Scene { seed, rounds, .. } = self;
            eprintln!(
                "{SEED}={seed} {ROUNDS}={rounds} cargo test --release --all-features --test kill\n\
                 the files are kept in {}",
                kept.display()
            );
        }
    }
}

#[test]
fn every_acknowledged_change_survives_a_kill() {
    let seed = seed();
    let rounds = usize::try_from(number_from(ROUNDS).unwrap_or(30)).unwrap();
    let directory = Some(tempfile::tempdir().unwrap());
    let scene = Scene { directory, seed, rounds };
    let (original, copy) = (scene.file("killed.once"), scene.file("copy.once"));

    let (mut random, mut model) = (Random(seed), Model::default());
    let (mut answers, mut checked, mut kills_while_opening, mut retired, mut interrupted) = (0, 0, 0, 0, 0);
    for _ in 0..rounds {
        let round = run_and_kill(&original, &mut random, &mut model);
        answers += round.answers;
        kills_while_opening += usize::from(!round.opened);
        retired += round.retired;
        interrupted += round.interrupted.len();
        if !original.exists() {
            assert_eq!(round.answers, 0, "the child got answers from a file that does not exist");
            continue;
        }
        // If the parent opens the copy, the next child finds the file as the kill left it. If it opens the original, the copy
        // preserves the state after the kill, for the analysis of a failure.
        std::fs::copy(&original, &copy).unwrap();
        let opened = if random.percent(50) { &original } else { &copy };
        let store = small().max_result(MAX_RESULT_BYTES).open(opened).unwrap();
        model.check(&store, round);
        checked += all_keys().len();
        store.close().unwrap();
    }
    println!(
        "{rounds} rounds, {kills_while_opening} kills while opening, {answers} acknowledgements, \
         {checked} keys checked, {retired} segments retired, {interrupted} atomic batches interrupted"
    );
    // Without a retired segment no slot was reused, and then half of what this test is for was not tested.
    assert!(retired > 0 || rounds < 30, "no segment was retired");
    assert!(answers >= rounds, "{answers} acknowledgements");
}
