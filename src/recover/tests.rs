//! Opens files that were changed from outside. Recovery either refuses such a file with the offset of the damage and
//! leaves it as it was, or accepts it and loses nothing.

use std::ops::Range;

use super::*;
use crate::clock::{DEFAULT_MAX_DOWNTIME_MS, ManualClock, OpeningRules};
use crate::format::footer::{self, TRAILER, Trailer};
use crate::format::frame::{self, FRAME_HEADER_BYTES, FrameHeader};
use crate::format::header::{CLOSE_MARK_OFFSETS, SegmentHeader};
use crate::format::record::{Kind, Record, Value, encoded_bytes};
use crate::format::{FIRST_FRAME_OFFSET, SECTOR_BYTES, put};
use crate::key::{Fingerprint, Key};
use crate::log::commit::{Until, record_cost_bytes};
use crate::log::reservations::ReservationClass;
use crate::log::scan;
use crate::log::slots::NewSlot;
use crate::status::Version;
use crate::status::{MAX_COUNTER, MAX_OPEN_COUNT};
use crate::storage::{MemoryStorage, read_exact_at};

use Edit::{Blank, Cut, Damage, DamageFooter, Footer, Header, NewerKind};
use Outcome::{Corrupt, New, NotAStore, Records, Unsupported};

const SEGMENT: u64 = 64 << 10;
const HEADER: u64 = SECTOR_BYTES as u64;
const NOW_MS: u64 = 1_000;
const EXPIRY_MS: u64 = 2_000;
const RESULT: [u8; 4_000] = [7; 4_000];
/// The length of a frame with a single record that has this result.
const FRAME: u64 = 56 + 4_088;
const FRAMES_IN_SEGMENT: u64 = 14;
/// Segment n is in slot n - 1. The last segment is not full.
const SLOTS: u64 = 5;
const TAIL: u64 = SLOTS - 1;
const FRAMES_IN_TAIL: u64 = 5;
const RECORDS: u64 = TAIL * FRAMES_IN_SEGMENT + FRAMES_IN_TAIL;
/// The end of the frames of a full segment, from the start of the slot. Slot 0 also has the opening frame.
const FULL_END: u64 = FIRST_FRAME_OFFSET + FRAMES_IN_SEGMENT * FRAME;
const TAIL_END: u64 = FIRST_FRAME_OFFSET + FRAMES_IN_TAIL * FRAME;

fn open_at(storage: &Arc<dyn Storage>, now_ms: u64, max_slots: u64) -> Result<Recovered> {
    open_with_clock(storage, &ManualClock::new(now_ms), max_slots)
}

fn open_with_clock(storage: &Arc<dyn Storage>, clock: &ManualClock, max_slots: u64) -> Result<Recovered> {
    let config = Config {
        create: true,
        segment_bytes: SEGMENT,
        min_bytes: 0,
        max_bytes: slot(max_slots),
        new_slot: NewSlot::Zeroed,
        forgotten_ms: None,
        clock_rules: OpeningRules { max_downtime_ms: DEFAULT_MAX_DOWNTIME_MS, accept: None },
        time_source: Arc::new(clock.clone()),
    };
    survey(Arc::clone(storage), Path::new("store"), &config)?.fill()?.begin()
}

fn slot(number: u64) -> u64 {
    STORE_HEADER_BYTES + number * SEGMENT
}

fn frame(slot_number: u64, number: u64) -> u64 {
    slot(slot_number) + FIRST_FRAME_OFFSET + number * FRAME
}

fn index(offset: u64) -> usize {
    usize::try_from(offset).unwrap()
}

fn key_name(number: u64) -> String {
    format!("k{number:02}")
}

/// Appends a record. False if there is no space.
fn append(opened: &Recovered, name: &str) -> bool {
    append_version(opened, name, Version::from_u64(1))
}

