//! The requests, and the reports that the service sends to the client.

use serde::{Deserialize, Serialize};

use crate::dice::Dice;
use crate::settings::{REQUESTS_PER_INTENT, Settings};

/// How many requests of an intent come at the same moment.
const SIMULTANEOUS: u32 = 3;
/// How many intents later another one comes.
const LATER: u32 = 500;

#[derive(Debug)]
pub(crate) struct Request {
    pub(crate) number: u32,
    pub(crate) intent: u32,
    /// Whether it waits while another thread charges the same intent.
    pub(crate) waits: bool,
    /// Whether it reconciles an attempt in doubt with the ledger.
    pub(crate) asks_ledger: bool,
    /// Whether another request follows under the same key, once this one has its result.
    pub(crate) is_abused: bool,
}

impl Request {
    /// Returns request `number`. Requests are a function of the seed, so that client and service need not exchange them.
    pub(crate) fn nth(number: u32, settings: &Settings) -> Request {
        let mut dice = Dice::new(settings.seed, &[number]);
        let (turn, within) = (number / REQUESTS_PER_INTENT, number % REQUESTS_PER_INTENT);
        let intent = match within {
            0..SIMULTANEOUS => turn,
            // An intent of some time ago, or, near the beginning, one that comes later.
            SIMULTANEOUS => (turn + settings.intents - LATER % settings.intents) % settings.intents,
            // Any intent so far.
            _ => dice.below(turn + 1),
        };
        let (waits, asks_ledger, is_abused) = (dice.chance(75), dice.chance(75), dice.chance(2));
        Request { number, intent, waits, asks_ledger, is_abused }
    }
}

/// What is requested under the key of an intent. The store compares requests by a fingerprint of this.
#[derive(Serialize)]
pub(crate) struct Order {
    intent: u32,
    cents: u32,
}

impl Order {
    /// The order of an intent. `forged`: another order under the same key, which must be refused.
    pub(crate) fn new(intent: u32, seed: u64, forged: bool) -> Order {
        Order { intent, cents: Dice::new(seed, &[intent]).below(100_000) + u32::from(forged) }
    }

    /// The idempotency key.
    pub(crate) fn key(&self) -> String {
        format!("charge:order-{}", self.intent)
    }
}

/// The result of a charge, which every retry must get.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Receipt {
    /// The version of the attempt that charged.
    pub(crate) version: u64,
    pub(crate) nonce: u64,
    /// Some words, so that results differ in length.
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
    /// If an earlier attempt was in doubt: what the ledger said about it.
    pub(crate) doubt: Option<LedgerAnswer>,
    pub(crate) micros: u32,
}

/// How a call ended.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Ending {
    Acknowledged(Source, Receipt),
    /// The key belongs to another request, and this one was refused, as it should be.
    Refused,
    /// No result yet: released, no reply, a panic, still in doubt, still in progress.
    TryAgain,
    /// An error that no call should return.
    Broken(String),
}

/// Where a result comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Source {
    /// This call charged.
    Performed,
    /// An earlier call charged.
    Replayed,
    /// Another thread was charging, and this call waited for it.
    Waited,
    /// An attempt was in doubt, and the ledger had its charge.
    Reconciled,
}

/// What the ledger said about an attempt in doubt.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum LedgerAnswer {
    Charged,
    NotCharged,
    /// The call did not ask the ledger, or got no answer.
    Unknown,
}
