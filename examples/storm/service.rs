//! The child process: performs acts under the guard of the store.

use std::cell::Cell;
use std::io::{self, Read, Write};
use std::panic::{self, AssertUnwindSafe};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use oncekey::{Attempt, Error, Options, Outcome, RunError, Store};

use crate::Fallible;
use crate::dice::{self, Dice};
use crate::ledger::{Act, Ledger};
use crate::settings::Settings;
use crate::wire::{self, Answer, Ending, Finding, Order, Receipt, Report, Request, Source};

/// How long a call waits while another thread is at it.
const PATIENCE: Duration = Duration::from_secs(10);
/// What came to nothing so often always will.
const MOST_TRIES: u32 = 1_000;
/// After how many requests a thread tells of the syncs: whoever is killed has no last word.
const REQUESTS_PER_REPORT: u32 = 8;

pub(crate) fn store_in(directory: &Path) -> PathBuf {
    directory.join("acts.once")
}

pub(crate) fn run(directory: &Path, settings: &Settings) -> Fallible<()> {
    say_nothing_of_planted_panics();
    // Small segments: even a short storm fills many of them, and has the store give space back.
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
    // The client says when it is over, by closing this; until then a kill may come.
    io::stdin().read_to_end(&mut Vec::new())?;
    report(&Report::Syncs(store.stats().syncs))?;
    Ok(store.close()?)
}

/// Says it in one piece: a kill can cut off the last line, but never mix two.
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
    /// How often the request was tried before.
    retry: u32,
    /// Whether it is another request under the same key.
    forged: bool,
    /// Whether an attempt was found to be in doubt, and what came of that.
    doubt: Cell<Option<Finding>>,
}