fn append_version(opened: &Recovered, name: &str, version: Version) -> bool {
    let key = Key::new(name);
    let record = Record {
        kind: Kind::Completed,
        key,
        version,
        origin: version,
        fingerprint: Fingerprint::NONE,
        attempt: 1,
        time_ms: NOW_MS,
        key_expires_ms: EXPIRY_MS,
        result_expires_ms: EXPIRY_MS,
        value: Value::bytes(&RESULT),
    };
    let cost = record_cost_bytes(encoded_bytes(key, &Value::bytes(&RESULT)));
    let Ok(reservation) = opened.log.reserve(cost, ReservationClass::Move).unwrap() else { return false };
    let hash = opened.log.hasher().key(key);
    let new = opened.log.encode(&record, hash);
    let ticket = opened.log.append(std::iter::once(&new), reservation, Until::Synced).unwrap();
    opened.log.wait(&ticket).unwrap();
    true
}

fn holds(opened: &Recovered, name: &str) -> bool {
    let key = Key::new(name);
    let matches = |record: &Record<'_>| record.key == key && record.value.result == Some(&RESULT);
    let read = |address| opened.log.reader().record(address, |_, record| matches(record)).unwrap();
    opened.index.find(opened.log.hasher().key(key), |address| read(address).then_some(())).is_some()
}

/// The bytes of a file.
#[derive(Clone, PartialEq)]
struct Image(Vec<u8>);

impl Image {
    fn of(storage: &dyn Storage) -> Image {
        let mut bytes = vec![0; index(storage.len().unwrap())];
        read_exact_at(storage, &mut bytes, 0).unwrap();
        Image(bytes)
    }

    /// Returns a store that was not closed, with all frames synced, cut to the slots that it needs.
    fn whole() -> Image {
        let storage: Arc<dyn Storage> = Arc::new(MemoryStorage::new());
        let opened = open_at(&storage, NOW_MS, 16).unwrap();
        for number in 0..RECORDS {
            assert!(append(&opened, &key_name(number)));
        }
        let mut image = Image::of(&*storage);
        image.0.truncate(index(slot(SLOTS)));
        for number in 0..SLOTS {
            assert_eq!(image.header(number).sequence, number + 1);
        }
        assert!(image.range(frame(TAIL, FRAMES_IN_TAIL - 1), 8).iter().any(|byte| *byte != 0));
        assert!(image.range(slot(TAIL) + TAIL_END, 8).iter().all(|byte| *byte == 0));
        image
    }

    fn storage(&self) -> Arc<dyn Storage> {
        let storage = MemoryStorage::new();
        write_all_at(&storage, &self.0, 0).unwrap();
        Arc::new(storage)
    }

    fn range(&mut self, offset: u64, length: u64) -> &mut [u8] {
        &mut self.0[index(offset)..index(offset + length)]
    }

    /// Overwrites bytes with a pattern that is not blank and that no code writes.
    fn damage(&mut self, offset: u64, length: u64) {
        self.range(offset, length).fill(0xEE);
    }

    fn header(&self, slot_number: u64) -> SegmentHeader {
        SegmentHeader::decode(self.0[index(slot(slot_number))..].first_chunk().unwrap()).unwrap()
    }

    fn put_header(&mut self, slot_number: u64, header: &SegmentHeader) {
        put(&mut self.0, index(slot(slot_number)), &header.encode());
    }

    /// Changes a header and keeps its checksum valid.
    fn change_header(&mut self, slot_number: u64, change: impl FnOnce(&mut SegmentHeader)) {
        let mut header = self.header(slot_number);
        change(&mut header);
        self.put_header(slot_number, &header);
    }

    /// Changes a trailer and keeps its checksum valid.
    fn change_footer(&mut self, slot_number: u64, change: impl FnOnce(&mut Trailer)) {
        let SegmentHeader { parameters, sequence, .. } = self.header(slot_number);
        let (storage, offset) = (self.storage(), slot(slot_number));
        let read = scan::read_footer_entries(&*storage, offset, sequence, &parameters);
        let (mut trailer, entries) = read.unwrap().unwrap();
        change(&mut trailer);
        let Trailer { end, record_bytes, last_checksum, .. } = trailer;
        let summary = footer::Summary { entry_count: 0, sequence, end, record_bytes, last_checksum };
        let bytes = footer::encode_whole(entries, summary, parameters.seed());
        put(&mut self.0, index(slot(slot_number + 1)) - bytes.len(), &bytes);
    }

