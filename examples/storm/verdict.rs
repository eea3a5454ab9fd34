//! What the client remembers, and whether it holds in the end.

use std::io;
use std::path::Path;

use oncekey::{Codec, DefaultCodec, Options, Outcome, RunError, Store};

use crate::Fallible;
use crate::ledger::{Acts, Ledger};
use crate::service::store_in;
use crate::settings::Settings;
use crate::wire::Source::Performed;
use crate::wire::{self, Answer, Ending, Order, Receipt, Request};

/// What the client was told, and what was wrong with it.
pub(crate) struct Notes {
    /// For each intent, its first receipt, and the life of the service that gave it.
    receipts: Vec<Option<(Receipt, usize)>>,
    verdict: Verdict,
}

#[derive(Default)]
pub(crate) struct Verdict {
    /// Acts beyond the first one of an intent.
    pub(crate) duplicates: usize,
    /// Acknowledged results that are gone, or were another at another time.
    pub(crate) lost: usize,
    /// Each of these in detail.
    pub(crate) complaints: Vec<String>,
}

impl Verdict {
    pub(crate) fn passed(&self) -> bool {
        self.complaints.is_empty()
    }
}

impl Notes {
    pub(crate) fn new(intents: u32) -> Notes {
        Notes { receipts: vec![None; intents as usize], verdict: Verdict::default() }
    }

    /// Takes an answer down that the service gave in one of its lives.
    pub(crate) fn take(&mut self, request: &Request, answer: &Answer, life: usize) {
        let Verdict { lost, complaints, .. } = &mut self.verdict;
        let known = &mut self.receipts[request.intent as usize];
        // What was acknowledged before the last kill is settled. A doubt about it means that the store has forgotten,
        // even if the ledger brings the same result to light once more.
        let is_news = answer.doubt.is_some() || matches!(answer.ending, Ending::Acknowledged(Performed, _));
        if let Some((receipt, _)) = known.as_ref().filter(|(_, since)| is_news && *since < life) {
            *lost += 1;
            complaints.push(format!("{receipt:?} was forgotten, as {request:?} and {answer:?} show"));
        }
        if let Ending::Acknowledged(_, receipt) = &answer.ending {
            let (first, _) = known.get_or_insert_with(|| (receipt.clone(), life));
            if first != receipt {
                *lost += 1;
                complaints.push(format!("{request:?} got {receipt:?}, an earlier one {first:?}"));
            }
        }
    }

    /// Compares what the client was told with what happened and with what the store says now.
    pub(crate) fn compare(self, directory: &Path, settings: &Settings) -> Fallible<Verdict> {
        let Notes { receipts, mut verdict } = self;
        let acts = Ledger::open(directory)?.into_acts();
        let store = Options::new().create(false).open(store_in(directory))?;
        verdict.duplicates = acts.again.len();
        verdict.complaints.extend(acts.again.iter().map(|act| format!("it happened once more: {act:?}")));
        for (intent, receipt) in (0..settings.intents).zip(receipts) {
            let (receipt, _) = receipt.ok_or_else(|| format!("intent {intent} has no result"))?;
            if let Err(problem) = check(&receipt, intent, &acts, &store, settings.seed) {
                verdict.lost += 1;
                verdict.complaints.push(format!("intent {intent} has {receipt:?}, but {problem}"));
            }
        }
        store.close()?;
        Ok(verdict)
    }
}

/// Whether an acknowledged receipt is that of an act that happened, is in the store byte for byte, and is what one
/// more retry gets.
fn check(receipt: &Receipt, intent: u32, acts: &Acts, store: &Store, seed: u64) -> Fallible<()> {
    let mut happened = acts.first.get(&intent).into_iter().chain(&acts.again);
    if !happened.any(|act| act.intent == intent && act.receipt() == *receipt) {
        return Err("there is no such act in the ledger".into());
    }
    let key = wire::key(intent);
    let seen = store.get(&key)?;
    if seen.result() != Some(&DefaultCodec::default().encode(receipt)?) {
        return Err(format!("the store has {seen:?}").into());
    }
    let nothing_is_done = io::Error::from(io::ErrorKind::Unsupported);
    let again: Result<Outcome<Receipt>, RunError<_, _>> = store
        .operation(&key)
        .request(&Order::new(intent, seed, false))
        .release_if(|_: &io::Error| true)
        .run(|_| Err(nothing_is_done));
    match again {
        Ok(Outcome::AlreadyDone(again)) if again == *receipt => Ok(()),
        other => Err(format!("one more retry got {other:?}").into()),
    }
}
