//! Store time across sessions: the marks that the log stores, and the rules by which recovery continues store time from them.
//!
//! Recovery collects the marks in a [`HighWater`] and calls [`judge_opening`]. The module is pure: it reads no clock.

use super::{BootId, DAY_MS, FOLLOW_DIVISOR, Reading};
use crate::planted::{Bug, planted};

/// How far the wall clock may be behind the mark when a store is opened in a different boot, in ms. A day covers a clock that
/// was wrong by a time zone. Store time then continues at the mark, so keys are remembered for longer by as much as the clock
/// is behind.
const MAX_BEHIND_MS: u64 = DAY_MS;

/// The default of [`Options::max_downtime`](crate::Options::max_downtime), in ms.
pub(crate) const DEFAULT_MAX_DOWNTIME_MS: u64 = 366 * DAY_MS;

/// What a jump of the wall clock across a reboot means: the operator's answer to [`Error::Clock`](crate::Error::Clock), for
/// [`Options::accept_clock_jump`](crate::Options::accept_clock_jump).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ClockJump {
    /// The wall clock is right, and that much time has passed. Store time advances by it, and keys and results whose retention
    /// ends by then expire. If the clock went back, no time has passed, and this means the same as `NotElapsed`.
    Elapsed,
    /// The wall clock was wrong before, or is wrong now. Store time continues from where it was, and nothing expires.
    NotElapsed,
}

/// Store time, wall clock and boot-time clock at one moment, all in ms. The log stores such marks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct TimeMark {
    pub(crate) store_ms: u64,
    pub(crate) wall_ms: u64,
    pub(crate) boot: BootId,
    pub(crate) boot_ms: u64,
}

impl TimeMark {
    /// The first mark of a new store, whose store time starts at the wall clock.
    pub(crate) fn first(now: Reading) -> TimeMark {
        TimeMark { store_ms: now.wall_ms, wall_ms: now.wall_ms, boot: now.boot, boot_ms: now.boot_ms }
    }
}

/// The latest time that a log has recorded: the last mark, and store time and wall clock of the last frame after it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct HighWater {
    mark: TimeMark,
    store_ms: u64,
    wall_ms: u64,
}

impl HighWater {
    pub(crate) fn at(mark: TimeMark) -> HighWater {
        HighWater { mark, store_ms: mark.store_ms, wall_ms: mark.wall_ms }
    }

    /// Advances to a later frame, which must be of the same boot as the mark.
    pub(crate) fn note(&mut self, store_ms: u64, wall_ms: u64) {
        (self.store_ms, self.wall_ms) = (self.store_ms.max(store_ms), wall_ms);
    }

    /// Replaces the mark with a later one. Store time never goes back.
    pub(crate) fn replace(&mut self, mark: TimeMark) {
        *self = HighWater { store_ms: self.store_ms.max(mark.store_ms), ..HighWater::at(mark) };
    }

    pub(crate) fn store_ms(&self) -> u64 {
        self.store_ms
    }

    pub(crate) fn wall_ms(&self) -> u64 {
        self.wall_ms
    }

    /// Returns the store time by the boot-time clock, or `None` if the machine was rebooted since the mark.
    ///
    /// A boot-time clock that is behind its latest known value belongs to a different boot even if the boot id is the same:
    /// the machine was restored from a snapshot. The latest known value is at least that of the mark plus the store time that
    /// has passed since the mark, minus what store time may have gained by following the wall clock.
    fn by_boot_time(&self, now: &Reading) -> Option<u64> {
        if !self.mark.boot.is_same(now.boot) || planted(Bug::WallClockInSameBoot) {
            return None;
        }
        let since_ms = self.store_ms.saturating_sub(self.mark.store_ms);
        let followed_ms = since_ms / FOLLOW_DIVISOR + 1;
        let seen_ms = self.mark.boot_ms.saturating_add(since_ms.saturating_sub(followed_ms));
        let passed_ms = now.boot_ms.checked_sub(self.mark.boot_ms).filter(|_| now.boot_ms >= seen_ms)?;
        Some(self.mark.store_ms.saturating_add(passed_ms).max(self.store_ms))
    }
}

/// How far recovery trusts the wall clock.
#[derive(Debug, Clone, Copy)]
pub(crate) struct OpeningRules {
    /// The value of [`Options::max_downtime`](crate::Options::max_downtime), in ms.
    pub(crate) max_downtime_ms: u64,
    /// The value of [`Options::accept_clock_jump`](crate::Options::accept_clock_jump), if it was set.
    pub(crate) accept: Option<ClockJump>,
}

