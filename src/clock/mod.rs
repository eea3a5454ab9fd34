//! Store time: what retention and lease deadlines are counted in, in milliseconds since the Unix epoch.
//!
//! A wall clock alone will not do. Set forward by an administrator, or by a machine that woke up with a wrong date,
//! it would let everything the store remembers expire at once, and every retry would run its side effect again. Store
//! time therefore begins as the wall clock says and runs on the boot-time clock, which nobody can set and which counts
//! the time that the machine was suspended. It follows the wall clock only by two seconds an hour. It never goes back,
//! neither while the store is open nor from one opening to the next.
//!
//! From one opening to the next it is carried by marks in the log: store time, wall clock and boot-time clock of one
//! moment ([`TimeMark`]). [`judge_opening`] says how store time goes on from the latest one. There is no store without
//! a mark: its creation writes the first.

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

/// The largest difference between wall clock and boot-time clock that store time follows, in ms. A time service
/// corrects a clock by less than this (and a leap second is one second); a clock that is set by hand moves by more.
const SMALL_STEP_MS: u64 = 10_000;

/// Store time follows the wall clock by one ms in this many: two seconds an hour. No more, or many small steps would
/// do what a large one may not. A retention is then wrong by less than a thousandth, whatever happens to the wall clock.
const FOLLOW_DIVISOR: u64 = 1_800;

/// How much time passes between two looks at the wall clock, in ms. Reading it at every call would double the cost of
/// asking for the time, and drift within a second is too small to matter.
const LOOK_INTERVAL_MS: u64 = 1_000;

/// The longest time that may pass while the wall clock is read, in ms. After a longer pause between the two
/// readings (a stopped process, a busy machine) the pause would look like a step of the wall clock.
const READING_LIMIT_MS: u64 = 50;

/// One day, in ms.
const DAY_MS: u64 = 24 * 60 * 60 * 1_000;

