//! The child process: processes orders with many threads, while charges, replies and lookups occasionally fail.

use std::cell::Cell;
use std::io::{self, Read, Write};
use std::panic::{self, AssertUnwindSafe};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use oncekey::{Attempt, Error, Options, Outcome, RunError, Store};

use crate::charge::{TOPIC, charge_in_parts, charge_once};
use crate::dice::{self, Dice};
use crate::ledger::{Charge, Ledger, Published};
use crate::settings::{Fallible, Settings};
use crate::wire::{Answer, Ending, LedgerAnswer, Order, Receipt, Report, Request, Source, is_in_parts};

/// The maximum time that a call waits while another thread is charging the same intent.
const WAIT: Duration = Duration::from_secs(10);
/// The maximum number of calls for a request. If none of them returns a result, the storm has failed.
const MAX_CALLS: u32 = 1_000;
/// The number of requests between two reports of the sync count. The reports are frequent because a kill leaves no time for a
/// last one.
const REQUESTS_PER_REPORT: u32 = 8;

pub(crate) fn store_in(directory: &Path) -> PathBuf {
    directory.join("charges.once")
}

pub(crate) fn run(directory: &Path, settings: &Settings) -> Fallible<()> {
    silence_planned_panics();
    // With small segments even a short storm fills many of them, so that the store reclaims space.
    let store = Options::new().segment_size(256 << 10).max_result(4 << 10).open(store_in(directory))?;
    let ledger = Ledger::open(directory)?;
    let next = AtomicU32::new(settings.first_request);
    let service = Service { store: &store, ledger: &ledger, settings, next };
    report(&Report::Opened)?;
    let is_over = AtomicBool::new(false);
    thread::scope(|scope| -> Fallible<()> {
        let publisher = scope.spawn(|| publish(&store, directory, &is_over));
        let threads: Vec<_> = (0..settings.threads).map(|_| scope.spawn(|| service.work())).collect();
        let worked: Vec<_> = threads.into_iter().map(thread::ScopedJoinHandle::join).collect();
        is_over.store(true, Ordering::SeqCst);
        for outcome in worked.into_iter().chain([publisher.join()]) {
            outcome.unwrap_or_else(|panicked| panic::resume_unwind(panicked))?;
        }
        Ok(())
    })?;
    // The supervisor closes this pipe once it has all results. Until then it can still kill this process.
    io::stdin().read_to_end(&mut Vec::new())?;
    report(&Report::Syncs(store.stats().syncs))?;
    Ok(store.close()?)
}

/// Publishes the messages of completed charges, until there will be no more.
fn publish(store: &Store, directory: &Path, is_over: &AtomicBool) -> Fallible<()> {
    let published = Published::open(directory)?;
    let outbox = store.outbox();
    loop {
        // Read before the topic: a message that comes later is not missed.
        let was_over = is_over.load(Ordering::SeqCst);
        match outbox.next_many(TOPIC, 20)? {
            Some(deliveries) => {
                for message in deliveries.messages() {
                    published.append(&message.token(), &message.decode::<Receipt>()?)?;
                }
                deliveries.ack()?;
            }
            None if was_over => return Ok(()),
            None => thread::sleep(Duration::from_millis(1)),
        }
    }
}

/// Writes a report with one call, so that the lines of two threads cannot interleave. A kill can cut off the last line.
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
    /// The number of earlier calls for this request.
    retry: u32,
    /// Whether the call sends a different order under the same key.
    forged: bool,
    /// The ledger's answer about an earlier attempt, if the call found that attempt in doubt.
    doubt: Cell<Option<LedgerAnswer>>,
}

