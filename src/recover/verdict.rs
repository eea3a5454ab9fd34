//! How the log ended: a pure table over what the scan found.

use crate::format::header::CloseMark;
use crate::log::scan::{FrameSpan, SegmentScan};

/// What the close marks say.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Mark {
    /// There is none in the last segment.
    None,
    /// The store was closed here once and went on later.
    Earlier { attested: u64 },
    /// The store was closed just where the scan ended.
    AtEnd,
    /// The store was closed beyond where the scan ended.
    Beyond,
    /// The mark names a place or a frame that the log does not have.
    Contradicts,
}

/// What the scan found at the end of the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Evidence {
    /// Where the first frame that does not check would be.
    pub(super) end: u64,
    pub(super) mark: Mark,
    /// The highest `synced_to` of any frame header behind the end, or of the segment's own header if it is beyond
    /// the end.
    pub(super) later: Option<u64>,
    /// The footer of the last segment is there, so there was a segment after it.
    pub(super) has_footer: bool,
    /// What stands at the end may be what is left of a frame.
    pub(super) may_be_torn: bool,
}

/// How the log ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verdict {
    /// It was closed, and there is nothing behind the end.
    Closed,
    /// It was cut off. What follows the end was promised to nobody.
    CutOff,
    /// Data that was on disk is gone.
    Corrupt(&'static str),
}

/// The table of recovery.
pub(super) fn decide(evidence: &Evidence) -> Verdict {
    let Evidence { end, mark, later, has_footer, may_be_torn } = *evidence;
    match (has_footer, mark, later) {
        (true, _, _) => Verdict::Corrupt("the segment was finished and the one after it is missing"),
        (_, Mark::Beyond, _) => Verdict::Corrupt("the store was closed beyond this place"),
        (_, Mark::Contradicts, _) => Verdict::Corrupt("the close mark does not agree with the log"),
        (_, _, Some(synced_to)) if synced_to > end => {
            Verdict::Corrupt("a later frame, or the segment's header, says that this place was on disk")
        }
        (_, Mark::AtEnd, None) if !may_be_torn => Verdict::Closed,
        // A left-over behind the mark: the opening after the close got no further than that.
        (_, Mark::AtEnd, _) => Verdict::CutOff,
        (_, Mark::None | Mark::Earlier { .. }, _) => Verdict::CutOff,
    }
}

/// Of several close marks the one that was written last.
pub(super) fn latest(marks: &[CloseMark]) -> Option<&CloseMark> {
    marks.iter().max_by_key(|mark| (mark.end, mark.open_count, mark.mark.store_ms))
}

