//! Sources of time: the clocks of the operating system, and [`ManualClock`], which a test advances by hand. Only
//! [`clock`](super) and recovery read a source; everything else uses store time.

use std::fmt;
use std::hash::{BuildHasher, RandomState};
use std::sync::{Arc, Weak};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use parking_lot::Mutex;

use super::whole_ms;

/// Identifies the boot of a machine, and so the boot-time clock that counts from it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct BootId(pub(crate) [u8; 16]);

impl BootId {
    /// The id of a boot for which the operating system has none.
    pub(crate) const UNKNOWN: BootId = BootId([0; 16]);

    /// Whether both are certainly the same boot. An unknown boot is not the same as any boot, itself included.
    pub(crate) fn is_same(self, other: BootId) -> bool {
        self != BootId::UNKNOWN && self == other
    }

    /// Returns the id of this boot within a Linux time namespace, which shifts the boot-time clock. The id is different
    /// unless the shift is zero. `offsets` is the text of `/proc/self/timens_offsets`.
    #[cfg(any(target_os = "linux", target_os = "android", test))]
    fn in_namespace(self, offsets: &str) -> BootId {
        let mut words = offsets.split_whitespace().skip_while(|word| *word != "boottime").skip(1);
        let mut next = || words.next().and_then(|word| word.parse::<i64>().ok()).unwrap_or(0);
        let shift = [next().to_le_bytes(), next().to_le_bytes()];
        let mut bytes = self.0;
        for (byte, shift) in bytes.iter_mut().zip(shift.as_flattened()) {
            *byte ^= shift;
        }
        if self == BootId::UNKNOWN { self } else { BootId(bytes) }
    }

    /// Parses a UUID: 32 hexadecimal digits, hyphens ignored. Any other text is an unknown boot.
    #[cfg(any(target_os = "linux", target_os = "android", test))]
    fn parse(text: &str) -> BootId {
        let digits: String = text.trim().chars().filter(|c| *c != '-').collect();
        let is_uuid = digits.len() == 32 && digits.chars().all(|c| c.is_ascii_hexdigit());
        match u128::from_str_radix(&digits, 16) {
            Ok(number) if is_uuid => BootId(number.to_be_bytes()),
            _ => BootId::UNKNOWN,
        }
    }
}

/// All clocks at one moment, in ms.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Reading {
    pub(crate) wall_ms: u64,
    pub(crate) boot: BootId,
    pub(crate) boot_ms: u64,
}

/// Threads that are waiting until a certain store time.
pub(crate) trait Sleepers: Send + Sync + fmt::Debug {
    /// Wakes all of the threads, so that each checks the time again.
    fn wake_all(&self);
}

/// A wall clock and a boot-time clock.
pub(crate) trait TimeSource: Send + Sync + fmt::Debug {
    /// The wall clock, in ms since the Unix epoch. May go back.
    fn wall_ms(&self) -> u64;

    /// The boot-time clock, in ms since a moment that is fixed for this boot. Never goes back within a boot. Counts suspend, if
    /// the operating system has such a clock.
    fn boot_ms(&self) -> u64;

    /// The boot that the boot-time clock counts from.
    fn boot(&self) -> BootId;

    /// Whether the clock stands still until a test advances it. If so, a wait for a deadline must not use real time.
    fn is_manual(&self) -> bool {
        false
    }

    /// Registers threads to be woken when the clock is advanced by hand.
    fn wake_when_moved(&self, _sleepers: Weak<dyn Sleepers>) {}

    /// Reads all clocks, the wall clock first. If the thread is paused after that, store time that starts from this reading
    /// omits the pause. If the boot-time clock were read first, store time would count the pause twice.
    fn read(&self) -> Reading {
        let wall_ms = self.wall_ms();
        Reading { wall_ms, boot: self.boot(), boot_ms: self.boot_ms() }
    }
}

/// The clocks of the operating system.
#[derive(Debug)]
pub(crate) struct SystemTimeSource {
    boot: BootId,
    /// The moment from which `boot_ms` counts, because there is no boot-time clock.
    #[cfg(not(any(target_os = "linux", target_os = "android")))]
    created: std::time::Instant,
}

