//! A disk for tests that can lose power, fill up and fail. It is available with the feature `__simulation`, which is not
//! part of the public interface.
//!
//! # The fault model
//!
//! The disk keeps two images: the one that the operating system shows (the cache), and the one that survives a crash (the
//! medium).
//!
//! - **A sync that succeeds** writes to the medium everything that was written before the sync began, and the length. Bytes
//!   that other threads write during the sync stay unsynced.
//! - **A crash** ([`SimulatedDisk::crash`]) determines the content of each sector (512 bytes) that was written since the
//!   last sync, independently of all other sectors and in no order. The sector has its content from before, or any content
//!   that was written to it since. A sector that never contained synced bytes may also contain garbage. A sector that did is
//!   written whole or not at all. This is the one assumption about the medium (powersafe overwrite).
//! - **The length** after a crash is independent of the sectors: the old length, the new one, or any that the file had in
//!   between.
//! - **A write that fails** may have reached the cache in part.
//! - **A sync that fails** does not change the cache, and marks everything that was written before it began as clean, as
//!   Linux does. Those bytes reach the medium only if they are written again; a later sync that succeeds is not enough.
//! - **Every write and sync takes time**, even one that fails: under shuttle, other threads run meanwhile.
//! - **A full disk** refuses writes that would make the file longer, after writing what fits.
//! - **Reads and writes** may be short or interrupted at any time.

mod disk;

use std::io;
use std::sync::Arc;

use parking_lot::{Condvar, Mutex};

use super::Storage;
use crate::map::Map;
use crate::sync::yield_now;
use disk::{CallKind, Disk, input_output_error, power_is_gone};

#[cfg_attr(
    not(feature = "__simulation"),
    allow(unreachable_pub, reason = "public with that feature only")
)]
pub use disk::{DiskFault, PathTarget};

/// A disk for tests. Clones are the same disk.
#[derive(Debug, Clone)]
pub struct SimulatedDisk {
    disk: Arc<Mutex<Disk>>,
    /// Delayed syncs wait here to be released, and tests wait here for a sync to be delayed. Notified when either happens.
    delay_changed: Arc<Condvar>,
}

impl Default for SimulatedDisk {
    fn default() -> SimulatedDisk {
        SimulatedDisk::new()
    }
}

impl SimulatedDisk {
    /// Creates an empty disk without faults.
    #[must_use]
    pub fn new() -> SimulatedDisk {
        SimulatedDisk::holding(Vec::new())
    }

    /// Creates a disk whose content is `bytes`, all of them synced.
    #[must_use]
    pub fn holding(bytes: Vec<u8>) -> SimulatedDisk {
        let disk = Arc::new(Mutex::new(Disk::with_synced(bytes)));
        SimulatedDisk { disk, delay_changed: Arc::default() }
    }

    /// Plants a fault in the write, sync or change of length with this number. They are counted together, from 0, since the
    /// disk was created.
    pub fn fault_at(&self, step: u64, fault: DiskFault) {
        self.disk.lock().faults.insert(step, fault);
    }

    /// Plants a fault in the read with this number. Reads are counted separately, from 0.
    pub fn fault_at_read(&self, read: u64, fault: DiskFault) {
        self.disk.lock().read_faults.insert(read, fault);
    }

    /// Removes all faults, including planted ones that have not occurred, and restores power.
    pub fn heal(&self) {
        self.disk.lock().heal();
    }

    /// Simulates bit rot: adds `by` to a synced byte in both images, so that no sync and no crash restores the byte. With an
    /// odd `by`, only the 256th call for the same byte restores it.
    pub fn rot(&self, offset: usize, by: u8) {
        self.disk.lock().rot(offset, by);
    }

    /// Limits the length of the file. None removes the limit.
    pub fn set_capacity(&self, bytes: Option<usize>) {
        self.disk.lock().capacity_bytes = bytes;
    }

    /// Sets whether the disk can reserve space without writing, as some file systems cannot. A new disk can.
    pub fn set_reserves(&self, reserves: bool) {
        self.disk.lock().reserve_is_unsupported = !reserves;
    }