/// A duration in whole ms; the greatest number if it is longer than that.
fn whole_ms(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

/// How far `to_ms` lies after `from_ms`, in ms; negative if before. Saturates.
fn signed_difference_ms(to_ms: u64, from_ms: u64) -> i64 {
    let difference = i128::from(to_ms) - i128::from(from_ms);
    i64::try_from(difference).unwrap_or(if difference < 0 { i64::MIN } else { i64::MAX })
}

/// What was last seen of the wall clock.
#[derive(Debug)]
struct Followed {
    /// Wall time less boot time, in ms, as far as store time has followed it.
    difference_ms: i64,
    /// The boot time of the last look, in ms.
    looked_ms: u64,
    /// What had passed at that look and was too little to follow by a whole ms.
    rest_ms: u64,
}

/// The time of one open store.
///
/// It is the boot-time clock plus a difference, and the difference changes by what is followed of the wall clock: one ms
/// in 1,800 at most. Where the wall clock is behind, store time runs slower by as much. A difference of more than ten
/// seconds between the two clocks is counted once and then taken for granted: only what is added to it is followed.
///
/// All atomics are relaxed. Time must not go back for anybody who can compare two readings, and such a reader has
/// the first one before it takes the second: it then also sees the `last_ms` that the first one left, or a later
/// one, and no reading is below the `last_ms` it saw.
#[derive(Debug)]
pub(crate) struct StoreClock {
    source: Arc<dyn TimeSource>,
    boot: BootId,
    /// Store time less boot time, in ms.
    difference_ms: AtomicI64,
    /// The latest store time that was given out, in ms since the Unix epoch.
    last_ms: AtomicU64,
    /// The boot time from which on the wall clock is looked at again, in ms.
    next_look_ms: AtomicU64,
    /// How many steps of the wall clock were too large to follow.
    steps_not_followed: AtomicU64,
    /// Locked by the thread that looks, because two looks that compare with the same value would follow one step
    /// twice.
    followed: Mutex<Followed>,
}

impl StoreClock {
    /// Starts store time at `store_ms`, where [`judge_opening`] put it by this reading of the clocks.
    pub(crate) fn start(source: Arc<dyn TimeSource>, now: Reading, store_ms: u64) -> StoreClock {
        let Reading { wall_ms, boot, boot_ms } = now;
        StoreClock {
            source,
            boot,
            difference_ms: AtomicI64::new(signed_difference_ms(store_ms, boot_ms)),
            last_ms: AtomicU64::new(store_ms),
            next_look_ms: AtomicU64::new(boot_ms.saturating_add(LOOK_INTERVAL_MS)),
            steps_not_followed: AtomicU64::new(0),
            // The wall clock's own, not that of the start: where store time begins elsewhere that is no step.
            followed: Mutex::new(Followed {
                difference_ms: signed_difference_ms(wall_ms, boot_ms),
                looked_ms: boot_ms,
                rest_ms: 0,
            }),
        }
    }

    /// Store time, in ms since the Unix epoch. Never less than any earlier answer to any thread.
    pub(crate) fn now_ms(&self) -> u64 {
        self.at(self.source.boot_ms())
    }

    /// Store time and the clocks behind it, for the log. Not less than any store time that was given out before.
    ///
    /// The wall clock is read last. Should the thread stand still before that, the mark says that the wall clock was
    /// later than it was: store time then loses the pause after a reboot, and does not count it twice.
    pub(crate) fn mark(&self) -> TimeMark {
        let boot_ms = self.source.boot_ms();
        let store_ms = self.at(boot_ms);
        TimeMark { store_ms, wall_ms: self.source.wall_ms(), boot: self.boot, boot_ms }
    }

    /// Store time when the boot-time clock says `boot_ms`.
    fn at(&self, boot_ms: u64) -> u64 {
        if boot_ms >= self.next_look_ms.load(Ordering::Relaxed) {
            self.look_at_wall_clock();
        }
        let now_ms = boot_ms.saturating_add_signed(self.difference_ms.load(Ordering::Relaxed));
        let last_ms = self.last_ms.load(Ordering::Relaxed);
        if now_ms <= last_ms {
            // Within the same millisecond, so that the cache line is written a thousand times a second and not at
            // every call; or the wall clock is behind and time runs slow.
            return last_ms;
        }
        self.last_ms.fetch_max(now_ms, Ordering::Relaxed).max(now_ms)
    }

    /// The latest store time that any caller was told, in ms since the Unix epoch. Touches no lock.
    pub(crate) fn latest_ms(&self) -> u64 {
        self.last_ms.load(Ordering::Relaxed)
    }

    /// How many steps of the wall clock were too large to be followed since the store was opened, each counted once.
    pub(crate) fn steps_not_followed(&self) -> u64 {
        self.steps_not_followed.load(Ordering::Relaxed)
    }

    /// Whether store time passes only when a test moves the clock.
    pub(crate) fn is_manual(&self) -> bool {
        self.source.is_manual()
    }

    /// Wakes them whenever the clock is moved by hand.
    pub(crate) fn wake_when_moved(&self, sleepers: Weak<dyn Sleepers>) {
        self.source.wake_when_moved(sleepers);
    }

    /// Compares the wall clock with the boot-time clock and follows it a little, if the two are not far apart.
    fn look_at_wall_clock(&self) {
        // A thread that finds another one looking goes on with the time as it was; none waits for the time.
        let Some(mut followed) = self.followed.try_lock() else { return };
        let boot_ms = self.source.boot_ms();
        if boot_ms < self.next_look_ms.load(Ordering::Relaxed) {
            return;
        }
        let wall_ms = self.source.wall_ms();
        if self.source.boot_ms().saturating_sub(boot_ms) > READING_LIMIT_MS {
            return;
        }
        self.next_look_ms.store(boot_ms.saturating_add(LOOK_INTERVAL_MS), Ordering::Relaxed);

        let passed_ms = boot_ms.saturating_sub(followed.looked_ms).saturating_add(followed.rest_ms);
        (followed.looked_ms, followed.rest_ms) = (boot_ms, passed_ms % FOLLOW_DIVISOR);
        let most_ms = i64::try_from(passed_ms / FOLLOW_DIVISOR).unwrap_or(i64::MAX);
        let most_ms = if planted(Bug::ClockStepNotSlewed) { i64::MAX } else { most_ms };

        let difference_ms = signed_difference_ms(wall_ms, boot_ms);
        let away_ms = difference_ms.saturating_sub(followed.difference_ms);
        if away_ms.unsigned_abs() > SMALL_STEP_MS {
            followed.difference_ms = difference_ms;
            self.steps_not_followed.fetch_add(1, Ordering::Relaxed);
            return;
        }
        let by_ms = away_ms.clamp(-most_ms, most_ms);
        followed.difference_ms = followed.difference_ms.saturating_add(by_ms);
        let store_difference_ms = self.difference_ms.load(Ordering::Relaxed).saturating_add(by_ms);
        self.difference_ms.store(store_difference_ms, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Instant;

    /// Some time in November 2023.
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

    /// Lets time pass in pieces, with a look at the clock after each.
    fn pass_looking(manual: &ManualClock, clock: &StoreClock, by_ms: u64) {
        for _ in 0..by_ms / LOOK_INTERVAL_MS {
            pass(manual, LOOK_INTERVAL_MS);
            clock.now_ms();
        }
    }

    fn set_by(manual: &ManualClock, by_ms: i64) {
        manual.jump_wall(manual.now_ms().saturating_add_signed(by_ms));
    }

    #[test]
    fn store_time_starts_where_it_is_told_to_and_advances_with_the_boot_time_clock() {
        for store_ms in [START_MS, 0, 5_000, START_MS + 5_000] {
            let (manual, clock) = started_at(store_ms);
            assert_eq!(clock.now_ms(), store_ms);
            for (by_ms, after_ms) in [(1, 1), (998, 999), (1, 1_000), (DAY_MS, DAY_MS + 1_000)] {
                pass(&manual, by_ms);
                assert_eq!(clock.now_ms(), store_ms + after_ms);
            }
            pass(&manual, 1);
            assert_eq!(clock.latest_ms(), store_ms + DAY_MS + 1_000, "no caller was given a later one");
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
    fn only_a_clock_that_is_moved_by_hand_wakes_those_who_sleep_and_all_of_them() {
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
    fn store_time_starts_right_from_a_boot_time_clock_that_has_run_for_long() {
        let manual = ManualClock::new(5);
        pass(&manual, 1_000_000);
        manual.jump_wall(5);
        let clock = StoreClock::start(Arc::new(manual.clone()), manual.read(), 7);
        assert_eq!(clock.now_ms(), 7);
        pass(&manual, 10);
        assert_eq!(clock.now_ms(), 17);
    }

    #[test]
    fn a_mark_says_what_all_clocks_say() {
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
    fn a_small_step_in_either_direction_is_followed_by_two_seconds_an_hour() {
        for (by_ms, sign) in [(6_000, 1), (-6_000, -1)] {
            let (manual, clock) = started();
            set_by(&manual, by_ms);
            for hour in 1..=5_u64 {
                pass_looking(&manual, &clock, HOUR_MS);
                let followed_ms = sign * i64::try_from(hour.min(3) * 2_000).unwrap();
                let expected_ms = (START_MS + hour * HOUR_MS).saturating_add_signed(followed_ms);
                assert_eq!(clock.now_ms(), expected_ms, "{by_ms} ms after {hour} hours");
            }
            assert_eq!(clock.now_ms(), manual.now_ms(), "all of it in the end");
            assert_eq!(clock.steps_not_followed(), 0);
        }
    }

    #[test]
    fn a_store_that_is_asked_for_the_time_but_rarely_follows_no_faster() {
        let (manual, clock) = started();
        set_by(&manual, 9_000);
        pass(&manual, LOOK_INTERVAL_MS);
        assert_eq!(clock.now_ms(), START_MS + LOOK_INTERVAL_MS);
        pass(&manual, 2 * HOUR_MS - LOOK_INTERVAL_MS);
        clock.now_ms();
        assert_eq!(clock.now_ms(), START_MS + 2 * HOUR_MS + 4_000);
    }

    #[test]
    fn many_small_steps_do_not_add_up_to_what_a_large_one_may_not_do() {
        for by_ms in [9_999, 9_000, -9_999, 5_001, 28, 1] {
            let (manual, clock) = started();
            for _ in 0..3_600 {
                set_by(&manual, by_ms);
                pass(&manual, LOOK_INTERVAL_MS);
                clock.now_ms();
            }
            let off_ms = clock.now_ms().abs_diff(START_MS + HOUR_MS);
            assert!(off_ms <= 2_000, "steps of {by_ms} ms each second: {off_ms} ms in an hour");
            assert_eq!(clock.steps_not_followed() > 0, by_ms.abs() > 2, "{by_ms}");
        }
    }

    #[test]
    fn while_the_wall_clock_is_behind_time_runs_slow_and_never_back() {
        let (manual, clock) = started();
        set_by(&manual, -10_000);
        let mut last_ms = clock.now_ms();
        for _ in 0..40_000 {
            pass(&manual, 700);
            let now_ms = clock.now_ms();
            assert!((699..=700).contains(&(now_ms - last_ms)), "{last_ms} to {now_ms}");
            last_ms = now_ms;
        }
        assert_eq!(last_ms, manual.now_ms(), "it has caught up and goes on with the wall clock");
        assert_eq!(clock.steps_not_followed(), 0);
    }

    #[test]
    fn larger_steps_are_counted_once_each_and_not_followed() {
        for by_ms in [10_001, -10_001, 400 * DAY_MS as i64, -(DAY_MS as i64)] {
            let (manual, clock) = started();
            set_by(&manual, by_ms);
            pass_looking(&manual, &clock, 6 * LOOK_INTERVAL_MS);
            assert_eq!(clock.now_ms(), START_MS + 6 * LOOK_INTERVAL_MS, "a step of {by_ms} ms");
            assert_eq!(clock.steps_not_followed(), 1, "looking again does not count it again");
            set_by(&manual, -by_ms);
            pass_looking(&manual, &clock, LOOK_INTERVAL_MS);
            assert_eq!(clock.now_ms(), START_MS + 7 * LOOK_INTERVAL_MS);
            assert_eq!(clock.steps_not_followed(), 2, "the way back is a step of its own");
        }
    }

    #[test]
    fn small_steps_are_followed_also_after_a_larger_one() {
        let (manual, clock) = started();
        set_by(&manual, DAY_MS as i64);
        pass_looking(&manual, &clock, LOOK_INTERVAL_MS);
        set_by(&manual, 1_000);
        pass_looking(&manual, &clock, HOUR_MS);
        assert_eq!(clock.now_ms(), START_MS + LOOK_INTERVAL_MS + HOUR_MS + 1_000);
        assert_eq!(clock.steps_not_followed(), 1);
    }

    #[test]
    fn a_wall_clock_that_stands_still_slows_store_time_by_less_than_a_thousandth() {
        let (manual, clock) = started();
        for _ in 0..3_600 {
            pass(&manual, LOOK_INTERVAL_MS);
            manual.jump_wall(START_MS);
            clock.now_ms();
        }
        let off_ms = (START_MS + HOUR_MS).abs_diff(clock.now_ms());
        assert!(off_ms <= 2_000, "{off_ms}");
    }

    #[test]
    fn the_wall_clock_is_looked_at_once_a_second() {
        let (manual, clock) = started();
        set_by(&manual, DAY_MS as i64);
        pass(&manual, LOOK_INTERVAL_MS - 1);
        clock.now_ms();
        assert_eq!(clock.steps_not_followed(), 0, "not yet");
        pass(&manual, 1);
        clock.now_ms();
        assert_eq!(clock.steps_not_followed(), 1);
        set_by(&manual, DAY_MS as i64);
        pass(&manual, LOOK_INTERVAL_MS - 1);
        clock.now_ms();
        assert_eq!(clock.steps_not_followed(), 1, "not yet again");
    }

    /// A machine on which other things happen for as long as `pause_ms` says while the wall clock is read.
    #[derive(Debug)]
    struct BusyMachine {
        hands: ManualClock,
        pause_ms: AtomicU64,
    }

    impl TimeSource for BusyMachine {
        fn wall_ms(&self) -> u64 {
            self.hands.advance(Duration::from_millis(self.pause_ms.load(Ordering::Relaxed)));
            self.hands.wall_ms()
        }

        fn boot_ms(&self) -> u64 {
            self.hands.boot_ms()
        }

        fn boot(&self) -> BootId {
            self.hands.boot()
        }
    }

    #[test]
    fn a_pause_while_the_wall_clock_is_read_is_not_taken_for_a_step() {
        let source = Arc::new(BusyMachine { hands: ManualClock::new(START_MS), pause_ms: AtomicU64::new(0) });
        let time_source = Arc::clone(&source) as Arc<dyn TimeSource>;
        let clock = StoreClock::start(time_source, source.hands.read(), START_MS);
        for pause_ms in [9_000, 60_000, 0] {
            source.pause_ms.store(pause_ms, Ordering::Relaxed);
            pass(&source.hands, LOOK_INTERVAL_MS);
            clock.now_ms();
        }
        assert_eq!(clock.now_ms(), source.hands.now_ms());
        assert_eq!(clock.steps_not_followed(), 0);
    }

    #[test]
    fn a_pause_of_the_longest_reading_is_none_and_one_of_a_millisecond_more_is_one() {
        for (pause_ms, steps) in [(READING_LIMIT_MS, 1), (READING_LIMIT_MS + 1, 0)] {
            let hands = ManualClock::new(START_MS);
            let source = Arc::new(BusyMachine { hands, pause_ms: AtomicU64::new(pause_ms) });
            let time_source = Arc::clone(&source) as Arc<dyn TimeSource>;
            let clock = StoreClock::start(time_source, source.hands.read(), START_MS);
            set_by(&source.hands, 20_000);
            pass(&source.hands, LOOK_INTERVAL_MS);
            clock.now_ms();
            assert_eq!(clock.steps_not_followed(), steps, "after {pause_ms} ms");
        }
    }

    #[test]
    fn a_pause_while_a_mark_is_made_is_not_counted_twice_after_a_reboot() {
        let source = Arc::new(BusyMachine { hands: ManualClock::new(START_MS), pause_ms: AtomicU64::new(0) });
        let time_source = Arc::clone(&source) as Arc<dyn TimeSource>;
        let clock = StoreClock::start(time_source, source.hands.read(), START_MS);
        source.pause_ms.store(HOUR_MS, Ordering::Relaxed);
        let mark = clock.mark();
        source.hands.reboot(Duration::from_secs(1));
        let rules = OpeningRules { max_downtime_ms: DAY_MS, accept: None };
        let time = judge_opening(&HighWater::at(mark), &source.hands.read(), &rules).unwrap();
        assert!(time.store_ms <= source.hands.now_ms(), "{} ms after the start", time.store_ms - START_MS);
    }

    #[test]
    fn at_the_ends_of_time_the_clock_saturates() {
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
    fn a_difference_that_is_too_large_saturates_on_its_own_side() {
        assert_eq!(signed_difference_ms(3, 5), -2);
        assert_eq!(signed_difference_ms(u64::MAX, u64::MAX - 7), 7);
        assert_eq!(signed_difference_ms(u64::MAX, 0), i64::MAX);
        assert_eq!(signed_difference_ms(0, u64::MAX), i64::MIN);
    }

    /// Time of which a millisecond passes at every look, with a wall clock that goes back by 20 ms in every other
    /// second and forward again in the next.
    #[derive(Debug)]
    struct Ticking(AtomicU64);

    impl TimeSource for Ticking {
        fn wall_ms(&self) -> u64 {
            let passed_ms = self.0.load(Ordering::SeqCst);
            START_MS + passed_ms - 20 * (passed_ms / LOOK_INTERVAL_MS % 2)
        }

        fn boot_ms(&self) -> u64 {
            self.0.fetch_add(1, Ordering::SeqCst)
        }

        fn boot(&self) -> BootId {
            BootId::UNKNOWN
        }
    }

    #[test]
    fn store_time_never_decreases_across_threads_that_all_move_it() {
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
    fn store_time_never_decreases_across_threads_while_the_wall_clock_jumps() {
        let (manual, clock) = started();
        // The greatest time that any thread has seen so far.
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
                    set_by(&manual, by_ms);
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
