//! Encodes scripts as bytes: four for each act, so that a mutation of one act does not move the others.

use crate::input::Input;
use crate::world::{Act, KEYS};

/// The longest result. Five of them fill a segment.
pub const MAX_RESULT: u16 = 12_000;

/// The shortest step back of the wall clock. Store time follows steps of up to 10 seconds, which the oracle does not model.
const MIN_BACK_MS: u32 = 20_000;
/// The shortest step of the wall clock. Each unit of an encoded step makes it longer, up to about a week.
const MIN_STEP_MS: i64 = 20_000;
const STEP_UNIT_MS: i64 = 10_000;

pub fn decode(input: &mut Input<'_>) -> Act {
    let (what, key, size) = (input.u8(), input.u8() % KEYS, input.u16());
    let bytes = size % (MAX_RESULT + 1);
    match what % 38 {
        0 | 1 => Act::Begin(key),
        2 | 3 => Act::Complete(key, bytes),
        4 => Act::Release(key),
        5 => Act::Abandon(key),
        6 | 7 => Act::Record(key, bytes),
        8 | 9 => Act::RecordBuffered(key, bytes),
        10 | 11 => Act::Forget(key),
        12 => Act::Resolve(key, (size % 3) as u8),
        13 => Act::Set(key, bytes),
        14 => Act::Sync,
        15 => Act::Compact,
        16 => Act::Reopen,
        17 => Act::DropStore,
        18 => Act::ReopenWithClockSetBack(MIN_BACK_MS + u32::from(size)),
        20 => Act::DropAndReopenBuffered,
        21 => Act::DropAndReopenLarger,
        22 => {
            let by_ms = MIN_STEP_MS + i64::from(size) * STEP_UNIT_MS;
            Act::StepWallClock(if key % 2 == 0 { by_ms } else { -by_ms })
        }
        23 => Act::Reboot(u32::from(size)),
        24 => Act::Replace,
        // The retention is from a second to three years.
        25 => Act::RecordFor(key, bytes, 1_000 * 10_u64.pow(u32::from(size % 9))),
        26 => Act::Rot(key, (size % 8) as u8),
        27 => Act::Batch(key, bytes),
        28 => Act::AtomicBatch(key, bytes),
        29 => Act::BeginJob(key, bytes),
        30 => Act::Step(key, bytes),
        31 => Act::LeaveStep(key, bytes),
        32 => Act::ReleaseStep(key, bytes),
        33 => Act::LateStep(key, bytes),
        34 => Act::GiveUp(key, bytes),
        35 => Act::Emit(key, bytes),
        36 => Act::EmitBuffered(key, bytes),
        37 => Act::Publish((size % 64) as u8),
        _ => Act::Advance(u32::from(size) * 2),
    }
}

pub fn encode(act: Act) -> [u8; 4] {
    let (what, key, size) = match act {
        Act::Begin(key) => (0, key, 0),
        Act::Complete(key, size) => (2, key, size),
        Act::Release(key) => (4, key, 0),
        Act::Abandon(key) => (5, key, 0),
        Act::Record(key, size) => (6, key, size),
        Act::RecordBuffered(key, size) => (8, key, size),
        Act::Forget(key) => (10, key, 0),
        Act::Resolve(key, outcome) => (12, key, u16::from(outcome)),
        Act::Set(key, size) => (13, key, size),
        Act::Sync => (14, 0, 0),
        Act::Compact => (15, 0, 0),
        Act::Reopen => (16, 0, 0),
        Act::DropStore => (17, 0, 0),
        Act::ReopenWithClockSetBack(by_ms) => (18, 0, u16::try_from(by_ms - MIN_BACK_MS).unwrap()),
        Act::DropAndReopenBuffered => (20, 0, 0),
        Act::DropAndReopenLarger => (21, 0, 0),
        Act::StepWallClock(by_ms) => {
            let units = (by_ms.abs() - MIN_STEP_MS) / STEP_UNIT_MS;
            (22, u8::from(by_ms < 0), u16::try_from(units).unwrap())
        }
        Act::Reboot(down_ms) => (23, 0, u16::try_from(down_ms).unwrap()),
        Act::Replace => (24, 0, 0),
        // The same number encodes the length of the result and its retention.
        Act::RecordFor(key, size, _) => (25, key, size),
        Act::Rot(key, field) => (26, key, u16::from(field)),
        Act::Batch(key, size) => (27, key, size),
        Act::AtomicBatch(key, size) => (28, key, size),
        Act::BeginJob(key, size) => (29, key, size),
        Act::Step(key, number) => (30, key, number),
        Act::LeaveStep(key, number) => (31, key, number),
        Act::ReleaseStep(key, number) => (32, key, number),
        Act::LateStep(key, number) => (33, key, number),
        Act::GiveUp(key, number) => (34, key, number),
        Act::Emit(key, size) => (35, key, size),
        Act::EmitBuffered(key, size) => (36, key, size),
        Act::Publish(count) => (37, 0, u16::from(count)),
        Act::Advance(by_ms) => (19, 0, u16::try_from(by_ms / 2).unwrap()),
    };
    let size = size.to_le_bytes();
    [what, key, size[0], size[1]]
}
