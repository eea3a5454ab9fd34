//! Checks the file format in two ways: files that version 1 wrote stay readable, and new files match the specification
//! (`src/format/format.md`), as read by a reader that shares no code with the library.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::cast_possible_truncation,
    missing_docs,
    reason = "tests"
)]

mod common;

use std::path::PathBuf;

use common::{NONE, Place, SEGMENT, START_MS, abandon, acquire, clocked, copy_while_open, perform, seconds};
use oncekey::{
    Error, Expected, Fingerprint, Key, ManualClock, Messages, Next, Operation, Outcome, Recorded, Status,
    Store,
};

fn golden(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(name)
}

fn request() -> Fingerprint {
    Fingerprint::from_bytes(*b"request of 16 b.")
}

/// Writes the contents of the golden files. If this function is changed, add new golden files and keep the old ones.
fn write_contents(store: &Store, clock: &ManualClock) {
    store.record(Key::new("scoped").scope("tenant"), request(), b"in a scope").unwrap();
    store.record(Key::new("scoped").scope(""), request(), b"in the empty scope").unwrap();
    perform(store, "done", b"result");
    perform(store, "empty", b"");
    abandon(store, "doubt");
    acquire(store, "released").release().unwrap();
    store.record("forgotten", NONE, b"old").unwrap();
    store.forget("forgotten").unwrap();
    typed(store).record_value(&("receipt".to_owned(), 17)).unwrap();
    acquire(store, "not kept").complete_without_result().unwrap();
    store.operation("tombstone").retain_result(seconds(1)).record(&[9; 100]).unwrap();
    for n in 0..1_200 {
        let Recorded::Done(_) =
            store.operation(&format!("short{n}")).retain(seconds(20)).record(&[0; 100]).unwrap()
        else {
            panic!("not new")
        };
        clock.advance(std::time::Duration::from_millis(50));
    }
}

/// An operation whose fingerprint and shape are pinned by the files.
fn typed(store: &Store) -> Operation<'_> {
    store.operation("typed").request(&("charge", 42_u64, Some(-1_000_i32), [0.5, -0.0]))
}

fn check_contents(store: &Store) {
    let again = typed(store).record_value(&("another".to_owned(), 18)).unwrap();
    assert_eq!(again, Outcome::AlreadyDone(("receipt".to_owned(), 17)));
    assert!(store.get("typed").unwrap().decode::<(String, i32)>().is_ok());
    assert!(matches!(store.get("typed").unwrap().decode::<(String, u32)>(), Err(Error::Decode { .. })));
    assert!(matches!(store.begin("not kept", NONE), Err(Error::ResultNotKept { .. })));
    let result = |key: Key<'_>| store.get(key).unwrap().into_result();
    assert_eq!(result(Key::new("scoped").scope("tenant")).unwrap(), b"in a scope");
    assert_eq!(result(Key::new("scoped").scope("")).unwrap(), b"in the empty scope");
    assert_eq!(store.get(Key::new("scoped").scope("")).unwrap().fingerprint(), request());
    assert!(store.get("scoped").unwrap().is_absent());
    assert_eq!(result(Key::new("done")).unwrap(), b"result");
    assert_eq!(result(Key::new("empty")).unwrap(), b"");
    assert_eq!(store.get("done").unwrap().changed_at_ms(), Some(START_MS));
    assert_eq!(store.get("doubt").unwrap().status(), Status::InDoubt);
    assert_eq!(store.get("doubt").unwrap().attempt(), 1);
    let released = store.get("released").unwrap();
    assert!(released.is_absent() && released.attempt() <= 1, "reclaiming its segment drops the count");
    assert!(store.get("forgotten").unwrap().is_absent());
    let tombstone = store.get("tombstone").unwrap();
    assert!(tombstone.is_completed() && tombstone.result().is_none());
    assert!(store.get("short0").unwrap().is_absent());
    assert_eq!(result(Key::new("short1199")).unwrap(), [0; 100]);
}

/// Copies the store's file to the golden files. Refuses to overwrite one, because a file of a released version must not
/// change. To replace a file, delete it by hand, and give the reason in the commit.
fn write_once(place: &Place, name: &str) {
    assert!(!golden(name).exists(), "{name} already exists");
    std::fs::copy(&place.path, golden(name)).unwrap();
}

