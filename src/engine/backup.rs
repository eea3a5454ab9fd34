//! Copies the store to another file while it is in use.

use std::ops::ControlFlow;
use std::path::Path;

use super::assembly::Engine;
use crate::error::{Error, Result};
use crate::progress::Progress;
use crate::storage::Storage;

/// The number of segments that were copied, and the wall clock when the copy began.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Copied {
    pub(crate) segments: u64,
    pub(crate) taken_at_ms: u64,
}

impl Engine {
    /// Copies everything that has been changed before this call to `storage`, the empty file at `path`, and makes it a store
    /// there. Calls `progress` after each segment, without admission: the store may be closed meanwhile.
    pub(crate) fn copy_to(
        &self,
        storage: &dyn Storage,
        path: &Path,
        mut progress: impl FnMut(&Progress) -> ControlFlow<()>,
    ) -> Result<Copied> {
        let _events = crate::events::hold_back();
        let mut copying = {
            let _inside = self.admission.enter()?;
            // Releases of attempts that never ran are written first: in the copy, they would be in doubt.
            self.write_releases()?;
            self.log().sync()?;
            self.records.log().begin_copy()?
        };
        let target = copying.target(storage, path)?;
        let (segments, taken_at_ms) = copying.segments();
        let segment_bytes = self.log().segment_bytes();
        let total_bytes = segments * segment_bytes;
        let mut done_bytes = 0;
        loop {
            let inside = self.admission.enter()?;
            if !copying.copy_next(&target)? {
                break;
            }
            drop(inside);
            done_bytes += segment_bytes;
            if progress(&Progress { done_bytes, total_bytes }).is_break() {
                return Err(Error::Stopped { path: path.to_owned() });
            }
        }
        target.finish()?;
        Ok(Copied { segments, taken_at_ms })
    }
}