/// How store time continues when a store is opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct OpeningTime {
    /// The store time at which the store continues, in ms.
    pub(crate) store_ms: u64,
    /// The operator's answer, if it was needed to accept a jump of the wall clock; `None` if the clock did not jump.
    pub(crate) accepted_jump: Option<ClockJump>,
}

/// The wall clock is too far from where the log has seen it, and no other clock shows how much time has passed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Jumped;

/// Returns the store time at which a store continues when it is opened.
///
/// | boot | wall clock | store time | reason |
/// |---|---|---|---|
/// | the same | any | advances by the boot-time clock | it cannot be set, and it counts suspend |
/// | a different one | ahead by at most `max_downtime` | advances by the wall clock | no other clock ran through the reboot |
/// | a different one | further ahead | error, or as `accept` states | if the clock is wrong, everything would expire |
/// | a different one | behind by at most a day | continues at the mark | keys are remembered for longer, which is safe |
/// | a different one | further behind | error, or continues at the mark | the clock is wrong now or was wrong then |
pub(crate) fn judge_opening(
    seen: &HighWater,
    now: &Reading,
    rules: &OpeningRules,
) -> Result<OpeningTime, Jumped> {
    let at = |store_ms| OpeningTime { store_ms, accepted_jump: None };
    if let Some(store_ms) = seen.by_boot_time(now) {
        return Ok(at(store_ms));
    }
    let (ahead_ms, behind_ms) =
        (now.wall_ms.saturating_sub(seen.wall_ms), seen.wall_ms.saturating_sub(now.wall_ms));
    let advanced_ms = seen.store_ms.saturating_add(ahead_ms);
    if ahead_ms <= rules.max_downtime_ms && behind_ms <= MAX_BEHIND_MS {
        return Ok(at(advanced_ms));
    }
    let store_ms = match rules.accept.ok_or(Jumped)? {
        ClockJump::Elapsed => advanced_ms,
        ClockJump::NotElapsed => seen.store_ms,
    };
    Ok(OpeningTime { store_ms, accepted_jump: rules.accept })
}

#[cfg(test)]
mod tests {
    use super::*;
    use ClockJump::{Elapsed, NotElapsed};

    const START_MS: u64 = 1_700_000_000_000;
    const BOOT: BootId = BootId([7; 16]);
    const OTHER: BootId = BootId([8; 16]);
    /// An hour behind the wall clock, because only differences between the clocks count.
    const STORE_MS: u64 = START_MS - 3_600_000;
    const SEEN: TimeMark = TimeMark { store_ms: STORE_MS, wall_ms: START_MS, boot: BOOT, boot_ms: 50_000 };
    const RULES: OpeningRules = OpeningRules { max_downtime_ms: DEFAULT_MAX_DOWNTIME_MS, accept: None };

    fn judge(seen: TimeMark, wall_ms: u64, boot: BootId, boot_ms: u64) -> Option<u64> {
        let now = Reading { wall_ms, boot, boot_ms };
        judge_opening(&HighWater::at(seen), &now, &RULES).ok().map(|time| time.store_ms)
    }

    #[test]
    fn in_the_same_boot_only_the_boot_time_clock_counts() {
        for wall_ms in [0, START_MS - 300 * DAY_MS, START_MS, START_MS + 9_999 * DAY_MS, u64::MAX] {
            assert_eq!(judge(SEEN, wall_ms, BOOT, 50_000), Some(STORE_MS));
            assert_eq!(judge(SEEN, wall_ms, BOOT, 61_000), Some(STORE_MS + 11_000));
        }
        assert_eq!(judge(SEEN, START_MS, BOOT, u64::MAX), Some(u64::MAX));
    }

    #[test]
    fn in_another_boot_store_time_follows_only_a_later_wall_clock() {
        for boot in [OTHER, BootId::UNKNOWN] {
            assert_eq!(judge(SEEN, START_MS + 5, boot, 999_999), Some(STORE_MS + 5));
            assert_eq!(judge(SEEN, START_MS - 5, boot, 0), Some(STORE_MS));
        }
        let unknown = TimeMark { boot: BootId::UNKNOWN, ..SEEN };
        assert_eq!(judge(unknown, START_MS + 5, BootId::UNKNOWN, 51_000), Some(STORE_MS + 5));
    }

    #[test]
    fn a_boot_time_clock_behind_the_mark_is_of_a_different_boot() {
        assert_eq!(judge(SEEN, START_MS + 7_000, BOOT, 49_999), Some(STORE_MS + 7_000));
        assert_eq!(judge(SEEN, START_MS + 400 * DAY_MS, BOOT, 49_999), None);
    }

