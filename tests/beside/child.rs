//! The other process: this test binary again, with a role in the environment.

use std::io::{BufRead, BufReader, Read, Write};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use oncekey::{Begin, Durability, Key, Options, Store};

use crate::common::{NONE, abandon, acquire, small};

const ROLE: &str = "ONCEKEY_BESIDE_ROLE";
const PATH: &str = "ONCEKEY_BESIDE_PATH";
/// The number of completed keys that are there throughout.
pub(crate) const KEPT: u32 = 500;

/// A process that has the store open until this is dropped or ended.
pub(crate) struct Other {
    child: Child,
}

impl Other {
    /// Starts the process, and returns once it is ready.
    pub(crate) fn start(role: &str, path: &Path) -> Other {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "child::the_other_process", "--nocapture", "--test-threads", "1"])
            .env(ROLE, role)
            .env(PATH, path)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let is_ready = lines.any(|line| line.unwrap().ends_with("ready"));
        assert!(is_ready, "the other process has failed");
        // The pipe must not fill up.
        std::thread::spawn(move || lines.for_each(drop));
        Other { child }
    }

    /// Lets the process close the store and end.
    pub(crate) fn end(mut self) {
        drop(self.child.stdin.take());
        assert!(self.child.wait().unwrap().success());
    }

    pub(crate) fn kill(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

impl Drop for Other {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Not a test of its own: the other process runs it with its role set.
#[test]
fn the_other_process() {
    let (Ok(role), Ok(path)) = (std::env::var(ROLE), std::env::var(PATH)) else { return };
    match &*role {
        "holds" => {
            let store = Options::new().open(&path).unwrap();
            ready();
            wait_for_end();
            store.close().unwrap();
        }
        "works" => work(&path),
        role => panic!("{role}"),
    }
}

fn ready() {
    println!("\nready");
    std::io::stdout().flush().unwrap();
}

fn wait_for_end() {
    let _ = std::io::stdin().read(&mut [0]);
}

/// Puts the store under full load: threads that record and forget, one that begins the same operation again and again, and
/// one that compacts.
fn work(path: &str) {
    let store = small().max_result(12_000).durability(Durability::Buffered).open(path).unwrap();
    for number in 0..KEPT {
        store.record(Key::new(&number.to_string()).scope("kept"), NONE, &[7; 200]).unwrap();
    }
    abandon(&store, "always in doubt");
    let lease = acquire(&store, "always running");
    abandon(&store, "begun again and again");
    ready();
    let (stop, turns) = (AtomicBool::new(false), AtomicU64::new(0));
    std::thread::scope(|scope| {
        for thread in 0..2 {
            let (store, stop, turns) = (&store, &stop, &turns);
            scope.spawn(move || {
                while !stop.load(Ordering::Relaxed) {
                    let turn = turns.fetch_add(1, Ordering::Relaxed);
                    let key = format!("{thread}/{}", turn % 64);
                    store
                        .operation(&key)
                        .record(&vec![1; 200 + usize::try_from(turn % 20).unwrap() * 300])
                        .unwrap();
                    store.forget(&key).unwrap();
                }
            });
        }
        let (store, stop) = (&store, &stop);
        scope.spawn(move || {
            while !stop.load(Ordering::Relaxed) {
                begin_again(store, "begun again and again");
                // Reclaiming cannot retire a segment with a record of the key while a thread is changing it.
                std::thread::sleep(Duration::from_millis(1));
            }
        });
        scope.spawn(move || {
            while !stop.load(Ordering::Relaxed) {
                store.compact().unwrap();
                std::thread::sleep(Duration::from_millis(2));
            }
        });
        wait_for_end();
        stop.store(true, Ordering::Relaxed);
    });
    drop(lease);
    let stats = store.stats();
    eprintln!(
        "the other process retired {} segments and wrote {} frames",
        stats.segments_retired, stats.frames
    );
    store.close().unwrap();
}

fn begin_again(store: &Store, key: &str) {
    match store.begin(key, NONE).unwrap() {
        Begin::InDoubt(doubt) => drop(doubt.begin_again().unwrap()),
        other => panic!("{other:?}"),
    }
}
