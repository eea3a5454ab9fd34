//! The floors of writing: they write as many bytes as oncekey, at the same granularity, into a file that is prepared in the
//! same way, with as little code as possible. They have no keys, no index, no checksums and no answers.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;

use parking_lot::{Condvar, Mutex, MutexGuard};

use crate::operations::{Key, RESULT};

/// The header of a frame, which oncekey writes once for each commit.
pub const FRAME_HEADER_BYTES: usize = 56;
/// The record of a key and its result: the fixed part, both of these, and zeroes up to a multiple of 8.
pub const RECORD_BYTES: usize = (80 + size_of::<Key>() + RESULT.len()).next_multiple_of(8);
/// The record of a begin, which has no result.
pub const BEGIN_BYTES: usize = (80 + size_of::<Key>()).next_multiple_of(8);

const FRAME: [u8; FRAME_HEADER_BYTES + RECORD_BYTES] = [1; FRAME_HEADER_BYTES + RECORD_BYTES];
const BEGIN_FRAME: [u8; FRAME_HEADER_BYTES + BEGIN_BYTES] = [1; FRAME_HEADER_BYTES + BEGIN_BYTES];

/// The length of a preallocated file, which is written again and again. About as much as a run writes.
const FILE_BYTES: u64 = 64 << 20;

/// How the file gets the space that is written to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FileSpace {
    /// The whole file is zeroes on disk from the beginning, as oncekey's segment slots are before they are written to. At
    /// its end writing continues at its beginning.
    Preallocated,
    /// Zeroes are written a little ahead, as many at a time as oncekey writes, and synced together with the data.
    Growing,
}

/// How many zeroes oncekey writes ahead at a time.
const ZEROES_BYTES: usize = 256 << 10;

/// The file and the position of the next write.
struct Tail {
    file: File,
    space: FileSpace,
    position: u64,
    end: u64,
}

impl Tail {
    fn new(directory: &Path, space: FileSpace) -> Tail {
        let file = File::create_new(directory.join("floor")).expect("the file of the floor is new");
        let mut tail = Tail { file, space, position: 0, end: 0 };
        if space == FileSpace::Preallocated {
            while tail.end < FILE_BYTES {
                tail.grow(1 << 20);
            }
            tail.file.sync_all().expect("zeroes are synced");
        }
        tail
    }

    fn grow(&mut self, bytes: usize) {
        self.file.write_all_at(&vec![0; bytes], self.end).expect("zeroes are written");
        self.end += bytes as u64;
    }

    /// Returns the position for `length` bytes and moves behind them.
    fn advance(&mut self, length: usize) -> u64 {
        if self.position + length as u64 > self.end {
            match self.space {
                FileSpace::Preallocated => self.position = 0,
                FileSpace::Growing => self.grow(ZEROES_BYTES),
            }
        }
        let here = self.position;
        self.position += length as u64;
        here
    }
}

/// The floor of one thread: a positional write, and a sync where durability needs one.
pub struct SingleThreadFloor {
    /// Only one thread writes. An uncontended lock costs nothing beside the write.
    tail: Mutex<Tail>,
}

impl SingleThreadFloor {
    pub fn new(directory: &Path, space: FileSpace) -> SingleThreadFloor {
        SingleThreadFloor { tail: Mutex::new(Tail::new(directory, space)) }
    }

    pub fn write(&self, bytes: &[u8]) {
        let mut tail = self.tail.lock();
        let here = tail.advance(bytes.len());
        tail.file.write_all_at(bytes, here).expect("the floor writes");
    }

    pub fn sync(&self) {
        self.tail.lock().file.sync_data().expect("the floor syncs");
    }

    pub fn record_buffered(&self) {
        self.write(&FRAME);
    }

    pub fn record(&self) {
        self.write(&FRAME);
        self.sync();
    }

    pub fn begin_and_complete(&self) {
        self.write(&BEGIN_FRAME);
        self.sync();
        self.record();
    }

