//! Store time: what retention and lease deadlines are counted in, in milliseconds since the Unix epoch.
//!
//! A wall clock alone will not do. Set forward by an administrator, or by a machine that woke up with a wrong date,
//! it would let everything the store remembers expire at once, and every retry would perform its act again. Store
//! time therefore starts from the wall clock, advances with the monotonic clock, and follows the wall clock only
//! where it drifts by small steps. It never goes back, neither while the store is open nor from one opening to the
//! next: the log keeps its high-water mark.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use parking_lot::Mutex;

/// The largest step of the wall clock that store time follows, in ms. A time service corrects a clock by less than
/// this (and a leap second is one second); somebody who sets a clock by hand moves it by more. Following a step of
/// this size shortens no retention that matters.
const SMALL_STEP_MS: u64 = 10_000;

/// How much monotonic time passes between two looks at the wall clock, in ms. Reading it at every call would double
/// the cost of asking for the time, and drift within a second is too small to matter.
const LOOK_INTERVAL_MS: u64 = 1_000;

/// The longest time that may pass while the wall clock is read, in ms. After a longer pause between the two
/// readings (a stopped process, a busy machine) the pause would look like a step of the wall clock.
const READING_LIMIT_MS: u64 = 50;

/// One day, in ms.
const DAY_MS: u64 = 24 * 60 * 60 * 1_000;

/// How far behind the high-water mark a wall clock may be at open, in ms: a day covers a clock that was wrong by a
/// time zone, and the store merely runs ahead of it.
const BEHIND_LIMIT_MS: u64 = DAY_MS;

/// How far ahead of the high-water mark a wall clock may be at open, in ms: a store may have been closed for a year,
/// and a clock further ahead than that is more likely wrong.
const AHEAD_LIMIT_MS: u64 = 366 * DAY_MS;

/// Where wall and monotonic time come from.
pub(crate) trait TimeSource: Send + Sync + fmt::Debug {
    /// The wall clock, in ms since the Unix epoch. May go back.
    fn wall_ms(&self) -> u64;

    /// The monotonic clock, in ms since some fixed moment. Never goes back.
    fn monotonic_ms(&self) -> u64;
}

/// A duration in whole ms; the greatest number if it is longer than that.
fn whole_ms(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

/// The clocks of the operating system.
#[derive(Debug)]
pub(crate) struct SystemTimeSource {
    /// The moment that monotonic time counts from.
    created: Instant,
}

impl SystemTimeSource {
    /// The system's clocks; monotonic time is zero now.
    pub(crate) fn new() -> SystemTimeSource {
        SystemTimeSource { created: Instant::now() }
    }
}

impl TimeSource for SystemTimeSource {
    fn wall_ms(&self) -> u64 {
        SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, whole_ms)
    }

    fn monotonic_ms(&self) -> u64 {
        whole_ms(self.created.elapsed())
    }
}

/// A clock that stands still until it is moved by hand: for tests of what happens when time passes.
///
/// Clones are the same clock, so a test keeps one and gives the store another. Like a real machine's, it has a wall
/// clock, which can be set to any time, and monotonic time, which only passes. [`advance`](ManualClock::advance)
/// moves both, [`jump_wall`](ManualClock::jump_wall) the wall clock alone.
///
/// ```
/// use std::time::Duration;
/// use oncekey::ManualClock;
///
/// let clock = ManualClock::new(1_700_000_000_000); // November 2023
/// let same_clock = clock.clone();
///
/// clock.advance(Duration::from_secs(90));
/// assert_eq!(same_clock.now_ms(), 1_700_000_090_000);
/// ```
#[derive(Clone, Debug)]
pub struct ManualClock {
    /// Both times under one lock, so that nobody sees one moved and the other not yet.
    hands: Arc<Mutex<Hands>>,
}

