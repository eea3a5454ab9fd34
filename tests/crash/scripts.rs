//! The histories: fixed ones that cover every path, and random ones.

use proptest::prelude::*;

use crate::world::Act;

/// The fixed histories, each with the name of what it covers. Five results of 12,000 bytes fill a segment.
pub fn scripts() -> Vec<(&'static str, Vec<Act>)> {
    use Act::*;
    let mut scripts = vec![
        (
            "every verb",
            vec![
                Begin(0),
                Complete(0, 10),
                Begin(1),
                Release(1),
                Begin(1),
                Abandon(1),
                Resolve(1, 0),
                Begin(2),
                Abandon(2),
                Resolve(2, 2),
                Complete(2, 700),
                Record(3, 0),
                Forget(3),
                Begin(4),
                Set(4, 30),
                Set(5, 30),
                Begin(6),
                Abandon(6),
                Resolve(6, 1),
                Record(3, 5),
                Forget(0),
                Begin(0),
            ],
        ),
        (
            "close and drop",
            vec![
                Record(0, 100),
                Reopen,
                Record(1, 100),
                Begin(2),
                Drop,
                Resolve(2, 0),
                Reopen,
                Reopen,
                Begin(3),
                Complete(3, 600),
                Drop,
                Record(4, 1),
                Reopen,
            ],
        ),
        (
            "buffered and synced",
            vec![
                RecordBuffered(0, 600),
                RecordBuffered(1, 600),
                Record(2, 10),
                RecordBuffered(3, 10),
                Sync,
                RecordBuffered(4, 1_200),
                RecordBuffered(5, 10),
                RecordBuffered(6, 600),
                Drop,
                RecordBuffered(7, 10),
                RecordBuffered(8, 600),
                Begin(9),
                RecordBuffered(10, 10),
            ],
        ),
    ];
    scripts.push((
        "time, and a wall clock that is set back",
        vec![
            Record(0, 100),
            Advance(50_000),
            Record(1, 100),
            ReopenBack(40_000),
            Record(2, 100),
            Advance(10_001),
            Record(0, 100),
            ReopenBack(3_600_000),
            Advance(40_000),
            Record(0, 700),
            Begin(1),
            Drop,
            Record(3, 10),
        ],
    ));
    scripts.push((
        "a path that leads elsewhere",
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
            Resolve(3, 0),
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
            Drop,
            Resolve(3, 2),
            Complete(3, 5),
        ],
    ));
    let mut growth = Vec::new();
    for key in 0..18 {
        growth.extend([Begin(key), Complete(key, 12_000)]);
    }
    growth.push(Reopen);
    scripts.push(("segment switch and growth", growth));
    let mut buffered = vec![DropToBuffered];
    for key in 0..16 {
        buffered.extend([Begin(key), Complete(key, 12_000)]);
        match key {
            5 => buffered.push(Sync),
            9 => buffered.extend([Record(20, 10), Forget(0), Begin(21), Abandon(21), Set(22, 600)]),
            13 => buffered.extend([DropToBuffered, Resolve(21, 0)]),
            _ => {}
        }
    }
    scripts.push(("a buffered store that grows", buffered));
    let mut longer = vec![Record(20, 12_000), Begin(21), DropToLonger, Resolve(21, 0)];
    longer.extend((0..14).map(|key| Record(key, 12_000)));
    longer.extend([Advance(110_000), DropToLonger, Compact, Record(20, 10), Reopen, Compact]);
    scripts.push(("a file that is made longer", longer));
    // Operations that begin early and end while their segment is being retired.
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
    scripts.push(("reclaiming and slots used again", reclaiming));
    let mut compaction = vec![Begin(20), Record(21, 50)];
    for key in 0..14 {
        compaction.push(Record(key, 12_000));
    }
    for key in 0..11 {
        compaction.push(Forget(key));
    }
    compaction.extend([Compact, Record(0, 12_000), Complete(20, 100), Compact, Drop, Compact, Record(1, 40)]);
    scripts.push(("compaction and a shorter file", compaction));
    // A record of each kind rots, before or after it was moved. Some are given up, others stay.
    let mut rot =
        vec![Record(10, 300), Begin(11), Abandon(11), Begin(12), Begin(13), Release(13), Record(14, 300)];
    rot.extend([Record(15, 0), Record(16, 300), RecordFor(17, 300, 200_000), Begin(18), Abandon(18)]);
    rot.extend((0..7).map(|key| Record(key, 12_000)));
    rot.extend([Rot(10, 7), Rot(11, 1), Rot(12, 3), Rot(13, 0), Rot(15, 4), Rot(16, 2), Rot(17, 5)]);
    rot.extend([Forget(16), Begin(10), Set(15, 4), Set(15, 1), Forget(12), Begin(13)]);
    for turn in 0..3 {
        rot.extend((0..7).map(Forget));
        rot.extend((0..7).map(|key| Record(key, 12_000)));
        rot.extend([Compact, Begin(17), Rot(14, 7), Rot(18, turn), Rot(17, 6 + turn)]);
    }
    rot.extend([
        Reopen,
        Forget(10),
        Set(11, 1),
        Record(14, 10),
        Drop,
        Compact,
        Advance(110_000),
        Record(14, 10),
    ]);
    rot.extend([Advance(90_000), Record(17, 10), Begin(18), Forget(18), Begin(18), Compact]);
    scripts.push(("records that rot", rot));
    scripts
}

/// Any act on one of six keys.
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
        2 => (key.clone(), 0..3_u8).prop_map(|(key, how)| Act::Resolve(key, how)),
        1 => (key, size).prop_map(|(key, size)| Act::Set(key, size)),
        1 => Just(Act::Sync),
        1 => Just(Act::Compact),
        1 => Just(Act::Replace),
        1 => Just(Act::Reopen),
        1 => Just(Act::Drop),
        1 => Just(Act::DropToBuffered),
        1 => Just(Act::DropToLonger),
        1 => prop_oneof![Just(20_000_u32), Just(70_000)].prop_map(Act::ReopenBack),
        1 => prop_oneof![Just(20_000_i64), Just(-70_000), Just(8 * 86_400_000)].prop_map(Act::Step),
        1 => prop_oneof![Just(1_u32), Just(30_000)].prop_map(Act::Reboot),
        2 => prop_oneof![Just(1_u32), Just(30_000), Just(100_000)].prop_map(Act::Advance),
        2 => (0..6_u8, prop_oneof![Just(700_u16), Just(12_000)], 0..12_u32)
            .prop_map(|(key, size, magnitude)| Act::RecordFor(key, size, 10_u64.pow(magnitude))),
        2 => (0..6_u8, 0..8_u8).prop_map(|(key, place)| Act::Rot(key, place)),
    ]
}
