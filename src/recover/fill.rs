//! Filling the index from the footers of full segments, and of the last segment from its frames.
//!
//! A footer says little of each key, but there is an entry for every operation that the store remembers, so this is
//! what opening takes its time for. It goes in windows of some segments: first their footers are read and checked,
//! several at a time, and their entries sorted by the shard of the index that they belong to; then the shards take
//! theirs, several at a time, each in the order of the log. Nothing is kept of a window when the next one begins.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use super::medium::Medium;
use super::survey::{Link, Survey};
use crate::error::{Error, Result};
use crate::format::footer::FooterEntry;
use crate::format::record::Kind;
use crate::format::{Fault, STORE_HEADER_BYTES};
use crate::index::{Address, Filling, Index, SHARD_COUNT, shard_of};
use crate::key::KeyHasher;
use crate::log::ledger::{Ledger, Tally};
use crate::log::reader::Reader;
use crate::log::scan;
use crate::log::writer::FullSegment;
use crate::record::Weight;

/// A window is this share of the log, so that each shard takes many entries while its table is in the processor's cache.
/// What is kept of a window, 24 bytes an entry, is then little more than a byte for each entry of the log, beside the
/// index's 10.
const WINDOWS: usize = 20;

/// Segments that each thread reads in a window, at least, or starting the threads would take longer.
const SEGMENTS_FOR_A_THREAD: usize = 4;

/// No window is longer, unless that is less than a segment for each thread: of a log in which all has expired, what is
/// kept of the window is all that opening takes.
const MAX_WINDOW_BYTES: u64 = 512 << 20;

/// Logs shorter than this are read by one thread: starting others would take longer.
const PARALLEL_FROM_BYTES: u64 = 16 << 20;

/// More threads than this wait for memory and not for each other.
const MAX_THREADS: usize = 8;

/// What the log's segments said.
pub(super) struct Filled {
    pub(super) index: Index,
    pub(super) ledger: Ledger,
    pub(super) full: Vec<FullSegment>,
}

/// One key's last record in a segment: what becomes of the key's entry in the index.
#[derive(Debug, Clone, Copy)]
struct Step {
    /// As bytes, because 128 bits at once would be aligned to 16 bytes and make a step a third larger.
    hash: [u8; 16],
    /// Where the record is; 0, which is no address: nothing is left of the key.
    offset: u64,
}

impl Step {
    fn hash(&self) -> u128 {
        u128::from_le_bytes(self.hash)
    }

    fn shard(&self) -> u8 {
        shard_of(self.hash())
    }
}

/// A segment's entries by shard, each shard's in `steps[starts[shard]..starts[shard + 1]]`.
struct Sorted {
    steps: Vec<Step>,
    starts: Vec<u32>,
    /// How many of them leave something.
    lasting: usize,
}

impl Sorted {
    fn of_shard(&self, shard: usize) -> &[Step] {
        &self.steps[self.starts[shard] as usize..self.starts[shard + 1] as usize]
    }
}

/// How many places in the index are fetched from memory together, instead of one after the other.
const FETCHED_TOGETHER: usize = 32;

/// Everything that filling needs to know.
struct Filler<'a> {
    medium: &'a Medium<'a>,
    survey: &'a Survey,
    reader: &'a Reader,
    hasher: KeyHasher,
    now_ms: u64,
    threads: usize,
}

/// How many threads read a log of `log_bytes`.
fn threads_for(log_bytes: u64) -> usize {
    // Shuttle explores the threads that it started itself, and knows of no others.
    if log_bytes < PARALLEL_FROM_BYTES || cfg!(oncekey_shuttle) {
        return 1;
    }
    thread::available_parallelism().map_or(1, usize::from).min(MAX_THREADS)
}

