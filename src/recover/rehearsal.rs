//! Reads a log as an opening does, and stops before the first write.

use std::path::Path;
use std::sync::Arc;

use super::fill;
use super::open_context::OpenContext;
use super::survey::Survey;
use super::verdict::Verdict;
use crate::clock::HighWater;
use crate::error::{Error, Result};
use crate::format::MIN_SEGMENT_BYTES;
use crate::format::header::Parameters;
use crate::log::reader::Reader;
use crate::storage::Storage;

/// What an opening would find.
pub(crate) struct Rehearsal {
    /// Whether the store was closed and not opened since. If not, opening it rewrites the end of the log.
    pub(crate) was_closed: bool,
    /// The number of keys that the store remembers, at the store time of the last write.
    pub(crate) keys: u64,
    /// The latest time in the log.
    pub(crate) time: HighWater,
}

/// Surveys the log and fills an index, as an opening does, and writes nothing. Checks no clock: a damaged file may have come
/// from a different machine. A store whose creation was interrupted is [`Error::NotAStore`].
pub(crate) fn rehearse(storage: &Arc<dyn Storage>, path: &Path) -> Result<Rehearsal> {
    let context = OpenContext { storage: &**storage, path };
    let parameters = parameters(&context)?;
    let survey = Survey::take(&context, parameters)?;
    let reader = Reader::new(Arc::clone(storage), path.to_owned(), &parameters);
    let time = survey.latest_time();
    let filled = fill::fill(&context, &survey, &reader, time.store_ms())?;
    Ok(Rehearsal { was_closed: survey.verdict == Verdict::Closed, keys: filled.index.len() as u64, time })
}

/// Reads the parameters from the store header.
pub(super) fn parameters(context: &OpenContext<'_>) -> Result<Parameters> {
    // With the smallest size, the fewest files pass for an interrupted creation.
    context.parameters(MIN_SEGMENT_BYTES)?.ok_or_else(|| Error::NotAStore {
        path: context.path.to_owned(),
        reason: "the file is empty, because its creation was interrupted".into(),
    })
}