impl SystemTimeSource {
    #[cfg(any(target_os = "linux", target_os = "android"))]
    pub(crate) fn new() -> SystemTimeSource {
        let read = |path| std::fs::read_to_string(path).unwrap_or_default();
        let boot = BootId::parse(&read("/proc/sys/kernel/random/boot_id"));
        SystemTimeSource { boot: boot.in_namespace(&read("/proc/self/timens_offsets")) }
    }

    /// On other systems the boot id is unknown. So whenever a store is opened, its time continues by the wall clock, as after
    /// a reboot.
    #[cfg(not(any(target_os = "linux", target_os = "android")))]
    pub(crate) fn new() -> SystemTimeSource {
        SystemTimeSource { boot: BootId::UNKNOWN, created: std::time::Instant::now() }
    }
}

impl TimeSource for SystemTimeSource {
    fn wall_ms(&self) -> u64 {
        SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, whole_ms)
    }

    #[cfg(any(target_os = "linux", target_os = "android"))]
    fn boot_ms(&self) -> u64 {
        let now = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
        let seconds_ms = u64::try_from(now.tv_sec).unwrap_or(0).saturating_mul(1_000);
        seconds_ms.saturating_add(u64::try_from(now.tv_nsec).unwrap_or(0) / 1_000_000)
    }

    #[cfg(not(any(target_os = "linux", target_os = "android")))]
    fn boot_ms(&self) -> u64 {
        whole_ms(self.created.elapsed())
    }

    fn boot(&self) -> BootId {
        self.boot
    }
}

/// A clock that advances only when a test advances it. For tests of retention, deadlines and clock jumps, with
/// [`Options::manual_clock`](crate::Options::manual_clock).
///
/// It simulates the clocks of one machine: a wall clock, which can be set to any time, and a boot-time clock, which counts
/// from zero at every boot and cannot be set. Clones share the same clocks, so a test keeps one clone and gives a second one
/// to the store. Each new `ManualClock` is a different machine.
///
/// | call | wall clock | boot-time clock | boot |
/// |---|---|---|---|
/// | [`advance`](ManualClock::advance): time passes, suspended or not | advances | advances | the same |
/// | [`jump_wall`](ManualClock::jump_wall): an administrator or a time service sets the clock | is set | unchanged | the same |
/// | [`reboot`](ManualClock::reboot): the machine is down for a while | advances | starts again at zero | a different one |
/// | [`snapshot`](ManualClock::snapshot): the machine is restored later | as at the snapshot | as at the snapshot | the same |
///
/// ```
/// use oncekey::{Error, Fingerprint, ManualClock, Options};
/// use std::time::Duration;
///
/// let directory = tempfile::tempdir()?;
/// let path = directory.path().join("payments.once");
/// let day = Duration::from_secs(24 * 3_600);
/// let clock = ManualClock::new(1_700_000_000_000); // November 2023
/// let options = Options::new().retention(day * 7).manual_clock(clock.clone());
///
/// let store = options.clone().open(&path)?;
/// store.record("a", Fingerprint::NONE, b"result")?;
/// store.close()?;
///
/// // The wall clock is set eight days ahead. In the same boot, the boot-time clock shows that no time has passed.
/// clock.jump_wall(clock.now_ms() + 8 * 24 * 3_600_000);
/// let store = options.clone().open(&path)?;
/// assert!(store.get("a")?.is_completed());
/// store.close()?;
///
/// // Across a reboot, only the wall clock shows how long the machine was down.
/// clock.reboot(day * 8);
/// let store = options.open(&path)?;
/// assert!(store.get("a")?.is_absent(), "its retention has passed");
/// # store.close()?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug)]
pub struct ManualClock {
    /// One lock for all clocks, so that no thread sees one advanced and the other not.
    reading: Arc<Mutex<Reading>>,
    /// The sleepers of the stores that use this clock. Not locked while they are woken, because they take their own locks.
    sleepers: Arc<Mutex<Vec<Weak<dyn Sleepers>>>>,
}

impl ManualClock {
    /// Makes the clocks of a machine that boots now, with its wall clock at `wall_ms` milliseconds since the Unix epoch.
    #[must_use]
    pub fn new(wall_ms: u64) -> Self {
        ManualClock::at(Reading { wall_ms, boot: new_boot(), boot_ms: 0 })
    }

    fn at(reading: Reading) -> Self {
        ManualClock { reading: Arc::new(Mutex::new(reading)), sleepers: Arc::default() }
    }

