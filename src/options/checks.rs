//! Checks of durations that options and operations set.

use std::time::Duration;

use crate::engine::Settings;
use crate::error::{Error, Result};
use crate::record::Retention;

/// Checks the retentions of a key and of its result. Without a retention for the result, it is kept as long as the key.
pub(crate) fn check_retention(key: Duration, result: Option<Duration>) -> Result<Retention> {
    let key_ms = whole_ms(key);
    let result_ms = result.map_or(key_ms, whole_ms);
    if key_ms == 0 {
        return Err(Error::Option {
            option: "retention",
            reason: "less than a millisecond; every retry would come too late and run the side effect again"
                .into(),
        });
    }
    if result_ms > key_ms {
        return Err(Error::Option {
            option: "result_retention",
            reason: format!("{result_ms} ms is longer than the retention of the key, {key_ms} ms"),
        });
    }
    Ok(Retention { key_ms, result_ms })
}

/// Checks a lease against the retention of its operation. Returns the lease in ms.
pub(crate) fn check_lease(lease: Duration, retention: Retention) -> Result<u64> {
    let lease_ms = whole_ms(lease);
    if lease_ms == 0 {
        return Err(Error::Option {
            option: "lease",
            reason: "less than a millisecond; every other caller could take the operation over at once"
                .into(),
        });
    }
    if lease_ms > retention.key_ms {
        return Err(Error::Option {
            option: "lease",
            reason: format!(
                "{lease_ms} ms is longer than the retention, {} ms; a completion could be forgotten before the lease of \
                 a retry ends",
                retention.key_ms
            ),
        });
    }
    Ok(lease_ms)
}

/// Checks the renewal of a lease against the retention. Returns the new lease in ms. `Duration::MAX` means no deadline, as
/// for an operation without a lease.
pub(crate) fn check_renewal(lease: Duration, retention: Retention) -> Result<u64> {
    if lease == Duration::MAX { Ok(u64::MAX) } else { check_lease(lease, retention) }
}

/// Returns the retention of an operation that sets one for its key. The result retention of the store still applies, but no
/// longer than that of the key.
pub(crate) fn operation_retention(key: Duration, store: &Settings) -> Result<Retention> {
    let Retention { key_ms, .. } = check_retention(key, None)?;
    let result_ms = store.result_retention_ms.unwrap_or(key_ms).min(key_ms);
    Ok(Retention { key_ms, result_ms })
}

/// Converts a duration to whole ms, rounded down. Saturates.
pub(crate) fn whole_ms(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