fn clock_at_the_end() -> ManualClock {
    ManualClock::new(START_MS + 60_000)
}

/// `cargo test --test golden -- --ignored` writes the files of a new format version.
#[test]
#[ignore = "writes the golden files"]
fn write_the_golden_files() {
    let (place, clock) = (Place::new(), ManualClock::new(START_MS));
    let store = clocked(&clock).open(&place.path).unwrap();
    write_contents(&store, &clock);
    write_once(&place, "v1-crashed.once");
    store.close().unwrap();
    write_once(&place, "v1-closed.once");
}

/// Writes a store whose footers list pending messages, acknowledged ones and acknowledgements.
fn write_messages(store: &Store) {
    for n in 0..400 {
        let mut messages = Messages::new();
        messages.emit_bytes("orders", format!("message {n}").as_bytes()).unwrap();
        if n % 2 == 0 {
            messages.emit("mail", &("typed".to_owned(), n)).unwrap();
        }
        let next = Next::Completed { fingerprint: request(), result: &[0; 50] };
        let key = format!("order-{n}");
        store
            .compare_and_set_with(Key::new(&key).scope("tenant"), Expected::Absent, next, &messages)
            .unwrap();
    }
    for _ in 0..3 {
        store.outbox().next_many("orders", 50).unwrap().unwrap().ack().unwrap();
    }
}

fn check_messages(store: &Store) {
    assert_eq!(store.stats().messages, 450);
    let orders = store.outbox().next_many("orders", 400).unwrap().unwrap();
    for (n, message) in (150..).zip(orders.messages()) {
        assert_eq!(message.token(), format!("tenant/order-{n}~1"));
        assert_eq!(message.payload(), format!("message {n}").as_bytes());
    }
    let mail = store.outbox().next_many("mail", 400).unwrap().unwrap();
    let typed: Vec<(String, i32)> = mail.messages().iter().map(|mail| mail.decode().unwrap()).collect();
    // As many as can be acknowledged in one frame.
    assert_eq!((typed.len(), orders.messages().len()), (127, 127));
    assert!(typed.into_iter().eq((0..254).step_by(2).map(|n| ("typed".to_owned(), n))));
    assert!(mail.messages().iter().all(|mail| mail.number() == 2));
}

/// `cargo test --test golden messages -- --ignored` writes the file with messages.
#[test]
#[ignore = "writes a golden file"]
fn write_the_golden_file_with_messages() {
    let (place, clock) = (Place::new(), ManualClock::new(START_MS));
    let store = clocked(&clock).open(&place.path).unwrap();
    write_messages(&store);
    write_once(&place, "v1-messages.once");
}

#[test]
fn messages_of_version_1_stay_readable() {
    let copy = copy_while_open(&golden("v1-messages.once"));
    for turn in 0..3 {
        let store = clocked(&clock_at_the_end()).open(&copy.path).unwrap();
        check_messages(&store);
        if turn == 1 {
            store.compact().unwrap();
        }
    }
}

/// Makes the golden copy of the golden file of a closed store.
#[test]
#[ignore = "writes a golden file"]
fn write_the_golden_copy() {
    let closed = copy_while_open(&golden("v1-closed.once"));
    let store = clocked(&clock_at_the_end()).open(&closed.path).unwrap();
    store.backup(golden("v1-copy.once")).unwrap();
}

