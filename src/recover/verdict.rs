//! The decision table of recovery: how the log ended, and what recovery does about it.
//!
//! [`classify`] is pure. It maps what the survey found at the end of the log to a [`Case`], which is one row of the
//! table in the [module documentation](super); [`Case::verdict`] is that row's decision. Only the survey calls this
//! module. A test reads the documented table and compares it with the code for every combination of conditions.

use crate::format::header::CloseMark;
use crate::log::scan::{FrameSpan, SegmentScan};

/// How the latest close mark of the last segment relates to the end of the scan.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Mark {
    /// The segment has no close mark.
    None,
    /// The store was closed before this end, and a later session wrote more.
    Earlier,
    /// The store was closed at this end.
    AtEnd,
    /// The store was closed at a later end.
    BeyondEnd,
    /// The mark states an end, or a checksum of the last frame, that does not match the log.
    Contradicts,
}

/// What headers that were written later prove about the end of the scan.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Later {
    /// No frame header after the end is valid, and the segment header does not attest anything beyond the end.
    None,
    /// A frame header after the end is valid, but no header attests that data beyond the end was on disk.
    Unsynced,
    /// A frame header after the end, or the segment header, attests that data beyond the end was on disk.
    Synced,
}

impl Later {
    /// Compares `end` with the highest `synced_to` of the frame headers after it (`None` if there are none), and with that of the
    /// segment header.
    pub(super) fn of(end: u64, frames_synced_to: Option<u64>, segment_synced_to: u64) -> Later {
        match frames_synced_to {
            _ if segment_synced_to > end => Later::Synced,
            Some(synced_to) if synced_to > end => Later::Synced,
            Some(_) => Later::Unsynced,
            None => Later::None,
        }
    }
}

/// The conditions of the table: what the survey found at the end of the log.
///
/// The end is a position in the last segment: the first at which there is no valid frame that continues the preceding frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Evidence {
    /// Whether the last segment has a footer, valid or damaged.
    pub(super) has_footer: bool,
    /// How the end that the latest close mark states compares with the end of the scan.
    pub(super) mark: Mark,
    /// What later headers attest.
    pub(super) later: Later,
    /// Whether the bytes at the end may be the remains of a frame that was written there.
    pub(super) may_be_torn: bool,
}

/// A row of the table, by its label. The [table](super) describes each case.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Case {
    NextSegmentLost,
    ClosedBeyondEnd,
    MarkContradictsLog,
    SyncedBeyondEnd,
    CleanClose,
    TornAfterClose,
    UnsyncedAfterClose,
    NotClosed,
}

/// What recovery does with the end of the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verdict {
    /// Recovery accepts the end as it is and rewrites nothing.
    Closed,
    /// Recovery rewrites the frames that are not known to be on disk, and zeroes the rest of the segment.
    Crashed,
    /// Recovery refuses the file, because data that was on disk is lost. The string states the evidence.
    Corrupt(&'static str),
}

/// Returns the row of the table for `evidence`. No arm depends on the order of the arms: exactly one row matches.
#[rustfmt::skip]
pub(super) fn classify(evidence: &Evidence) -> Case {
    let Evidence { has_footer, mark, later, may_be_torn } = *evidence;
    match (has_footer, mark, later, may_be_torn) {
        // footer, close mark, later headers, torn frame
        (true,  _,                                        _,                             _)     => Case::NextSegmentLost,
        (false, Mark::BeyondEnd,                          _,                             _)     => Case::ClosedBeyondEnd,
        (false, Mark::Contradicts,                        _,                             _)     => Case::MarkContradictsLog,
        (false, Mark::None | Mark::Earlier | Mark::AtEnd, Later::Synced,                 _)     => Case::SyncedBeyondEnd,
        (false, Mark::AtEnd,                              Later::None,                   false) => Case::CleanClose,
        (false, Mark::AtEnd,                              Later::None,                   true)  => Case::TornAfterClose,
        (false, Mark::AtEnd,                              Later::Unsynced,               _)     => Case::UnsyncedAfterClose,
        (false, Mark::None | Mark::Earlier,               Later::None | Later::Unsynced, _)     => Case::NotClosed,
    }
}

