//! The requests, and the reports that the service sends to the supervisor.

use serde::{Deserialize, Serialize};

use crate::dice::Dice;
use crate::settings::{REQUESTS_PER_INTENT, Settings};

/// The number of requests of an intent that come at the same moment.
const SIMULTANEOUS: u32 = 3;
/// The distance, in intents, after which one more request of the same intent comes.
const LATER: u32 = 500;

/// The number of charges of an order that is charged in parts.
pub(crate) const PARTS: u32 = 3;

/// Whether this order is charged in parts, as a job of several steps.
pub(crate) fn is_in_parts(intent: u32) -> bool {
    intent % 4 == 3
}

#[derive(Debug)]
pub(crate) struct Request {
    pub(crate) number: u32,
    pub(crate) intent: u32,
    /// Whether the call waits while another thread is charging the same intent.
    pub(crate) waits: bool,
    /// Whether the first call reconciles an attempt in doubt with the ledger.
    pub(crate) uses_ledger: bool,
    /// Whether a forged call, with a different order under the same key, follows once this request has its result.
    pub(crate) forgery_follows: bool,
}

impl Request {
    /// Returns request `number`. Requests are a function of the seed, so the supervisor and the service need not exchange them.
    pub(crate) fn nth(number: u32, settings: &Settings) -> Request {
        let mut dice = Dice::new(settings.seed, &[number]);
        let (turn, within) = (number / REQUESTS_PER_INTENT, number % REQUESTS_PER_INTENT);
        let intent = match within {
            0..SIMULTANEOUS => turn,
            // An intent from `LATER` intents ago; near the beginning, where there is none, an intent that is still to come.
            SIMULTANEOUS => (turn + settings.intents - LATER % settings.intents) % settings.intents,
            // Any intent up to this one.
            _ => dice.below(turn + 1),
        };
        let (waits, uses_ledger, forgery_follows) = (dice.chance(75), dice.chance(75), dice.chance(2));
        Request { number, intent, waits, uses_ledger, forgery_follows }
    }
}

/// The request under the key of an intent. The store compares requests by a fingerprint of this value.
#[derive(Serialize)]
pub(crate) struct Order {
    intent: u32,
    cents: u32,
}

impl Order {
    /// Returns the order of an intent. If `forged`, returns a different order under the same key, which the store must refuse.
    pub(crate) fn new(intent: u32, seed: u64, forged: bool) -> Order {
        Order { intent, cents: Dice::new(seed, &[intent]).below(100_000) + u32::from(forged) }
    }

    /// Returns the idempotency key.
    pub(crate) fn key(&self) -> String {
        format!("charge:order-{}", self.intent)
    }
}

/// The result of a charge, which every retry must get.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Receipt {
    /// The version of the attempt that charged.
    pub(crate) attempt_version: u64,
    /// A random number that tells this charge from every other.
    pub(crate) nonce: u64,
    /// Words of varying number, so that results differ in length.
    pub(crate) words: String,
}

/// A line of JSON that the service writes to its standard output.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Report {
    /// The store is open.
    Opened,
    Answer(Answer),
    /// The number of syncs since the store was opened.
    Syncs(u64),
}

/// The outcome of one call.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Answer {
    pub(crate) request: u32,
    pub(crate) ending: Ending,
    /// The ledger's answer about an earlier attempt, if that attempt was in doubt.
    pub(crate) doubt: Option<LedgerAnswer>,
    pub(crate) micros: u32,
}

/// How a call ended.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Ending {
    /// The call returned the result.
    Acknowledged(Source, Receipt),
    /// The key belongs to a different request, so this request was refused, as it should be.
    Refused,
    /// The call returned no result: the attempt was released, got no reply or panicked, or the operation is still in doubt or
    /// in progress.
    TryAgain,
    /// An error that no call should return.
    Broken(String),
}

/// The source of a result.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Source {
    /// This call charged.
    Performed,
    /// An earlier call charged.
    Replayed,
    /// Another thread was charging, and this call waited for it.
    Waited,
    /// An earlier attempt was in doubt, and its charge was found in the ledger.
    Reconciled,
}

/// The ledger's answer about an attempt in doubt.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum LedgerAnswer {
    /// The charge is in the ledger.
    Charged,
    /// The charge is not in the ledger.
    NotCharged,
    /// The call did not look in the ledger, or the lookup failed.
    Unknown,
}
