//! Scripts, which are sequences of acts on a store: fixed ones, which together cover all operations and everything that the
//! log does in between, and random ones.
//!
//! [`Act`] documents what the numbers of an act stand for. Keys are small numbers. The results of 12,000 bytes are chosen so
//! that five of them fill a segment; the other sizes are arbitrary.

use proptest::prelude::*;

use crate::world::{APPLIED, Act, BEGIN_AGAIN, NOT_APPLIED, TO_ABSENT, TO_COMPLETED, field};

/// Returns the fixed scripts, each with a description of what it covers.
pub fn scripts() -> Vec<(&'static str, Vec<Act>)> {
    use Act::*;
    let mut scripts = vec![
        (
            "every operation",
            vec![
                Begin(0),
                Complete(0, 10),
                Begin(1),
                Release(1),
                Begin(1),
                Abandon(1),
                Resolve(1, APPLIED),
                Begin(2),
                Abandon(2),
                Resolve(2, BEGIN_AGAIN),
                Complete(2, 700),
                Record(3, 0),
                Forget(3),
                Begin(4),
                Set(4, 30),
                Set(5, 30),
                Begin(6),
                Abandon(6),
                Resolve(6, NOT_APPLIED),
                Record(3, 5),
                Forget(0),
                Begin(0),
            ],
        ),
        (
            "closing, dropping and reopening",
            vec![
                Record(0, 100),
                Reopen,
                Record(1, 100),
                Begin(2),
                DropStore,
                Resolve(2, APPLIED),
                Reopen,
                Reopen,
                Begin(3),
                Complete(3, 600),
                DropStore,
                Record(4, 1),
                Reopen,
            ],
        ),
        (
            "buffered and synced records",
            vec![
                RecordBuffered(0, 600),
                RecordBuffered(1, 600),
                Record(2, 10),
                RecordBuffered(3, 10),
                Sync,
                RecordBuffered(4, 1_200),
                RecordBuffered(5, 10),
                RecordBuffered(6, 600),
                DropStore,
                RecordBuffered(7, 10),
                RecordBuffered(8, 600),
                Begin(9),
                RecordBuffered(10, 10),
            ],
        ),
    ];
    scripts.push((
        "expiry, and a wall clock that is set back",
        vec![
            Record(0, 100),
            Advance(50_000),
            Record(1, 100),
            ReopenWithClockSetBack(40_000),
            Record(2, 100),
            Advance(10_001),
            Record(0, 100),
            ReopenWithClockSetBack(3_600_000),
            Advance(40_000),
            Record(0, 700),
            Begin(1),
            DropStore,
            Record(3, 10),
        ],
    ));
    scripts.push((
        "a path that leads to another file",
        vec![
            Record(0, 100),
            Begin(1),
            Begin(2),
            Begin(3),
            Abandon(3),
            RecordBuffered(4, 100),
            Replace,
            Begin(5),
            Record(6, 10),
            Forget(0),
            Resolve(3, APPLIED),
            Set(7, 10),
            Complete(1, 600),
            Release(2),
            Sync,
            Compact,
            Reopen,
            Record(6, 10),
            Begin(8),
            RecordBuffered(9, 700),
            Replace,
            Complete(8, 12_000),
            DropStore,
            Resolve(3, BEGIN_AGAIN),
            Complete(3, 5),
        ],
    ));
    let mut growth = Vec::new();
    for key in 0..18 {
        growth.extend([Begin(key), Complete(key, 12_000)]);
    }
    growth.push(Reopen);
    scripts.push(("a file that grows while every record is synced", growth));
    let mut buffered = vec![DropAndReopenBuffered];
    for key in 0..16 {
        buffered.extend([Begin(key), Complete(key, 12_000)]);
        match key {
            5 => buffered.push(Sync),
            9 => buffered.extend([Record(20, 10), Forget(0), Begin(21), Abandon(21), Set(22, 600)]),
            13 => buffered.extend([DropAndReopenBuffered, Resolve(21, APPLIED)]),
            _ => {}
        }
    }
    scripts.push(("a file that grows while records are buffered", buffered));
    let mut longer = vec![Record(20, 12_000), Begin(21), DropAndReopenLarger, Resolve(21, APPLIED)];
    longer.extend((0..14).map(|key| Record(key, 12_000)));
    longer.extend([Advance(110_000), DropAndReopenLarger, Compact, Record(20, 10), Reopen, Compact]);
    scripts.push(("a file that min_size makes longer", longer));
    // Some operations begin early and end while the segment with their begin is being retired.
    let mut reclaiming = vec![Begin(20), Record(21, 50), Begin(22), Abandon(22)];
    reclaiming.extend((11..19).map(Begin));
    for turn in 0..4 {
        for key in 0..10 {
            reclaiming.push(if turn % 2 == 0 { Record(key, 12_000) } else { RecordBuffered(key, 12_000) });
        }
        reclaiming.push(Advance(if turn == 1 { 60_000 } else { 35_000 }));
        for key in 0..10 {
            reclaiming.push(Forget(key));
            if turn == 2 && key > 1 {
                reclaiming.push(Complete(9 + key, 6_000));
            }
        }
    }
    reclaiming.extend([Complete(20, 100), Reopen, Record(0, 12_000)]);
    scripts.push(("reclaiming, and slots that are reused", reclaiming));
    let mut compaction = vec![Begin(20), Record(21, 50)];
    for key in 0..14 {
        compaction.push(Record(key, 12_000));
    }
    for key in 0..11 {
        compaction.push(Forget(key));
    }
    compaction.extend([
        Compact,
        Record(0, 12_000),
        Complete(20, 100),
        Compact,
        DropStore,
        Compact,
        Record(1, 40),
    ]);
    scripts.push(("compaction that makes the file shorter", compaction));
    // Damages a record of each kind, before or after reclaiming moved it. Some of their keys are then forgotten or set to
    // absent, and the others stay unreadable.
    let mut rot =
        vec![Record(10, 300), Begin(11), Abandon(11), Begin(12), Begin(13), Release(13), Record(14, 300)];
    rot.extend([Record(15, 0), Record(16, 300), RecordFor(17, 300, 200_000), Begin(18), Abandon(18)]);
    rot.extend((0..7).map(|key| Record(key, 12_000)));
    rot.extend([
        Rot(10, field::RESULT),
        Rot(11, field::VERSION),
        Rot(12, field::ATTEMPT),
        Rot(13, field::CHECKSUM),
        Rot(15, field::TIME),
        Rot(16, field::FINGERPRINT),
        Rot(17, field::KEY_EXPIRY),
    ]);
    rot.extend([Forget(16), Begin(10), Set(15, TO_COMPLETED), Set(15, TO_ABSENT), Forget(12), Begin(13)]);
    for turn in 0..3 {
        rot.extend((0..7).map(Forget));
        rot.extend((0..7).map(|key| Record(key, 12_000)));
        // Another field of the same records in each turn.
        rot.extend([Compact, Begin(17), Rot(14, field::RESULT)]);
        rot.extend([Rot(18, field::CHECKSUM + turn), Rot(17, field::RESULT_EXPIRY + turn)]);
    }
    rot.extend([
        Reopen,
        Forget(10),
        Set(11, TO_ABSENT),
        Record(14, 10),
        DropStore,
        Compact,
        Advance(110_000),
        Record(14, 10),
    ]);
    rot.extend([Advance(90_000), Record(17, 10), Begin(18), Forget(18), Begin(18), Compact]);
    scripts.push(("records that are damaged", rot));
    let mut batches = vec![Begin(0), Begin(2), Batch(0, 30), Batch(0, 600), Record(20, 10), Batch(0, 30)];
    batches.extend([
        AtomicBatch(8, 600),
        AtomicBatch(8, 600),
        AtomicBatch(14, 1_200),
        Batch(9, 0),
        DropStore,
    ]);
    // The results fill several frames, and the file grows.
    batches.extend([
        Batch(8, 12_000),
        Batch(14, 12_000),
        Sync,
        AtomicBatch(0, 3_000),
        Forget(0),
        Batch(0, 12_000),
    ]);
    batches.extend([
        DropAndReopenBuffered,
        Batch(18, 12_000),
        Batch(18, 600),
        Record(17, 5),
        Batch(3, 12_000),
    ]);
    batches.extend([
        Compact,
        Reopen,
        Advance(110_000),
        Batch(0, 12_000),
        Batch(6, 12_000),
        AtomicBatch(12, 30),
    ]);
    scripts.push(("batches", batches));
    // Jobs of several steps: stopped and resumed, with steps of every outcome, taken over, given up, completed, refused,
    // and forgotten; a key that is used again.
    let mut jobs = vec![BeginJob(0, 300), Step(0, 40), ReleaseStep(0, 41), LeaveStep(0, 42), Complete(0, 10)];
    jobs.extend([Resolve(0, BEGIN_AGAIN), Step(0, 40), Step(0, 601), Release(0), Resolve(0, NOT_APPLIED)]);
    jobs.extend([
        Resolve(0, BEGIN_AGAIN),
        LateStep(0, 42),
        Step(0, 43),
        Abandon(0),
        Begin(0),
        Complete(0, 30),
    ]);
    jobs.extend([
        BeginJob(1, 12_000),
        Step(1, 40),
        Abandon(1),
        Set(1, 10),
        BeginJob(2, 30),
        LeaveStep(2, 44),
    ]);
    jobs.extend([Set(2, 10), Abandon(2), Set(2, 10), Resolve(2, BEGIN_AGAIN), Step(2, 40), LateStep(2, 44)]);
    jobs.extend([
        LeaveStep(2, 45),
        GiveUp(2, 45),
        Complete(2, 40),
        BeginJob(3, 30),
        Step(3, 40),
        LeaveStep(3, 41),
    ]);
    jobs.extend([Abandon(3), Forget(3), LateStep(3, 41), BeginJob(3, 30), Step(3, 42), DropStore, Begin(3)]);
    jobs.extend([Step(3, 42), Step(3, 43), LeaveStep(3, 40), DropStore, Resolve(3, APPLIED), BeginJob(4, 0)]);
    jobs.extend([
        Step(4, 700),
        Step(4, 701),
        Reopen,
        Begin(4),
        Release(4),
        Begin(4),
        Step(4, 702),
        Complete(4, 10),
    ]);
    jobs.extend([Forget(4), Begin(4), LeaveStep(4, 40), DropAndReopenBuffered, Resolve(4, BEGIN_AGAIN)]);
    jobs.extend([Step(4, 40), Step(4, 41), GiveUp(4, 40), Abandon(4), DropStore]);
    scripts.push(("jobs of several steps", jobs));
    // Jobs that stay unfinished while their segments are retired, and jobs that end meanwhile.
    let mut long =
        vec![BeginJob(20, 600), Step(20, 40), LeaveStep(20, 41), BeginJob(21, 300), Step(21, 3_000)];
    long.extend([BeginJob(22, 300), Step(22, 40), Step(22, 41), Begin(23), LeaveStep(23, 40), Abandon(23)]);
    for turn in 0..3 {
        long.extend((0..7).map(|key| Record(key, 12_000)));
        long.extend((0..7).map(Forget));
        match turn {
            0 => long.extend([Complete(22, 30), Step(21, 3_001), Abandon(20), LateStep(20, 41)]),
            1 => long.extend([Begin(20), Step(20, 42), Forget(23), Begin(23), Step(23, 41)]),
            _ => long.extend([Complete(21, 6_000), BeginJob(22, 30), LeaveStep(22, 40)]),
        }
        long.push(Compact);
    }
    long.extend([
        DropStore,
        Begin(20),
        Step(20, 40),
        Complete(20, 10),
        Begin(23),
        Step(23, 42),
        Reopen,
        Compact,
    ]);
    scripts.push(("jobs whose segments are retired", long));
    let mut outbox =
        vec![Emit(0, 30), Begin(1), Emit(1, 600), Begin(2), Abandon(2), Emit(2, 80), Emit(0, 30)];
    outbox.extend([Publish(1), EmitBuffered(3, 600), EmitBuffered(4, 30), Publish(2), RecordBuffered(5, 10)]);
    outbox.extend([
        EmitBuffered(6, 80),
        Publish(3),
        DropStore,
        Publish(20),
        Emit(7, 700),
        Forget(7),
        Publish(9),
    ]);
    // The messages outlive their operations, and are moved. Those that were acknowledged are not.
    outbox.extend([Emit(20, 400), Emit(21, 400), Publish(2), Publish(1), Reopen]);
    // The acknowledgements are in a later segment than their messages.
    outbox.extend((8..12).map(|key| Emit(key, 400)));
    outbox.extend((14..20).map(|key| Record(key, 12_000)));
    outbox.extend([Publish(2), Publish(3), Publish(2), Record(12, 12_000), Record(13, 12_000)]);
    outbox.extend([Advance(110_000), Compact, DropStore]);
    for turn in 0..3 {
        outbox.extend((12..20).map(|key| Record(key, 12_000)));
        outbox.extend([Advance(110_000), Compact, Publish(1), Emit(21 + turn, 200)]);
    }
    outbox.extend([
        Compact,
        DropAndReopenBuffered,
        Emit(0, 10),
        Publish(40),
        Publish(41),
        Compact,
        Emit(1, 10),
        Reopen,
    ]);
    scripts.push(("messages", outbox));
    scripts
}