/// What a [`ManualClock`] shows.
#[derive(Debug)]
struct Hands {
    /// The wall clock, in ms since the Unix epoch.
    wall_ms: u64,
    /// The time that has passed, in ms since the clock was made.
    monotonic_ms: u64,
}

impl ManualClock {
    /// A clock whose wall time is `wall_ms` milliseconds since the Unix epoch.
    #[must_use]
    pub fn new(wall_ms: u64) -> Self {
        ManualClock { hands: Arc::new(Mutex::new(Hands { wall_ms, monotonic_ms: 0 })) }
    }

    /// Lets the time `by` pass, in whole milliseconds. At the end of time (`u64::MAX`) the clock stops.
    pub fn advance(&self, by: Duration) {
        let mut hands = self.hands.lock();
        hands.wall_ms = hands.wall_ms.saturating_add(whole_ms(by));
        hands.monotonic_ms = hands.monotonic_ms.saturating_add(whole_ms(by));
    }

    /// Sets the wall clock, forward or back, to `to_ms` milliseconds since the Unix epoch, while no time passes: what
    /// an administrator or a time service does to a machine's clock.
    ///
    /// A store follows steps of up to ten seconds and reports larger ones.
    pub fn jump_wall(&self, to_ms: u64) {
        self.hands.lock().wall_ms = to_ms;
    }

    /// The wall time, in milliseconds since the Unix epoch.
    #[must_use]
    pub fn now_ms(&self) -> u64 {
        self.hands.lock().wall_ms
    }
}

impl TimeSource for ManualClock {
    fn wall_ms(&self) -> u64 {
        self.now_ms()
    }

    fn monotonic_ms(&self) -> u64 {
        self.hands.lock().monotonic_ms
    }
}

/// What to think of the wall clock when a log is opened.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub(crate) enum OpeningTime {
    /// Near enough to the log's high-water mark.
    Accepted,
    /// More than a day behind it.
    Behind {
        /// By how much, in ms.
        by_ms: u64,
    },
    /// More than 366 days ahead of it: believing this clock could expire everything.
    Ahead {
        /// By how much, in ms.
        by_ms: u64,
    },
}

/// Judges a wall clock by the log's high-water mark, both in ms since the Unix epoch. A mark of zero is that of a
/// new store, which has nothing to compare with and accepts every clock.
pub(crate) fn judge_opening(wall_ms: u64, high_water_ms: u64) -> OpeningTime {
    let behind_ms = high_water_ms.saturating_sub(wall_ms);
    let ahead_ms = wall_ms.saturating_sub(high_water_ms);
    if high_water_ms == 0 {
        OpeningTime::Accepted
    } else if behind_ms > BEHIND_LIMIT_MS {
        OpeningTime::Behind { by_ms: behind_ms }
    } else if ahead_ms > AHEAD_LIMIT_MS {
        OpeningTime::Ahead { by_ms: ahead_ms }
    } else {
        OpeningTime::Accepted
    }
}

/// How far `to_ms` lies after `from_ms`, in ms; negative if before. Saturates.
fn signed_difference_ms(to_ms: u64, from_ms: u64) -> i64 {
    let difference = i128::from(to_ms) - i128::from(from_ms);
    i64::try_from(difference).unwrap_or(if difference < 0 { i64::MIN } else { i64::MAX })
}