#[test]
fn a_copy_of_version_1_stays_a_copy_and_notes_the_answer() {
    let copy = copy_while_open(&golden("v1-copy.once"));
    let original = std::fs::read(golden("v1-closed.once")).unwrap();
    let before = copy.bytes();
    let reader = Reader { bytes: &before, seed: 0 };
    assert_eq!(reader.u32(parameter_block::INCOMPATIBLE_FEATURES), 1);
    assert_eq!(reader.u32(parameter_block::COPIED_SEED), crc32fast::hash(&original[32..48]));
    assert_eq!(before[48..64], original[48..64], "the secret");
    assert_ne!(before[32..48], original[32..48], "the file id");
    let tail = (STORE_HEADER..before.len()).step_by(SEGMENT as usize).next_back().unwrap();
    assert_eq!(reader.u32(tail + segment_header::ANSWERED_BY), 0);
    let raised = reader.u32(tail + segment_header::OPEN_COUNT);
    assert!((65_537..65_540).contains(&raised), "{raised}");

    assert!(matches!(clocked(&clock_at_the_end()).open(&copy.path), Err(Error::Copy { .. })));
    assert!(copy.bytes() == before);
    // Free slots, so that there is space for an opening frame.
    let options = clocked(&clock_at_the_end()).min_size(1 << 20).may_have_forgotten(seconds(100));
    let store = options.open(&copy.path).unwrap();
    check_contents_of_copy(&store);
    store.close().unwrap();
    let after = copy.bytes();
    let reader = Reader { bytes: &after, seed: 0 };
    let end = (reader.u64(tail + segment_header::SYNCED_TO) % SEGMENT) as usize;
    let frame = tail + end;
    assert_eq!(reader.u32(frame + frame_header::LENGTH), 96);
    assert_eq!(reader.u32(frame + frame_header::RECORD_COUNT), 0);
    assert_eq!(reader.u32(frame + frame_header::OPEN_COUNT), raised + 1);
    assert_eq!(reader.u32(frame + opening_frame_of_a_copy::ANSWERED_BY), raised + 1);
    let until = reader.u64(frame + opening_frame_of_a_copy::IN_DOUBT_UNTIL_MS);
    assert_eq!(until, reader.u64(frame + frame_header::STORE_MS) + 100_000);
    check_contents_of_copy(&clocked(&clock_at_the_end()).open(&copy.path).unwrap());
}

/// The contents of the golden files, in a copy that may have forgotten operations.
fn check_contents_of_copy(store: &Store) {
    assert_eq!(store.get("done").unwrap().result(), Some(&b"result"[..]));
    assert_eq!(store.get(Key::new("scoped").scope("tenant")).unwrap().result(), Some(&b"in a scope"[..]));
    for key in ["doubt", "released", "forgotten", "short0", "never seen"] {
        assert_eq!(store.get(key).unwrap().status(), Status::InDoubt, "{key}");
    }
}

#[test]
fn files_of_version_1_stay_readable_and_writable() {
    for name in ["v1-closed.once", "v1-crashed.once"] {
        let copy = copy_while_open(&golden(name));
        for turn in 0..3 {
            let store = clocked(&clock_at_the_end()).open(&copy.path).unwrap();
            check_contents(&store);
            store.record(&format!("new{turn}"), NONE, b"r").unwrap();
            if turn == 1 {
                store.compact().unwrap();
                check_contents(&store);
            }
        }
    }
}

/// Declares the offsets of the specification, as constants and as a list.
macro_rules! offsets {
    ($($structure:ident { $($field:ident = $offset:literal,)* })*) => {
        $(#[allow(dead_code, reason = "every offset of the specification is listed")]
        mod $structure {
            $(pub(crate) const $field: usize = $offset;)*
        })*
        const OFFSETS: &[(&str, &[(&str, usize)])] =
            &[$((stringify!($structure), &[$((stringify!($field), $offset)),*])),*];
    };
}

