//! Store time: the time in which retention and lease deadlines are counted, in milliseconds since the Unix epoch.
//!
//! The wall clock alone is not safe. If it is set forward, by an administrator or after a boot with a wrong date, everything
//! the store remembers would expire at once, and every retry would run its side effect again. Store time therefore starts at
//! the wall clock and runs on the boot-time clock, which cannot be set and counts suspend. It follows the wall clock by at most
//! two seconds an hour.
//!
//! Invariant: store time never goes back, neither within a session (the period for which a store is open) nor from one
//! session to the next.
//!
//! [`StoreClock`] is the time of one open store; the engine and the log read it. Marks in the log carry store time from one
//! session to the next. Each mark ([`TimeMark`]) has the store time, wall clock and boot-time clock of one moment.
//! [`judge_opening`] returns how store time continues from the latest mark. Every store has a mark, because creating the
//! store writes the first one.

mod mark;
mod source;

use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use parking_lot::Mutex;

pub use mark::ClockJump;
pub(crate) use mark::{
    DEFAULT_MAX_DOWNTIME_MS, HighWater, Jumped, OpeningRules, OpeningTime, TimeMark, judge_opening,
};
pub use source::ManualClock;
pub(crate) use source::{BootId, Reading, Sleepers, SystemTimeSource, TimeSource};

use crate::planted::{Bug, planted};

/// The maximum step of the wall clock against the boot-time clock that store time follows, in ms. A time service corrects a
/// clock by less than this, and a leap second is one second; a clock that is set by hand moves by more.
const MAX_FOLLOWED_STEP_MS: u64 = 10_000;

/// Store time follows the wall clock by at most one ms in this many: two seconds an hour. At a higher rate, many small steps
/// could move store time as far as one large step, which it must not follow. At this rate, a retention is wrong by less than
/// a thousandth, whatever the wall clock does.
const FOLLOW_DIVISOR: u64 = 1_800;

/// The interval between two comparisons with the wall clock, in ms. Reading it in every call would double the cost of reading
/// the time, and the drift within a second does not matter.
const COMPARE_INTERVAL_MS: u64 = 1_000;

/// The maximum time that reading the wall clock may take, in ms. A longer pause between the readings of the two clocks (a
/// stopped process, a busy machine) would look like a step of the wall clock, so the reading is discarded.
const MAX_READING_MS: u64 = 50;

/// One day, in ms.
const DAY_MS: u64 = 24 * 60 * 60 * 1_000;

