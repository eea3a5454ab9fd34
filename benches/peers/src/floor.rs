//! The floors: as many bytes as oncekey writes, at the same granularity, into a file made ready in the same way, by as
//! little code as does it. No keys, no index, no checksums, no answers.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;

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

/// Where the room comes from that is written to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Room {
    /// A file of zeroes that are on disk, as oncekey's slots are before they are written to, and that is begun anew when it is
    /// full.
    There,
    /// Zeroes that are written a little ahead, as many at a time as oncekey writes, and synced with what is written to them.
    Grown,
}

/// So many zeroes oncekey writes at a time, once it has to.
const GROWN_BYTES: usize = 256 << 10;

/// The file, and where to write next.
struct Tail {
    file: File,
    room: Room,
    place: u64,
    end: u64,
}

impl Tail {
    fn new(directory: &Path, room: Room) -> Tail {
        let file = File::create_new(directory.join("floor")).expect("the file of the floor is new");
        let mut tail = Tail { file, room, place: 0, end: 0 };
        if room == Room::There {
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

    fn advance(&mut self, length: usize) -> u64 {
        if self.place + length as u64 > self.end {
            match self.room {
                Room::There => self.place = 0,
                Room::Grown => self.grow(GROWN_BYTES),
            }
        }
        let here = self.place;
        self.place += length as u64;
        here
    }
}

/// The floor of one thread: a positional write, and a sync where one is asked for.
pub struct Bare {
    /// Only one thread writes; a lock that nobody waits for costs nothing beside the write.
    tail: Mutex<Tail>,
}

impl Bare {
    pub fn new(directory: &Path, room: Room) -> Bare {
        Bare { tail: Mutex::new(Tail::new(directory, room)) }
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

/// The floor of several threads: a bare group commit. Who finds nobody leading writes and syncs what has gathered, for
/// all, outside the lock under which the next batch gathers.
pub struct Group {
    /// Only who leads is here.
    tail: Mutex<Tail>,
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
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Until {
    Written,
    Synced,
}

impl Group {
    pub fn new(directory: &Path, room: Room) -> Group {
        let queue = Queue { gathering: vec![1; FRAME_HEADER_BYTES], number: 1, ..Queue::default() };
        let tail = Mutex::new(Tail::new(directory, room));
        Group { tail, queue: Mutex::new(queue), gates: Default::default() }
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
