//! The end of one session and the opening of the next, also after a crash and a reboot.

use std::time::Duration;

use oncekey::simulation::{PathTarget, SimulatedDisk};
use oncekey::{ClockJump, Durability, Error};

use super::act::Act;
use super::{SEGMENT_BYTES, World, options};

impl World {
    /// Ends the session, cleanly or not, and opens the store again, as `act` says.
    pub fn open_again(&mut self, act: Act) -> Result<(), Error> {
        self.leases.clear();
        let store = self.store.take().unwrap();
        if let Act::ReopenBack(by_ms) = act {
            self.step(-i64::from(by_ms));
        }
        if matches!(act, Act::Reopen | Act::ReopenBack(_) | Act::Reboot(_)) {
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
        self.buffered = act == Act::DropToBuffered;
        if self.buffered {
            // Alternate between a disk that can reserve space and one on which the store must write zeroes.
            self.reserves = !self.reserves;
            self.disk.set_reserves(self.reserves);
        }
        let durability = if self.buffered { Durability::Buffered } else { Durability::Sync };
        let options = options(&self.clock).durability(durability);
        let before = self.disk.bytes().len();
        let longer = (before + 2 * SEGMENT_BYTES).min(12 * SEGMENT_BYTES).max(before);
        let mut opened = match act {
            Act::DropToLonger => options.clone().min_size(longer as u64).open_simulated(&self.disk),
            _ => options.open_simulated(&self.disk),
        };
        if let (Act::DropToLonger, Err(Error::Full { .. })) = (act, &opened) {
            let length = self.disk.bytes().len();
            assert!(
                length <= before,
                "the refused opening left {length} bytes, more than the {before} before"
            );
            opened = options.open_simulated(&self.disk);
        } else if act == Act::DropToLonger && opened.is_ok() {
            assert!(self.disk.bytes().len() >= longer, "{act:?}: shorter than min_size");
        }
        match opened {
            Ok(store) => {
                assert_eq!(store.stats().store_time_ms, self.time_ms, "{act:?}: store time did not continue");
                self.store = Some(store);
                // An opening syncs what it found before it answers from it.
                self.oracle.durable = self.oracle.history.len() - 1;
            }
            Err(error) => return self.failed(act, error),
        }
        Ok(())
    }

    /// Checks store time when the image of a crash is opened in another boot. It must be the store time of some moment
    /// since the last durable record, or go on from such a moment by the wall clock.
    pub fn check_after_reboot(&self, image: &SimulatedDisk) -> Result<(), String> {
        let clock = self.clock.snapshot();
        clock.reboot(Duration::from_secs(5));
        let options =
            options(&clock).max_downtime(Duration::from_secs(3_600)).accept_clock_jump(ClockJump::NotElapsed);
        let store = options
            .open_simulated(&SimulatedDisk::holding(image.bytes()))
            .map_err(|error| format!("after a reboot: {error}"))?;
        let store_ms = i128::from(store.stats().store_time_ms);
        let least_ms = i128::from(self.oracle.times_ms[self.oracle.durable]);
        // It stands still at such a moment, or it went on with the offset that the wall clock had at one.
        let stands_still = (least_ms..=i128::from(self.time_ms)).contains(&store_ms);
        let wall_ms = i128::from(clock.now_ms());
        if stands_still
            || self.offsets_since_durable().any(|offset_ms| wall_ms - i128::from(offset_ms) == store_ms)
        {
            return Ok(());
        }
        Err(format!(
            "after a reboot: store time is {store_ms} ms, {} ms after the crash",
            store_ms - i128::from(self.time_ms)
        ))
    }
}
