//! A disk that loses power, fills up and fails, for tests. Behind the feature `__simulation`, which is no part of the
//! public interface.
//!
//! # The fault model
//!
//! The disk keeps two images: what the operating system shows (the cache) and what a crash cannot take away (the
//! medium).
//!
//! - **A sync that reports success** brings everything that was written before it began to the medium, and the length. What
//!   others write while it is under way stays open.
//! - **A crash** ([`SimulatedDisk::crash`]) decides for every sector (512 bytes) that was written since the last sync,
//!   independently of all others and in no order: it holds one of the contents that it was given since, or what was
//!   there before. If it never held synced bytes it may also hold garbage. A sector that did is written whole or not
//!   at all: this is the one assumption about the medium (powersafe overwrite).
//! - **The length** is decided on its own: the old one, the new one, or any that it had in between.
//! - **A write that fails** may have reached the cache in part. **A sync that fails** leaves the cache as it is and marks
//!   clean what was written before it began, as Linux does: what it should have brought to the medium gets there only if it
//!   is written once more, and a later sync that succeeds says nothing about it.
//! - **Every write and sync takes time**, also one that fails: under shuttle, other threads go on while it is under way.
//! - **A full disk** refuses writes that would make the file longer, after writing what fits.
//! - Reads and writes may be short or interrupted at any time.

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;

use parking_lot::{Condvar, Mutex};

use super::Storage;
use crate::format::SECTOR_BYTES;
use crate::map::Map;
use crate::sync::yield_now;

/// What happens to one call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum DiskFault {
    /// The machine loses power in the middle of it. Every later call fails.
    PowerLoss,
    /// It fails with an input/output error, this once.
    Error,
    /// It fails with an input/output error, and so does every later one of its sort (read, write or sync).
    ErrorFromNowOn,
    /// It is interrupted by a signal before it did anything.
    Interrupted,
    /// It does only a part of what it was asked for.
    Short,
}

/// A sort of call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum CallKind {
    Read,
    Write,
    Sync,
}

/// What something became, and when.
#[derive(Debug, Clone)]
struct Change<T> {
    number: u64,
    became: T,
}

#[derive(Debug, Clone, Default)]
struct Disk {
    cache: Vec<u8>,
    medium: Vec<u8>,
    /// How many contents and lengths there were: each has the number of the last before it.
    changes: u64,
    /// Contents that sectors were given since the last sync, oldest first.
    unsynced: BTreeMap<usize, Vec<Change<Vec<u8>>>>,
    /// Lengths that the file had since the last sync.
    lengths: Vec<Change<usize>>,
    /// Sectors of the medium that hold synced bytes.
    synced: Vec<bool>,
    /// Calls so far, reads not counted.
    steps: u64,
    reads: u64,
    faults: BTreeMap<u64, DiskFault>,
    read_faults: BTreeMap<u64, DiskFault>,
    failing: Vec<CallKind>,
    has_power: bool,
    capacity_bytes: Option<usize>,
    cannot_reserve: bool,
    syncs: u64,
    path_target: PathTarget,
    is_unlocked: bool,
    touched_unlocked: u64,
    holds_syncs: bool,
    held_syncs: usize,
}

/// What the path of the file leads to, as the operating system says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum PathTarget {
    /// The file.
    #[default]
    Here,
    /// Another file, or none.
    Elsewhere,
    /// It cannot tell.
    Unknown,
}

/// A disk for tests: clones are the same disk.
#[derive(Debug, Clone)]
pub struct SimulatedDisk {
    disk: Arc<Mutex<Disk>>,
    /// Syncs that are held wait here, and whoever waits for one to be held.
    held: Arc<Condvar>,
}

impl Default for SimulatedDisk {
    fn default() -> SimulatedDisk {
        SimulatedDisk::new()
    }
}

impl SimulatedDisk {
    /// An empty disk without faults.
    #[must_use]
    pub fn new() -> SimulatedDisk {
        SimulatedDisk::holding(Vec::new())
    }