    /// Gives a record an unknown kind, as a later version of the format may write it.
    fn change_kind(&mut self, slot_number: u64, number: u64) {
        let header = self.header(slot_number);
        let position = header.sequence * SEGMENT + FIRST_FRAME_OFFSET + number * FRAME;
        let seed = header.parameters.seed();
        let bytes = self.range(frame(slot_number, number), FRAME);
        let stamp = FrameHeader::decode(bytes, position, FRAME, seed).unwrap().stamp;
        let record = &mut bytes[FRAME_HEADER_BYTES..];
        record[8] = 15;
        let checksum = seed.checksum(&record[4..]);
        put(record, 0, &checksum.to_le_bytes());
        frame::seal(bytes, &stamp, seed);
    }
}

/// A change to a file.
#[derive(Debug, Clone, Copy)]
enum Edit {
    /// Cuts the file to this length.
    Cut(u64),
    /// Zeroes bytes: their offset and number.
    Blank(u64, u64),
    /// Damages bytes: their offset and number.
    Damage(u64, u64),
    /// Changes the segment header of this slot, and keeps its checksum valid.
    Header(u64, fn(&mut SegmentHeader)),
    /// Changes the trailer of this slot, and keeps its checksum valid.
    Footer(u64, fn(&mut Trailer)),
    /// Damages the trailer of this slot.
    DamageFooter(u64),
    /// Gives a record a kind of a later version: the slot, and the number of the frame.
    NewerKind(u64, u64),
}