/// Generates any act on one of six keys.
pub fn any_act() -> impl Strategy<Value = Act> {
    let key = 0..6_u8;
    let size = prop_oneof![Just(0_u16), Just(30), Just(700), Just(12_000)];
    prop_oneof![
        4 => key.clone().prop_map(Act::Begin),
        4 => (key.clone(), size.clone()).prop_map(|(key, size)| Act::Complete(key, size)),
        1 => key.clone().prop_map(Act::Release),
        1 => key.clone().prop_map(Act::Abandon),
        3 => (key.clone(), size.clone()).prop_map(|(key, size)| Act::Record(key, size)),
        3 => (key.clone(), size.clone()).prop_map(|(key, size)| Act::RecordBuffered(key, size)),
        3 => key.clone().prop_map(Act::Forget),
        2 => (key.clone(), 0..3_u8).prop_map(|(key, outcome)| Act::Resolve(key, outcome)),
        1 => (key, size).prop_map(|(key, size)| Act::Set(key, size)),
        1 => Just(Act::Sync),
        1 => Just(Act::Compact),
        1 => Just(Act::Replace),
        1 => Just(Act::Reopen),
        1 => Just(Act::DropStore),
        1 => Just(Act::DropAndReopenBuffered),
        1 => Just(Act::DropAndReopenLarger),
        1 => prop_oneof![Just(20_000_u32), Just(70_000)].prop_map(Act::ReopenWithClockSetBack),
        1 => prop_oneof![Just(20_000_i64), Just(-70_000), Just(8 * 86_400_000)].prop_map(Act::StepWallClock),
        1 => prop_oneof![Just(1_u32), Just(30_000)].prop_map(Act::Reboot),
        2 => prop_oneof![Just(1_u32), Just(30_000), Just(100_000)].prop_map(Act::Advance),
        2 => (0..6_u8, prop_oneof![Just(700_u16), Just(12_000)], 0..12_u32)
            .prop_map(|(key, size, magnitude)| Act::RecordFor(key, size, 10_u64.pow(magnitude))),
        3 => (0..6_u8, prop_oneof![Just(0_u16), Just(700), Just(12_000)])
            .prop_map(|(key, size)| Act::Batch(key, size)),
        1 => (0..6_u8, prop_oneof![Just(0_u16), Just(700)])
            .prop_map(|(key, size)| Act::AtomicBatch(key, size)),
        2 => (0..6_u8, 0..8_u8).prop_map(|(key, field)| Act::Rot(key, field)),
        2 => (0..6_u8, prop_oneof![Just(0_u16), Just(700), Just(5_000)])
            .prop_map(|(key, size)| Act::Emit(key, size)),
        1 => (0..6_u8, Just(60_u16)).prop_map(|(key, size)| Act::EmitBuffered(key, size)),
        2 => (1..6_u8).prop_map(Act::Publish),
        12 => any_step(),
    ]
}

/// Generates any act on a job or one of its steps.
fn any_step() -> impl Strategy<Value = Act> {
    let at = (0..6_u8, prop_oneof![0..4_u16, 40..44_u16, 700..704_u16, 6_000..6_004_u16]);
    prop_oneof![
        3 => at.clone().prop_map(|(key, size)| Act::BeginJob(key, size)),
        4 => at.clone().prop_map(|(key, number)| Act::Step(key, number)),
        2 => at.clone().prop_map(|(key, number)| Act::LeaveStep(key, number)),
        1 => at.clone().prop_map(|(key, number)| Act::ReleaseStep(key, number)),
        2 => at.clone().prop_map(|(key, number)| Act::LateStep(key, number)),
        1 => at.prop_map(|(key, number)| Act::GiveUp(key, number)),
    ]
}