    /// A disk that holds `bytes`, all of them synced.
    #[must_use]
    pub fn holding(bytes: Vec<u8>) -> SimulatedDisk {
        let synced = vec![true; bytes.len().div_ceil(SECTOR_BYTES)];
        let disk = Disk { cache: bytes.clone(), medium: bytes, synced, has_power: true, ..Disk::default() };
        SimulatedDisk { disk: Arc::new(Mutex::new(disk)), held: Arc::default() }
    }

    /// Lets the write, sync or change of length with this number (from 0, of all since the disk was made) meet a fault.
    pub fn fault_at(&self, step: u64, fault: DiskFault) {
        self.disk.lock().faults.insert(step, fault);
    }

    /// The same for reads, which are counted on their own.
    pub fn fault_at_read(&self, read: u64, fault: DiskFault) {
        self.disk.lock().read_faults.insert(read, fault);
    }

    /// Ends all faults, those to come included; power is back.
    pub fn heal(&self) {
        let mut disk = self.disk.lock();
        disk.faults.clear();
        disk.read_faults.clear();
        disk.failing.clear();
        disk.has_power = true;
    }

    /// Changes a byte that has been synced, on the medium, as rot does: no sync and no crash brings it back. Nor does more
    /// rot, with an odd number: the byte grows by it each time.
    pub fn rot(&self, offset: usize, by: u8) {
        let mut disk = self.disk.lock();
        let disk = &mut *disk;
        for image in [&mut disk.cache, &mut disk.medium] {
            if let Some(byte) = image.get_mut(offset) {
                *byte = byte.wrapping_add(by);
            }
        }
    }

    /// The file cannot become longer than this; None: it can.
    pub fn set_capacity(&self, bytes: Option<usize>) {
        self.disk.lock().capacity_bytes = bytes;
    }

    /// Whether room can be reserved without writing, as some file systems cannot. They can to begin with.
    pub fn set_reserves(&self, reserves: bool) {
        self.disk.lock().cannot_reserve = !reserves;
    }

    /// Lets the path of the file lead elsewhere from now on, or to it again.
    pub fn set_path_target(&self, target: PathTarget) {
        self.disk.lock().path_target = target;
    }

    /// Holds every sync that begins from now on until [`release_syncs`](SimulatedDisk::release_syncs): a disk as slow as a
    /// test wants it. Not for tests under shuttle, which does not know of this wait.
    pub fn hold_syncs(&self) {
        self.disk.lock().holds_syncs = true;
    }

    /// Lets all syncs that are held go on, and holds no more of them.
    pub fn release_syncs(&self) {
        self.disk.lock().holds_syncs = false;
        self.held.notify_all();
    }

    /// Waits until a sync is held.
    pub fn wait_for_held_sync(&self) {
        let mut disk = self.disk.lock();
        while disk.held_syncs == 0 {
            self.held.wait(&mut disk);
        }
    }

    /// The file is locked, by whoever is about to open it.
    pub(crate) fn lock(&self) {
        self.disk.lock().is_unlocked = false;
    }

    /// How many reads, writes and changes of length there were after the file was unlocked: in a file, of another
    /// process's bytes. Syncs do no harm.
    #[must_use]
    pub fn touched_unlocked(&self) -> u64 {
        self.disk.lock().touched_unlocked
    }

    /// How many writes, syncs and changes of length there were.
    #[must_use]
    pub fn steps(&self) -> u64 {
        self.disk.lock().steps
    }

    /// How many reads there were.
    #[must_use]
    pub fn reads(&self) -> u64 {
        self.disk.lock().reads
    }

    /// How many syncs succeeded.
    #[must_use]
    pub fn syncs(&self) -> u64 {
        self.disk.lock().syncs
    }