// The names are those of `src/format/layout.rs`, but the offsets are written by hand. If the constants were shared, a change of
// them would go unnoticed.
offsets! {
    slot { SEGMENT_HEADER = 0, FIRST_CLOSE_MARK = 512, SECOND_CLOSE_MARK = 1_024, }
    parameter_block {
        MAGIC = 0, CHECKSUM = 8, FORMAT_VERSION = 12, COMPATIBLE_FEATURES = 16, READ_COMPATIBLE_FEATURES = 20,
        INCOMPATIBLE_FEATURES = 24, SEGMENT_BYTES = 28, FILE_ID = 32, SECRET = 48, CHECKSUM_ALGORITHM = 64,
        HASH_ALGORITHM = 65, CIPHER = 66, COPIED_SEED = 68,
    }
    segment_header {
        SEQUENCE = 72, HEAD = 80, PREVIOUS_END = 88, PREVIOUS_CHECKSUM = 96, OPEN_COUNT = 100, TIME_MARK = 104,
        SYNCED_TO = 144, IN_DOUBT_UNTIL_MS = 152, ANSWERED_BY = 160,
    }
    close_mark {
        MAGIC = 0, CHECKSUM = 8, LAST_CHECKSUM = 12, END = 16, OPEN_COUNT = 24, TIME_MARK = 32, COUNTER = 72,
    }
    time_mark { STORE_MS = 0, WALL_MS = 8, BOOT = 16, BOOT_MS = 32, }
    frame_header {
        CHECKSUM = 0, LENGTH = 4, POSITION = 8, SYNCED_TO = 16, PREVIOUS_CHECKSUM = 24, RECORDS_CHECKSUM = 28,
        OPEN_COUNT = 32, RECORD_COUNT = 36, STORE_MS = 40, WALL_MS = 48,
    }
    opening_frame { BOOT = 56, BOOT_MS = 72, }
    opening_frame_of_a_copy { IN_DOUBT_UNTIL_MS = 80, ANSWERED_BY = 88, }
    record_header {
        CHECKSUM = 0, LENGTH = 4, KIND = 8, FLAGS = 9, KEY_LENGTH = 10, SCOPE_LENGTH = 12, EXTENSION_LENGTH = 14,
        VERSION = 16, ORIGIN = 24, FINGERPRINT = 32, ATTEMPT = 48, VALUE_LENGTH = 52, TIME_MS = 56,
        KEY_EXPIRES_MS = 64, RESULT_EXPIRES_MS = 72,
    }
    typing { NUMBER = 0, CONTENT_LENGTH = 1, SCHEME = 2, CODEC = 3, SHAPE = 4, }
    footer_entry {
        KEY_HASH = 0, VERSION = 16, KEY_EXPIRES_MS = 24, RESULT_EXPIRES_MS = 32, OFFSET = 40, LENGTH = 44, KIND = 47,
    }
    trailer {
        MAGIC = 0, CHECKSUM = 8, ENTRY_COUNT = 12, SEQUENCE = 16, SUCCESSOR = 24, END = 32, RECORD_BYTES = 40,
        LAST_CHECKSUM = 48,
    }
}

const SECTOR: usize = 512;
const STORE_HEADER: usize = 4_096;
const FIRST_FRAME: usize = 4_096;
const FRAME_HEADER: usize = 56;
const OPENING_FRAME: usize = 80;
const RECORD_HEADER: usize = 80;
const ENTRY: usize = 48;
const TRAILER: usize = 64;

const SPECIFICATION: &str = include_str!("../src/format/format.md");

/// Returns the name and offset of each field, from the table under the heading of `structure` in the specification.
fn specified(structure: &str) -> Vec<(String, usize)> {
    let heading = structure.replace('_', " ");
    let sections = SPECIFICATION.split("\n#").map(|section| section.trim_start_matches('#').trim_start());
    let section =
        sections.into_iter().find(|section| section.to_lowercase().starts_with(&format!("{heading}\n")));
    let rows = section.unwrap_or_else(|| panic!("no section {heading:?}")).lines().filter_map(|line| {
        let cells: Vec<_> = line.strip_prefix('|')?.split('|').map(str::trim).collect();
        let name = cells[2].strip_prefix('`')?.strip_suffix('`')?;
        Some((name.to_uppercase(), cells[0].replace(',', "").parse().ok()?))
    });
    rows.collect()
}

#[test]
fn this_reader_uses_the_offsets_of_the_specification() {
    for (structure, fields) in OFFSETS {
        let fields: Vec<_> = fields.iter().map(|(name, offset)| ((*name).to_owned(), *offset)).collect();
        assert_eq!(fields, specified(structure), "{structure}");
    }
}