/// Converts a duration to whole ms, rounded down. Saturates.
fn whole_ms(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

/// Returns `to_ms - from_ms`. Saturates.
fn signed_difference_ms(to_ms: u64, from_ms: u64) -> i64 {
    let difference = i128::from(to_ms) - i128::from(from_ms);
    i64::try_from(difference).unwrap_or(if difference < 0 { i64::MIN } else { i64::MAX })
}

/// How far store time has followed the wall clock.
#[derive(Debug)]
struct Followed {
    /// Wall time less boot time, in ms, as far as store time has followed it.
    difference_ms: i64,
    /// The boot time of the last comparison, in ms.
    compared_ms: u64,
    /// The part of the time before that comparison that was too short to follow the wall clock by a whole ms.
    rest_ms: u64,
}

/// The store time of one open store: the boot-time clock plus a difference.
///
/// The difference changes as store time follows the wall clock, by at most one ms in 1,800. If the wall clock is behind,
/// store time runs slower by as much, but never stops or goes back. A step of more than ten seconds is counted once and not
/// followed. From then on, store time follows only changes relative to the new distance.
///
/// All atomics are relaxed. Time must not go back for a thread that can compare two readings. Such a thread has the first
/// reading before it takes the second, so it also sees the `last_ms` that the first one stored, or a later one, and no reading
/// is below the `last_ms` that it saw.
#[derive(Debug)]
pub(crate) struct StoreClock {
    source: Arc<dyn TimeSource>,
    boot: BootId,
    /// Store time less boot time, in ms.
    difference_ms: AtomicI64,
    /// The latest store time that was returned to any caller, in ms since the Unix epoch.
    last_ms: AtomicU64,
    /// The boot time at which the next comparison with the wall clock is due, in ms.
    next_comparison_ms: AtomicU64,
    /// The number of steps of the wall clock that were too large to follow.
    steps_not_followed: AtomicU64,
    /// Locked by the thread that is comparing, because two threads that compared with the same value would follow one step
    /// twice.
    followed: Mutex<Followed>,
}

impl StoreClock {
    /// Starts store time at `store_ms`, which [`judge_opening`] returned for the same reading of the clocks.
    pub(crate) fn start(source: Arc<dyn TimeSource>, now: Reading, store_ms: u64) -> StoreClock {
        let Reading { wall_ms, boot, boot_ms } = now;
        StoreClock {
            source,
            boot,
            difference_ms: AtomicI64::new(signed_difference_ms(store_ms, boot_ms)),
            last_ms: AtomicU64::new(store_ms),
            next_comparison_ms: AtomicU64::new(boot_ms.saturating_add(COMPARE_INTERVAL_MS)),
            steps_not_followed: AtomicU64::new(0),
            // Starts from the wall clock and not from store time. Store time may differ from the wall clock at the start, and
            // that difference is not a step.
            followed: Mutex::new(Followed {
                difference_ms: signed_difference_ms(wall_ms, boot_ms),
                compared_ms: boot_ms,
                rest_ms: 0,
            }),
        }
    }

    /// Returns the store time now, in ms since the Unix epoch. Never less than a time that any thread got before.
    pub(crate) fn now_ms(&self) -> u64 {
        self.at(self.source.boot_ms())
    }

    /// Returns a mark for the log. Its store time is not less than any that was returned before.
    ///
    /// The wall clock is read last. If the thread is paused just before that, the wall clock in the mark is late, and after a
    /// reboot store time omits the pause. If the wall clock were read first, store time would count the pause twice.
    pub(crate) fn mark(&self) -> TimeMark {
        let boot_ms = self.source.boot_ms();
        let store_ms = self.at(boot_ms);
        TimeMark { store_ms, wall_ms: self.source.wall_ms(), boot: self.boot, boot_ms }
    }

    /// Returns the store time at `boot_ms` of the boot-time clock.
    fn at(&self, boot_ms: u64) -> u64 {
        if boot_ms >= self.next_comparison_ms.load(Ordering::Relaxed) {
            self.follow_wall_clock();
        }
        let now_ms = boot_ms.saturating_add_signed(self.difference_ms.load(Ordering::Relaxed));
        let last_ms = self.last_ms.load(Ordering::Relaxed);
        if now_ms <= last_ms {
            // This is still the same millisecond, or store time runs slow. Nothing is stored, so that the cache line changes
            // at most a thousand times a second instead of in every call.
            return last_ms;
        }
        self.last_ms.fetch_max(now_ms, Ordering::Relaxed).max(now_ms)
    }

    /// Returns the latest store time that any caller got, in ms since the Unix epoch. Takes no lock.
    pub(crate) fn latest_ms(&self) -> u64 {
        self.last_ms.load(Ordering::Relaxed)
    }

    /// Returns the number of steps of the wall clock since the store was opened that were too large to follow. Each counts
    /// once.
    pub(crate) fn steps_not_followed(&self) -> u64 {
        self.steps_not_followed.load(Ordering::Relaxed)
    }

    /// Whether store time passes only when a test advances the clock.
    pub(crate) fn is_manual(&self) -> bool {
        self.source.is_manual()
    }

    /// Registers threads that are to be woken when a [`ManualClock`] advances.
    pub(crate) fn wake_when_moved(&self, sleepers: Weak<dyn Sleepers>) {
        self.source.wake_when_moved(sleepers);
    }

    /// Compares the wall clock with the boot-time clock. If they have moved apart a little, moves store time a little towards
    /// the wall clock.
    fn follow_wall_clock(&self) {
        // If another thread is comparing, this one uses the time as it is, so that no thread waits for the time.
        let Some(mut followed) = self.followed.try_lock() else { return };
        let boot_ms = self.source.boot_ms();
        if boot_ms < self.next_comparison_ms.load(Ordering::Relaxed) {
            return;
        }
        let wall_ms = self.source.wall_ms();
        if self.source.boot_ms().saturating_sub(boot_ms) > MAX_READING_MS {
            return;
        }
        self.next_comparison_ms.store(boot_ms.saturating_add(COMPARE_INTERVAL_MS), Ordering::Relaxed);

        let passed_ms = boot_ms.saturating_sub(followed.compared_ms).saturating_add(followed.rest_ms);
        (followed.compared_ms, followed.rest_ms) = (boot_ms, passed_ms % FOLLOW_DIVISOR);
        let max_ms = i64::try_from(passed_ms / FOLLOW_DIVISOR).unwrap_or(i64::MAX);
        let max_ms = if planted(Bug::ClockStepNotSlewed) { i64::MAX } else { max_ms };

        let difference_ms = signed_difference_ms(wall_ms, boot_ms);
        let away_ms = difference_ms.saturating_sub(followed.difference_ms);
        if away_ms.unsigned_abs() > MAX_FOLLOWED_STEP_MS {
            followed.difference_ms = difference_ms;
            self.steps_not_followed.fetch_add(1, Ordering::Relaxed);
            return;
        }
        let by_ms = away_ms.clamp(-max_ms, max_ms);
        followed.difference_ms = followed.difference_ms.saturating_add(by_ms);
        let store_difference_ms = self.difference_ms.load(Ordering::Relaxed).saturating_add(by_ms);
        self.difference_ms.store(store_difference_ms, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Instant;

    /// A time in November 2023.
    const START_MS: u64 = 1_700_000_000_000;
    const HOUR_MS: u64 = 3_600_000;

    fn started_at(store_ms: u64) -> (ManualClock, StoreClock) {
        let manual = ManualClock::new(START_MS);
        let clock = StoreClock::start(Arc::new(manual.clone()), manual.read(), store_ms);
        (manual, clock)
    }

    fn started() -> (ManualClock, StoreClock) {
        started_at(START_MS)
    }

    fn pass(manual: &ManualClock, by_ms: u64) {
        manual.advance(Duration::from_millis(by_ms));
    }

    /// Lets time pass in pieces, and reads the clock after each.
    fn pass_reading(manual: &ManualClock, clock: &StoreClock, by_ms: u64) {
        for _ in 0..by_ms / COMPARE_INTERVAL_MS {
            pass(manual, COMPARE_INTERVAL_MS);
            clock.now_ms();
        }
    }

    fn jump_by(manual: &ManualClock, by_ms: i64) {
        manual.jump_wall(manual.now_ms().saturating_add_signed(by_ms));
    }

    #[test]
    fn store_time_starts_as_given_and_advances_with_the_boot_time_clock() {
        for store_ms in [START_MS, 0, 5_000, START_MS + 5_000] {
            let (manual, clock) = started_at(store_ms);
            assert_eq!(clock.now_ms(), store_ms);
            for (by_ms, after_ms) in [(1, 1), (998, 999), (1, 1_000), (DAY_MS, DAY_MS + 1_000)] {
                pass(&manual, by_ms);
                assert_eq!(clock.now_ms(), store_ms + after_ms);
            }
            pass(&manual, 1);
            assert_eq!(clock.latest_ms(), store_ms + DAY_MS + 1_000, "no caller got a later one");
            assert_eq!(clock.steps_not_followed(), 0);
        }
    }

    #[derive(Debug, Default)]
    struct Woken(AtomicU64);

    impl Sleepers for Woken {
        fn wake_all(&self) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    #[test]
    fn advancing_a_manual_clock_wakes_every_sleeper() {
        let (manual, clock) = started();
        let (first, second) = (Arc::new(Woken::default()), Arc::new(Woken::default()));
        for sleepers in [&first, &second] {
            clock.wake_when_moved(Arc::downgrade(&(Arc::clone(sleepers) as Arc<dyn Sleepers>)));
        }
        pass(&manual, 5);
        pass(&manual, 5);
        assert_eq!((first.0.load(Ordering::Relaxed), second.0.load(Ordering::Relaxed)), (2, 2));
        assert!(clock.is_manual());
        let source: Arc<dyn TimeSource> = Arc::new(SystemTimeSource::new());
        let clock = StoreClock::start(Arc::clone(&source), source.read(), START_MS);
        assert!(!clock.is_manual());
    }

    #[test]
    fn store_time_starts_as_given_long_after_the_boot() {
        let manual = ManualClock::new(5);
        pass(&manual, 1_000_000);
        manual.jump_wall(5);
        let clock = StoreClock::start(Arc::new(manual.clone()), manual.read(), 7);
        assert_eq!(clock.now_ms(), 7);
        pass(&manual, 10);
        assert_eq!(clock.now_ms(), 17);
    }

    #[test]
    fn a_mark_has_all_clocks() {
        let (manual, clock) = started_at(50);
        pass(&manual, 30);
        manual.jump_wall(9);
        let mark = clock.mark();
        assert_eq!(mark, TimeMark { store_ms: 80, wall_ms: 9, boot: manual.boot(), boot_ms: 30 });
        manual.reboot(Duration::ZERO);
        assert_eq!(clock.mark().boot, mark.boot, "a store is open in one boot");
        assert_eq!(clock.now_ms(), 80);
    }

    #[test]
    fn a_small_step_is_followed_by_two_seconds_an_hour() {
        for (by_ms, sign) in [(6_000, 1), (-6_000, -1)] {
            let (manual, clock) = started();
            jump_by(&manual, by_ms);
            for hour in 1..=5_u64 {
                pass_reading(&manual, &clock, HOUR_MS);
                let followed_ms = sign * i64::try_from(hour.min(3) * 2_000).unwrap();
                let expected_ms = (START_MS + hour * HOUR_MS).saturating_add_signed(followed_ms);
                assert_eq!(clock.now_ms(), expected_ms, "{by_ms} ms after {hour} hours");
            }
            assert_eq!(clock.now_ms(), manual.now_ms(), "all of it in the end");
            assert_eq!(clock.steps_not_followed(), 0);
        }
    }

    #[test]
    fn rare_readings_follow_no_faster() {
        let (manual, clock) = started();
        jump_by(&manual, 9_000);
        pass(&manual, COMPARE_INTERVAL_MS);
        assert_eq!(clock.now_ms(), START_MS + COMPARE_INTERVAL_MS);
        pass(&manual, 2 * HOUR_MS - COMPARE_INTERVAL_MS);
        clock.now_ms();
        assert_eq!(clock.now_ms(), START_MS + 2 * HOUR_MS + 4_000);
    }

    #[test]
    fn many_small_steps_do_not_add_up_to_a_large_one() {
        for by_ms in [9_999, 9_000, -9_999, 5_001, 28, 1] {
            let (manual, clock) = started();
            for _ in 0..3_600 {
                jump_by(&manual, by_ms);
                pass(&manual, COMPARE_INTERVAL_MS);
                clock.now_ms();
            }
            let off_ms = clock.now_ms().abs_diff(START_MS + HOUR_MS);
            assert!(off_ms <= 2_000, "steps of {by_ms} ms each second: {off_ms} ms in an hour");
            assert_eq!(clock.steps_not_followed() > 0, by_ms.abs() > 2, "{by_ms}");
        }
    }

    #[test]
    fn a_wall_clock_that_is_behind_only_slows_store_time() {
        let (manual, clock) = started();
        jump_by(&manual, -10_000);
        let mut last_ms = clock.now_ms();
        for _ in 0..40_000 {
            pass(&manual, 700);
            let now_ms = clock.now_ms();
            assert!((699..=700).contains(&(now_ms - last_ms)), "{last_ms} to {now_ms}");
            last_ms = now_ms;
        }
        assert_eq!(last_ms, manual.now_ms(), "the wall clock has caught up");
        assert_eq!(clock.steps_not_followed(), 0);
    }

    #[test]
    fn a_large_step_is_counted_once_and_not_followed() {
        for by_ms in [10_001, -10_001, 400 * DAY_MS as i64, -(DAY_MS as i64)] {
            let (manual, clock) = started();
            jump_by(&manual, by_ms);
            pass_reading(&manual, &clock, 6 * COMPARE_INTERVAL_MS);
            assert_eq!(clock.now_ms(), START_MS + 6 * COMPARE_INTERVAL_MS, "a step of {by_ms} ms");
            assert_eq!(clock.steps_not_followed(), 1, "a second comparison does not count it again");
            jump_by(&manual, -by_ms);
            pass_reading(&manual, &clock, COMPARE_INTERVAL_MS);
            assert_eq!(clock.now_ms(), START_MS + 7 * COMPARE_INTERVAL_MS);
            assert_eq!(clock.steps_not_followed(), 2, "the way back is a step of its own");
        }
    }

    #[test]
    fn small_steps_are_followed_after_a_large_one_too() {
        let (manual, clock) = started();
        jump_by(&manual, DAY_MS as i64);
        pass_reading(&manual, &clock, COMPARE_INTERVAL_MS);
        jump_by(&manual, 1_000);
        pass_reading(&manual, &clock, HOUR_MS);
        assert_eq!(clock.now_ms(), START_MS + COMPARE_INTERVAL_MS + HOUR_MS + 1_000);
        assert_eq!(clock.steps_not_followed(), 1);
    }

    #[test]
    fn a_stopped_wall_clock_slows_store_time_by_less_than_a_thousandth() {
        let (manual, clock) = started();
        for _ in 0..3_600 {
            pass(&manual, COMPARE_INTERVAL_MS);
            manual.jump_wall(START_MS);
            clock.now_ms();
        }
        let off_ms = (START_MS + HOUR_MS).abs_diff(clock.now_ms());
        assert!(off_ms <= 2_000, "{off_ms}");
    }

    #[test]
    fn the_wall_clock_is_compared_once_a_second() {
        let (manual, clock) = started();
        jump_by(&manual, DAY_MS as i64);
        pass(&manual, COMPARE_INTERVAL_MS - 1);
        clock.now_ms();
        assert_eq!(clock.steps_not_followed(), 0, "not before a second has passed");
        pass(&manual, 1);
        clock.now_ms();
        assert_eq!(clock.steps_not_followed(), 1);
        jump_by(&manual, DAY_MS as i64);
        pass(&manual, COMPARE_INTERVAL_MS - 1);
        clock.now_ms();
        assert_eq!(clock.steps_not_followed(), 1, "not before a second has passed");
    }

    /// A machine that pauses for `pause_ms` whenever its wall clock is read.
    #[derive(Debug)]
    struct BusyMachine {
        machine: ManualClock,
        pause_ms: AtomicU64,
    }

    impl TimeSource for BusyMachine {
        fn wall_ms(&self) -> u64 {
            self.machine.advance(Duration::from_millis(self.pause_ms.load(Ordering::Relaxed)));
            self.machine.wall_ms()
        }

        fn boot_ms(&self) -> u64 {
            self.machine.boot_ms()
        }

        fn boot(&self) -> BootId {
            self.machine.boot()
        }
    }

    #[test]
    fn a_pause_while_the_wall_clock_is_read_is_not_a_step() {
        let source =
            Arc::new(BusyMachine { machine: ManualClock::new(START_MS), pause_ms: AtomicU64::new(0) });
        let time_source = Arc::clone(&source) as Arc<dyn TimeSource>;
        let clock = StoreClock::start(time_source, source.machine.read(), START_MS);
        for pause_ms in [9_000, 60_000, 0] {
            source.pause_ms.store(pause_ms, Ordering::Relaxed);
            pass(&source.machine, COMPARE_INTERVAL_MS);
            clock.now_ms();
        }
        assert_eq!(clock.now_ms(), source.machine.now_ms());
        assert_eq!(clock.steps_not_followed(), 0);
    }

    #[test]
    fn the_limit_of_a_reading_is_exact_to_the_millisecond() {
        for (pause_ms, steps) in [(MAX_READING_MS, 1), (MAX_READING_MS + 1, 0)] {
            let machine = ManualClock::new(START_MS);
            let source = Arc::new(BusyMachine { machine, pause_ms: AtomicU64::new(pause_ms) });
            let time_source = Arc::clone(&source) as Arc<dyn TimeSource>;
            let clock = StoreClock::start(time_source, source.machine.read(), START_MS);
            jump_by(&source.machine, 20_000);
            pass(&source.machine, COMPARE_INTERVAL_MS);
            clock.now_ms();
            assert_eq!(clock.steps_not_followed(), steps, "after {pause_ms} ms");
        }
    }

    #[test]
    fn a_pause_while_a_mark_is_made_is_not_counted_twice() {
        let source =
            Arc::new(BusyMachine { machine: ManualClock::new(START_MS), pause_ms: AtomicU64::new(0) });
        let time_source = Arc::clone(&source) as Arc<dyn TimeSource>;
        let clock = StoreClock::start(time_source, source.machine.read(), START_MS);
        source.pause_ms.store(HOUR_MS, Ordering::Relaxed);
        let mark = clock.mark();
        source.machine.reboot(Duration::from_secs(1));
        let rules = OpeningRules { max_downtime_ms: DAY_MS, accept: None };
        let time = judge_opening(&HighWater::at(mark), &source.machine.read(), &rules).unwrap();
        assert!(time.store_ms <= source.machine.now_ms(), "{} ms after the start", time.store_ms - START_MS);
    }

    #[test]
    fn the_clock_saturates_at_the_ends_of_time() {
        for store_ms in [0, START_MS, u64::MAX] {
            let manual = ManualClock::new(u64::MAX);
            let clock = StoreClock::start(Arc::new(manual.clone()), manual.read(), store_ms);
            assert_eq!(clock.now_ms(), store_ms);
            manual.jump_wall(0);
            manual.advance(Duration::MAX);
            assert!(clock.now_ms() >= u64::MAX / 2);
            assert_eq!(clock.now_ms(), clock.now_ms());
        }
    }

    #[test]
    fn a_difference_saturates_at_its_own_sign() {
        assert_eq!(signed_difference_ms(3, 5), -2);
        assert_eq!(signed_difference_ms(u64::MAX, u64::MAX - 7), 7);
        assert_eq!(signed_difference_ms(u64::MAX, 0), i64::MAX);
        assert_eq!(signed_difference_ms(0, u64::MAX), i64::MIN);
    }

    /// A boot-time clock that advances by a millisecond at every reading, and a wall clock that goes back by 20 ms in every
    /// other second and forward again in the next.
    #[derive(Debug)]
    struct Ticking(AtomicU64);

    impl TimeSource for Ticking {
        fn wall_ms(&self) -> u64 {
            let passed_ms = self.0.load(Ordering::SeqCst);
            START_MS + passed_ms - 20 * (passed_ms / COMPARE_INTERVAL_MS % 2)
        }

        fn boot_ms(&self) -> u64 {
            self.0.fetch_add(1, Ordering::SeqCst)
        }

        fn boot(&self) -> BootId {
            BootId::UNKNOWN
        }
    }

    #[test]
    fn store_time_never_decreases_across_threads() {
        let source: Arc<dyn TimeSource> = Arc::new(Ticking(AtomicU64::new(0)));
        let clock = StoreClock::start(Arc::clone(&source), source.read(), START_MS);
        let seen_ms = AtomicU64::new(0);
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for _ in 0..200_000 {
                        let before_ms = seen_ms.load(Ordering::SeqCst);
                        let now_ms = clock.now_ms();
                        assert!(now_ms >= before_ms, "{now_ms} after {before_ms}");
                        seen_ms.fetch_max(now_ms, Ordering::SeqCst);
                    }
                });
            }
        });
    }

    #[test]
    fn store_time_never_decreases_while_the_wall_clock_jumps() {
        let (manual, clock) = started();
        // The latest time that any thread has seen.
        let seen_ms = AtomicU64::new(0);
        std::thread::scope(|scope| {
            for _ in 0..3 {
                scope.spawn(|| {
                    for _ in 0..20_000 {
                        let before_ms = seen_ms.load(Ordering::SeqCst);
                        let now_ms = clock.now_ms();
                        assert!(now_ms >= before_ms, "{now_ms} after {before_ms}");
                        seen_ms.fetch_max(now_ms, Ordering::SeqCst);
                    }
                });
            }
            scope.spawn(|| {
                for round in 0..20_000_u64 {
                    let by_ms = [9_000, -9_000, 20_000, -20_000, -3, 3][(round % 6) as usize];
                    jump_by(&manual, by_ms);
                    pass(&manual, 400);
                }
            });
        });
    }

    #[test]
    #[ignore = "a measurement: cargo test --release -- --ignored --nocapture cost_of_the_time"]
    fn cost_of_the_time() {
        const COUNT: u32 = 10_000_000;
        let source: Arc<dyn TimeSource> = Arc::new(SystemTimeSource::new());
        let clock = StoreClock::start(Arc::clone(&source), source.read(), source.wall_ms());
        let start = Instant::now();
        let mut sum = 0_u64;
        for _ in 0..COUNT {
            sum = sum.wrapping_add(clock.now_ms());
        }
        println!("now_ms: {:.1} ns ({sum})", start.elapsed().as_nanos() as f64 / f64::from(COUNT));
        let start = Instant::now();
        for _ in 0..COUNT {
            sum = sum.wrapping_add(clock.mark().wall_ms);
        }
        println!("mark: {:.1} ns ({sum})", start.elapsed().as_nanos() as f64 / f64::from(COUNT));
    }
}