impl Case {
    /// Returns the decision of the row.
    pub(super) fn verdict(self) -> Verdict {
        match self {
            Case::NextSegmentLost => {
                Verdict::Corrupt("the segment was finished and the one after it is missing")
            }
            Case::ClosedBeyondEnd => Verdict::Corrupt("the close mark states an end beyond this offset"),
            Case::MarkContradictsLog => Verdict::Corrupt("the close mark does not agree with the log"),
            Case::SyncedBeyondEnd => Verdict::Corrupt(
                "a later frame, or the segment's header, attests that a frame was on disk at this offset",
            ),
            Case::CleanClose => Verdict::Closed,
            Case::TornAfterClose | Case::UnsyncedAfterClose | Case::NotClosed => Verdict::Crashed,
        }
    }
}

/// Returns the close mark that was written last.
pub(super) fn latest(marks: &[CloseMark]) -> Option<&CloseMark> {
    marks.iter().max_by_key(|mark| (mark.end, mark.open_count, mark.time.store_ms))
}

/// Compares the latest close mark with the frames of the segment. `before_first` is the checksum of the last frame in the preceding
/// segment. The first frame of this segment continues that frame.
pub(super) fn judge_marks(marks: &[CloseMark], scan: &SegmentScan, before_first: u32) -> Mark {
    let Some(mark) = latest(marks) else { return Mark::None };
    if mark.end > scan.end {
        return Mark::BeyondEnd;
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
    if mark.end == scan.end { Mark::AtEnd } else { Mark::Earlier }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::clock::{BootId, TimeMark};
    use crate::format::FormatError;
    use crate::log::footer_builder::FooterBuilder;
    use crate::status::Version;

    const END: u64 = 10_000;

    // The values in the cells of the documented table.
    const NO_YES: [(&str, bool); 2] = [("no", false), ("yes", true)];
    const MARKS: [(&str, Mark); 5] = [
        ("none", Mark::None),
        ("earlier", Mark::Earlier),
        ("at end", Mark::AtEnd),
        ("beyond end", Mark::BeyondEnd),
        ("contradicts", Mark::Contradicts),
    ];
    const LATER: [(&str, Later); 3] =
        [("none", Later::None), ("unsynced", Later::Unsynced), ("synced", Later::Synced)];

    struct Row {
        label: &'static str,
        /// Footer, close mark, later headers, torn frame. Each is "any", or lists the values that match.
        conditions: [&'static str; 4],
        verdict: &'static str,
    }

    impl Row {
        fn matches(&self, values: [&str; 4]) -> bool {
            let mut cells = self.conditions.iter().zip(values);
            cells.all(|(cell, value)| *cell == "any" || cell.split(", ").any(|one| one == value))
        }
    }

    /// The rows of the table in the documentation of the module `recover`.
    fn documented_rows() -> Vec<Row> {
        let lines = include_str!("mod.rs").lines();
        let rows = lines.filter_map(|line| line.strip_prefix("//! | `")?.strip_suffix(" |"));
        rows.map(|row| {
            let cells: Vec<_> = row.split(" | ").collect();
            let [label, footer, mark, later, torn, verdict, why] = cells[..] else {
                panic!("a row must have seven cells: {row}");
            };
            assert!(why.ends_with('.'), "a row must give its reason in sentences: {row}");
            Row { label: label.trim_end_matches('`'), conditions: [footer, mark, later, torn], verdict }
        })
        .collect()
    }

    #[test]
    fn one_documented_row_decides_each_combination() {
        let rows = documented_rows();
        let mut reached = BTreeSet::new();
        for (footer, has_footer) in NO_YES {
            for (mark_name, mark) in MARKS {
                for (later_name, later) in LATER {
                    for (torn, may_be_torn) in NO_YES {
                        let evidence = Evidence { has_footer, mark, later, may_be_torn };
                        let case = classify(&evidence);
                        let values = [footer, mark_name, later_name, torn];
                        let matching: Vec<_> =
                            rows.iter().filter(|row| row.matches(values)).map(|row| row.label).collect();
                        assert_eq!(matching, [format!("{case:?}")], "{evidence:?}");
                        reached.insert(case);
                    }
                }
            }
        }
        assert_eq!(reached.len(), rows.len(), "{reached:?}");
        for case in reached {
            let verdict = match case.verdict() {
                Verdict::Closed => "closed",
                Verdict::Crashed => "crashed",
                Verdict::Corrupt(_) => "corrupt",
            };
            let row = rows.iter().find(|row| row.label == format!("{case:?}")).unwrap();
            assert_eq!(verdict, row.verdict, "{case:?}");
        }
    }

    #[test]
    fn a_refusal_states_the_evidence_against_the_file() {
        for (case, evidence) in [
            (Case::NextSegmentLost, "the one after it is missing"),
            (Case::ClosedBeyondEnd, "close mark states an end beyond"),
            (Case::MarkContradictsLog, "close mark does not agree"),
            (Case::SyncedBeyondEnd, "was on disk"),
        ] {
            let Verdict::Corrupt(reason) = case.verdict() else { panic!("{case:?} must refuse the file") };
            assert!(reason.contains(evidence), "{case:?}: {reason}");
        }
    }

    #[test]
    fn data_beyond_the_end_is_attested_only_by_a_higher_synced_to() {
        let of = |frames, segment_header| Later::of(END, frames, segment_header);
        assert_eq!([of(None, 0), of(None, END)], [Later::None; 2]);
        assert_eq!([of(Some(0), 0), of(Some(END), 0), of(Some(END), END)], [Later::Unsynced; 3]);
        assert_eq!([of(Some(END + 8), 0), of(None, END + 8), of(Some(END), END + 8)], [Later::Synced; 3]);
    }

    fn mark(end: u64, last_checksum: u32) -> CloseMark {
        let time = TimeMark { store_ms: 0, wall_ms: 0, boot: BootId::UNKNOWN, boot_ms: 0 };
        CloseMark { end, last_checksum, open_count: 1, time, counter: 0 }
    }

    /// Returns the scan of `count` frames of 100 bytes, from position 1,000 on. The checksum of frame n is n.
    fn frames(count: u32) -> SegmentScan {
        let frames: Vec<_> = (1..=count)
            .map(|n| FrameSpan { position: 900 + u64::from(n) * 100, length: 100, checksum: n, synced_to: 0 })
            .collect();
        SegmentScan {
            frames,
            entries: FooterBuilder::default(),
            highest_version: Version::from_u64(0),
            record_bytes: 0,
            end: 1_000 + u64::from(count) * 100,
            last_checksum: count,
            open_count: 1,
            stop: FormatError::Damaged("nothing more"),
        }
    }

    #[test]
    fn a_close_mark_agrees_only_if_end_and_checksum_match() {
        const BEFORE: u32 = 77;
        let judge = |mark, count| judge_marks(&[mark], &frames(count), BEFORE);
        assert_eq!(judge_marks(&[], &frames(3), BEFORE), Mark::None);
        assert_eq!(judge(mark(1_300, 3), 3), Mark::AtEnd);
        assert_eq!(judge(mark(1_301, 3), 3), Mark::BeyondEnd, "its checksum does not matter");
        assert_eq!(judge(mark(1_300, 2), 3), Mark::Contradicts, "a different frame ends there");
        assert_eq!(judge(mark(1_200, 2), 3), Mark::Earlier);
        assert_eq!(judge(mark(1_100, 1), 3), Mark::Earlier);
        assert_eq!(judge(mark(1_250, 2), 3), Mark::Contradicts, "no frame ends there");
        // At the start of the segment, the mark has the checksum of the last frame of the segment before.
        assert_eq!(judge(mark(1_000, BEFORE), 3), Mark::Earlier);
        assert_eq!(judge(mark(1_000, 1), 3), Mark::Contradicts);
        assert_eq!(judge(mark(1_000, BEFORE), 0), Mark::AtEnd, "closed before anything was written");
        assert_eq!(judge(mark(1_000, 0), 0), Mark::Contradicts);
        assert_eq!(judge(mark(900, BEFORE), 3), Mark::Contradicts, "before the segment's frames");
    }

    #[test]
    fn the_later_of_two_close_marks_decides() {
        let marks = [mark(1_100, 1), mark(1_300, 3)];
        assert_eq!(judge_marks(&marks, &frames(3), 77), Mark::AtEnd);
        assert_eq!(judge_marks(&[marks[1], marks[0]], &frames(3), 77), Mark::AtEnd);
        // The next session wrote no frame, so it closed at the same end. Only its open count is higher.
        let next = CloseMark { open_count: 2, ..marks[1] };
        assert_eq!(latest(&[next, marks[1]]), Some(&next));
        assert_eq!(latest(&[marks[1], next]), Some(&next));
        assert_eq!(latest(&[next, CloseMark { end: 1_301, ..marks[1] }]).map(|mark| mark.end), Some(1_301));
    }
}