    /// Sets which file the store's path refers to.
    pub fn set_path_target(&self, target: PathTarget) {
        self.disk.lock().path_target = target;
    }

    /// Delays every sync that begins from now on until [`release_syncs`](SimulatedDisk::release_syncs) is called. Tests
    /// under shuttle must not use this, because shuttle cannot schedule around the wait.
    pub fn delay_syncs(&self) {
        self.disk.lock().delays_syncs = true;
    }

    /// Lets all delayed syncs continue, and delays no more of them.
    pub fn release_syncs(&self) {
        self.disk.lock().delays_syncs = false;
        self.delay_changed.notify_all();
    }

    /// Waits until a sync is being delayed.
    pub fn wait_for_delayed_sync(&self) {
        let mut disk = self.disk.lock();
        while disk.delayed_syncs == 0 {
            self.delay_changed.wait(&mut disk);
        }
    }

    /// Locks the file. Called before a store opens it.
    pub(crate) fn lock(&self) {
        self.disk.lock().is_unlocked = false;
    }

    /// The number of reads, writes and changes of length while the file was unlocked, when another process might have opened
    /// it. Syncs do no harm and are not counted.
    #[must_use]
    pub fn touched_unlocked(&self) -> u64 {
        self.disk.lock().touched_unlocked
    }

    /// The number of writes, syncs and changes of length so far.
    #[must_use]
    pub fn steps(&self) -> u64 {
        self.disk.lock().steps
    }

    /// The number of reads so far.
    #[must_use]
    pub fn reads(&self) -> u64 {
        self.disk.lock().reads
    }

    /// The number of syncs that succeeded.
    #[must_use]
    pub fn syncs(&self) -> u64 {
        self.disk.lock().syncs
    }

    /// The image that the operating system shows.
    #[must_use]
    pub fn bytes(&self) -> Vec<u8> {
        self.disk.lock().cache.clone()
    }

    /// The number of sectors that have unsynced changes, plus one if the length has changed. For each of these, a crash
    /// makes one decision.
    #[must_use]
    pub fn undecided(&self) -> usize {
        self.disk.lock().undecided()
    }

    /// Returns the disk after a crash at this moment.
    ///
    /// `decide(n)` is called for the length and for each sector that have unsynced changes, and returns a number below `n`:
    /// 0 keeps the synced state, and `n - 1` chooses the latest. For a sector that never contained synced bytes, `n - 2`
    /// chooses the latest content, and `n - 1` garbage.
    #[must_use]
    pub fn crash(&self, decide: impl FnMut(usize) -> usize) -> SimulatedDisk {
        SimulatedDisk::holding(self.disk.lock().crash(decide))
    }
}

/// Under shuttle, lets other threads run during a call. Otherwise they run anyway, and yielding in every call would slow
/// down the thousands of histories that tests try.
fn let_others_run() {
    if cfg!(oncekey_shuttle) {
        yield_now();
    }
}

fn to_usize(offset: u64) -> io::Result<usize> {
    usize::try_from(offset).map_err(|_| io::ErrorKind::InvalidInput.into())
}

impl Storage for SimulatedDisk {
    fn len(&self) -> io::Result<u64> {
        let disk = self.disk.lock();
        disk.check_power()?;
        Ok(disk.cache.len() as u64)
    }

