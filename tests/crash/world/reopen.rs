//! Ends a session and opens the store again, also after a crash and a reboot.

use std::time::Duration;

use oncekey::simulation::{PathTarget, SimulatedDisk};
use oncekey::{ClockJump, Durability, Error};

use super::act::Act;
use super::{SEGMENT_BYTES, World, options};

impl World {
    /// Performs an act that closes or drops the store and opens it again.
    pub fn open_again(&mut self, act: Act) -> Result<(), Error> {
        self.late.clear();
        self.leases.clear();
        let store = self.store.take().unwrap();
        if let Act::ReopenWithClockSetBack(by_ms) = act {
            self.step_wall_clock(-i64::from(by_ms));
        }
        if matches!(act, Act::Reopen | Act::ReopenWithClockSetBack(_) | Act::Reboot(_)) {
            let closed = store.close();
            // A second close repeats a failure, and otherwise reports that the store is closed.
            match (&closed, store.close()) {
                (Ok(()), Err(Error::Closed))
                | (Err(Error::Poisoned { .. }), Err(Error::Poisoned { .. }))
                | (Err(Error::Replaced { .. }), Err(Error::Replaced { .. })) => {}
                (first, second) => panic!("{act:?}: closed with {first:?} and then {second:?}"),
            }
            assert!(matches!(store.get("k"), Err(Error::Closed)));
            match closed {
                Ok(()) => assert!(!self.replaced, "{act:?}: did not report that the path was replaced"),
                Err(Error::Replaced { .. }) if self.replaced => {}
                Err(error) => return self.failed(act, error),
            }
            self.oracle.durable = self.oracle.history.len() - 1;
        } else {
            drop(store);
        }
        if let Act::Reboot(down_ms) = act {
            self.clock.reboot(Duration::from_millis(u64::from(down_ms)));
            self.time_ms += u64::from(down_ms);
        }
        self.disk.set_path_target(PathTarget::Here);
        self.replaced = false;
        self.buffered = act == Act::DropAndReopenBuffered;
        if self.buffered {
            // Alternate between a disk that can reserve space and one on which the store must write zeroes.
            self.reserves = !self.reserves;
            self.disk.set_reserves(self.reserves);
        }
        let durability = if self.buffered { Durability::Buffered } else { Durability::Sync };
        let options = options(&self.clock).durability(durability);
        let before = self.disk.bytes().len();
        let larger = (before + 2 * SEGMENT_BYTES).min(12 * SEGMENT_BYTES).max(before);
        let mut opened = match act {
            Act::DropAndReopenLarger => options.clone().min_size(larger as u64).open_simulated(&self.disk),
            _ => options.open_simulated(&self.disk),
        };
        if let (Act::DropAndReopenLarger, Err(Error::Full { .. })) = (act, &opened) {
            let length = self.disk.bytes().len();
            assert!(
                length <= before,
                "the file has {length} bytes after the refusal, and had {before} before"
            );
            opened = options.open_simulated(&self.disk);
        } else if act == Act::DropAndReopenLarger && opened.is_ok() {
            assert!(self.disk.bytes().len() >= larger, "{act:?}: shorter than min_size");
        }
        match opened {
            Ok(store) => {
                assert_eq!(store.stats().store_time_ms, self.time_ms, "{act:?}: store time did not continue");
                // Dropping a store whose disk has failed may not have written the release.
                if !std::mem::take(&mut self.unstarted).is_empty()
                    && let Ok(at) = self.oracle.locate(&store)
                {
                    self.resume_at(at);
                }
                self.store = Some(store);
                // Opening a store syncs everything in its file.
                self.oracle.durable = self.oracle.history.len() - 1;
            }
            Err(error) => return self.failed(act, error),
        }
        Ok(())
    }

    /// Opens the image of a crash in another boot and checks store time. It must be the store time of a moment since the
    /// last durable record, or must have continued from such a moment by the wall clock.
    pub fn check_after_reboot(&self, image: &SimulatedDisk) -> Result<(), String> {
        let clock = self.clock.snapshot();
        clock.reboot(Duration::from_secs(5));
        let options =
            options(&clock).max_downtime(Duration::from_secs(3_600)).accept_clock_jump(ClockJump::NotElapsed);
        let store = options
            .open_simulated(&SimulatedDisk::holding(image.bytes()))
            .map_err(|error| format!("after a reboot: {error}"))?;
        let store_ms = i128::from(store.stats().store_time_ms);
        let min_ms = i128::from(self.oracle.times_ms[self.oracle.durable]);
        let stands_still = (min_ms..=i128::from(self.time_ms)).contains(&store_ms);
        let wall_ms = i128::from(clock.now_ms());
        if stands_still
            || self.offsets_since_durable().any(|offset_ms| wall_ms - i128::from(offset_ms) == store_ms)
        {
            return Ok(());
        }
        Err(format!(
            "after a reboot: store time is {store_ms} ms, which is {} ms later than at the crash",
            store_ms - i128::from(self.time_ms)
        ))
    }
}