    /// Advances both clocks by `by`, in whole milliseconds. Each stops at `u64::MAX`.
    ///
    /// Wakes the threads that are waiting for an operation, so that each checks whether the lease's deadline has passed.
    pub fn advance(&self, by: Duration) {
        let mut reading = self.reading.lock();
        reading.wall_ms = reading.wall_ms.saturating_add(whole_ms(by));
        reading.boot_ms = reading.boot_ms.saturating_add(whole_ms(by));
        drop(reading);
        let sleepers = self.sleepers.lock().clone();
        for sleepers in sleepers.iter().filter_map(Weak::upgrade) {
            sleepers.wake_all();
        }
    }

    /// Sets the wall clock forward or back, to `to_ms` milliseconds since the Unix epoch. No time passes.
    ///
    /// An open store follows a step of up to ten seconds by two seconds an hour. It counts a larger step in
    /// [`Stats::clock_steps_not_followed`](crate::Stats::clock_steps_not_followed) and does not follow it.
    pub fn jump_wall(&self, to_ms: u64) {
        self.reading.lock().wall_ms = to_ms;
    }

    /// Reboots the machine, which is down for `down_for`. The wall clock advances by that, and the boot-time clock starts again
    /// at zero. For a machine whose wall clock does not run while it is off, call [`jump_wall`](ManualClock::jump_wall)
    /// afterwards.
    ///
    /// Close or drop the stores on this clock first, because a reboot ends every process. For a store that is still open, time
    /// stands still until the boot-time clock is past its former value.
    pub fn reboot(&self, down_for: Duration) {
        let mut reading = self.reading.lock();
        reading.wall_ms = reading.wall_ms.saturating_add(whole_ms(down_for));
        (reading.boot, reading.boot_ms) = (new_boot(), 0);
    }

    /// Returns a second clock with the same readings and the same boot, which from now on advances on its own. It simulates
    /// the machine after it was restored from a snapshot of this moment.
    #[must_use]
    pub fn snapshot(&self) -> ManualClock {
        ManualClock::at(*self.reading.lock())
    }

    /// The wall clock, in milliseconds since the Unix epoch.
    #[must_use]
    pub fn now_ms(&self) -> u64 {
        self.reading.lock().wall_ms
    }

    /// The boot-time clock, in milliseconds since the last boot.
    #[must_use]
    pub fn boot_time_ms(&self) -> u64 {
        self.reading.lock().boot_ms
    }
}

impl TimeSource for ManualClock {
    fn wall_ms(&self) -> u64 {
        self.now_ms()
    }

    fn boot_ms(&self) -> u64 {
        self.boot_time_ms()
    }

    fn boot(&self) -> BootId {
        self.reading.lock().boot
    }

    fn is_manual(&self) -> bool {
        true
    }

    fn wake_when_moved(&self, sleepers: Weak<dyn Sleepers>) {
        let mut all = self.sleepers.lock();
        all.retain(|sleepers| sleepers.strong_count() > 0);
        all.push(sleepers);
    }

    fn read(&self) -> Reading {
        *self.reading.lock()
    }
}