/// The outcome of opening a file.
#[derive(Debug)]
enum Outcome {
    /// A new, empty store.
    New,
    /// These records, and no others.
    Records(Range<u64>),
    /// [`Error::NotAStore`].
    NotAStore,
    /// There is a record of a later version at this offset.
    Unsupported(u64),
    /// The offset, and a part of the reason.
    Corrupt(u64, &'static str),
}

impl Image {
    /// Opens the file after these edits, and checks the outcome. Checks that a refusal has not changed the file.
    #[track_caller]
    fn check(&self, edits: &[Edit], expected: Outcome) {
        let mut image = self.clone();
        for edit in edits {
            match *edit {
                Cut(length) => image.0.truncate(index(length)),
                Blank(offset, length) => image.range(offset, length).fill(0),
                Damage(offset, length) => image.damage(offset, length),
                Header(number, change) => image.change_header(number, change),
                Footer(number, change) => image.change_footer(number, change),
                DamageFooter(number) => image.damage(slot(number + 1) - 40, 8),
                NewerKind(number, frame) => image.change_kind(number, frame),
            }
        }
        let storage = image.storage();
        let opened = open_at(&storage, NOW_MS, 16);
        if opened.is_err() {
            assert!(Image::of(&*storage) == image, "the refusal changed the file");
        }
        match (opened, expected) {
            (Ok(opened), New) => {
                let length = storage.len().unwrap();
                assert_eq!((opened.index.len(), opened.open_count, length), (0, 1, slot(1)));
            }
            (Ok(opened), Records(range)) => {
                let there: Vec<_> =
                    (0..RECORDS).filter(|number| holds(&opened, &key_name(*number))).collect();
                assert_eq!(there, range.collect::<Vec<_>>());
            }
            (Err(Error::NotAStore { .. }), NotAStore) => {}
            (Err(Error::Unsupported { reason, .. }), Unsupported(offset)) => {
                assert!(reason.starts_with(&format!("at offset {offset}: ")), "{reason}");
            }
            (Err(Error::Corrupt { offset, reason, .. }), Corrupt(at, part)) => {
                assert!(offset == at && reason.contains(part), "at {offset}, not {at}: {reason}");
            }
            (opened, expected) => panic!("{:?}, not {expected:?}", opened.map(|opened| opened.index.len())),
        }
    }
}

#[test]
fn a_file_shorter_than_a_store_header_is_new_only_if_blank() {
    let whole = Image::whole();
    for length in [0, 1, 6, 7, 511, 512, 4_095] {
        Image(vec![0; index(length)]).check(&[], New);
        let outcome = match length {
            0 => New,
            // Too short to be recognized as the beginning of a store header.
            1..=6 => NotAStore,
            _ => Corrupt(length, "cut short within its header"),
        };
        whole.check(&[Cut(length)], outcome);
        Image(vec![b'x'; index(length)]).check(&[], if length == 0 { New } else { NotAStore });
    }
}

#[test]
fn a_blank_store_header_is_new_only_where_a_creation_can_leave_it() {
    const ONE: u64 = STORE_HEADER_BYTES + SEGMENT;
    const TWO: u64 = ONE + SEGMENT;
    let longer = "longer than a new one";
    let zeroes = |length| Image(vec![0; index(length)]);
    for length in [4_096, 4_607, 4_608, ONE, ONE + 1, TWO, TWO + 1] {
        zeroes(length).check(&[], New);
    }
    for (length, offset) in [(4_607, 4_096), (4_608, 4_607), (ONE, 4_096), (ONE, ONE - 1)] {
        zeroes(length).check(&[Damage(offset, 1)], New);
    }
    for (length, offset) in [(ONE + 1, 4_096), (ONE + 1, ONE), (TWO, 4_096), (TWO, TWO - 1)] {
        zeroes(length).check(&[Damage(offset, 1)], Corrupt(0, longer));
    }
    // The damage is at the boundaries of the pieces in which the file is read.
    for offset in [SEGMENT - 1, SEGMENT, 2 * SEGMENT - 1, 2 * SEGMENT] {
        zeroes(TWO).check(&[Damage(offset, 1)], Corrupt(0, longer));
    }

    let first = Image::whole().header(0);
    let begun = |length, sequence| {
        let mut image = zeroes(length);
        image.put_header(0, &SegmentHeader { sequence, ..first });
        image
    };
    for length in [4_608, ONE - 1, ONE] {
        begun(length, 1).check(&[], New);
        begun(length, 2).check(&[], Corrupt(0, "holds a log"));
    }
    begun(ONE, 1).check(&[Damage(ONE - 1, 1)], New);
    for length in [ONE + 1, TWO] {
        begun(length, 1).check(&[], Corrupt(0, "holds a log"));
    }
}

#[test]
fn a_used_segment_under_a_blank_store_header_is_never_new() {
    const ONE: u64 = STORE_HEADER_BYTES + SEGMENT;
    let used = Image::whole();
    let (log, like_one) = ("holds a log", "holds what looks like a log");
    let lost = |further: &[Edit], reason| {
        let first = [Cut(ONE), Blank(0, STORE_HEADER_BYTES)];
        used.check(&[&first, further].concat(), Corrupt(0, reason));
    };
    lost(&[], log);
    lost(&[Cut(ONE - 1)], log);
    lost(&[Damage(frame(0, 0), 56)], log);
    lost(&[Blank(frame(0, 0), FULL_END - FIRST_FRAME_OFFSET - FRAME)], log);
    lost(&[Damage(slot(0), 1)], like_one);
    lost(&[Blank(slot(0), HEADER)], like_one);
    lost(&[Blank(slot(0), FULL_END - FRAME)], like_one);
    lost(&[Blank(slot(0), HEADER), Cut(frame(0, 0) + 56)], like_one);
    let storage = used.storage();
    open_at(&storage, NOW_MS, 16).unwrap().log.mark_closed(1).unwrap();
    let marked = Image(Image::of(&*storage).0[index(slot(TAIL))..index(slot(SLOTS))].to_vec());
    for mark in CLOSE_MARK_OFFSETS {
        let mut image = Image(vec![0; index(ONE)]);
        let mark = index(mark);
        put(&mut image.0, index(slot(0)) + mark, &marked.0[mark..mark + SECTOR_BYTES]);
        image.check(&[], Corrupt(0, like_one));
    }
}

#[test]
fn each_segment_of_the_log_must_exist_once_whole_and_of_this_store() {
    let whole = Image::whole();
    whole.check(&[], Records(0..RECORDS));
    whole.check(&[Cut(slot(0))], Corrupt(slot(0), "no segment has a valid header"));

    let missing = |reason| Corrupt(slot(SLOTS), reason);
    whole.check(&[Blank(slot(2), SEGMENT)], missing("segment 3 of the log's 1 to 5 is missing"));
    whole.check(&[Blank(slot(0), SEGMENT)], missing("segment 1 of the log's 1 to 5 is missing"));
    let third_is_head = Header(TAIL, |header| header.head = 3);
    let third = missing("segment 3 of the log's 3 to 5 is missing");
    whole.check(&[third_is_head, Blank(slot(2), SEGMENT)], third);
    whole.check(&[third_is_head, Blank(slot(1), SEGMENT)], Records(2 * FRAMES_IN_SEGMENT..RECORDS));

    let elsewhere = Header(2, |header| header.previous_end -= SEGMENT);
    whole.check(&[elsewhere], Corrupt(slot(2), "does not state an end of the segment before it"));
    let twice = Header(3, |header| (header.sequence, header.head) = (2, 1));
    whole.check(&[twice], Corrupt(slot(3), "segment 2 is in slots 1 and 3"));
    let of_another = |number| Corrupt(slot(number), "parameters are not those of the store header");
    whole.check(&[Header(2, |header| header.parameters.secret[0] ^= 1)], of_another(2));
    whole.check(&[Header(TAIL, |header| header.parameters.file_id[15] ^= 1)], of_another(TAIL));

    for length in [512, 4_096, SEGMENT - 1] {
        whole.check(&[Cut(slot(TAIL) + length)], Corrupt(slot(TAIL), "segment 5 is cut short"));
    }
    // Without its header, nothing mentions the segment, but the footer of the segment before it exists.
    for length in [0, 511] {
        let end = slot(TAIL - 1) + FULL_END;
        whole.check(&[Cut(slot(TAIL) + length)], Corrupt(end, "finished and the one after it is missing"));
    }
}

#[test]
fn a_slot_without_a_valid_header_must_hold_no_part_of_the_log() {
    let whole = Image::whole();
    let part = |number, reason| Corrupt(slot(number), reason);
    let first_frame = |number| Damage(frame(number, 0), 64);
    whole.check(&[Damage(slot(1), HEADER), first_frame(1)], part(1, "a part of segment 2"));
    // Only the last frame is left.
    whole.check(&[Damage(slot(1), FULL_END - FRAME)], part(1, "a part of segment 2"));
    whole.check(&[Blank(slot(0), HEADER)], part(0, "a part of segment 1"));
    whole.check(&[Blank(slot(1), HEADER)], part(1, "a part of segment 2"));
    // If the header is blank, recovery reads the slot only up to the first frame header.
    let missing = Corrupt(slot(SLOTS), "segment 2 of the log's 1 to 5 is missing");
    whole.check(&[Blank(slot(1), HEADER), first_frame(1)], missing);

    // The file ends within the slot.
    let cut = Cut(frame(TAIL, 2) + 100);
    whole.check(&[Damage(slot(TAIL), HEADER), first_frame(TAIL), cut], part(TAIL, "a part of segment 5"));
    let cut = Cut(frame(TAIL, 0) + 56);
    whole.check(&[Blank(slot(TAIL), HEADER), cut], part(TAIL, "a part of segment 5"));

    // Only the close mark is left.
    let storage = whole.storage();
    open_at(&storage, NOW_MS, 16).unwrap().log.mark_closed(1).unwrap();
    let frames = Blank(frame(TAIL, 0), SEGMENT - FIRST_FRAME_OFFSET);
    Image::of(&*storage).check(&[Damage(slot(TAIL), HEADER), frames], part(TAIL, "a part of segment 5"));

    // A segment before the head is not part of the log.
    let third_is_head = Header(TAIL, |header| header.head = 3);
    whole.check(&[third_is_head, Damage(slot(1), HEADER)], Records(2 * FRAMES_IN_SEGMENT..RECORDS));
    whole.check(&[third_is_head, Damage(slot(2), HEADER)], part(2, "a part of segment 3"));
}

#[test]
fn later_headers_reveal_damage_in_the_last_segment() {
    let whole = Image::whole();
    whole.check(&[Damage(frame(TAIL, 1) + 500, 1)], Corrupt(frame(TAIL, 1), "a later frame"));
    let last = frame(TAIL, FRAMES_IN_TAIL - 1);
    let on_disk = Header(TAIL, |header| header.synced_to = SLOTS * SEGMENT + TAIL_END);
    whole.check(&[on_disk, Blank(last, FRAME)], Corrupt(last, "or the segment's header"));
    let before_it = Header(TAIL, |header| header.synced_to = SLOTS * SEGMENT + TAIL_END - FRAME);
    whole.check(&[before_it, Blank(last, FRAME)], Records(0..RECORDS - 1));
    for number in [1, FRAMES_IN_TAIL - 1] {
        whole.check(&[NewerKind(TAIL, number)], Unsupported(frame(TAIL, number)));
    }
}

#[test]
fn a_full_segment_must_match_the_next_header_by_footer_or_frames() {
    let whole = Image::whole();
    let other_checksum = Header(2, |header| header.previous_checksum ^= 1);
    let other_end = Header(2, |header| header.previous_end -= 8);
    let disagrees = || Corrupt(slot(1), "the footer and the next segment's header do not agree");
    whole.check(&[Footer(1, |_| {})], Records(0..RECORDS));
    whole.check(&[Footer(1, |trailer| trailer.end += 8)], disagrees());
    whole.check(&[Footer(1, |trailer| trailer.last_checksum ^= 1)], disagrees());
    whole.check(&[other_checksum], disagrees());
    whole.check(&[other_end], disagrees());

    let ends = |offset| Corrupt(offset, "segment 2 was whole on disk and now ends here");
    whole.check(&[DamageFooter(1)], Records(0..RECORDS));
    whole.check(&[0, 1, 2, 3].map(DamageFooter), Records(0..RECORDS));
    whole.check(&[DamageFooter(1), other_checksum], ends(slot(1) + FULL_END));
    whole.check(&[DamageFooter(1), other_end], ends(slot(1) + FULL_END));
    whole.check(&[DamageFooter(1), Damage(frame(1, 3) + 200, 1)], ends(frame(1, 3)));
    whole.check(&[DamageFooter(1), NewerKind(1, 3)], Unsupported(frame(1, 3)));
}

/// A later version can keep an image of the index in such slots, and this version then frees them.
#[test]
fn a_slot_of_unknown_magic_is_ignored() {
    let mut whole = Image::whole();
    whole.0.resize(index(slot(SLOTS + 1)), 0xEE);
    for magic in [*b"ONCEINDX", [0xEE; 8], [0xFF; 8]] {
        let header = whole.header(TAIL).encode();
        put(&mut whole.0, index(slot(SLOTS)), &header);
        put(&mut whole.0, index(slot(SLOTS)), &magic);
        whole.check(&[], Records(0..RECORDS));
    }
    put(&mut whole.0, index(slot(SLOTS)), b"ONCESEGM");
    whole.check(&[], Corrupt(slot(SLOTS), "is in slots"));
}

/// A later version can state there where it keeps an image of the index.
#[test]
fn the_store_header_after_its_first_sector_is_ignored() {
    let mut whole = Image::whole();
    whole.damage(HEADER, STORE_HEADER_BYTES - HEADER);
    whole.check(&[], Records(0..RECORDS));
    whole.check(&[Damage(HEADER - 1, 1)], Corrupt(0, "checksum"));
}

/// A later version can use them, if its checksum covers them as the specification states.
#[test]
fn the_free_bytes_of_a_trailer_are_ignored() {
    let free = index(slot(2)) - 12..index(slot(2));
    // A damaged frame shows whether the footer was used: without it, the frames are followed.
    let lost_frame = Damage(frame(1, 3), 8);
    let is_cut = "segment 2 was whole on disk and now ends here";
    let mut whole = Image::whole();
    whole.0[free].fill(0xEE);
    whole.check(&[lost_frame], Corrupt(frame(1, 3), is_cut));
    whole.check(&[], Records(0..RECORDS));

    let trailer = index(slot(2)) - TRAILER;
    let count = u64::from(u32::from_le_bytes(*whole.0[trailer + 12..].first_chunk().unwrap()));
    let entries = trailer + TRAILER - index(footer::footer_bytes(count));
    let covered = [&whole.0[trailer + 12..trailer + TRAILER], &whole.0[entries..trailer]].concat();
    let checksum = whole.header(1).parameters.seed().checksum(&covered);
    put(&mut whole.0, trailer + 8, &checksum.to_le_bytes());
    whole.damage(frame(1, 3), 8);
    let opened = open_at(&whole.storage(), NOW_MS, 16);
    assert_eq!(opened.unwrap().index.len(), index(RECORDS), "the footer must be used");
}

#[test]
fn a_key_and_its_record_live_until_the_expiry() {
    let whole = Image::whole();
    let at = |now_ms| {
        let opened = open_at(&whole.storage(), now_ms, 16).unwrap();
        (opened.index.len() as u64, opened.log.space_usage().totals(now_ms).dead_bytes > 0)
    };
    assert_eq!((at(EXPIRY_MS - 1), at(EXPIRY_MS)), ((RECORDS, false), (0, true)));
}

#[test]
fn bytes_after_the_end_are_zeroed_unless_the_store_was_closed() {
    let storage = Image::whole().storage();
    let opened = open_at(&storage, NOW_MS, 16).unwrap();
    opened.log.mark_closed(1).unwrap();
    drop(opened);
    let mut closed = Image::of(&*storage);
    let left_over = slot(TAIL) + SEGMENT - 200;
    closed.damage(left_over, 8);
    let is_kept = |image: &Image| {
        let storage = image.storage();
        assert_eq!(open_at(&storage, NOW_MS, 16).unwrap().index.len() as u64, RECORDS);
        assert_eq!(storage.len().unwrap(), slot(SLOTS));
        Image::of(&*storage).range(left_over, 1) == [0xEE]
    };
    // The position that the segment header attests makes no difference, as long as it is not beyond the end.
    for synced_to in [0, TAIL_END - 8, TAIL_END].map(|within| SLOTS * SEGMENT + within) {
        closed.change_header(TAIL, |header| header.synced_to = synced_to);
        assert!(is_kept(&closed), "{synced_to}");
    }
    let mut crashed = closed;
    for offset in CLOSE_MARK_OFFSETS {
        crashed.range(slot(TAIL) + offset, HEADER).fill(0);
    }
    assert!(!is_kept(&crashed));
}

#[test]
fn open_count_and_time_survive_without_space_for_an_opening_frame() {
    const HOUR_MS: u64 = 3_600_000;
    let storage: Arc<dyn Storage> = Arc::new(MemoryStorage::new());
    let opened = open_at(&storage, NOW_MS, 4).unwrap();
    while append(&opened, "k") {}
    assert!(
        opened.log.reserve(80, ReservationClass::Begin).unwrap().is_err(),
        "an opening frame must find no space"
    );
    drop(opened);
    for (count, wall_ms, store_ms) in [
        (2, NOW_MS, NOW_MS),
        (3, NOW_MS + HOUR_MS, NOW_MS + HOUR_MS),
        (4, NOW_MS + HOUR_MS / 2, NOW_MS + HOUR_MS),
    ] {
        let opened = open_at(&storage, wall_ms, 4).unwrap();
        assert_eq!((opened.open_count, opened.clock.now_ms()), (count, store_ms));
    }
}

#[test]
fn the_open_count_never_exceeds_its_maximum() {
    let storage: Arc<dyn Storage> = Arc::new(MemoryStorage::new());
    let open = || open_at(&storage, NOW_MS, 8);
    assert_eq!(open().unwrap().open_count, 1);
    let mut image = Image::of(&*storage);
    image.change_header(0, |header| header.open_count = MAX_OPEN_COUNT - 1);
    write_all_at(&*storage, &image.0, 0).unwrap();
    let opened = open().unwrap();
    assert_eq!(opened.open_count, MAX_OPEN_COUNT);
    let image = Image::of(&*storage);
    assert!(matches!(open(), Err(Error::VersionsExhausted { .. })));
    assert!(Image::of(&*storage) == image, "the refusal changed the file");
    // After a clean close, the store can be opened any number of times.
    opened.log.mark_closed(17).unwrap();
    for _ in 0..3 {
        let opened = open().unwrap();
        assert_eq!((opened.open_count, opened.counter), (MAX_OPEN_COUNT, 17));
        opened.log.mark_closed(opened.counter).unwrap();
    }
}

/// Closes the store with this counter and opens it again. Returns the open count and the counter of the new session.
fn close_and_open(storage: &Arc<dyn Storage>, opened: &Recovered, counter: u64) -> (u32, u64) {
    opened.log.mark_closed(counter).unwrap();
    let next = open_at(storage, NOW_MS, 8).unwrap();
    (next.open_count, next.counter)
}

#[test]
fn versions_continue_only_after_a_clean_close() {
    let storage: Arc<dyn Storage> = Arc::new(MemoryStorage::new());
    let first = open_at(&storage, NOW_MS, 8).unwrap();
    assert_eq!((first.open_count, first.counter), (1, 0));
    assert_eq!(close_and_open(&storage, &first, 5), (1, 5));
    let crashed = open_at(&storage, NOW_MS, 8).unwrap();
    assert_eq!((crashed.open_count, crashed.counter), (2, 0), "the previous session was not closed");
    let half = MAX_COUNTER / 2;
    for (counter, next) in
        [(0, (3, 0)), (half, (3, half)), (half + 1, (4, 0)), (MAX_COUNTER, (4, 0)), (u64::MAX, (4, 0))]
    {
        let storage = Image::of(&*storage).storage();
        let opened = open_at(&storage, NOW_MS, 8).unwrap();
        assert_eq!((opened.open_count, opened.counter), (3, 0));
        assert_eq!(close_and_open(&storage, &opened, counter), next, "{counter}");
    }
}

#[test]
fn versions_do_not_continue_from_an_outdated_close_mark() {
    let storage: Arc<dyn Storage> = Arc::new(MemoryStorage::new());
    let opened = open_at(&storage, NOW_MS, 8).unwrap();
    opened.log.mark_closed(5).unwrap();
    let closed = Image::of(&*storage);
    drop(open_at(&storage, NOW_MS, 8).unwrap());
    let opened_again = Image::of(&*storage);
    let from = slot(0) + FIRST_FRAME_OFFSET + 80;
    let next = |image: &Image| {
        let opened = open_at(&image.storage(), NOW_MS, 8).unwrap();
        (opened.open_count, opened.counter)
    };
    assert_eq!(next(&closed), (1, 5));
    assert_eq!(next(&opened_again), (2, 0));
    let frame = opened_again.0[index(from)..index(from + 80)].to_vec();
    for bit in 0..frame.len() * 8 {
        let mut torn = opened_again.clone();
        torn.range(from, 80)[bit / 8] ^= 1 << (bit % 8);
        assert_eq!(next(&torn), (2, 0), "bit {bit}");
    }
    let mut left_over = closed.clone();
    left_over.damage(from, 80);
    assert_eq!(next(&left_over), (1, 5), "a left-over of an earlier use of the slot");

    for (counter, expected) in [(9, (1, 9)), (10, (1, 10)), (8, (2, 0)), (0, (2, 0))] {
        let storage: Arc<dyn Storage> = Arc::new(MemoryStorage::new());
        let opened = open_at(&storage, NOW_MS, 8).unwrap();
        assert!(append_version(&opened, "k", Version::compose(1, 9).unwrap()));
        assert!(append(&opened, "under a different open count"));
        opened.log.mark_closed(counter).unwrap();
        assert_eq!(next(&Image::of(&*storage)), expected, "{counter}");
    }
}

#[test]
fn a_session_without_an_opening_frame_has_its_own_count_and_time() {
    let storage: Arc<dyn Storage> = Arc::new(MemoryStorage::new());
    let clock = ManualClock::new(NOW_MS);
    let opened = open_with_clock(&storage, &clock, 4).unwrap();
    while append(&opened, "k") {}
    let mut last = (opened.open_count, 77);
    opened.log.mark_closed(77).unwrap();
    for turn in 0..4_u32 {
        // This session is recorded only in the segment header and crashes without writing a frame. The close mark of
        // the previous session is still at the end of the log.
        clock.reboot(std::time::Duration::from_secs(5));
        clock.advance(std::time::Duration::from_secs(1));
        let opened = open_with_clock(&storage, &clock, 4).unwrap();
        assert_eq!((opened.open_count, opened.counter), (last.0 + 1, 0), "turn {turn}");
        assert_eq!(opened.clock.now_ms(), clock.now_ms());
        // The store is opened again in the same boot, after the wall clock has jumped.
        let wall_ms = clock.now_ms();
        clock.jump_wall(wall_ms + 9_999_999_999_999);
        let crashed = open_with_clock(&storage, &clock, 4).unwrap();
        assert_eq!((crashed.open_count, crashed.clock.now_ms()), (last.0 + 2, wall_ms));
        clock.jump_wall(wall_ms);
        drop(open_with_clock(&storage, &clock, 4).unwrap());
        last = (last.0 + 3, 0);
        if turn == 2 {
            let opened = open_with_clock(&storage, &clock, 4).unwrap();
            last = (opened.open_count, 9);
            opened.log.mark_closed(9).unwrap();
        }
    }
}
