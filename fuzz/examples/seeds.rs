//! Writes the seed corpora: small inputs that cover every part of the file format and every operation.
//!
//! ```text
//! cargo run --manifest-path fuzz/Cargo.toml --example seeds
//! ```
#![allow(clippy::unwrap_used, reason = "a tool for developers")]

use std::fs;
use std::path::Path;

use oncekey_fuzz::specimen::{Specimen, script};
use oncekey_fuzz::world::Act::{self, *};
use oncekey_fuzz::world::{APPLIED, BEGIN_AGAIN, NOT_APPLIED};
use oncekey_fuzz::{FIRST_FRAME, HEADER_BYTES, SEGMENT_BYTES, acts, sparse};

fn write(target: &str, name: &str, bytes: &[u8]) {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus").join(target);
    fs::create_dir_all(&directory).unwrap();
    fs::write(directory.join(format!("seed-{name}")), bytes).unwrap();
}

/// Histories, each named after what it covers. Small ones come first.
fn histories() -> Vec<(&'static str, Vec<Act>)> {
    let mut growth = Vec::new();
    for key in 0..7 {
        growth.extend([Begin(key), Complete(key, 12_000)]);
    }
    let mut reclaiming = vec![Begin(20), Record(21, 50), Begin(22), Abandon(22)];
    for _ in 0..3 {
        for key in 0..10 {
            reclaiming.push(if key % 2 == 0 { Record(key, 12_000) } else { RecordBuffered(key, 12_000) });
        }
        reclaiming.push(Advance(35_000));
        for key in 0..10 {
            reclaiming.push(Forget(key));
        }
    }
    reclaiming.extend([Complete(20, 100), Reopen, Record(0, 12_000)]);
    vec![
        (
            "lease",
            vec![Begin(0), Complete(0, 10), Begin(1), Release(1), Begin(1), Abandon(1), Resolve(1, APPLIED)],
        ),
        (
            "doubt",
            vec![
                Begin(2),
                Abandon(2),
                Resolve(2, BEGIN_AGAIN),
                Complete(2, 700),
                Begin(3),
                Abandon(3),
                Resolve(3, NOT_APPLIED),
            ],
        ),
        ("verbs", vec![Record(3, 0), Forget(3), Begin(4), Set(4, 30), Set(5, 30), Record(3, 5), Forget(5)]),
        (
            "close",
            vec![
                Record(0, 100),
                Reopen,
                Begin(2),
                DropStore,
                Resolve(2, APPLIED),
                Reopen,
                Reopen,
                Record(4, 1),
            ],
        ),
        (
            "buffered",
            vec![
                RecordBuffered(0, 600),
                Record(2, 10),
                RecordBuffered(3, 10),
                Sync,
                RecordBuffered(5, 9),
                DropStore,
            ],
        ),
        ("expiry", vec![Record(0, 10), Advance(60_000), Begin(0), Advance(40_000), Begin(0), Complete(0, 3)]),
        ("growth", growth),
        (
            "longer",
            vec![
                Record(20, 900),
                DropAndReopenLarger,
                Record(0, 12_000),
                DropAndReopenBuffered,
                DropAndReopenLarger,
                Compact,
            ],
        ),
        ("reclaiming", reclaiming),
        ("specimen", script()),
        // Entries of every kind: leases that the batch ends, doubts that it begins again, keys that are there twice.
        (
            "batch",
            vec![
                Begin(0),
                Begin(1),
                Begin(3),
                Abandon(3),
                Batch(0, 40),
                AtomicBatch(0, 300),
                Batch(6, 10),
                DropStore,
                AtomicBatch(5, 20),
                Batch(4, 0),
            ],
        ),
        // Results that take several frames, of which an atomic batch can hold only the first.
        (
            "batch-frames",
            vec![
                Batch(0, 12_000),
                AtomicBatch(6, 12_000),
                Advance(60_000),
                Batch(0, 12_000),
                Reopen,
                Compact,
            ],
        ),
        // Releases that are still to be written, and records that are not synced.
        (
            "batch-unsynced",
            vec![
                DropAndReopenBuffered,
                Batch(0, 50),
                AtomicBatch(0, 50),
                Sync,
                Batch(10, 600),
                Begin(15),
                AtomicBatch(10, 600),
                DropStore,
            ],
        ),
    ]
}

/// Writes the dictionary of `histories`: an act of each kind on two keys, so that a mutation can insert whole acts.
fn dictionary() {
    let mut kinds: Vec<Act> = histories().into_iter().flat_map(|(_, script)| script).collect();
    kinds.extend([Rot(1, 0), Replace, StepWallClock(20_000), Reboot(1_000), ReopenWithClockSetBack(20_000)]);
    kinds.extend([Batch(1, 12_000), AtomicBatch(1, 2_000), RecordFor(1, 7, 0)]);
    let mut entries: Vec<[u8; 4]> = kinds.into_iter().map(acts::encode).collect();
    // Two of each kind: one on an even and one on an odd key.
    entries.sort_unstable_by_key(|act| (act[0], act[1] % 2, *act));
    entries.dedup_by_key(|act| (act[0], act[1] % 2));
    let lines = entries.iter().map(|act| {
        let bytes: String = act.iter().map(|byte| format!("\\x{byte:02x}")).collect();
        format!("\"{bytes}\"\n")
    });
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("dictionaries");
    fs::create_dir_all(&directory).unwrap();
    fs::write(directory.join("histories"), lines.collect::<String>()).unwrap();
}