impl Service<'_> {
    /// What each thread does.
    fn work(&self) -> Fallible<()> {
        loop {
            let number = self.next.fetch_add(1, Ordering::Relaxed);
            if number >= self.settings.requests() {
                return Ok(());
            }
            let request = Request::nth(number, self.settings);
            self.insist(&request)?;
            if request.is_abused {
                report(&Report::Answer(self.answer(&request, 0, true)))?;
            }
            if number.is_multiple_of(REQUESTS_PER_REPORT) {
                report(&Report::Syncs(self.store.stats().syncs))?;
            }
        }
    }

    /// Calls until there is a result.
    fn insist(&self, request: &Request) -> Fallible<()> {
        for retry in 0..MOST_TRIES {
            let answer = self.answer(request, retry, false);
            let there_is_a_result = !matches!(answer.ending, Ending::TryAgain);
            report(&Report::Answer(answer))?;
            if there_is_a_result {
                return Ok(());
            }
        }
        Err(format!("this comes to nothing however often it is tried: {request:?}").into())
    }

    fn answer(&self, request: &Request, retry: u32, forged: bool) -> Answer {
        let call = Call { request, retry, forged, doubt: Cell::new(None) };
        let began = Instant::now();
        let caught = panic::catch_unwind(AssertUnwindSafe(|| self.call_and_wait(&call)));
        let micros = u32::try_from(began.elapsed().as_micros()).unwrap_or(u32::MAX);
        // Only planted panics come here: any other one has ended the process.
        let ending = caught.unwrap_or(Ending::TryAgain);
        Answer { request: request.number, ending, doubt: call.doubt.get(), micros }
    }

    fn call_and_wait(&self, call: &Call<'_>) -> Ending {
        // First without waiting and then with: that is how one learns whether it waited.
        let mut performed = self.call(call, Duration::ZERO);
        let busy = matches!(performed, Err(RunError::Store(Error::InProgress { .. })));
        if busy && (call.request.waits || call.retry > 0) {
            performed = self.call(call, PATIENCE);
        }
        match performed {
            Err(RunError::Store(Error::Mismatch { .. })) if call.forged => Ending::Refused,
            _ if call.forged => Ending::Broken(format!("not refused, but {performed:?}")),
            Ok(Outcome::Done(receipt)) => Ending::Acknowledged(Source::Performed, receipt),
            Ok(Outcome::AlreadyDone(receipt)) => {
                let source = match call.doubt.get() {
                    Some(Finding::HadHappened) => Source::Reconciled,
                    _ if busy => Source::Waited,
                    _ => Source::Replayed,
                };
                Ending::Acknowledged(source, receipt)
            }
            Err(RunError::Store(Error::InDoubt { .. })) => {
                call.doubt.set(Some(Finding::Unknown));
                Ending::TryAgain
            }
            Err(RunError::Store(Error::InProgress { .. })) => Ending::TryAgain,
            Err(RunError::Released(_) | RunError::InDoubt { .. }) => Ending::TryAgain,
            Err(error) => Ending::Broken(error.to_string()),
        }
    }

    /// What all of this is about: an act, performed once.
    fn call(
        &self,
        call: &Call<'_>,
        wait: Duration,
    ) -> Result<Outcome<Receipt>, RunError<Receipt, io::Error>> {
        let key = wire::key(call.request.intent);
        let order = Order::new(call.request.intent, self.settings.seed, call.forged);
        let act = |attempt: &Attempt| self.act(call.request, attempt);
        let not_sent = |error: &io::Error| error.kind() == io::ErrorKind::ConnectionRefused;
        let operation = self.store.operation(&key).request(&order).wait(wait).release_if(not_sent);
        // Who does not ask gets an error where there is a doubt, and asks the next time.
        if !call.request.asks_ledger && call.retry == 0 {
            return operation.run(act);
        }
        let ask = |attempt: &Attempt| {
            call.doubt.set(Some(Finding::Unknown));
            let found = self.ask_ledger(call, attempt)?;
            let finding = found.as_ref().map_or(Finding::HadNotHappened, |_| Finding::HadHappened);
            call.doubt.set(Some(finding));
            Ok::<_, io::Error>(found)
        };
        operation.reconcile(ask).run(act)
    }

    /// The act, and everything that can go wrong about it.
    fn act(&self, request: &Request, attempt: &Attempt) -> Result<Receipt, io::Error> {
        let (trouble, before, after) = fate(self.settings.seed, request.intent, attempt.number());
        thread::sleep(before);
        match trouble {
            Trouble::PanicBefore => panic_as_planned(),
            Trouble::NoConnection => return Err(io::ErrorKind::ConnectionRefused.into()),
            // Leaves the operation in doubt. Nothing happened, but who could know that?
            Trouble::RequestLost => return Err(timed_out()),
            _ => {}
        }
        let version = attempt.version().as_u64();
        let act = Act { intent: request.intent, version, nonce: dice::unguessable() };
        self.ledger.append(act)?;
        // It has happened, and nobody has recorded it: the moment that the store exists for.
        thread::sleep(after);
        match trouble {
            Trouble::PanicAfter => panic_as_planned(),
            Trouble::ReplyLost => Err(timed_out()),
            _ => Ok(act.receipt()),
        }
    }

    /// Did it happen? Who is asked is far away as well, and may not answer.
    fn ask_ledger(&self, call: &Call<'_>, attempt: &Attempt) -> io::Result<Option<Receipt>> {
        let purpose = [call.request.number, call.retry, attempt.number()];
        match Dice::new(self.settings.seed, &purpose).below(100) {
            0..3 => panic_as_planned(),
            3..10 => Err(timed_out()),
            _ => Ok(self.ledger.find(call.request.intent)?.map(|act| act.receipt())),
        }
    }
}

fn timed_out() -> io::Error {
    io::ErrorKind::TimedOut.into()
}

/// What goes wrong about an attempt.
enum Trouble {
    PanicBefore,
    NoConnection,
    RequestLost,
    PanicAfter,
    ReplyLost,
    None,
}

/// What an attempt meets with, and how long it takes before and after the deed.
fn fate(seed: u64, intent: u32, attempt: u32) -> (Trouble, Duration, Duration) {
    let mut dice = Dice::new(seed, &[intent, attempt]);
    let trouble = match dice.below(100) {
        0..4 => Trouble::PanicBefore,
        4..8 => Trouble::NoConnection,
        8..12 => Trouble::RequestLost,
        12..16 => Trouble::PanicAfter,
        16..20 => Trouble::ReplyLost,
        _ => Trouble::None,
    };
    // Most acts are quick. The slow ones are there to be waited for, and to be killed half done.
    let mut pause = || if dice.chance(20) { dice.below(1_500) } else { 0 };
    (trouble, Duration::from_micros(pause().into()), Duration::from_micros(pause().into()))
}

/// What the panics carry that belong to the plan.
struct PlantedPanic;

#[expect(clippy::panic, reason = "acts panic, and the store has to live with that")]
fn panic_as_planned() -> ! {
    panic::panic_any(PlantedPanic)
}

/// Any other panic is a bug: it is told, and ends the process at once, which the clients notice.
fn say_nothing_of_planted_panics() {
    let tell = panic::take_hook();
    panic::set_hook(Box::new(move |panicked| {
        if !panicked.payload().is::<PlantedPanic>() {
            tell(panicked);
            std::process::abort();
        }
    }));
}
