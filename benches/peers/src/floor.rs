//! The floors of the write measurements. A floor shows roughly the least time that the work can take: it writes and syncs as
//! many bytes as oncekey, in writes of the same size, into a file that is prepared in the same way, with as little code as
//! possible. A floor has no keys, no index and no checksums, and returns no results.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;

use parking_lot::Mutex;

use crate::group::GroupCommit;
use crate::operations::{Key, RESULT};

/// The size of a frame header, which oncekey writes once for each commit.
pub const FRAME_HEADER_BYTES: usize = 56;
/// The size of a record with a result: the fixed part, the key, the result, and zeroes up to a multiple of 8.
pub const RECORD_BYTES: usize = (80 + size_of::<Key>() + RESULT.len()).next_multiple_of(8);
/// The size of the record of a begin, which has no result.
pub const BEGIN_BYTES: usize = (80 + size_of::<Key>()).next_multiple_of(8);

/// A frame with one record. Only lengths matter, so every byte is 1. Any `RECORD_BYTES` bytes of it serve as a record without a
/// frame header.
const FRAME: [u8; FRAME_HEADER_BYTES + RECORD_BYTES] = [1; FRAME_HEADER_BYTES + RECORD_BYTES];
const BEGIN_FRAME: [u8; FRAME_HEADER_BYTES + BEGIN_BYTES] = [1; FRAME_HEADER_BYTES + BEGIN_BYTES];

/// The length of a preallocated file: roughly the number of bytes that a run writes. If a run writes more, it wraps around
/// to the start of the file.
const FILE_BYTES: u64 = 64 << 20;

/// How the file gets the space that is written to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FileSpace {
    /// The whole file is zeroes on disk from the start, as oncekey's segment slots are before they are written to. Writing
    /// wraps around at the end.
    Preallocated,
    /// The file grows while it is being written: zeroes are written ahead, as many at a time as oncekey writes, and are synced
    /// together with the data.
    Growing,
}

/// The number of zeroes that oncekey writes ahead at a time.
const ZEROES_BYTES: usize = 256 << 10;

/// The file and the position of the next write.
struct Tail {
    file: File,
    space: FileSpace,
    position: u64,
    /// The length of the file: data, then zeroes.
    end: u64,
}

impl Tail {
    fn new(directory: &Path, space: FileSpace) -> Tail {
        let file = File::create_new(directory.join("floor")).expect("cannot create the file of the floor");
        let mut tail = Tail { file, space, position: 0, end: 0 };
        if space == FileSpace::Preallocated {
            while tail.end < FILE_BYTES {
                tail.grow(1 << 20);
            }
            tail.file.sync_all().expect("the floor cannot sync zeroes");
        }
        tail
    }

    fn grow(&mut self, bytes: usize) {
        self.file.write_all_at(&vec![0; bytes], self.end).expect("the floor cannot write zeroes");
        self.end += bytes as u64;
    }

    /// Reserves `length` bytes and returns their position.
    fn advance(&mut self, length: usize) -> u64 {
        if self.position + length as u64 > self.end {
            match self.space {
                FileSpace::Preallocated => self.position = 0,
                FileSpace::Growing => self.grow(ZEROES_BYTES),
            }
        }
        let start = self.position;
        self.position += length as u64;
        start
    }
}

/// The floor for one thread: a positional write, and a sync if the operation has to be durable.
pub struct SingleThreadFloor {
    /// Only one thread writes. The cost of an uncontended lock is negligible compared with the write.
    tail: Mutex<Tail>,
}

impl SingleThreadFloor {
    pub fn new(directory: &Path, space: FileSpace) -> SingleThreadFloor {
        SingleThreadFloor { tail: Mutex::new(Tail::new(directory, space)) }
    }

    /// Writes these bytes without a sync.
    pub fn write(&self, bytes: &[u8]) {
        let mut tail = self.tail.lock();
        let position = tail.advance(bytes.len());
        tail.file.write_all_at(bytes, position).expect("the floor cannot write to its file");
    }

    pub fn sync(&self) {
        self.tail.lock().file.sync_data().expect("the floor cannot sync its file");
    }

    /// Writes a record without a sync.
    pub fn record_buffered(&self) {
        self.write(&FRAME);
    }

    /// Writes and syncs a record.
    pub fn record(&self) {
        self.write(&FRAME);
        self.sync();
    }

    /// Writes and syncs a begin, then a record.
    pub fn begin_and_complete(&self) {
        self.write(&BEGIN_FRAME);
        self.sync();
        self.record();
    }

    /// Writes a begin without a sync, then writes a record and syncs both.
    pub fn rerun(&self) {
        self.write(&BEGIN_FRAME);
        self.record();
    }
}

/// The floor for several threads: a group commit without anything else.
pub struct GroupCommitFloor {
    /// Held while writing, but not while syncing, so that threads can write during a sync.
    tail: Mutex<Tail>,
    /// A second handle of the file, to sync it while another thread holds `tail`.
    sync_handle: File,
    group: GroupCommit<Vec<u8>>,
}

impl GroupCommitFloor {
    pub fn new(directory: &Path, space: FileSpace) -> GroupCommitFloor {
        let tail = Tail::new(directory, space);
        let sync_handle = tail.file.try_clone().expect("cannot duplicate the handle of the floor's file");
        GroupCommitFloor { tail: Mutex::new(tail), sync_handle, group: GroupCommit::new() }
    }

    /// Writes these bytes without a sync.
    fn write(&self, bytes: &[u8]) {
        let mut tail = self.tail.lock();
        let position = tail.advance(bytes.len());
        tail.file.write_all_at(bytes, position).expect("the floor cannot write to its file");
    }

    /// Adds a record to the batch that is being filled, and returns once that batch is synced.
    fn commit(&self, record: &[u8]) {
        let add = |batch: &mut Vec<u8>| {
            if batch.is_empty() {
                batch.resize(FRAME_HEADER_BYTES, 1);
            }
            batch.extend_from_slice(record);
        };
        let commit = |batch: &mut Vec<u8>| {
            self.write(batch);
            self.sync_handle.sync_data().expect("the floor cannot sync its file");
            batch.clear();
        };
        self.group.commit(add, commit);
    }

    /// Writes and syncs a record.
    pub fn record(&self) {
        self.commit(&FRAME[..RECORD_BYTES]);
    }

    /// Writes a record without a sync. The record joins no batch, because writing it takes less time than waiting for another
    /// thread to write the batch.
    pub fn record_buffered(&self) {
        self.write(&FRAME);
    }

    /// Writes and syncs a begin, then a record.
    pub fn begin_and_complete(&self) {
        self.commit(&BEGIN_FRAME[..BEGIN_BYTES]);
        self.record();
    }

    /// Writes a begin without a sync, then writes a record and syncs both.
    pub fn rerun(&self) {
        self.write(&BEGIN_FRAME);
        self.record();
    }
}