/// Fills an index with each key's last record.
pub(super) fn fill(medium: &Medium<'_>, survey: &Survey, reader: &Reader, now_ms: u64) -> Result<Filled> {
    let hasher = KeyHasher::new(survey.parameters.secret);
    let threads = threads_for((survey.links.len() as u64 + 1) * survey.parameters.segment_bytes);
    let filler = Filler { medium, survey, reader, hasher, now_ms, threads };
    let (index, ledger) = (Index::new(), Ledger::new());
    // All of them first: to tell two keys apart, a record of any earlier segment may have to be read.
    for link in &survey.links {
        reader.set_sequence(link.slot, link.sequence);
    }
    reader.set_sequence(survey.tail_slot, survey.tail_header.sequence);

    let mut full = Vec::with_capacity(survey.links.len());
    let mut lasting = 0;
    let most = usize::try_from(MAX_WINDOW_BYTES / survey.parameters.segment_bytes).unwrap_or(1);
    let window = (survey.links.len() / WINDOWS).max(SEGMENTS_FOR_A_THREAD * threads).min(most).max(threads);
    for links in survey.links.chunks(window) {
        let read = spread(threads, links.len(), |at, buffers| filler.read(&links[at], buffers));
        let mut sorted = Vec::with_capacity(links.len());
        for outcome in read {
            let (segment, steps, tally) = outcome?;
            ledger.absorb(tally);
            lasting += steps.lasting;
            full.push(segment);
            sorted.push(steps);
        }
        // If what is to come is like what has come; and never more than four times that: the rest may be large results.
        // Shards that turn out too small grow as they always do.
        let expected = (lasting * survey.links.len() / full.len()).min(4 * lasting) / SHARD_COUNT;
        filler.apply(&index, &ledger, &sorted, expected)?;
    }

    let tail =
        FullSegment { slot: survey.tail_slot, end: survey.scan.end, record_bytes: survey.scan.record_bytes };
    let (steps, tally) = filler.sort(&tail, survey.scan.entries.iter().copied().map(Ok), &mut Vec::new())?;
    ledger.absorb(tally);
    filler.apply(&index, &ledger, &[steps], 0)?;
    for shard in 0..=u8::MAX {
        index.fill(shard, 0).trim();
    }
    Ok(Filled { index, ledger, full })
}

impl Filler<'_> {
    /// What a full segment says, by its footer or, where that is damaged, by its frames.
    fn read(&self, link: &Link, buffers: &mut Buffers) -> Result<(FullSegment, Sorted, Tally)> {
        let Survey { parameters, .. } = self.survey;
        let (medium, sequence) = (self.medium, link.sequence);
        let offset = STORE_HEADER_BYTES + link.slot * parameters.segment_bytes;
        let footer = scan::read_footer(medium.storage, offset, sequence, parameters, &mut buffers.footer);
        if let Ok((trailer, entries)) = medium.io("read a footer", footer)? {
            if trailer.end != link.end || trailer.last_checksum != link.checksum {
                return medium.corrupt(offset, "the footer and the next segment's header do not agree");
            }
            let segment =
                FullSegment { slot: link.slot, end: trailer.end, record_bytes: trailer.record_bytes };
            // A kind that this version does not know is told of by the frame that holds it.
            if let Ok((sorted, tally)) = self.sort(&segment, entries, &mut buffers.steps) {
                return Ok((segment, sorted, tally));
            }
        }
        // The footer is written after the next segment's header, so a crash may have torn it. The frames say the same.
        let bytes = scan::read_slot(medium.storage, offset, parameters.segment_bytes);
        let bytes = medium.io("read a segment whose footer does not check", bytes)?;
        let scan = scan::scan(&bytes, sequence, link.chain, parameters, &self.hasher);
        if scan.end != link.end || scan.last_checksum != link.checksum {
            let end = offset + scan.end % parameters.segment_bytes;
            medium.check_known(end, scan.stop)?;
            return medium.corrupt(
                end,
                format!("segment {sequence} was whole on disk and now ends here: {}", scan.stop),
            );
        }
        let segment = FullSegment { slot: link.slot, end: scan.end, record_bytes: scan.record_bytes };
        let (sorted, tally) = self.sort(&segment, scan.entries.into_iter().map(Ok), &mut buffers.steps)?;
        Ok((segment, sorted, tally))
    }

    /// Sorts a segment's entries by shard, and counts what they weigh. `steps` is room that is used again.
    fn sort(
        &self,
        segment: &FullSegment,
        entries: impl Iterator<Item = Result<FooterEntry, Fault>>,
        steps: &mut Vec<Step>,
    ) -> Result<(Sorted, Tally)> {
        let slot_offset = self.reader.slot_offset(segment.slot);
        let mut tally = Tally::default();
        let mut starts = vec![0_u32; SHARD_COUNT + 1];
        let (mut listed_bytes, mut lasting) = (0, 0);
        steps.clear();
        for entry in entries {
            let entry = entry.map_err(|fault| self.corrupt(slot_offset, fault.reason()))?;
            listed_bytes += entry.length;
            tally.add(&Weight {
                kind: entry.kind,
                length_bytes: entry.length,
                key_expires_ms: entry.key_expires_ms,
                result_expires_ms: entry.result_expires_ms,
            });
            let offset = slot_offset + entry.offset;
            if Address::new(offset).is_none() {
                return Err(self.corrupt(offset, "the footer's address is out of range"));
            }
            let leaves_something = match entry.kind {
                // It says nothing of its key that this version could pass on, and must not hide what does.
                Kind::Ignorable => continue,
                Kind::Forgotten => false,
                Kind::Completed | Kind::Released => self.now_ms < entry.key_expires_ms,
                Kind::Begun => true,
            };
            lasting += usize::from(leaves_something);
            starts[usize::from(shard_of(entry.hash)) + 1] += 1;
            steps.push(Step {
                hash: entry.hash.to_le_bytes(),
                offset: if leaves_something { offset } else { 0 },
            });
        }
        tally.add_dead(segment.record_bytes.saturating_sub(listed_bytes));
        for shard in 0..SHARD_COUNT {
            starts[shard + 1] += starts[shard];
        }

        let mut next = starts.clone();
        let mut sorted = vec![Step { hash: [0; 16], offset: 0 }; steps.len()];
        for step in steps {
            let place = &mut next[usize::from(step.shard())];
            sorted[*place as usize] = *step;
            *place += 1;
        }
        Ok((Sorted { steps: sorted, starts, lasting }, tally))
    }

    /// Applies what some segments say, oldest first, as if it had just been written.
    fn apply(&self, index: &Index, ledger: &Ledger, segments: &[Sorted], expected: usize) -> Result<()> {
        let applied = spread(self.threads, SHARD_COUNT, |shard, (): &mut ()| {
            let mut filling = index.fill(u8::try_from(shard).unwrap_or(u8::MAX), expected);
            for steps in segments.iter().flat_map(|sorted| sorted.of_shard(shard).chunks(FETCHED_TOGETHER)) {
                let fetched = steps.iter().map(|step| filling.fetch(step.hash()));
                std::hint::black_box(fetched.fold(0, u64::wrapping_add));
                for step in steps {
                    self.replay(&mut filling, ledger, step)?;
                }
            }
            Ok(())
        });
        applied.into_iter().collect()
    }

    fn replay(&self, shard: &mut Filling<'_>, ledger: &Ledger, step: &Step) -> Result<()> {
        let (hash, address) = (step.hash(), Address::new(step.offset));
        // Left outside of what the search returns, which is then small: most steps are of keys that come once.
        let mut earlier = None;
        let found = shard.find(hash, |candidate| {
            let confirmed = self.reader.record(candidate, |place, record| {
                (self.hasher.key(record.key) == hash)
                    .then(|| (candidate, Weight::of(record, place.length_bytes)))
            });
            earlier = confirmed.transpose();
            earlier.is_some().then_some(())
        });
        match (found, address) {
            (Ok(()), address) => {
                if let Some((old, weight)) = earlier.transpose()? {
                    ledger.bury(&weight);
                    if let Some(address) = address {
                        shard.replace(hash, old, address);
                    } else {
                        shard.remove(hash, old);
                    }
                }
            }
            (Err(vacancy), Some(address)) => shard.insert(vacancy, hash, address),
            (Err(_), None) => {}
        }
        Ok(())
    }

    fn corrupt(&self, offset: u64, reason: &'static str) -> Error {
        Error::corrupt(self.reader.path(), offset, reason)
    }
}