fn history(faults: [(u16, u8); 3], again: u8, latest: bool, decisions: &[u8], script: &[Act]) -> Vec<u8> {
    let mut out = Vec::new();
    for (step, kind) in faults {
        out.extend_from_slice(&step.to_le_bytes());
        out.push(kind);
    }
    out.extend_from_slice(&[again, u8::from(latest), u8::try_from(decisions.len()).unwrap()]);
    out.extend_from_slice(decisions);
    out.extend(script.iter().flat_map(|act| acts::encode(*act)));
    out
}

fn main() {
    const NO_FAULT: (u16, u8) = (0, 7);
    dictionary();
    for (at, (name, script)) in histories().into_iter().enumerate() {
        let plain = history([NO_FAULT; 3], 1, true, &[], &script);
        write("histories", name, &plain);
        let step = u16::try_from(12 + 5 * at).unwrap();
        let crashed = history([(step, 0), NO_FAULT, NO_FAULT], 2, false, &[1, 0, 2, 1, 3], &script);
        write("histories", &format!("{name}-crashed"), &crashed);
        let faulty = history([(step, 4), (step + 3, 5), (step + 6, 2)], 0, true, &[0, 1], &script);
        write("histories", &format!("{name}-faulty"), &faulty);
    }

    let small: Vec<Act> = vec![
        Begin(0),
        Record(1, 20),
        Record(2, 0),
        Forget(1),
        Begin(3),
        Complete(3, 9),
        Begin(4),
        Release(4),
        // One frame with several records.
        AtomicBatch(5, 30),
    ];
    let small_acts = small.len();
    let small = Specimen::of(&small);
    let several = Specimen::make();
    for mode in [1_u8, 3, 7, 15, 31] {
        let mut bytes = vec![mode];
        bytes.extend(sparse::encode(&small.bytes));
        write("open_bytes", &format!("small-{mode}"), &bytes);
    }
    for mode in [7_u8, 15] {
        let mut bytes = vec![mode];
        bytes.extend(sparse::encode(&several.bytes));
        write("open_bytes", &format!("several-{mode}"), &bytes);
    }
    write("open_bytes", "raw-header", &[&[0], &small.bytes[..HEADER_BYTES]].concat());
    write("open_bytes", "empty", &[0]);

    // One of each structure of the file format. Each act of the small store has written one frame, behind that of the opening.
    let slot = &small.bytes[HEADER_BYTES..HEADER_BYTES + SEGMENT_BYTES];
    let position = (SEGMENT_BYTES + FIRST_FRAME) as u64;
    let frames = &slot[FIRST_FRAME..];
    let mut at = 0;
    for number in 0..=small_acts {
        let length = u32::from_le_bytes(frames[at + 4..at + 8].try_into().unwrap()) as usize;
        let bytes = &frames[at..at + length];
        let frame_position = (position + at as u64) << 1;
        write(
            "frames",
            &format!("frame-{number}"),
            &[&[133], &frame_position.to_le_bytes()[..], bytes].concat(),
        );
        // The first frame marks the start of an opening and has no record.
        if number > 0 {
            let record_position = (position + at as u64 + 56) << 1;
            write(
                "frames",
                &format!("record-{number}"),
                &[&[132], &record_position.to_le_bytes()[..], &bytes[56..]].concat(),
            );
        }
        at += length;
    }
    let sequence = (1_u64 << 20).to_le_bytes();
    write("frames", "store-header", &[&[129], &sequence[..], &small.bytes[..72]].concat());
    write("frames", "segment-header", &[&[130], &sequence[..], &slot[..152]].concat());
    write("frames", "close-mark", &[&[131], &sequence[..], &slot[512..592]].concat());
    let slots = several.bytes[HEADER_BYTES..].chunks_exact(SEGMENT_BYTES);
    for (number, slot) in slots.clone().enumerate() {
        let trailer = &slot[SEGMENT_BYTES - 64..];
        if !trailer.starts_with(b"ONCEFOOT") {
            continue;
        }
        let entries = u32::from_le_bytes(trailer[12..16].try_into().unwrap()) as usize;
        let sequence = u64::from_le_bytes(trailer[16..24].try_into().unwrap()) << 20;
        let footer = &slot[SEGMENT_BYTES - 64 - 48 * entries..];
        write("frames", &format!("footer-{number}"), &[&[128], &sequence.to_le_bytes()[..], footer].concat());
    }

    // One edit of every kind near every landmark.
    for landmark in 0..8_u8 {
        for slot in 0..u8::try_from(slots.len()).unwrap() {
            let offset = [slot << 3 | landmark, 40, 3];
            let flip = [&[0], &offset[..], &[0x10]].concat();
            write("edited_store", &format!("flip-{landmark}-{slot}"), &flip);
        }
        let offset = [2 << 3 | landmark, 0, 0];
        write("edited_store", &format!("zero-{landmark}"), &[&[3], &offset[..], &[0, 2]].concat());
        write("edited_store", &format!("noise-{landmark}"), &[&[5], &offset[..], &[200, 0, 9]].concat());
        write("edited_store", &format!("cut-{landmark}"), &[&[7], &offset[..], &[landmark % 2]].concat());
        let from = [1 << 3 | landmark, 0, 0];
        write("edited_store", &format!("copy-{landmark}"), &[&[6], &offset[..], &from[..], &[0, 2]].concat());
    }
    write("edited_store", "nothing", &[]);
}
