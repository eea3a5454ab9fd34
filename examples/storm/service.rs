//! The child process: charges orders from many threads, while everything around a charge fails now and then.

use std::cell::Cell;
use std::io::{self, Read, Write};
use std::panic::{self, AssertUnwindSafe};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use oncekey::{Attempt, Error, Options, Outcome, RunError, Store};

use crate::charge::charge_once;
use crate::dice::{self, Dice};
use crate::ledger::{Charge, Ledger};
use crate::settings::{Fallible, Settings};
use crate::wire::{Answer, Ending, LedgerAnswer, Order, Receipt, Report, Request, Source};

/// How long a call waits while another thread charges the same intent.
const WAIT: Duration = Duration::from_secs(10);
/// A request without a result after this many calls never gets one.
const MAX_CALLS: u32 = 1_000;
/// How many requests pass between two reports of the number of syncs. A kill leaves no time for a last report.
const REQUESTS_PER_REPORT: u32 = 8;

pub(crate) fn store_in(directory: &Path) -> PathBuf {
    directory.join("charges.once")
}

pub(crate) fn run(directory: &Path, settings: &Settings) -> Fallible<()> {
    silence_planned_panics();
    // Small segments: even a short storm fills many of them, so that the store reclaims space.
    let store = Options::new().segment_size(256 << 10).max_result(4 << 10).open(store_in(directory))?;
    let ledger = Ledger::open(directory)?;
    let next = AtomicU32::new(settings.from);
    let service = Service { store: &store, ledger: &ledger, settings, next };
    report(&Report::Opened)?;
    thread::scope(|scope| -> Fallible<()> {
        let threads: Vec<_> = (0..settings.threads).map(|_| scope.spawn(|| service.work())).collect();
        for thread in threads {
            thread.join().unwrap_or_else(|panicked| panic::resume_unwind(panicked))?;
        }
        Ok(())
    })?;
    // The client closes this pipe when it is done. Until then it may still kill this process.
    io::stdin().read_to_end(&mut Vec::new())?;
    report(&Report::Syncs(store.stats().syncs))?;
    Ok(store.close()?)
}

/// Writes a report in one piece: a kill can cut off the last line, and two lines cannot interleave.
fn report(report: &Report) -> Fallible<()> {
    let mut line = serde_json::to_vec(report)?;
    line.push(b'\n');
    Ok(io::stdout().write_all(&line)?)
}

struct Service<'a> {
    store: &'a Store,
    ledger: &'a Ledger,
    settings: &'a Settings,
    /// The next request.
    next: AtomicU32,
}

/// One call for a request.
#[derive(Debug)]
struct Call<'a> {
    request: &'a Request,
    /// How many calls for this request there were before.
    retry: u32,
    /// Whether it asks for another order under the same key.
    forged: bool,
    /// If an attempt was found in doubt: what the ledger said about it.
    doubt: Cell<Option<LedgerAnswer>>,
}