/// What a thread reads segments with, kept from one to the next.
#[derive(Default)]
struct Buffers {
    footer: Vec<u8>,
    steps: Vec<Step>,
}

/// Does `work` for every number below `count`, on so many threads or as many as can be had, and gives the answers in
/// order. What a thread keeps from one number to the next begins as the
/// default.
fn spread<T: Send, Kept: Default>(
    threads: usize,
    count: usize,
    work: impl Fn(usize, &mut Kept) -> T + Sync,
) -> Vec<T> {
    let next = AtomicUsize::new(0);
    let take = || {
        let mut kept = Kept::default();
        let mut done = Vec::new();
        loop {
            let number = next.fetch_add(1, Ordering::Relaxed);
            if number >= count {
                return done;
            }
            done.push((number, work(number, &mut kept)));
        }
    };
    let mut done = thread::scope(|scope| {
        // One that cannot be started leaves its share to the others.
        let others: Vec<_> = (1..threads.min(count))
            .filter_map(|_| thread::Builder::new().spawn_scoped(scope, take).ok())
            .collect();
        let mut done = take();
        for other in others {
            match other.join() {
                Ok(more) => done.extend(more),
                Err(panic) => std::panic::resume_unwind(panic),
            }
        }
        done
    });
    done.sort_unstable_by_key(|(number, _)| *number);
    done.into_iter().map(|(_, answer)| answer).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn work_that_is_spread_is_done_once_and_answered_in_order() {
        for (threads, count) in [(1, 0), (1, 10), (3, 2), (4, 1_000)] {
            let done = AtomicUsize::new(0);
            let answers = spread(threads, count, |number, (): &mut ()| {
                done.fetch_add(1, Ordering::Relaxed);
                number * 2
            });
            assert_eq!(answers, (0..count).map(|number| number * 2).collect::<Vec<_>>());
            assert_eq!(done.into_inner(), count);
        }
    }
}