    /// What the operating system shows.
    #[must_use]
    pub fn bytes(&self) -> Vec<u8> {
        self.disk.lock().cache.clone()
    }

    /// How many things a crash would decide now: sectors, and the length if it changed.
    #[must_use]
    pub fn undecided(&self) -> usize {
        let disk = self.disk.lock();
        disk.unsynced.len() + usize::from(!disk.lengths.is_empty())
    }

    /// The disk as it is after a crash at this moment. `decide(n)` decides each thing that is open: a number below `n`,
    /// where 0 is what was there before and `n - 1` (of a sector that never held synced bytes: `n - 2`, and `n - 1`
    /// is garbage) the latest.
    #[must_use]
    pub fn crash(&self, mut decide: impl FnMut(usize) -> usize) -> SimulatedDisk {
        let disk = self.disk.lock();
        let mut length = disk.medium.len();
        if !disk.lengths.is_empty() {
            let decided = decide(disk.lengths.len() + 1);
            let decided = decided.checked_sub(1).and_then(|at| disk.lengths.get(at));
            length = decided.map_or(length, |change| change.became);
        }
        let mut bytes = disk.medium.clone();
        bytes.resize(length, 0);
        for (sector, contents) in &disk.unsynced {
            let may_be_garbage = !disk.synced.get(*sector).copied().unwrap_or(false);
            let decided = decide(contents.len() + 1 + usize::from(may_be_garbage));
            let garbage = || (0..SECTOR_BYTES).map(|at| garbage_byte(*sector, at)).collect::<Vec<u8>>();
            let content = match decided.checked_sub(1) {
                None => continue,
                Some(at) => contents.get(at).map_or_else(garbage, |change| change.became.clone()),
            };
            let start = sector * SECTOR_BYTES;
            if let Some(place) = bytes.get_mut(start..) {
                let fits = place.len().min(content.len());
                place[..fits].copy_from_slice(&content[..fits]);
            }
        }
        SimulatedDisk::holding(bytes)
    }
}

/// Not zero, not text, and the same each time.
fn garbage_byte(sector: usize, at: usize) -> u8 {
    let mixed = (sector * 31 + at).wrapping_mul(0x9E37_79B9);
    u8::try_from((mixed >> 16) & 0xFF).unwrap_or(0xAA)
}

fn power_is_gone() -> io::Error {
    io::Error::other("simulated: the machine has lost power")
}

fn planted() -> io::Error {
    io::Error::other("simulated: input/output error")
}

impl Disk {
    /// Counts a call and says what happens to it.
    fn step(&mut self, kind: CallKind) -> io::Result<Option<DiskFault>> {
        if !self.has_power {
            return Err(power_is_gone());
        }
        self.touched_unlocked += u64::from(self.is_unlocked && kind != CallKind::Sync);
        let fault = if kind == CallKind::Read {
            self.reads += 1;
            self.read_faults.remove(&(self.reads - 1))
        } else {
            self.steps += 1;
            self.faults.remove(&(self.steps - 1))
        };
        match fault {
            Some(DiskFault::ErrorFromNowOn) => self.failing.push(kind),
            Some(DiskFault::PowerLoss) => self.has_power = false,
            Some(DiskFault::Interrupted) => return Err(io::ErrorKind::Interrupted.into()),
            Some(DiskFault::Error | DiskFault::Short) | None => {}
        }
        if fault.is_none() && self.failing.contains(&kind) {
            return Ok(Some(DiskFault::Error));
        }
        Ok(fault.map(|fault| if fault == DiskFault::ErrorFromNowOn { DiskFault::Error } else { fault }))
    }

    fn set_length(&mut self, length: usize) {
        if length == self.cache.len() {
            return;
        }
        // What is cut off is not there to be written any more; what is new reads as zero.
        let kept = length.div_ceil(SECTOR_BYTES);
        self.unsynced.retain(|sector, _| *sector < kept);
        if length < self.cache.len() && !length.is_multiple_of(SECTOR_BYTES) {
            self.cache.resize(length, 0);
            self.note(length / SECTOR_BYTES);
        }
        self.cache.resize(length, 0);
        let change = self.change(length);
        self.lengths.push(change);
    }

