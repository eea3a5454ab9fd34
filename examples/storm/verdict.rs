//! Every result that the supervisor got, and their comparison with the ledger and the store at the end.

use std::io;
use std::path::Path;

use oncekey::{Codec, DefaultCodec, Key, Options, Outcome, RunError, Store};

use crate::ledger::{Charges, Ledger, Published};
use crate::service::store_in;
use crate::settings::{Fallible, Settings};
use crate::wire::Source::Performed;
use crate::wire::{Answer, Ending, Order, PARTS, Receipt, Request, is_in_parts};

/// The acknowledged results, and the problems found in them so far.
pub(crate) struct Acknowledged {
    /// For each intent, the first receipt and the number of the service process that returned it.
    receipts: Vec<Option<(Receipt, usize)>>,
    verdict: Verdict,
}

#[derive(Default)]
pub(crate) struct Verdict {
    /// Charges beyond the first of an intent.
    pub(crate) duplicates: usize,
    /// Acknowledged results that are gone or have changed.
    pub(crate) lost: usize,
    /// A description of each duplicate and of each lost result.
    pub(crate) complaints: Vec<String>,
}

impl Verdict {
    pub(crate) fn passed(&self) -> bool {
        self.complaints.is_empty()
    }
}

impl Acknowledged {
    pub(crate) fn new(intents: u32) -> Acknowledged {
        Acknowledged { receipts: vec![None; intents as usize], verdict: Verdict::default() }
    }

    /// Checks an answer against the earlier ones and remembers it. `process` counts the service processes.
    pub(crate) fn add(&mut self, request: &Request, answer: &Answer, process: usize) {
        let Verdict { lost, complaints, .. } = &mut self.verdict;
        let known = &mut self.receipts[request.intent as usize];
        // A result that an earlier process acknowledged is durable. If its intent is now in doubt or performed again, the store
        // has lost the result, even if a lookup in the ledger finds the same receipt.
        let not_replayed =
            answer.doubt.is_some() || matches!(answer.ending, Ending::Acknowledged(Performed, _));
        if let Some((receipt, _)) = known.as_ref().filter(|(_, since)| not_replayed && *since < process) {
            *lost += 1;
            complaints.push(format!("{receipt:?} was lost: {request:?} got {answer:?}"));
        }
        if let Ending::Acknowledged(_, receipt) = &answer.ending {
            let (first, _) = known.get_or_insert_with(|| (receipt.clone(), process));
            if first != receipt {
                *lost += 1;
                complaints.push(format!("{request:?} got {receipt:?}, an earlier one {first:?}"));
            }
        }
    }

    /// Compares the acknowledged results with the ledger and with the store.
    pub(crate) fn compare(self, directory: &Path, settings: &Settings) -> Fallible<Verdict> {
        let Acknowledged { receipts, mut verdict } = self;
        let charges = Ledger::open(directory)?.into_charges();
        let store = Options::new().create(false).open(store_in(directory))?;
        let mut published = Published::read(directory)?;
        verdict.duplicates = charges.duplicates.len();
        verdict.complaints.extend(charges.duplicates.iter().map(|charge| format!("a duplicate: {charge:?}")));
        for (intent, receipt) in (0..settings.intents).zip(receipts) {
            let (receipt, _) = receipt.ok_or_else(|| format!("intent {intent} has no result"))?;
            if let Err(problem) = check(&receipt, intent, &charges, &store, settings.seed) {
                verdict.lost += 1;
                verdict.complaints.push(format!("intent {intent} has {receipt:?}, but {problem}"));
            }
            // A kill before the acknowledgement repeats a message, with the same token and content.
            let token = format!("{}~1", Key::new(&Order::new(intent, settings.seed, false).key()).token());
            let nonces = published.remove(&token).unwrap_or_default();
            if nonces.is_empty() || nonces.iter().any(|nonce| *nonce != receipt.nonce) {
                verdict.lost += 1;
                verdict
                    .complaints
                    .push(format!("intent {intent} has {receipt:?}, but {nonces:?} were published"));
            }
        }
        for (token, nonces) in published {
            verdict.duplicates += 1;
            verdict.complaints.push(format!("{nonces:?} were published as {token}, which no intent emitted"));
        }
        if store.stats().messages > 0 {
            verdict.lost += 1;
            verdict.complaints.push(format!("{} messages were not published", store.stats().messages));
        }
        store.close()?;
        Ok(verdict)
    }
}

/// Checks an acknowledged receipt: it must belong to a charge in the ledger, be in the store byte for byte, and be the result
/// of one more retry.
fn check(receipt: &Receipt, intent: u32, charges: &Charges, store: &Store, seed: u64) -> Fallible<()> {
    let parts = if is_in_parts(intent) { 1..=PARTS } else { 0..=0 };
    let last = *parts.end();
    if let Some(part) = parts.into_iter().find(|part| !charges.first.contains_key(&(intent, *part))) {
        return Err(format!("part {part} was never charged").into());
    }
    let mut charged = charges.first.get(&(intent, last)).into_iter().chain(&charges.duplicates);
    if !charged.any(|charge| charge.intent == intent && charge.receipt() == *receipt) {
        return Err("the ledger has no such charge".into());
    }
    let order = Order::new(intent, seed, false);
    let key = order.key();
    let seen = store.get(&key)?;
    if seen.result() != Some(&DefaultCodec::default().encode(receipt)?) {
        return Err(format!("the store has {seen:?}").into());
    }
    let not_charged = io::Error::from(io::ErrorKind::Unsupported);
    let again: Result<Outcome<Receipt>, RunError<_, _>> =
        store.operation(&key).request(&order).release_if(|_: &io::Error| true).run(|_| Err(not_charged));
    match again {
        Ok(Outcome::AlreadyDone(again)) if again == *receipt => Ok(()),
        other => Err(format!("one more retry got {other:?}").into()),
    }
}