/// The time of one open store.
///
/// It is the monotonic time plus a difference, and the difference changes with the small steps of the wall clock.
/// After a small step forward store time is ahead by as much at once. After a small step back it stands still until
/// it has waited out as much. After a larger step nothing changes, and what counts from then on are the small steps
/// relative to where the wall clock is now.
///
/// The monotonic clock of some systems (Linux among them) does not run while the machine sleeps. Waking up is then a
/// large step of the wall clock: counted, not followed. Things are remembered for longer by the time asleep, which
/// is the safe direction, until the store is opened again.
///
/// All atomics are relaxed. Time must not go back for anybody who can compare two readings, and such a reader has
/// the first one before it takes the second: it then also sees the `last_ms` that the first one left, or a later
/// one, and no reading is below the `last_ms` it saw.
#[derive(Debug)]
pub(crate) struct StoreClock {
    source: Arc<dyn TimeSource>,
    /// Store time less monotonic time, in ms.
    difference_ms: AtomicI64,
    /// The latest store time that anybody was told, in ms since the Unix epoch.
    last_ms: AtomicU64,
    /// The monotonic time from which on the wall clock is looked at again, in ms.
    next_look_ms: AtomicU64,
    /// How many steps of the wall clock were too large to follow.
    steps_not_followed: AtomicU64,
    /// Wall time less monotonic time at the last look, in ms: what the next look compares with. Locked while
    /// somebody looks, because two looks that compare with the same value would follow one step twice.
    wall_difference_ms: Mutex<i64>,
}

impl StoreClock {
    /// Starts store time at the wall clock or at the log's high-water mark (in ms since the Unix epoch), whichever is
    /// later. Whether the two are near enough to each other is asked before, of [`judge_opening`].
    pub(crate) fn start(source: Arc<dyn TimeSource>, high_water_ms: u64) -> StoreClock {
        let wall_ms = source.wall_ms();
        let monotonic_ms = source.monotonic_ms();
        let start_ms = wall_ms.max(high_water_ms);
        StoreClock {
            difference_ms: AtomicI64::new(signed_difference_ms(start_ms, monotonic_ms)),
            last_ms: AtomicU64::new(start_ms),
            next_look_ms: AtomicU64::new(monotonic_ms.saturating_add(LOOK_INTERVAL_MS)),
            steps_not_followed: AtomicU64::new(0),
            // The wall clock's own, not that of the start: a wall clock behind the mark is no step, and its drift
            // is followed all the same.
            wall_difference_ms: Mutex::new(signed_difference_ms(wall_ms, monotonic_ms)),
            source,
        }
    }

    /// Store time, in ms since the Unix epoch. Never less than any earlier answer to any thread.
    pub(crate) fn now_ms(&self) -> u64 {
        let monotonic_ms = self.source.monotonic_ms();
        if monotonic_ms >= self.next_look_ms.load(Ordering::Relaxed) {
            self.look_at_wall_clock();
        }
        let now_ms = monotonic_ms.saturating_add_signed(self.difference_ms.load(Ordering::Relaxed));
        let last_ms = self.last_ms.load(Ordering::Relaxed);
        if now_ms <= last_ms {
            // Within the same millisecond, so that the cache line is written a thousand times a second and not at
            // every call; or after a step back that has yet to be waited out.
            return last_ms;
        }
        self.last_ms.fetch_max(now_ms, Ordering::Relaxed).max(now_ms)
    }

    /// How many steps of the wall clock were too large to be followed since the store was opened, each counted once.
    pub(crate) fn steps_not_followed(&self) -> u64 {
        self.steps_not_followed.load(Ordering::Relaxed)
    }