    fn put(&mut self, bytes: &[u8], offset: usize) {
        let end = offset + bytes.len();
        if end > self.cache.len() {
            self.set_length(end);
        }
        self.cache[offset..end].copy_from_slice(bytes);
        for sector in offset / SECTOR_BYTES..end.div_ceil(SECTOR_BYTES) {
            self.note(sector);
        }
    }

    /// Remembers what a sector holds now, as one of the things that a crash may leave there.
    fn note(&mut self, sector: usize) {
        let start = sector * SECTOR_BYTES;
        let end = (start + SECTOR_BYTES).min(self.cache.len());
        let content = self.change(self.cache[start..end].to_vec());
        self.unsynced.entry(sector).or_default().push(content);
    }

    fn change<T>(&mut self, became: T) -> Change<T> {
        self.changes += 1;
        Change { number: self.changes, became }
    }

    /// Everything up to the change of this number is clean and not on the medium: the cache shows what a crash will take away.
    fn mark_clean(&mut self, up_to: u64) {
        self.lengths.retain(|change| change.number > up_to);
        self.unsynced.retain(|_, contents| {
            contents.retain(|change| change.number > up_to);
            !contents.is_empty()
        });
    }

    /// Everything up to the change of this number is on the medium.
    fn bring_to_medium(&mut self, up_to: u64) {
        let is_later = |number: u64| number > up_to;
        let lengths = self.lengths.iter().take_while(|change| !is_later(change.number));
        let lengths: Vec<usize> = lengths.map(|change| change.became).collect();
        if let Some(length) = lengths.last() {
            // What lay beyond the shortest is gone, even if the file grew again.
            self.medium.truncate(lengths.iter().copied().min().unwrap_or_default());
            self.medium.resize(*length, 0);
            // A sync that makes a length durable makes what it uncovers durable too: zeroes, where nothing was written.
            self.synced.clear();
            self.synced.resize(length.div_ceil(SECTOR_BYTES), true);
            self.lengths.drain(..lengths.len());
        }
        for (sector, contents) in &mut self.unsynced {
            let count = contents.iter().take_while(|change| !is_later(change.number)).count();
            let Some(latest) = contents.drain(..count).next_back() else { continue };
            let start = sector * SECTOR_BYTES;
            if let Some(place) = self.medium.get_mut(start..) {
                let fits = place.len().min(latest.became.len());
                place[..fits].copy_from_slice(&latest.became[..fits]);
            }
            if let Some(synced) = self.synced.get_mut(*sector) {
                *synced = true;
            }
        }
        self.unsynced.retain(|_, contents| !contents.is_empty());
    }
}

/// Under shuttle, other threads go on for as long as a call takes. Elsewhere they do so by themselves, and to give up the
/// processor at every call would make thousands of histories wait for whatever else the machine does.
fn let_others_go_on() {
    if cfg!(oncekey_shuttle) {
        yield_now();
    }
}

fn place(offset: u64) -> io::Result<usize> {
    usize::try_from(offset).map_err(|_| io::ErrorKind::InvalidInput.into())
}

impl Storage for SimulatedDisk {
    fn len(&self) -> io::Result<u64> {
        let disk = self.disk.lock();
        if disk.has_power { Ok(disk.cache.len() as u64) } else { Err(power_is_gone()) }
    }

    fn set_len(&self, length: u64) -> io::Result<()> {
        let length = place(length)?;
        let_others_go_on();
        let mut disk = self.disk.lock();
        match disk.step(CallKind::Write)? {
            Some(DiskFault::Error) => Err(planted()),
            fault => {
                if length > disk.cache.len() && disk.capacity_bytes.is_some_and(|capacity| length > capacity)
                {
                    return Err(io::ErrorKind::StorageFull.into());
                }
                disk.set_length(length);
                if fault == Some(DiskFault::PowerLoss) { Err(power_is_gone()) } else { Ok(()) }
            }
        }
    }