/// Returns the id of a new boot, different from every other in this process and in other processes.
fn new_boot() -> BootId {
    let state = RandomState::new();
    let mut bytes = [0; 16];
    for (counter, half) in bytes.chunks_exact_mut(8).enumerate() {
        half.copy_from_slice(&state.hash_one(("boot", counter)).to_le_bytes());
    }
    BootId(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_system_clocks_agree_with_the_standard_library() {
        let source = SystemTimeSource::new();
        let wall_ms = whole_ms(SystemTime::now().duration_since(UNIX_EPOCH).unwrap());
        assert!(source.wall_ms().abs_diff(wall_ms) < 60_000);
        let before_ms = source.boot_ms();
        std::thread::sleep(Duration::from_millis(5));
        assert!(source.boot_ms() >= before_ms + 5);
        assert_eq!(source.read().boot, source.boot());
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn linux_has_a_stable_boot_id_and_a_boot_time_clock() {
        let (one, other) = (SystemTimeSource::new(), SystemTimeSource::new());
        assert!(one.boot().is_same(other.boot()));
        let up_ms = std::fs::read_to_string("/proc/uptime").unwrap();
        let up_ms = up_ms.split('.').next().unwrap().parse::<u64>().unwrap() * 1_000;
        assert!(one.boot_ms().abs_diff(up_ms) < 60_000, "{} and {up_ms}", one.boot_ms());
    }

    #[test]
    fn a_boot_id_that_is_not_a_uuid_is_unknown() {
        let boot = BootId::parse("4d9d0f6c-9f2e-4c53-a8c5-0123456789ab\n");
        assert_eq!(boot.0[..3], [0x4d, 0x9d, 0x0f]);
        assert!(boot.is_same(boot) && !boot.is_same(new_boot()));
        let zero = "00000000-0000-0000-0000-000000000000";
        for text in ["", "no", "4d9d0f6c", "+d9d0f6c9f2e4c53a8c50123456789ab", zero, "g"] {
            assert_eq!(BootId::parse(text), BootId::UNKNOWN, "{text}");
        }
        assert!(!BootId::UNKNOWN.is_same(BootId::UNKNOWN));
    }

    #[test]
    fn a_shifted_time_namespace_is_a_different_boot() {
        let boot = BootId::parse("4d9d0f6c-9f2e-4c53-a8c5-0123456789ab");
        let seen = |boottime| boot.in_namespace(&format!("monotonic      5      0\nboottime  {boottime}\n"));
        assert_eq!((seen("0 0"), boot.in_namespace("")), (boot, boot));
        let shifted = [seen("31536000 0"), seen("-31536000 0"), seen("0 1"), seen("1 1")];
        for (at, one) in shifted.iter().enumerate() {
            assert!(!one.is_same(boot));
            assert!(shifted.iter().enumerate().all(|(other, of)| one.is_same(*of) == (at == other)));
        }
        assert_eq!(BootId::UNKNOWN.in_namespace("boottime 7 0"), BootId::UNKNOWN);
    }

    #[test]
    fn clones_of_a_manual_clock_share_their_clocks() {
        let manual = ManualClock::new(1_000);
        let clone = manual.clone();
        clone.advance(Duration::from_micros(2_500));
        assert_eq!((manual.now_ms(), manual.boot_time_ms()), (1_002, 2));
        manual.jump_wall(7);
        assert_eq!((clone.now_ms(), clone.boot_time_ms()), (7, 2), "a jump does not change boot time");
    }

    #[derive(Debug)]
    struct Sleeper;

    impl Sleepers for Sleeper {
        fn wake_all(&self) {}
    }

    #[test]
    fn a_manual_clock_forgets_closed_stores() {
        let manual = ManualClock::new(1_000);
        let sleepers: Vec<Arc<dyn Sleepers>> = vec![Arc::new(Sleeper), Arc::new(Sleeper)];
        sleepers.iter().for_each(|sleepers| manual.wake_when_moved(Arc::downgrade(sleepers)));
        assert_eq!(manual.sleepers.lock().len(), 2);
        drop(sleepers);
        let last: Arc<dyn Sleepers> = Arc::new(Sleeper);
        manual.wake_when_moved(Arc::downgrade(&last));
        assert_eq!(manual.sleepers.lock().len(), 1);
    }

    #[test]
    fn a_reboot_restarts_the_boot_time_clock_and_advances_the_wall_clock() {
        let manual = ManualClock::new(1_000);
        manual.advance(Duration::from_secs(5));
        let before = manual.boot();
        manual.reboot(Duration::from_secs(60));
        assert_eq!((manual.now_ms(), manual.boot_time_ms()), (66_000, 0));
        assert!(!manual.boot().is_same(before) && manual.boot().is_same(manual.clone().boot()));
        assert!(!manual.boot().is_same(ManualClock::new(0).boot()), "a new clock is a different machine");
    }

    #[test]
    fn a_snapshot_has_the_same_boot_and_advances_on_its_own() {
        let manual = ManualClock::new(1_000);
        manual.advance(Duration::from_secs(5));
        let snapshot = manual.snapshot();
        manual.advance(Duration::from_secs(5));
        assert!(snapshot.boot().is_same(manual.boot()));
        assert_eq!(
            (snapshot.now_ms(), snapshot.boot_time_ms(), manual.boot_time_ms()),
            (6_000, 5_000, 10_000)
        );
    }

    #[test]
    fn a_manual_clock_saturates() {
        let manual = ManualClock::new(u64::MAX - 1);
        manual.advance(Duration::MAX);
        manual.advance(Duration::from_secs(1));
        assert_eq!((manual.now_ms(), manual.boot_time_ms()), (u64::MAX, u64::MAX));
    }
}