/// Runs the Python reader in the specification, if Python is installed.
#[test]
fn the_python_reader_of_the_specification_reads_the_golden_files() {
    let (_, code) = SPECIFICATION.split_once("```python\n").unwrap();
    let (code, _) = code.split_once("```\n").unwrap();
    let place = Place::new();
    std::fs::write(&place.path, code).unwrap();
    for name in ["v1-closed.once", "v1-crashed.once", "v1-copy.once"] {
        let output = match std::process::Command::new("python3").arg(&place.path).arg(golden(name)).output() {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return,
            output => output.unwrap(),
        };
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let records = String::from_utf8(output.stdout).unwrap();
        for record in [
            "2 b'tenant' b'scoped' b'in a scope'",
            "2 b'' b'scoped' b'in the empty scope'",
            "2 None b'empty' b''",
            "1 None b'doubt' None",
            "2 None b'not kept' None",
        ] {
            assert!(records.lines().any(|line| line == record), "{name}: {record}");
        }
        assert_eq!(records.lines().filter(|line| line.starts_with("2 None b'short1199' ")).count(), 1);
    }
}

/// Reads numbers from a file, at offsets from its start.
struct Reader<'a> {
    bytes: &'a [u8],
    seed: u32,
}

impl Reader<'_> {
    fn u16(&self, at: usize) -> usize {
        usize::from(u16::from_le_bytes(self.bytes[at..at + 2].try_into().unwrap()))
    }
    fn u32(&self, at: usize) -> u32 {
        u32::from_le_bytes(self.bytes[at..at + 4].try_into().unwrap())
    }
    fn u64(&self, at: usize) -> u64 {
        u64::from_le_bytes(self.bytes[at..at + 8].try_into().unwrap())
    }
    /// Computes the seeded checksum of a range.
    fn crc(&self, from: usize, to: usize) -> u32 {
        let mut hasher = crc32fast::Hasher::new_with_initial(self.seed);
        hasher.update(&self.bytes[from..to]);
        hasher.finalize()
    }
    /// Reads the time mark at `at`: store time, wall clock, boot id and boot-time clock.
    fn time_mark(&self, at: usize) -> (u64, u64, &[u8], u64) {
        let boot = at + time_mark::BOOT;
        (
            self.u64(at + time_mark::STORE_MS),
            self.u64(at + time_mark::WALL_MS),
            &self.bytes[boot..boot + 16],
            self.u64(at + time_mark::BOOT_MS),
        )
    }
}