    #[test]
    fn a_boot_time_clock_behind_the_last_frame_is_of_a_different_boot() {
        let mut seen = HighWater::at(SEEN);
        // An hour later. Store time may have followed the wall clock by two seconds, plus a millisecond of rounding: so the
        // boot-time clock was between 3,647,999 and 3,652,001.
        seen.note(STORE_MS + 3_600_000, START_MS + 77_000);
        let at = |boot_ms| {
            let now = Reading { wall_ms: START_MS + 80_000, boot: BOOT, boot_ms };
            judge_opening(&seen, &now, &RULES).unwrap().store_ms
        };
        let end_ms = STORE_MS + 3_600_000;
        assert_eq!(at(3_647_998), end_ms + 3_000, "a different boot, so the wall clock counts");
        assert_eq!(at(3_647_999), end_ms, "store time must not go back");
        assert_eq!(at(3_650_000), end_ms);
        assert_eq!(at(3_651_000), end_ms + 1_000, "the same boot, so the boot-time clock counts");
    }

    #[test]
    fn a_later_mark_replaces_all_but_the_store_time() {
        let mut seen = HighWater::at(SEEN);
        seen.note(STORE_MS + 500, START_MS + 600);
        let later = TimeMark { store_ms: STORE_MS + 400, wall_ms: 9, boot: OTHER, boot_ms: 3 };
        seen.replace(later);
        assert_eq!((seen.store_ms(), seen.wall_ms()), (STORE_MS + 500, 9));
        seen.note(STORE_MS + 450, 10);
        assert_eq!((seen.store_ms(), seen.wall_ms()), (STORE_MS + 500, 10));
        let now = Reading { wall_ms: 0, boot: OTHER, boot_ms: 203 };
        assert_eq!(judge_opening(&seen, &now, &RULES).unwrap().store_ms, STORE_MS + 600);
    }

    #[test]
    fn the_limits_of_a_clock_jump_are_exact_to_the_millisecond() {
        let rules = OpeningRules { max_downtime_ms: 10_000, accept: None };
        let judge = |wall_ms, rules: &OpeningRules| {
            judge_opening(&HighWater::at(SEEN), &Reading { wall_ms, boot: OTHER, boot_ms: 0 }, rules)
        };
        let accepted = |store_ms| Ok(OpeningTime { store_ms, accepted_jump: None });
        assert_eq!(judge(START_MS - DAY_MS, &rules), accepted(STORE_MS));
        assert_eq!(judge(START_MS - DAY_MS - 1, &rules), Err(Jumped));
        assert_eq!(judge(START_MS + 10_000, &rules), accepted(STORE_MS + 10_000));
        assert_eq!(judge(START_MS + 10_001, &rules), Err(Jumped));
        assert_eq!(judge(START_MS + 366 * DAY_MS, &RULES), accepted(STORE_MS + 366 * DAY_MS));
        assert_eq!(judge(START_MS + 366 * DAY_MS + 1, &RULES), Err(Jumped));
        assert_eq!((judge(0, &RULES), judge(u64::MAX, &RULES)), (Err(Jumped), Err(Jumped)));
        assert_eq!((DAY_MS, DEFAULT_MAX_DOWNTIME_MS), (86_400_000, 31_622_400_000));
    }

    #[test]
    fn an_accepted_jump_has_no_effect_without_a_jump() {
        let judge = |wall_ms, accept| {
            let rules = OpeningRules { accept: Some(accept), ..RULES };
            let now = Reading { wall_ms, boot: OTHER, boot_ms: 0 };
            let time = judge_opening(&HighWater::at(SEEN), &now, &rules).unwrap();
            (time.store_ms, time.accepted_jump)
        };
        let far_ms = 400 * DAY_MS;
        assert_eq!(judge(START_MS + far_ms, Elapsed), (STORE_MS + far_ms, Some(Elapsed)));
        assert_eq!(judge(START_MS + far_ms, NotElapsed), (STORE_MS, Some(NotElapsed)));
        for accept in [Elapsed, NotElapsed] {
            assert_eq!(judge(START_MS - far_ms, accept), (STORE_MS, Some(accept)));
            assert_eq!(judge(START_MS + 5, accept), (STORE_MS + 5, None), "there is no jump to accept");
        }
        assert_eq!(judge(u64::MAX, Elapsed).0, STORE_MS + (u64::MAX - START_MS));
    }

    #[test]
    fn a_mark_of_zero_is_not_special() {
        let never = TimeMark { store_ms: 0, wall_ms: 0, boot: BootId::UNKNOWN, boot_ms: 0 };
        assert_eq!(judge(never, 0, OTHER, 5), Some(0));
        assert_eq!(judge(never, 366 * DAY_MS, OTHER, 5), Some(366 * DAY_MS));
        assert_eq!(judge(never, START_MS, OTHER, 5), None);
        assert_eq!(judge(TimeMark { boot: OTHER, ..never }, START_MS, OTHER, 5), Some(5));
    }
}