    fn set_len(&self, length: u64) -> io::Result<()> {
        let length = to_usize(length)?;
        let_others_run();
        let mut disk = self.disk.lock();
        match disk.step(CallKind::Write)? {
            Some(DiskFault::Error) => Err(input_output_error()),
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

    // A reservation is simulated as a change of length. A full disk refuses it here, so the writes that follow succeed.
    fn reserve(&self, offset: u64, length: u64) -> io::Result<bool> {
        if self.disk.lock().reserve_is_unsupported {
            return Ok(false);
        }
        let new_length = self.len()?.max(offset + length);
        match self.set_len(new_length) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => Ok(false),
            outcome => outcome.map(|()| true),
        }
    }

    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        // A read takes time, so other threads run meanwhile.
        let_others_run();
        let mut disk = self.disk.lock();
        let fault = disk.step(CallKind::Read)?;
        match fault {
            Some(DiskFault::Error) => return Err(input_output_error()),
            Some(DiskFault::PowerLoss) => return Err(power_is_gone()),
            _ => {}
        }
        let rest = disk.cache.get(to_usize(offset)?..).unwrap_or_default();
        let wanted = if fault == Some(DiskFault::Short) { buffer.len().div_ceil(2) } else { buffer.len() };
        let length = rest.len().min(wanted);
        buffer[..length].copy_from_slice(&rest[..length]);
        Ok(length)
    }

    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<usize> {
        let offset = to_usize(offset)?;
        let_others_run();
        let mut disk = self.disk.lock();
        let fault = disk.step(CallKind::Write)?;
        let mut length = match fault {
            // A write that fails may have written some of its bytes.
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
            Some(DiskFault::Error) => Err(input_output_error()),
            Some(DiskFault::PowerLoss) => Err(power_is_gone()),
            _ => Ok(length),
        }
    }

    fn sync_data(&self) -> io::Result<()> {
        let mut disk = self.disk.lock();
        let fault = disk.step(CallKind::Sync)?;
        if fault == Some(DiskFault::PowerLoss) {
            // Some bytes may have reached the medium. The simulated crash that follows determines which.
            return Err(power_is_gone());
        }
        let begun = disk.changes;
        drop(disk);
        // A sync takes time, even if it fails in the end, and other threads write meanwhile.
        let_others_run();
        let mut disk = self.disk.lock();
        if disk.delays_syncs {
            disk.delayed_syncs += 1;
            self.delay_changed.notify_all();
            while disk.delays_syncs {
                self.delay_changed.wait(&mut disk);
            }
            disk.delayed_syncs -= 1;
        }
        disk.check_power()?;
        if fault == Some(DiskFault::Error) {
            disk.mark_clean(begun);
            return Err(input_output_error());
        }
        disk.write_to_medium(begun);
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
            PathTarget::Unknown => Err(input_output_error()),
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
    fn synced_bytes_survive_a_crash_and_unsynced_ones_may_not() {
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
            "a sector with synced bytes must not become garbage"
        );
    }

    #[test]
    fn rot_outlasts_writes_and_crashes() {
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
        assert_eq!(disk.crash(|_| 0).bytes(), [0; 0], "the length is independent of the sectors");
    }

    #[test]
    fn bytes_written_during_a_sync_stay_unsynced() {
        let disk = SimulatedDisk::new();
        disk.write_at(&[1; 1_024], 0).unwrap();
        let begun = disk.disk.lock().changes;
        disk.write_at(&[2; 1_024], 512).unwrap();
        disk.disk.lock().write_to_medium(begun);
        assert_eq!(disk.undecided(), 3, "two sectors, and the length");
        assert_eq!(disk.crash(|_| 0).bytes(), [1; 1_024]);
        let latest = [[1; 512], [2; 512], [2; 512]].concat();
        let kept = disk.crash(|choices| choices.min(2) - 1).bytes();
        assert_eq!(kept, latest);
        disk.sync_data().unwrap();
        assert_eq!((disk.undecided(), disk.crash(|_| 0).bytes()), (0, latest));
    }

    #[test]
    fn a_failed_sync_marks_unsynced_bytes_clean() {
        let disk = SimulatedDisk::new();
        disk.write_at(&[1; 512], 0).unwrap();
        disk.sync_data().unwrap();
        disk.write_at(&[2; 512], 0).unwrap();
        disk.fault_at(disk.steps(), DiskFault::Error);
        assert!(disk.sync_data().is_err());
        disk.sync_data().unwrap();
        assert_eq!(disk.bytes(), [2; 512], "the cache shows the new bytes");
        assert_eq!(disk.crash(|choices| choices - 1).bytes(), [1; 512], "the medium never got the new bytes");
    }

    #[test]
    fn after_power_loss_all_calls_fail_and_the_last_write_is_uncertain() {
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
