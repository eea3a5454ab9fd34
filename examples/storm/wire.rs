//! What is asked of the service, and how it answers.

use serde::{Deserialize, Serialize};

use crate::dice::Dice;
use crate::settings::Settings;

/// How many requests there are for each intent.
pub(crate) const REQUESTS_PER_INTENT: u32 = 5;
/// How many of them come at the same moment.
const TOGETHER: u32 = 3;
/// By how many intents another one is apart from these.
const APART: u32 = 500;

#[derive(Debug)]
pub(crate) struct Request {
    pub(crate) number: u32,
    pub(crate) intent: u32,
    /// Whether it waits while another thread is at it.
    pub(crate) waits: bool,
    /// Whether it settles a doubt by asking the ledger.
    pub(crate) asks_ledger: bool,
    /// Whether, once it has its result, somebody sends another request under the same key.
    pub(crate) is_abused: bool,
}

impl Request {
    /// The requests are a function of the seed: client and service need not tell each other.
    pub(crate) fn nth(number: u32, settings: &Settings) -> Request {
        let mut dice = Dice::new(settings.seed, &[number]);
        let (turn, place) = (number / REQUESTS_PER_INTENT, number % REQUESTS_PER_INTENT);
        let intent = match place {
            0..TOGETHER => turn,
            // One that was there some time ago, or comes some time later.
            TOGETHER => (turn + settings.intents - APART % settings.intents) % settings.intents,
            // Any that was there.
            _ => dice.below(turn + 1),
        };
        let (waits, asks_ledger, is_abused) = (dice.chance(75), dice.chance(75), dice.chance(2));
        Request { number, intent, waits, asks_ledger, is_abused }
    }
}

/// The store tells requests apart by a fingerprint of this.
#[derive(Serialize)]
pub(crate) struct Order {
    intent: u32,
    cents: u32,
}

impl Order {
    /// What is asked for under the key of an intent; forged, something else.
    pub(crate) fn new(intent: u32, seed: u64, forged: bool) -> Order {
        Order { intent, cents: Dice::new(seed, &[intent]).below(100_000) + u32::from(forged) }
    }
}

pub(crate) fn key(intent: u32) -> String {
    format!("charge:order-{intent}")
}

/// What the outside world gives for an order: the result that every retry must get.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Receipt {
    /// The version of the attempt that did it.
    pub(crate) version: u64,
    pub(crate) nonce: u64,
    /// Some words, so that results have many lengths.
    pub(crate) words: String,
}

/// What the service writes to its standard output, as lines of JSON.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Report {
    Opened,
    Answer(Answer),
    /// How many syncs there were since the store was opened.
    Syncs(u64),
}

/// What came of one call.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Answer {
    pub(crate) request: u32,
    pub(crate) ending: Ending,
    /// If an earlier attempt was in doubt: what was found out.
    pub(crate) doubt: Option<Finding>,
    pub(crate) micros: u32,
}

#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Ending {
    Acknowledged(Source, Receipt),
    /// The key is taken by another request, and this one was refused, as it should be.
    Refused,
    /// No result for now: not applied, no reply, a panic, still in doubt, still in progress.
    TryAgain,
    /// What no call should come to.
    Broken(String),
}

/// Where a result comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Source {
    /// This call performed the act.
    Performed,
    /// An earlier call did.
    Replayed,
    /// Another thread was at it, and this call waited.
    Waited,
    /// The ledger knew that the attempt in doubt had gone through.
    Reconciled,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Finding {
    HadHappened,
    HadNotHappened,
    /// The ledger was not asked, or did not answer.
    Unknown,
}