#[test]
fn a_new_file_matches_the_specification() {
    let (place, clock) = (Place::new(), ManualClock::new(START_MS));
    let store = clocked(&clock).open(&place.path).unwrap();
    for n in 0..900_u32 {
        store.record(Key::new(&format!("key-{n}")).scope("tenant"), request(), &[n as u8; 50]).unwrap();
    }
    store.close().unwrap();
    let bytes = place.bytes();
    let file_id = &bytes[parameter_block::FILE_ID..parameter_block::FILE_ID + 16];
    let file = Reader { bytes: &bytes, seed: crc32fast::hash(file_id) };

    assert_eq!(&bytes[..8], b"ONCEKEY\x1a");
    assert_eq!(file.u32(parameter_block::CHECKSUM), crc32fast::hash(&bytes[12..SECTOR]));
    assert_eq!(file.u32(parameter_block::FORMAT_VERSION), 1);
    assert_eq!(file.u32(parameter_block::SEGMENT_BYTES), SEGMENT as u32);
    assert_eq!(bytes[parameter_block::CHECKSUM_ALGORITHM], 1);
    assert_eq!(bytes[parameter_block::HASH_ALGORITHM], 1);
    assert_eq!(bytes[parameter_block::CIPHER], 0);
    assert!(bytes[SECTOR..STORE_HEADER].iter().all(|byte| *byte == 0));

    let (segment, mut previous, mut seen, mut last_version) = (SEGMENT as usize, 0_u32, 0_u32, 0_u64);
    let mut previous_end = 0;
    let mut sequence = 1_u64;
    let mut closed_at = None;
    let boot_at = STORE_HEADER + segment_header::TIME_MARK + time_mark::BOOT;
    let boot = bytes[boot_at..boot_at + 16].to_vec();
    assert!(boot.iter().any(|byte| *byte != 0));
    // The clock does not advance, so all time marks are equal.
    let now = (START_MS, START_MS, &boot[..], 0);
    loop {
        // No slot was reused, so the segments lie in order.
        let slot = STORE_HEADER + (sequence as usize - 1) * segment;
        assert_eq!(&bytes[slot..slot + 8], b"ONCESEGM", "segment {sequence}");
        let checksum = file.u32(slot + parameter_block::CHECKSUM);
        assert_eq!(checksum, crc32fast::hash(&bytes[slot + 12..slot + SECTOR]));
        let parameters = parameter_block::FORMAT_VERSION..parameter_block::CIPHER + 1;
        assert_eq!(bytes[slot..][parameters.clone()], bytes[parameters], "the parameters are repeated");
        assert_eq!(file.u64(slot + segment_header::SEQUENCE), sequence);
        assert_eq!(file.u64(slot + segment_header::HEAD), 1);
        assert_eq!(file.u64(slot + segment_header::PREVIOUS_END), previous_end);
        assert_eq!(file.u32(slot + segment_header::PREVIOUS_CHECKSUM), previous);
        assert_eq!(file.time_mark(slot + segment_header::TIME_MARK), now);

        let (mut at, mut entries, mut record_bytes) = (slot + FIRST_FRAME, Vec::new(), 0_u64);
        let position = |at: usize| sequence * SEGMENT + (at - slot) as u64;
        while file.u64(at + frame_header::POSITION) == position(at) {
            let length = file.u32(at + frame_header::LENGTH) as usize;
            assert!(length <= segment / 4 && length.is_multiple_of(8));
            let checksum = file.u32(at + frame_header::CHECKSUM);
            assert_eq!(checksum, file.crc(at + frame_header::LENGTH, at + FRAME_HEADER), "frame checksum");
            assert!(file.u64(at + frame_header::SYNCED_TO) <= position(at), "synced_to");
            assert_eq!(file.u32(at + frame_header::PREVIOUS_CHECKSUM), previous, "chain");
            assert_eq!(file.u32(at + frame_header::OPEN_COUNT), 1, "open count");
            assert_eq!(file.u64(at + frame_header::STORE_MS), START_MS, "store time");
            assert_eq!(file.u64(at + frame_header::WALL_MS), START_MS, "wall clock");
            previous = checksum;
            let records_checksum = file.u32(at + frame_header::RECORDS_CHECKSUM);
            let record_count = file.u32(at + frame_header::RECORD_COUNT);
            if record_count == 0 {
                assert_eq!(length, OPENING_FRAME, "an opening frame");
                assert_eq!(records_checksum, file.crc(at + FRAME_HEADER, at + OPENING_FRAME));
                let boot_at = at + opening_frame::BOOT;
                assert_eq!(bytes[boot_at..boot_at + 16], boot, "boot");
                assert_eq!(file.u64(at + opening_frame::BOOT_MS), 0, "boot-time clock");
                at += length;
                continue;
            }
            let (mut record, mut count) = (at + FRAME_HEADER, 0);
            let mut checksums = crc32fast::Hasher::new_with_initial(file.seed);
            while record < at + length {
                let length = file.u32(record + record_header::LENGTH) as usize;
                let tie = (position(record).wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 32) as u32;
                let checksum = file.u32(record + record_header::CHECKSUM);
                let expected = file.crc(record + record_header::LENGTH, record + length) ^ tie;
                assert_eq!(checksum, expected, "record checksum");
                checksums.update(&checksum.to_le_bytes());
                assert_eq!(bytes[record + record_header::KIND], 2, "completed");
                assert_eq!(bytes[record + record_header::FLAGS], 1 | 2, "a scope and a result");
                let key = file.u16(record + record_header::KEY_LENGTH);
                assert_eq!(file.u16(record + record_header::SCOPE_LENGTH), "tenant".len());
                assert_eq!(file.u16(record + record_header::EXTENSION_LENGTH), 0);
                let version = file.u64(record + record_header::VERSION);
                assert!(version > last_version && version >> 40 == 1);
                last_version = version;
                assert_eq!(file.u64(record + record_header::ORIGIN), version);
                let fingerprint = record + record_header::FINGERPRINT;
                assert_eq!(bytes[fingerprint..fingerprint + 16], request().to_bytes());
                assert_eq!(file.u32(record + record_header::ATTEMPT), 1);
                assert_eq!(file.u32(record + record_header::VALUE_LENGTH), 50);
                assert_eq!(file.u64(record + record_header::TIME_MS), START_MS);
                let week_ms = 7 * 24 * 3_600_000;
                assert_eq!(file.u64(record + record_header::KEY_EXPIRES_MS), START_MS + week_ms);
                assert_eq!(file.u64(record + record_header::RESULT_EXPIRES_MS), START_MS + week_ms);
                let parts = format!("tenantkey-{seen}");
                let value = record + RECORD_HEADER + "tenant".len() + key;
                assert_eq!(bytes[record + RECORD_HEADER..value], *parts.as_bytes());
                assert_eq!(bytes[value..value + 50], [seen as u8; 50]);
                assert!(bytes[value + 50..record + length].iter().all(|byte| *byte == 0));
                entries.push((last_version, START_MS + week_ms, (record - slot) / 8, length / 8));
                (record_bytes, seen, count, record) =
                    (record_bytes + length as u64, seen + 1, count + 1, record + length);
            }
            assert_eq!((record_count, records_checksum), (count, checksums.finalize()));
            at += length;
        }
        previous_end = position(at);

        let trailer = slot + segment - TRAILER;
        if &bytes[trailer..trailer + 8] != b"ONCEFOOT" {
            for mark in [slot + slot::FIRST_CLOSE_MARK, slot + slot::SECOND_CLOSE_MARK] {
                assert_eq!(&bytes[mark..mark + 8], b"ONCEMARK");
                assert_eq!(file.u32(mark + close_mark::CHECKSUM), file.crc(mark + 12, mark + SECTOR));
                assert_eq!(file.u32(mark + close_mark::LAST_CHECKSUM), previous);
                assert_eq!(file.u32(mark + close_mark::OPEN_COUNT), 1);
                assert_eq!(file.time_mark(mark + close_mark::TIME_MARK), now);
                assert_eq!(file.u64(mark + close_mark::COUNTER), last_version & 0xFF_FFFF_FFFF, "counter");
                closed_at = Some(file.u64(mark + close_mark::END));
            }
            break;
        }
        assert_eq!(file.u32(trailer + trailer::ENTRY_COUNT) as usize, entries.len());
        assert_eq!(file.u64(trailer + trailer::SEQUENCE), sequence);
        assert_eq!(file.u64(trailer + trailer::SUCCESSOR), sequence + 1);
        assert_eq!(file.u64(trailer + trailer::END), previous_end);
        assert_eq!(file.u64(trailer + trailer::RECORD_BYTES), record_bytes);
        assert_eq!(file.u32(trailer + trailer::LAST_CHECKSUM), previous);
        let first = trailer - entries.len() * ENTRY;
        let mut checksum = crc32fast::Hasher::new_with_initial(file.seed);
        checksum.update(&bytes[trailer + trailer::ENTRY_COUNT..trailer + TRAILER]);
        checksum.update(&bytes[first..trailer]);
        assert_eq!(file.u32(trailer + trailer::CHECKSUM), checksum.finalize(), "footer checksum");
        for (n, (version, expires, offset, length)) in entries.into_iter().enumerate() {
            let entry = first + n * ENTRY;
            assert_eq!(file.u64(entry + footer_entry::VERSION), version);
            assert_eq!(file.u64(entry + footer_entry::KEY_EXPIRES_MS), expires);
            assert_eq!(file.u64(entry + footer_entry::RESULT_EXPIRES_MS), expires);
            assert_eq!(file.u32(entry + footer_entry::OFFSET) as usize, offset);
            assert_eq!(file.u32(entry + footer_entry::LENGTH) & 0xFF_FFFF, length as u32);
            assert_eq!(bytes[entry + footer_entry::KIND], 2);
        }
        sequence += 1;
    }
    assert_eq!((seen, closed_at), (900, Some(previous_end)));
    assert!(sequence > 2, "several segments were read");
}