impl Service<'_> {
    /// The loop of each thread.
    fn work(&self) -> Fallible<()> {
        loop {
            let number = self.next.fetch_add(1, Ordering::Relaxed);
            if number >= self.settings.requests() {
                return Ok(());
            }
            let request = Request::nth(number, self.settings);
            self.call_until_result(&request)?;
            if request.is_abused {
                report(&Report::Answer(self.answer(&request, 0, true)))?;
            }
            if number.is_multiple_of(REQUESTS_PER_REPORT) {
                report(&Report::Syncs(self.store.stats().syncs))?;
            }
        }
    }

    fn call_until_result(&self, request: &Request) -> Fallible<()> {
        for retry in 0..MAX_CALLS {
            let answer = self.answer(request, retry, false);
            let has_result = !matches!(answer.ending, Ending::TryAgain);
            report(&Report::Answer(answer))?;
            if has_result {
                return Ok(());
            }
        }
        Err(format!("no result after {MAX_CALLS} calls: {request:?}").into())
    }

    /// Makes one call and times it.
    fn answer(&self, request: &Request, retry: u32, forged: bool) -> Answer {
        let call = Call { request, retry, forged, doubt: Cell::new(None) };
        let began = Instant::now();
        let caught = panic::catch_unwind(AssertUnwindSafe(|| self.call_and_classify(&call)));
        let micros = u32::try_from(began.elapsed().as_micros()).unwrap_or(u32::MAX);
        // Only planned panics arrive here: the panic hook aborts the process on any other.
        let ending = caught.unwrap_or(Ending::TryAgain);
        Answer { request: request.number, ending, doubt: call.doubt.get(), micros }
    }

    fn call_and_classify(&self, call: &Call<'_>) -> Ending {
        // First without waiting, then with: this shows whether the call had to wait.
        let mut outcome = self.call(call, Duration::ZERO);
        let busy = matches!(outcome, Err(RunError::Store(Error::InProgress { .. })));
        if busy && (call.request.waits || call.retry > 0) {
            outcome = self.call(call, WAIT);
        }
        match outcome {
            Err(RunError::Store(Error::Mismatch { .. })) if call.forged => Ending::Refused,
            _ if call.forged => Ending::Broken(format!("a forged order was not refused: {outcome:?}")),
            Ok(Outcome::Done(receipt)) => Ending::Acknowledged(Source::Performed, receipt),
            Ok(Outcome::AlreadyDone(receipt)) => {
                let source = match call.doubt.get() {
                    Some(LedgerAnswer::Charged) => Source::Reconciled,
                    _ if busy => Source::Waited,
                    _ => Source::Replayed,
                };
                Ending::Acknowledged(source, receipt)
            }
            Err(RunError::Store(Error::InDoubt { .. })) => {
                call.doubt.set(Some(LedgerAnswer::Unknown));
                Ending::TryAgain
            }
            Err(RunError::Store(Error::InProgress { .. })) => Ending::TryAgain,
            Err(RunError::Released(_) | RunError::InDoubt { .. }) => Ending::TryAgain,
            Err(error) => Ending::Broken(error.to_string()),
        }
    }

    fn call(
        &self,
        call: &Call<'_>,
        wait: Duration,
    ) -> Result<Outcome<Receipt>, RunError<Receipt, io::Error>> {
        let order = Order::new(call.request.intent, self.settings.seed, call.forged);
        let find = |attempt: &Attempt| {
            call.doubt.set(Some(LedgerAnswer::Unknown));
            let found = self.find(call, attempt)?;
            let answer = found.as_ref().map_or(LedgerAnswer::NotCharged, |_| LedgerAnswer::Charged);
            call.doubt.set(Some(answer));
            Ok(found)
        };
        // Some first calls do not ask the ledger. In doubt they get an error, and the retry asks.
        let asks = call.request.asks_ledger || call.retry > 0;
        charge_once(self.store, &order, wait, asks.then_some(find), |attempt| {
            self.charge(call.request, attempt)
        })
    }

    /// The side effect, and everything that can go wrong about it.
    fn charge(&self, request: &Request, attempt: &Attempt) -> io::Result<Receipt> {
        let (trouble, before, after) = plan_attempt(self.settings.seed, request.intent, attempt.number());
        thread::sleep(before);
        match trouble {
            Trouble::PanicBefore => planned_panic(),
            Trouble::NoConnection => return Err(io::ErrorKind::ConnectionRefused.into()),
            // Nothing happened, but the caller cannot know that: the operation is in doubt.
            Trouble::RequestLost => return Err(timed_out()),
            _ => {}
        }
        let version = attempt.version().as_u64();
        let charge = Charge { intent: request.intent, version, nonce: dice::unguessable() };
        self.ledger.append(charge)?;
        // The charge has happened, and its result is not recorded yet: the window for which the store exists.
        thread::sleep(after);
        match trouble {
            Trouble::PanicAfter => planned_panic(),
            Trouble::ReplyLost => Err(timed_out()),
            _ => Ok(charge.receipt()),
        }
    }

    /// Looks a charge up. The lookup, too, may panic or time out.
    fn find(&self, call: &Call<'_>, attempt: &Attempt) -> io::Result<Option<Receipt>> {
        let purpose = [call.request.number, call.retry, attempt.number()];
        match Dice::new(self.settings.seed, &purpose).below(100) {
            0..3 => planned_panic(),
            3..10 => Err(timed_out()),
            _ => Ok(self.ledger.find(call.request.intent)?.map(|charge| charge.receipt())),
        }
    }
}

fn timed_out() -> io::Error {
    io::ErrorKind::TimedOut.into()
}

/// What goes wrong in an attempt.
enum Trouble {
    PanicBefore,
    NoConnection,
    RequestLost,
    PanicAfter,
    ReplyLost,
    None,
}

/// Decides what goes wrong in an attempt, and how long it pauses before and after the charge.
fn plan_attempt(seed: u64, intent: u32, attempt: u32) -> (Trouble, Duration, Duration) {
    let mut dice = Dice::new(seed, &[intent, attempt]);
    let trouble = match dice.below(100) {
        0..4 => Trouble::PanicBefore,
        4..8 => Trouble::NoConnection,
        8..12 => Trouble::RequestLost,
        12..16 => Trouble::PanicAfter,
        16..20 => Trouble::ReplyLost,
        _ => Trouble::None,
    };
    // Most charges are quick. Other calls wait for the slow ones, and kills interrupt them.
    let mut pause = || if dice.chance(20) { dice.below(1_500) } else { 0 };
    (trouble, Duration::from_micros(pause().into()), Duration::from_micros(pause().into()))
}

/// The payload of a planned panic.
struct PlannedPanic;

#[expect(clippy::panic, reason = "side effects panic, and the store has to survive that")]
fn planned_panic() -> ! {
    panic::panic_any(PlannedPanic)
}

/// Keeps planned panics off standard error. Any other panic is a bug: it is printed and aborts the process at once, so
/// that the client notices.
fn silence_planned_panics() {
    let print = panic::take_hook();
    panic::set_hook(Box::new(move |panicked| {
        if !panicked.payload().is::<PlannedPanic>() {
            print(panicked);
            std::process::abort();
        }
    }));
}