    pub fn rerun(&self) {
        self.write(&BEGIN_FRAME);
        self.record();
    }
}

/// The floor of several threads: a bare group commit. A thread that finds no leader becomes the leader. It writes and
/// syncs the gathered batch for all its followers, without the lock under which the next batch gathers.
pub struct GroupCommitFloor {
    /// Only the leader locks this.
    tail: Mutex<Tail>,
    queue: Mutex<Queue>,
    /// Where the threads of batches with even and with odd numbers wait. Two are enough: while one batch is being
    /// committed, one gathers.
    gates: [Condvar; 2],
}

#[derive(Default)]
struct Queue {
    gathering: Vec<u8>,
    /// Whether a follower of the gathering batch waits for its write, and whether one waits for its sync.
    wants_write: bool,
    wants_sync: bool,
    /// The buffer of the previous batch, for the next one.
    spare: Vec<u8>,
    /// The number of the gathering batch, of the last one that is written, and of the last one that is synced.
    number: u64,
    written: u64,
    synced: u64,
    has_leader: bool,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Until {
    Written,
    Synced,
}

impl GroupCommitFloor {
    pub fn new(directory: &Path, space: FileSpace) -> GroupCommitFloor {
        let queue = Queue { gathering: vec![1; FRAME_HEADER_BYTES], number: 1, ..Queue::default() };
        let tail = Mutex::new(Tail::new(directory, space));
        GroupCommitFloor { tail, queue: Mutex::new(queue), gates: Default::default() }
    }

    fn gate(&self, number: u64) -> &Condvar {
        &self.gates[(number & 1) as usize]
    }

    fn commit(&self, record: &[u8], until: Until) {
        let mut queue = self.queue.lock();
        queue.gathering.extend_from_slice(record);
        queue.wants_write |= until == Until::Written;
        queue.wants_sync |= until == Until::Synced;
        let own = queue.number;
        while own > if until == Until::Written { queue.written } else { queue.synced } {
            if queue.has_leader {
                self.gate(own).wait(&mut queue);
            } else {
                queue = self.lead(queue);
            }
        }
    }

    /// Commits the gathering batch. The caller's record is in it: if it were in an earlier one, it would be committed.
    fn lead<'a>(&'a self, mut queue: MutexGuard<'a, Queue>) -> MutexGuard<'a, Queue> {
        queue.has_leader = true;
        let mut spare = std::mem::take(&mut queue.spare);
        spare.resize(FRAME_HEADER_BYTES, 1);
        let mut batch = std::mem::replace(&mut queue.gathering, spare);
        let wants_write = std::mem::take(&mut queue.wants_write);
        let wants_sync = std::mem::take(&mut queue.wants_sync);
        let number = queue.number;
        queue.number += 1;
        drop(queue);
        let mut tail = self.tail.lock();
        let here = tail.advance(batch.len());
        tail.file.write_all_at(&batch, here).expect("the floor writes");
        if wants_sync {
            if wants_write {
                self.queue.lock().written = number;
                self.gate(number).notify_all();
            }
            tail.file.sync_data().expect("the floor syncs");
        }
        drop(tail);
        batch.clear();
        let mut queue = self.queue.lock();
        queue.has_leader = false;
        queue.written = number;
        if wants_sync {
            queue.synced = number;
        }
        queue.spare = batch;
        self.gate(number).notify_all();
        if queue.gathering.len() > FRAME_HEADER_BYTES {
            self.gate(number + 1).notify_one();
        }
        queue
    }

    pub fn record(&self) {
        self.commit(&FRAME[..RECORD_BYTES], Until::Synced);
    }

    pub fn begin_and_complete(&self) {
        self.commit(&BEGIN_FRAME[..BEGIN_BYTES], Until::Synced);
        self.record();
    }

    /// The begin is written before the side effect would run, and becomes durable together with the completion.
    pub fn rerun(&self) {
        self.commit(&BEGIN_FRAME[..BEGIN_BYTES], Until::Written);
        self.record();
    }
}