/// The offset in the file of the first record, after the store header, the start of the slot, the opening frame, and the header
/// of its own frame.
const FIRST_RECORD: usize = STORE_HEADER + FIRST_FRAME + OPENING_FRAME + FRAME_HEADER;

#[test]
fn typed_records_match_the_specification() {
    let extension = |write: &dyn Fn(&Store)| {
        let place = Place::new();
        let store = place.open();
        write(&store);
        store.close().unwrap();
        let bytes = place.bytes();
        let length = usize::from(bytes[FIRST_RECORD + record_header::EXTENSION_LENGTH]);
        let at = FIRST_RECORD + RECORD_HEADER;
        assert_eq!(bytes[at + length], b'k', "the key follows");
        let kind = bytes[FIRST_RECORD + record_header::KIND];
        (kind, bytes[FIRST_RECORD + record_header::FLAGS], bytes[at..at + length].to_vec())
    };
    // The shape of a `u32` is pinned in `src/shape/golden.txt`.
    let (kind, flags, typed) = extension(&|store| {
        store.operation("k").request(&1).record_value(&17_u32).unwrap();
    });
    assert_eq!((kind, flags, &typed[..4], typed.len()), (2, 2, &[1, 10, 1, 1][..], 12));
    let by_caller = extension(&|store| {
        store.operation("k").fingerprint(request()).record_value(&17_u32).unwrap();
    });
    assert_eq!(by_caller, (2, 2, [&[1, 10, 0, 1][..], &typed[4..]].concat()));
    let begun = extension(&|store| drop(store.operation("k").request(&1).begin().unwrap()));
    assert_eq!(begun, (1, 0, vec![1, 2, 1, 1]));
    let on_bytes = extension(&|store| drop(store.begin("k", request()).unwrap()));
    assert_eq!(on_bytes, (1, 0, vec![]));
}