    /// Compares the wall clock with the monotonic clock and follows it, if it moved by a small step.
    fn look_at_wall_clock(&self) {
        // Whoever finds somebody looking goes on with the time as it was; nobody waits for the time.
        let Some(mut wall_difference_ms) = self.wall_difference_ms.try_lock() else { return };
        let monotonic_ms = self.source.monotonic_ms();
        if monotonic_ms < self.next_look_ms.load(Ordering::Relaxed) {
            return;
        }
        let wall_ms = self.source.wall_ms();
        if self.source.monotonic_ms().saturating_sub(monotonic_ms) > READING_LIMIT_MS {
            return;
        }
        self.next_look_ms.store(monotonic_ms.saturating_add(LOOK_INTERVAL_MS), Ordering::Relaxed);

        let difference_ms = signed_difference_ms(wall_ms, monotonic_ms);
        let step_ms = difference_ms.saturating_sub(*wall_difference_ms);
        *wall_difference_ms = difference_ms;
        if step_ms.unsigned_abs() <= SMALL_STEP_MS {
            let followed_ms = self.difference_ms.load(Ordering::Relaxed).saturating_add(step_ms);
            self.difference_ms.store(followed_ms, Ordering::Relaxed);
        } else {
            self.steps_not_followed.fetch_add(1, Ordering::Relaxed);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Some time in November 2023.
    const START_MS: u64 = 1_700_000_000_000;

    fn started(high_water_ms: u64) -> (ManualClock, StoreClock) {
        let manual = ManualClock::new(START_MS);
        let clock = StoreClock::start(Arc::new(manual.clone()), high_water_ms);
        (manual, clock)
    }

    fn pass(manual: &ManualClock, by_ms: u64) {
        manual.advance(Duration::from_millis(by_ms));
    }

    /// Moves the wall clock by `by_ms` and lets enough time pass for the next call to look at it.
    fn step(manual: &ManualClock, by_ms: i64) {
        manual.jump_wall(manual.now_ms().saturating_add_signed(by_ms));
        pass(manual, LOOK_INTERVAL_MS);
    }

    #[test]
    fn the_system_clocks_agree_with_the_standard_library_and_monotonic_time_starts_at_zero() {
        let source = SystemTimeSource::new();
        assert!(source.monotonic_ms() < 60_000);
        let wall_ms = whole_ms(SystemTime::now().duration_since(UNIX_EPOCH).unwrap());
        assert!(source.wall_ms().abs_diff(wall_ms) < 60_000);
        let before_ms = source.monotonic_ms();
        std::thread::sleep(Duration::from_millis(5));
        assert!(source.monotonic_ms() >= before_ms + 5);
    }

    #[test]
    fn clones_of_a_manual_clock_are_one_clock() {
        let manual = ManualClock::new(1_000);
        let clone = manual.clone();
        clone.advance(Duration::from_micros(2_500));
        assert_eq!((manual.now_ms(), manual.wall_ms(), manual.monotonic_ms()), (1_002, 1_002, 2));
        manual.jump_wall(7);
        assert_eq!((clone.now_ms(), clone.monotonic_ms()), (7, 2), "a jump leaves monotonic time alone");
    }

    #[test]
    fn a_manual_clock_stops_at_the_end_of_time() {
        let manual = ManualClock::new(u64::MAX - 1);
        manual.advance(Duration::MAX);
        manual.advance(Duration::from_secs(1));
        assert_eq!((manual.now_ms(), manual.monotonic_ms()), (u64::MAX, u64::MAX));
    }

    #[test]
    fn a_wall_clock_up_to_a_day_behind_and_366_days_ahead_is_accepted() {
        for wall_ms in [START_MS, START_MS - DAY_MS, START_MS + 366 * DAY_MS] {
            assert_eq!(judge_opening(wall_ms, START_MS), OpeningTime::Accepted, "{wall_ms}");
        }
    }

    #[test]
    fn a_wall_clock_further_away_is_refused_with_the_distance() {
        let judge = |wall_ms| judge_opening(wall_ms, START_MS);
        assert_eq!(judge(START_MS - 86_400_001), OpeningTime::Behind { by_ms: 86_400_001 });
        assert_eq!(judge(START_MS + 31_622_400_001), OpeningTime::Ahead { by_ms: 31_622_400_001 });
        assert_eq!(judge(0), OpeningTime::Behind { by_ms: START_MS });
        assert_eq!(judge(u64::MAX), OpeningTime::Ahead { by_ms: u64::MAX - START_MS });
    }

    #[test]
    fn a_new_store_accepts_every_wall_clock() {
        for wall_ms in [0, 1, START_MS, u64::MAX] {
            assert_eq!(judge_opening(wall_ms, 0), OpeningTime::Accepted);
        }
    }

    #[test]
    fn store_time_starts_at_the_later_of_wall_clock_and_high_water_mark() {
        assert_eq!(started(0).1.now_ms(), START_MS);
        assert_eq!(started(START_MS - 5_000).1.now_ms(), START_MS);
        assert_eq!(started(START_MS + 5_000).1.now_ms(), START_MS + 5_000);
    }

    #[test]
    fn store_time_advances_with_monotonic_time() {
        let (manual, clock) = started(0);
        for (by_ms, after_ms) in [(1, 1), (998, 999), (1, 1_000), (DAY_MS, DAY_MS + 1_000)] {
            pass(&manual, by_ms);
            assert_eq!(clock.now_ms(), START_MS + after_ms);
        }
        assert_eq!(clock.steps_not_followed(), 0);
    }

    #[test]
    fn store_time_starts_right_from_a_source_whose_monotonic_time_is_not_zero() {
        let manual = ManualClock::new(5);
        pass(&manual, 1_000_000);
        manual.jump_wall(5);
        let clock = StoreClock::start(Arc::new(manual.clone()), 0);
        assert_eq!(clock.now_ms(), 5);
        pass(&manual, 10);
        assert_eq!(clock.now_ms(), 15);
    }

    #[test]
    fn a_small_step_forward_is_followed_at_once() {
        let (manual, clock) = started(0);
        step(&manual, 10_000);
        assert_eq!(clock.now_ms(), manual.now_ms());
        assert_eq!(clock.now_ms(), START_MS + 11_000);
        step(&manual, 3);
        assert_eq!(clock.now_ms(), manual.now_ms());
        assert_eq!(clock.steps_not_followed(), 0);
    }

    #[test]
    fn after_a_small_step_back_time_stands_still_until_the_wall_clock_catches_up() {
        let (manual, clock) = started(0);
        pass(&manual, 500);
        assert_eq!(clock.now_ms(), START_MS + 500);
        step(&manual, -10_000);
        let mut last_ms = clock.now_ms();
        assert_eq!(last_ms, START_MS + 500);
        for _ in 0..200 {
            pass(&manual, 100);
            let now_ms = clock.now_ms();
            assert_eq!(now_ms, manual.now_ms().max(START_MS + 500));
            assert!(now_ms >= last_ms);
            last_ms = now_ms;
        }
        assert_eq!(last_ms, manual.now_ms(), "it has caught up and goes on with the wall clock");
        assert_eq!(clock.steps_not_followed(), 0);
    }

    #[test]
    fn larger_steps_are_counted_once_each_and_not_followed() {
        for by_ms in [10_001, -10_001, 400 * DAY_MS as i64, -(DAY_MS as i64)] {
            let (manual, clock) = started(0);
            step(&manual, by_ms);
            assert_eq!(clock.now_ms(), START_MS + LOOK_INTERVAL_MS, "a step of {by_ms} ms");
            assert_eq!(clock.steps_not_followed(), 1);
            for _ in 0..5 {
                pass(&manual, LOOK_INTERVAL_MS);
                clock.now_ms();
            }
            assert_eq!(clock.now_ms(), START_MS + 6 * LOOK_INTERVAL_MS);
            assert_eq!(clock.steps_not_followed(), 1, "looking again does not count it again");
            step(&manual, -by_ms);
            assert_eq!(clock.now_ms(), START_MS + 7 * LOOK_INTERVAL_MS);
            assert_eq!(clock.steps_not_followed(), 2, "the way back is a step of its own");
        }
    }

    #[test]
    fn small_steps_are_followed_also_after_a_larger_one() {
        let (manual, clock) = started(0);
        step(&manual, DAY_MS as i64);
        clock.now_ms();
        step(&manual, 2_000);
        assert_eq!(clock.now_ms(), START_MS + 2 * LOOK_INTERVAL_MS + 2_000);
        step(&manual, -500);
        assert_eq!(clock.now_ms(), START_MS + 3 * LOOK_INTERVAL_MS + 1_500);
        assert_eq!(clock.steps_not_followed(), 1);
    }

    #[test]
    fn a_wall_clock_behind_the_mark_at_start_is_no_step_and_its_drift_is_followed() {
        let (manual, clock) = started(START_MS + 3_600_000);
        pass(&manual, LOOK_INTERVAL_MS);
        assert_eq!(clock.now_ms(), START_MS + 3_600_000 + LOOK_INTERVAL_MS);
        step(&manual, 700);
        assert_eq!(clock.now_ms(), START_MS + 3_600_000 + 2 * LOOK_INTERVAL_MS + 700);
        assert_eq!(clock.steps_not_followed(), 0);
    }

    #[test]
    fn the_wall_clock_is_looked_at_once_a_second() {
        let (manual, clock) = started(0);
        manual.jump_wall(START_MS + 5_000);
        pass(&manual, LOOK_INTERVAL_MS - 1);
        assert_eq!(clock.now_ms(), START_MS + 999, "not yet");
        pass(&manual, 1);
        assert_eq!(clock.now_ms(), START_MS + 6_000);
        manual.jump_wall(manual.now_ms() + 5_000);
        pass(&manual, LOOK_INTERVAL_MS - 1);
        assert_eq!(clock.now_ms(), START_MS + 6_999, "not yet again");
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

        fn monotonic_ms(&self) -> u64 {
            self.hands.monotonic_ms()
        }
    }

    #[test]
    fn a_pause_while_the_wall_clock_is_read_is_not_taken_for_a_step() {
        let source = Arc::new(BusyMachine { hands: ManualClock::new(START_MS), pause_ms: AtomicU64::new(0) });
        let clock = StoreClock::start(Arc::clone(&source) as Arc<dyn TimeSource>, 0);
        for pause_ms in [9_000, 60_000, 0] {
            source.pause_ms.store(pause_ms, Ordering::Relaxed);
            pass(&source.hands, LOOK_INTERVAL_MS);
            clock.now_ms();
        }
        assert_eq!(clock.now_ms(), source.hands.now_ms());
        assert_eq!(clock.steps_not_followed(), 0);
    }

    #[test]
    fn at_the_ends_of_time_the_clock_saturates() {
        let manual = ManualClock::new(u64::MAX);
        let clock = StoreClock::start(Arc::new(manual.clone()), 0);
        assert_eq!(clock.now_ms(), u64::MAX);
        manual.jump_wall(0);
        manual.advance(Duration::MAX);
        assert_eq!(clock.now_ms(), u64::MAX);

        let (manual, clock) = started(u64::MAX);
        manual.advance(Duration::MAX);
        assert_eq!(clock.now_ms(), u64::MAX);
        assert_eq!(clock.now_ms(), u64::MAX);
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

        fn monotonic_ms(&self) -> u64 {
            self.0.fetch_add(1, Ordering::SeqCst)
        }
    }

    #[test]
    fn store_time_never_decreases_across_threads_that_all_move_it() {
        let clock = StoreClock::start(Arc::new(Ticking(AtomicU64::new(0))), 0);
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
        let (manual, clock) = started(0);
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
                    manual.jump_wall(manual.now_ms().saturating_add_signed(by_ms));
                    pass(&manual, 400);
                }
            });
        });
    }

    #[test]
    #[ignore = "a measurement: cargo test --release -- --ignored --nocapture cost_of_the_time"]
    fn cost_of_the_time() {
        const COUNT: u32 = 10_000_000;
        let clock = StoreClock::start(Arc::new(SystemTimeSource::new()), 0);
        let start = Instant::now();
        let mut sum = 0_u64;
        for _ in 0..COUNT {
            sum = sum.wrapping_add(clock.now_ms());
        }
        println!("now_ms: {:.1} ns ({sum})", start.elapsed().as_nanos() as f64 / f64::from(COUNT));
    }
}