    // For a crash, a change of length like any other; the full disk is met here and not by the writes into it.
    fn reserve(&self, offset: u64, length: u64) -> io::Result<bool> {
        if self.disk.lock().cannot_reserve {
            return Ok(false);
        }
        let longest = self.len()?.max(offset + length);
        match self.set_len(longest) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => Ok(false),
            outcome => outcome.map(|()| true),
        }
    }

    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        // A read may take as long as anything that other threads do meanwhile.
        let_others_go_on();
        let mut disk = self.disk.lock();
        let fault = disk.step(CallKind::Read)?;
        match fault {
            Some(DiskFault::Error) => return Err(planted()),
            Some(DiskFault::PowerLoss) => return Err(power_is_gone()),
            _ => {}
        }
        let rest = disk.cache.get(place(offset)?..).unwrap_or_default();
        let asked = if fault == Some(DiskFault::Short) { buffer.len().div_ceil(2) } else { buffer.len() };
        let length = rest.len().min(asked);
        buffer[..length].copy_from_slice(&rest[..length]);
        Ok(length)
    }

    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<usize> {
        let offset = place(offset)?;
        // Other threads go on while a write is under way, whatever becomes of it.
        let_others_go_on();
        let mut disk = self.disk.lock();
        let fault = disk.step(CallKind::Write)?;
        let mut length = match fault {
            // A write that fails may have got somewhere all the same.
            Some(DiskFault::Short | DiskFault::Error) => bytes.len() / 2,
            _ => bytes.len(),
        };
        if fault == Some(DiskFault::Short) {
            length = length.max(1);
        }
        if let Some(capacity) = disk.capacity_bytes.map(|capacity| capacity.max(disk.cache.len())) {
            length = length.min(capacity.saturating_sub(offset));
            if length == 0 && !bytes.is_empty() {
                return Err(io::ErrorKind::StorageFull.into());
            }
        }
        disk.put(&bytes[..length.min(bytes.len())], offset);
        match fault {
            Some(DiskFault::Error) => Err(planted()),
            Some(DiskFault::PowerLoss) => Err(power_is_gone()),
            _ => Ok(length),
        }
    }

    fn sync_data(&self) -> io::Result<()> {
        let mut disk = self.disk.lock();
        let fault = disk.step(CallKind::Sync)?;
        if fault == Some(DiskFault::PowerLoss) {
            // Some of it may have reached the medium, which is what a crash decides anyway.
            return Err(power_is_gone());
        }
        let begun = disk.changes;
        drop(disk);
        // A sync takes its time, also one that fails in the end, and other threads write meanwhile.
        let_others_go_on();
        let mut disk = self.disk.lock();
        if disk.holds_syncs {
            disk.held_syncs += 1;
            self.held.notify_all();
            while disk.holds_syncs {
                self.held.wait(&mut disk);
            }
            disk.held_syncs -= 1;
        }
        if !disk.has_power {
            return Err(power_is_gone());
        }
        if fault == Some(DiskFault::Error) {
            disk.mark_clean(begun);
            return Err(planted());
        }
        disk.bring_to_medium(begun);
        disk.syncs += 1;
        Ok(())
    }

    fn sync_all(&self) -> io::Result<()> {
        self.sync_data()
    }

    fn is_in_place(&self) -> io::Result<bool> {
        match self.disk.lock().path_target {
            PathTarget::Here => Ok(true),
            PathTarget::Elsewhere => Ok(false),
            PathTarget::Unknown => Err(planted()),
        }
    }

    fn unlock(&self) {
        self.disk.lock().is_unlocked = true;
    }

    fn map(&self, _offset: u64, _length: usize) -> io::Result<Option<Map>> {
        Ok(None)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_synced_survives_every_crash_and_what_was_not_may_go_either_way() {
        let disk = SimulatedDisk::new();
        disk.write_at(&[1; 1_024], 0).unwrap();
        disk.sync_data().unwrap();
        disk.write_at(&[2; 512], 512).unwrap();
        assert_eq!(disk.undecided(), 1);
        let lost = disk.crash(|_| 0).bytes();
        assert_eq!(lost, [1; 1_024]);
        let kept = disk.crash(|choices| choices - 1).bytes();
        assert_eq!(
            (&kept[..512], &kept[512..]),
            (&[1; 512][..], &[2; 512][..]),
            "held synced bytes: no garbage"
        );
    }

    #[test]
    fn what_rots_is_changed_whatever_follows() {
        let disk = SimulatedDisk::holding(vec![1; 1_024]);
        disk.rot(700, 0x11);
        disk.write_at(&[2; 512], 0).unwrap();
        for image in [disk.clone(), disk.crash(|_| 0), disk.crash(|of| of - 1)] {
            assert_eq!((image.bytes()[700], image.bytes()[701]), (0x12, 1));
        }
    }

    #[test]
    fn a_sector_that_never_held_synced_bytes_may_hold_garbage() {
        let disk = SimulatedDisk::new();
        disk.write_at(&[1; 512], 0).unwrap();
        let image = disk.crash(|choices| choices - 1).bytes();
        assert_eq!(image.len(), 512);
        assert!(image != [1; 512] && image != [0; 512]);
        assert_eq!(disk.crash(|_| 0).bytes(), [0; 0], "the length is lost on its own");
    }

    #[test]
    fn what_is_written_while_a_sync_is_under_way_stays_open() {
        let disk = SimulatedDisk::new();
        disk.write_at(&[1; 1_024], 0).unwrap();
        let begun = disk.disk.lock().changes;
        disk.write_at(&[2; 1_024], 512).unwrap();
        disk.disk.lock().bring_to_medium(begun);
        assert_eq!(disk.undecided(), 3, "two sectors, and the length");
        assert_eq!(disk.crash(|_| 0).bytes(), [1; 1_024]);
        let latest = [[1; 512], [2; 512], [2; 512]].concat();
        let kept = disk.crash(|choices| choices.min(2) - 1).bytes();
        assert_eq!(kept, latest);
        disk.sync_data().unwrap();
        assert_eq!((disk.undecided(), disk.crash(|_| 0).bytes()), (0, latest));
    }

    #[test]
    fn a_failed_sync_marks_clean_what_is_not_on_the_medium() {
        let disk = SimulatedDisk::new();
        disk.write_at(&[1; 512], 0).unwrap();
        disk.sync_data().unwrap();
        disk.write_at(&[2; 512], 0).unwrap();
        disk.fault_at(disk.steps(), DiskFault::Error);
        assert!(disk.sync_data().is_err());
        disk.sync_data().unwrap();
        assert_eq!(disk.bytes(), [2; 512], "the cache shows it");
        assert_eq!(disk.crash(|choices| choices - 1).bytes(), [1; 512], "and the medium never got it");
    }

    #[test]
    fn after_power_is_lost_nothing_works_and_the_call_itself_may_have_gone_either_way() {
        let disk = SimulatedDisk::new();
        disk.write_at(&[1; 512], 0).unwrap();
        disk.sync_data().unwrap();
        disk.fault_at(disk.steps(), DiskFault::PowerLoss);
        assert!(disk.write_at(&[2; 512], 0).is_err());
        assert!(disk.sync_data().is_err() && disk.len().is_err() && disk.read_at(&mut [0], 0).is_err());
        assert_eq!(disk.crash(|_| 0).bytes(), [1; 512]);
        assert_eq!(disk.crash(|_| 1).bytes(), [2; 512]);
    }
}