#[test]
fn messages_match_the_specification() {
    let (place, clock) = (Place::new(), ManualClock::new(START_MS));
    let store = clocked(&clock).open(&place.path).unwrap();
    let mut messages = Messages::new();
    messages.emit_bytes("topic", b"first").unwrap();
    messages.emit("topic", &17_u32).unwrap();
    let next = Next::Completed { fingerprint: request(), result: b"r" };
    let key = Key::new("k").scope("tenant");
    store.compare_and_set_with(key, Expected::Absent, next, &messages).unwrap();
    store.outbox().next("topic").unwrap().unwrap().ack().unwrap();
    store.close().unwrap();
    let bytes = place.bytes();
    let file = Reader { bytes: &bytes, seed: 0 };
    let after = |record: usize| record + file.u32(record + record_header::LENGTH) as usize;
    let fields = |record: usize| {
        let at = |offset: usize| record + offset;
        (
            bytes[at(record_header::KIND)],
            bytes[at(record_header::FLAGS)],
            file.u64(at(record_header::VERSION)) & 0xFF_FFFF_FFFF,
            file.u32(at(record_header::ATTEMPT)),
            file.u64(at(record_header::TIME_MS)),
            file.u64(at(record_header::RESULT_EXPIRES_MS)),
        )
    };
    let topic = |record: usize| file.u64(record + record_header::KEY_EXPIRES_MS);
    let parts = |record: usize| {
        let from = record + RECORD_HEADER + file.u16(record + record_header::EXTENSION_LENGTH);
        let lengths = file.u16(record + record_header::SCOPE_LENGTH)
            + file.u16(record + record_header::KEY_LENGTH)
            + file.u32(record + record_header::VALUE_LENGTH) as usize;
        &bytes[from..from + lengths]
    };
    // The completion has version 1, and its messages have the next ones. All three are in one frame.
    let first = after(FIRST_RECORD);
    assert_eq!(fields(FIRST_RECORD).0, 2);
    assert_eq!(fields(first), (32, 1 | 2, 2, 1, START_MS, START_MS));
    assert_eq!(parts(first), b"tenantk\x05topicfirst");
    assert_eq!(bytes[first + record_header::FINGERPRINT..][..16], [0; 16]);
    let second = after(first);
    assert_eq!(fields(second), (32, 1 | 2, 3, 2, START_MS, START_MS));
    assert_eq!(file.u16(second + record_header::EXTENSION_LENGTH), 12, "a typed message");
    assert_eq!((topic(first), &parts(second)[..13]), (topic(second), &b"tenantk\x05topic"[..]));
    let acknowledged = after(second) + FRAME_HEADER;
    assert_eq!(fields(acknowledged), (33, 0, 2, 0, START_MS, START_MS));
    assert_eq!((topic(acknowledged), after(acknowledged) - acknowledged), (topic(first), RECORD_HEADER));
}
