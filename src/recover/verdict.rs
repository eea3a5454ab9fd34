//! How the log ended: a pure table over what the scan found.

use crate::format::header::CloseMark;
use crate::log::scan::{FrameSpan, Scan};

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
    let Evidence { end, mark, later, has_footer } = *evidence;
    match (has_footer, mark, later) {
        (true, _, _) => Verdict::Corrupt("the segment was finished and the one after it is missing"),
        (_, Mark::Beyond, _) => Verdict::Corrupt("the store was closed beyond this place"),
        (_, Mark::Contradicts, _) => Verdict::Corrupt("the close mark does not agree with the log"),
        (_, _, Some(synced_to)) if synced_to > end => {
            Verdict::Corrupt("a later frame, or the segment's header, says that this place was on disk")
        }
        (_, Mark::AtEnd, None) => Verdict::Closed,
        // A left-over behind the mark: the opening after the close got no further than that.
        (_, Mark::AtEnd, Some(_)) => Verdict::CutOff,
        (_, Mark::None | Mark::Earlier { .. }, _) => Verdict::CutOff,
    }
}

pub(super) fn judge_marks(marks: &[CloseMark], scan: &Scan, before_first: u32) -> Mark {
    let Some(mark) = marks.iter().max_by_key(|mark| mark.end) else { return Mark::None };
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

    const END: u64 = 10_000;

    #[test]
    fn every_row_of_the_recovery_table_is_as_specified() {
        let closed_before = "beyond";
        let marks =
            [Mark::None, Mark::Earlier { attested: 5_000 }, Mark::AtEnd, Mark::Beyond, Mark::Contradicts];
        let laters = [None, Some(END), Some(END + 8)];
        for mark in marks {
            for later in laters {
                for has_footer in [false, true] {
                    let verdict = decide(&Evidence { end: END, mark, later, has_footer });
                    let corrupt = has_footer
                        || matches!(mark, Mark::Beyond | Mark::Contradicts)
                        || later == Some(END + 8);
                    let closed = !corrupt && mark == Mark::AtEnd && later.is_none();
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
}