pub(super) fn judge_marks(marks: &[CloseMark], scan: &SegmentScan, before_first: u32) -> Mark {
    let Some(mark) = latest(marks) else { return Mark::None };
    if mark.end > scan.end {
        return Mark::Beyond;
    }
    let ends_there = |frame: &&FrameSpan| frame.position + frame.length == mark.end;
    let checksum = match scan.frames.iter().find(ends_there) {
        Some(frame) => Some(frame.checksum),
        None if scan.frames.first().is_none_or(|first| first.position == mark.end) => Some(before_first),
        None => None,
    };
    if checksum != Some(mark.last_checksum) {
        return Mark::Contradicts;
    }
    if mark.end == scan.end { Mark::AtEnd } else { Mark::Earlier { attested: mark.end } }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::{BootId, TimeMark};
    use crate::format::FormatError;

    const END: u64 = 10_000;

    #[test]
    fn every_row_of_the_recovery_table_is_as_specified() {
        let closed_before = "beyond";
        let marks =
            [Mark::None, Mark::Earlier { attested: 5_000 }, Mark::AtEnd, Mark::Beyond, Mark::Contradicts];
        let laters = [None, Some(END), Some(END + 8)];
        for mark in marks {
            for later in laters {
                for (has_footer, may_be_torn) in [(false, false), (false, true), (true, false), (true, true)]
                {
                    let verdict = decide(&Evidence { end: END, mark, later, has_footer, may_be_torn });
                    let corrupt = has_footer
                        || matches!(mark, Mark::Beyond | Mark::Contradicts)
                        || later == Some(END + 8);
                    let closed = !corrupt && mark == Mark::AtEnd && later.is_none() && !may_be_torn;
                    match verdict {
                        Verdict::Corrupt(reason) => {
                            assert!(corrupt, "{mark:?} {later:?} {has_footer}");
                            assert!(mark != Mark::Beyond || has_footer || reason.contains(closed_before));
                        }
                        Verdict::Closed => assert!(closed, "{mark:?} {later:?} {has_footer}"),
                        Verdict::CutOff => assert!(!corrupt && !closed, "{mark:?} {later:?} {has_footer}"),
                    }
                }
            }
        }
    }

    fn mark(end: u64, last_checksum: u32) -> CloseMark {
        let time = TimeMark { store_ms: 0, wall_ms: 0, boot: BootId::UNKNOWN, boot_ms: 0 };
        CloseMark { end, last_checksum, open_count: 1, mark: time, counter: 0 }
    }

    /// What a scan says of frames of 100 bytes from 1,000 on, the n-th with the checksum n.
    fn frames(count: u32) -> SegmentScan {
        let frames: Vec<_> = (1..=count)
            .map(|n| FrameSpan { position: 900 + u64::from(n) * 100, length: 100, checksum: n, synced_to: 0 })
            .collect();
        SegmentScan {
            frames,
            entries: Vec::new(),
            record_bytes: 0,
            end: 1_000 + u64::from(count) * 100,
            last_checksum: count,
            open_count: 1,
            stop: FormatError::Damaged("nothing more"),
        }
    }

    #[test]
    fn every_place_and_every_checksum_of_a_close_mark_is_judged_as_specified() {
        const BEFORE: u32 = 77;
        let judge = |mark, count| judge_marks(&[mark], &frames(count), BEFORE);
        assert_eq!(judge_marks(&[], &frames(3), BEFORE), Mark::None);
        assert_eq!(judge(mark(1_300, 3), 3), Mark::AtEnd);
        assert_eq!(judge(mark(1_301, 3), 3), Mark::Beyond, "whatever its checksum");
        assert_eq!(judge(mark(1_300, 2), 3), Mark::Contradicts, "another frame ends there");
        assert_eq!(judge(mark(1_200, 2), 3), Mark::Earlier { attested: 1_200 });
        assert_eq!(judge(mark(1_100, 1), 3), Mark::Earlier { attested: 1_100 });
        assert_eq!(judge(mark(1_250, 2), 3), Mark::Contradicts, "no frame ends there");
        // Before the first frame of the segment it is the last of the one before that counts.
        assert_eq!(judge(mark(1_000, BEFORE), 3), Mark::Earlier { attested: 1_000 });
        assert_eq!(judge(mark(1_000, 1), 3), Mark::Contradicts);
        assert_eq!(judge(mark(1_000, BEFORE), 0), Mark::AtEnd, "closed before anything was written");
        assert_eq!(judge(mark(1_000, 0), 0), Mark::Contradicts);
        assert_eq!(judge(mark(900, BEFORE), 3), Mark::Contradicts, "before the segment's frames");
    }

    #[test]
    fn of_two_close_marks_the_later_counts() {
        let marks = [mark(1_100, 1), mark(1_300, 3)];
        assert_eq!(judge_marks(&marks, &frames(3), 77), Mark::AtEnd);
        assert_eq!(judge_marks(&[marks[1], marks[0]], &frames(3), 77), Mark::AtEnd);
        // Closed at the same place by an opening that was noted in the header.
        let noted = CloseMark { open_count: 2, ..marks[1] };
        assert_eq!(latest(&[noted, marks[1]]), Some(&noted));
        assert_eq!(latest(&[marks[1], noted]), Some(&noted));
        assert_eq!(latest(&[noted, CloseMark { end: 1_301, ..marks[1] }]).map(|mark| mark.end), Some(1_301));
    }
}