impl Service<'_> {
    /// Processes requests until there are none left. Each thread runs this loop.
    fn work(&self) -> Fallible<()> {
        loop {
            let number = self.next.fetch_add(1, Ordering::Relaxed);
            if number >= self.settings.requests() {
                return Ok(());
            }
            let request = Request::nth(number, self.settings);
            self.call_until_result(&request)?;
            if request.forgery_follows {
                report(&Report::Answer(self.call_and_time(&request, 0, true)))?;
            }
            if number.is_multiple_of(REQUESTS_PER_REPORT) {
                report(&Report::Syncs(self.store.stats().syncs))?;
            }
        }
    }

    /// Repeats calls for a request until one of them returns its result.
    fn call_until_result(&self, request: &Request) -> Fallible<()> {
        for retry in 0..MAX_CALLS {
            let answer = self.call_and_time(request, retry, false);
            let has_result = !matches!(answer.ending, Ending::TryAgain);
            report(&Report::Answer(answer))?;
            if has_result {
                return Ok(());
            }
        }
        Err(format!("no result after {MAX_CALLS} calls: {request:?}").into())
    }

    /// Makes one call and times it.
    fn call_and_time(&self, request: &Request, retry: u32, forged: bool) -> Answer {
        let call = Call { request, retry, forged, doubt: Cell::new(None) };
        let began = Instant::now();
        let caught = panic::catch_unwind(AssertUnwindSafe(|| self.call_and_classify(&call)));
        let micros = u32::try_from(began.elapsed().as_micros()).unwrap_or(u32::MAX);
        // Only planned panics arrive here, because the panic hook aborts the process on any other panic.
        let ending = caught.unwrap_or(Ending::TryAgain);
        Answer { request: request.number, ending, doubt: call.doubt.get(), micros }
    }

    /// Makes one call and classifies its outcome.
    fn call_and_classify(&self, call: &Call<'_>) -> Ending {
        // Call without waiting at first, and wait only if that call finds the key in progress. This shows whether waiting was
        // necessary.
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
            // The error of a step that no call should return.
            Err(RunError::Stopped(error) | RunError::InDoubt { error, .. })
                if error.kind() == io::ErrorKind::Other =>
            {
                Ending::Broken(error.to_string())
            }
            Err(RunError::Released(_) | RunError::Stopped(_) | RunError::InDoubt { .. }) => Ending::TryAgain,
            Err(error) => Ending::Broken(error.to_string()),
        }
    }

    /// Makes one call, which waits at most for `wait`.
    fn call(
        &self,
        call: &Call<'_>,
        wait: Duration,
    ) -> Result<Outcome<Receipt>, RunError<Receipt, io::Error>> {
        let order = Order::new(call.request.intent, self.settings.seed, call.forged);
        let find = |attempt: &Attempt, part: u32| {
            call.doubt.set(Some(LedgerAnswer::Unknown));
            let found = self.find(call, attempt, part)?;
            let answer = found.as_ref().map_or(LedgerAnswer::NotCharged, |_| LedgerAnswer::Charged);
            call.doubt.set(Some(answer));
            Ok(found)
        };
        // The first call for a request does not always look up doubts in the ledger. Without a lookup, a doubt is an error, and
        // the retry then looks it up.
        let uses_ledger = call.request.uses_ledger || call.retry > 0;
        let find = uses_ledger.then_some(find);
        if is_in_parts(call.request.intent) {
            let charge = |attempt: &Attempt, part: u32| self.charge(call.request, attempt, part);
            return charge_in_parts(self.store, &order, wait, find.as_ref(), charge);
        }
        let find = find.map(|find| move |attempt: &Attempt| find(attempt, 0));
        charge_once(self.store, &order, wait, find, |attempt| self.charge(call.request, attempt, 0))
    }

    /// Runs the side effect, which can fail before or after the charge happens.
    fn charge(&self, request: &Request, attempt: &Attempt, part: u32) -> io::Result<Receipt> {
        let purpose = [request.intent, part, attempt.number()];
        let (trouble, before, after) = plan_attempt(self.settings.seed, purpose);
        thread::sleep(before);
        match trouble {
            Trouble::PanicBefore => planned_panic(),
            Trouble::NoConnection => return Err(io::ErrorKind::ConnectionRefused.into()),
            // Nothing happened, but the caller cannot know that: the operation is in doubt.
            Trouble::RequestLost => return Err(timed_out()),
            _ => {}
        }
        let attempt_version = attempt.version().as_u64();
        let charge = Charge { intent: request.intent, part, attempt_version, nonce: dice::unguessable() };
        self.ledger.append(charge)?;
        // The charge has happened, but its result is not yet recorded. A crash now leaves the operation in doubt, which is the
        // case that the store is made for.
        thread::sleep(after);
        match trouble {
            Trouble::PanicAfter => planned_panic(),
            Trouble::ReplyLost => Err(timed_out()),
            _ => Ok(charge.receipt()),
        }
    }

    /// Looks up a charge. The lookup, too, can panic or time out.
    fn find(&self, call: &Call<'_>, attempt: &Attempt, part: u32) -> io::Result<Option<Receipt>> {
        let purpose = [call.request.number, call.retry, part, attempt.number()];
        match Dice::new(self.settings.seed, &purpose).below(100) {
            0..3 => planned_panic(),
            3..10 => Err(timed_out()),
            _ => Ok(self.ledger.find(call.request.intent, part)?.map(|charge| charge.receipt())),
        }
    }
}

fn timed_out() -> io::Error {
    io::ErrorKind::TimedOut.into()
}

/// The planned failure of an attempt.
enum Trouble {
    /// The attempt panics before it charges.
    PanicBefore,
    /// The connection is refused, so it is certain that nothing was charged.
    NoConnection,
    /// The request is lost: nothing was charged, but the caller cannot know that.
    RequestLost,
    /// The attempt panics after it has charged.
    PanicAfter,
    /// The reply is lost after the charge.
    ReplyLost,
    /// The attempt succeeds.
    None,
}

/// Returns the planned failure of an attempt at a part of an intent, and how long the attempt pauses before and after the
/// charge.
fn plan_attempt(seed: u64, purpose: [u32; 3]) -> (Trouble, Duration, Duration) {
    let mut dice = Dice::new(seed, &purpose);
    let trouble = match dice.below(100) {
        0..4 => Trouble::PanicBefore,
        4..8 => Trouble::NoConnection,
        8..12 => Trouble::RequestLost,
        12..16 => Trouble::PanicAfter,
        16..20 => Trouble::ReplyLost,
        _ => Trouble::None,
    };
    // Four in five pauses are zero. The others make a charge slow, so that other calls wait for it and kills interrupt it.
    let mut pause = || if dice.chance(20) { dice.below(1_500) } else { 0 };
    (trouble, Duration::from_micros(pause().into()), Duration::from_micros(pause().into()))
}

/// The payload of a planned panic.
struct PlannedPanic;

#[expect(clippy::panic, reason = "the store has to survive side effects that panic")]
fn planned_panic() -> ! {
    panic::panic_any(PlannedPanic)
}

/// Keeps planned panics off standard error. Any other panic is a bug: it is printed and aborts the process at once, so
/// that the supervisor notices.
fn silence_planned_panics() {
    let print = panic::take_hook();
    panic::set_hook(Box::new(move |panicked| {
        if !panicked.payload().is::<PlannedPanic>() {
            print(panicked);
            std::process::abort();
        }
    }));
}
