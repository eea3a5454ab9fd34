//! The floors: as many bytes as oncekey writes, at the same granularity, into a file made ready in the same way, by as
//! little code as does it. No keys, no index, no checksums, no answers.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::{Condvar, Mutex, MutexGuard};

use crate::operations::{Key, RESULT};

/// What oncekey puts in front of what it commits together.
pub const FRAME_HEADER_BYTES: usize = 48;
/// The record of a key of 36 bytes and its result: the fixed part, the two, and zeroes up to a multiple of 8.
pub const RECORD_BYTES: usize = (80 + size_of::<Key>() + RESULT.len()).next_multiple_of(8);
/// The record of a begin, which has no result.
pub const BEGIN_BYTES: usize = (80 + size_of::<Key>()).next_multiple_of(8);

const FRAME: [u8; FRAME_HEADER_BYTES + RECORD_BYTES] = [1; FRAME_HEADER_BYTES + RECORD_BYTES];
const BEGIN_FRAME: [u8; FRAME_HEADER_BYTES + BEGIN_BYTES] = [1; FRAME_HEADER_BYTES + BEGIN_BYTES];

/// How much of the file is written before it is begun anew. As large as what a run writes, or nearly.
const FILE_BYTES: u64 = 64 << 20;

/// A file of zeroes that are on disk, as oncekey's slots are before they are written to.
fn prepared(directory: &Path) -> File {
    let file = File::create_new(directory.join("floor")).expect("the file of the floor is new");
    let zeroes = vec![0; 1 << 20];
    for place in (0..FILE_BYTES).step_by(zeroes.len()) {
        file.write_all_at(&zeroes, place).expect("zeroes are written");
    }
    file.sync_all().expect("zeroes are synced");
    file
}

/// Where to write next.
fn advance(place: &mut u64, length: usize) -> u64 {
    if *place + length as u64 > FILE_BYTES {
        *place = 0;
    }
    let here = *place;
    *place += length as u64;
    here
}

/// The floor of one thread: a positional write, and a sync where one is asked for.
pub struct Bare {
    file: File,
    /// Only one thread writes; that it is atomic costs nothing beside the write.
    place: AtomicU64,
}

impl Bare {
    pub fn new(directory: &Path) -> Bare {
        Bare { file: prepared(directory), place: AtomicU64::new(0) }
    }

    pub fn write(&self, bytes: &[u8]) {
        let mut place = self.place.load(Ordering::Relaxed);
        let here = advance(&mut place, bytes.len());
        self.place.store(place, Ordering::Relaxed);
        self.file.write_all_at(bytes, here).expect("the floor writes");
    }

    pub fn sync(&self) {
        self.file.sync_data().expect("the floor syncs");
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

/// The floor of several threads: a bare group commit. Who finds nobody leading writes and syncs what has gathered, for
/// all, outside the lock under which the next batch gathers.
pub struct Group {
    file: File,
    queue: Mutex<Queue>,
    /// Where the threads of the batches with even and odd numbers wait. Two are enough: while one batch is on its way, one
    /// gathers.
    gates: [Condvar; 2],
}

#[derive(Default)]
struct Queue {
    gathering: Vec<u8>,
    /// What those in the gathering batch wait for.
    wants_write: bool,
    wants_sync: bool,
    /// The buffer of the batch before, to be used again.
    spare: Vec<u8>,
    /// The number of the batch that gathers, of the last that is written, and of the last that is on disk.
    number: u64,
    written: u64,
    synced: u64,
    leading: bool,
    place: u64,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Until {
    Written,
    Synced,
}

impl Group {
    pub fn new(directory: &Path) -> Group {
        let queue = Queue { gathering: vec![1; FRAME_HEADER_BYTES], number: 1, ..Queue::default() };
        Group { file: prepared(directory), queue: Mutex::new(queue), gates: Default::default() }
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
            if queue.leading {
                self.gate(own).wait(&mut queue);
            } else {
                queue = self.lead(queue);
            }
        }
    }

    /// Takes the batch that gathers. It is that of the thread that is here: an earlier one would be done.
    fn lead<'a>(&'a self, mut queue: MutexGuard<'a, Queue>) -> MutexGuard<'a, Queue> {
        queue.leading = true;
        let mut spare = std::mem::take(&mut queue.spare);
        spare.resize(FRAME_HEADER_BYTES, 1);
        let mut batch = std::mem::replace(&mut queue.gathering, spare);
        let wants_write = std::mem::take(&mut queue.wants_write);
        let wants_sync = std::mem::take(&mut queue.wants_sync);
        let number = queue.number;
        queue.number += 1;
        let here = advance(&mut queue.place, batch.len());
        drop(queue);
        self.file.write_all_at(&batch, here).expect("the floor writes");
        if wants_sync {
            if wants_write {
                self.queue.lock().written = number;
                self.gate(number).notify_all();
            }
            self.file.sync_data().expect("the floor syncs");
        }
        batch.clear();
        let mut queue = self.queue.lock();
        queue.leading = false;
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

    /// The begin is with the operating system before the act, and on disk with the completion.
    pub fn rerun(&self) {
        self.commit(&BEGIN_FRAME[..BEGIN_BYTES], Until::Written);
        self.record();
    }
}
