//! The conditions under which operations are measured: what threads do between operations, on how many cores they run, and
//! whether a neighbour competes for these cores.

use std::io::Read;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

/// The only word of a neighbour's command line.
pub const NEIGHBOUR: &str = "as-neighbour";

/// What a thread does between two operations.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Work {
    /// Nothing: the next operation begins as soon as the last one has returned.
    None,
    /// It computes for this long.
    Busy(Duration),
    /// It sleeps for this long, and then until the operating system wakes it.
    Sleeping(Duration),
}

impl Work {
    /// Performs the work, which begins at `start`, and returns when it ended.
    pub fn perform(self, start: Instant) -> Instant {
        match self {
            Work::None => start,
            Work::Busy(duration) => loop {
                let now = Instant::now();
                if now - start >= duration {
                    return now;
                }
                std::hint::spin_loop();
            },
            Work::Sleeping(duration) => {
                std::thread::sleep(duration);
                Instant::now()
            }
        }
    }
}

/// The cores and the neighbour of a turn.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Surroundings {
    /// The number of cores that the contestant may use; `None` for all.
    pub cores: Option<usize>,
    /// Whether another process competes for the cores.
    pub has_neighbour: bool,
}

impl Surroundings {
    /// Establishes the surroundings for this thread and for the threads and processes that it starts, until the returned
    /// value is dropped.
    pub fn establish(self) -> Established {
        let before = self.cores.map(|cores| {
            let all = sched_getaffinity(None).expect("cannot read the cores of this thread");
            let mut some = CpuSet::new();
            (0..CpuSet::MAX_CPU).filter(|core| all.is_set(*core)).take(cores).for_each(|core| some.set(core));
            sched_setaffinity(None, &some).expect("cannot choose the cores of this thread");
            all
        });
        let neighbour = self.has_neighbour.then(start_neighbour);
        Established { before, neighbour }
    }
}

/// Starts a process that keeps a core busy until it is killed or this process ends.
fn start_neighbour() -> Child {
    let program = std::env::current_exe().expect("cannot determine the path of this program");
    let mut command = Command::new(program);
    command.arg(NEIGHBOUR).stdin(Stdio::piped()).spawn().expect("cannot start a neighbour")
}

/// Runs the neighbour. Its standard input ends when the parent process ends.
pub fn run_neighbour() -> ! {
    std::thread::spawn(|| {
        let _ = std::io::stdin().read(&mut [0]);
        std::process::exit(0);
    });
    loop {
        std::hint::spin_loop();
    }
}

/// Surroundings that last until this is dropped.
#[must_use = "the surroundings end when this is dropped"]
pub struct Established {
    /// The cores of this thread before, if they were changed.
    before: Option<CpuSet>,
    neighbour: Option<Child>,
}

impl Drop for Established {
    fn drop(&mut self) {
        if let Some(neighbour) = &mut self.neighbour {
            let _ = neighbour.kill();
            let _ = neighbour.wait();
        }
        if let Some(before) = &self.before {
            let _ = sched_setaffinity(None, before);
        }
    }
}
