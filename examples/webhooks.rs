//! An at-least-once consumer on real input: webhook deliveries that come twice, late and out of order, and sometimes
//! under an id that was used for something else.
//!
//! ```text
//! cargo run --release --example webhooks -- FILE --store PATH --ledger PATH [--threads N] [--answers PATH]
//! ```
//!
//! FILE holds one delivery a line, a JSON object with `delivery` (the id, which a redelivery repeats: the idempotency
//! key), `event` and `payload`. The effect of a delivery is one line in the ledger, with the next free entry number,
//! and that number is its result: nobody can compute it again, it has to be remembered. So each delivery is
//!
//! - **performed**, the first time it is seen;
//! - **replayed**, when it is a redelivery: it is answered with the entry number of the first;
//! - **mismatched**, when its id was used before with another event or payload: it is refused;
//! - **rejected**, when the line is no delivery at all.
//!
//! The program ends with one line of JSON that says how many there were of each. Refusals and rejections go to standard
//! error as `FILE:LINE: reason`; they do not stop the rest and do not change the exit status, because running again
//! makes no line any better: a supervisor that restarts what failed would never come to an end. `rejected` says that
//! there were some. The exit status is 1 if the store, the ledger or another file fails, and 2 for bad arguments.
//!
//! Kill it anywhere and run it again on the same store and ledger: the ledger holds each delivery exactly once. What
//! makes it so is an order of three durable steps, and a question:
//!
//! 1. the store records that the attempt began;
//! 2. the ledger's line is written and synced;
//! 3. the store records the result.
//!
//! A crash before 1 or after 3 leaves no question. In between, the operation is in doubt: the next run looks into the
//! ledger, which knows, and either takes the entry that it finds there as the result or performs the delivery.
//! (`reconciled` counts what was found; it is part of `replayed`.)

use std::borrow::Cow;
use std::cell::Cell;
use std::collections::HashMap;
use std::collections::hash_map::DefaultHasher;
use std::ffi::OsString;
use std::fmt;
use std::fs::{File, OpenOptions, TryLockError};
use std::hash::{Hash, Hasher};
use std::io::{self, BufRead, BufReader, BufWriter, Write};
use std::num::NonZeroUsize;
use std::panic::resume_unwind;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::mpsc::{Receiver, sync_channel};
use std::sync::{Mutex, MutexGuard};
use std::thread;
use std::time::Duration;

use oncekey::{Codec, CodecError, Error, Options, Outcome, RunError, Store};
use serde::de::{DeserializeOwned, IgnoredAny};
use serde::{Deserialize, Serialize};

const USAGE: &str = "usage: webhooks FILE --store PATH --ledger PATH [--threads N] [--answers PATH]

  FILE            the deliveries, one JSON object a line: delivery, event, payload
  --store PATH    the idempotency store; created if it is not there
  --ledger PATH   where each delivery takes effect, one line each; created if it is not there
  --threads N     how many deliveries are handled at a time (default: what the machine has)
  --answers PATH  a new file for the answer to each line, as its sender would get it";

/// How long a delivery is remembered: longer than any redelivery can come. Senders offer redeliveries for a few days;
/// a month leaves room for our own outages and for a person who sends last week's deliveries again. Too long costs a
/// few hundred bytes a delivery; too short costs a second effect. The result is kept as long as the key, since an
/// answer is all that a redelivery is after.
const RETENTION: Duration = Duration::from_secs(30 * 24 * 3_600);

/// How many deliveries may wait for a thread. It bounds the memory, however large the file is.
const QUEUE_LENGTH: usize = 64;

fn main() -> ExitCode {
    let arguments = match Arguments::parse(std::env::args_os().skip(1)) {
        Ok(arguments) => arguments,
        Err(reason) => {
            complain(&format!("webhooks: {reason}\n\n{USAGE}"));
            return ExitCode::from(2);
        }
    };
    let printed = consume(&arguments).and_then(|counts| {
        let line = serde_json::to_string(&counts)?;
        writeln!(io::stdout(), "{line}").map_err(|error| format!("standard output: {error}"))?;
        Ok(())
    });
    match printed {
        Ok(()) => ExitCode::SUCCESS,
        Err(trouble) => {
            complain(&format!("webhooks: {trouble}"));
            ExitCode::FAILURE
        }
    }
}

/// Says something on standard error, unlike `eprintln!` without a panic if nobody listens.
fn complain(text: &str) {
    let _ = writeln!(io::stderr(), "{text}");
}

/// Why the run cannot go on.
type Trouble = Box<dyn std::error::Error + Send + Sync>;

#[derive(Debug)]
struct Arguments {
    deliveries: PathBuf,
    store: PathBuf,
    ledger: PathBuf,
    threads: NonZeroUsize,
    answers: Option<PathBuf>,
}

impl Arguments {
    fn parse(mut arguments: impl Iterator<Item = OsString>) -> Result<Arguments, String> {
        let (mut deliveries, mut store, mut ledger, mut threads, mut answers) =
            (None, None, None, None, None);
        while let Some(argument) = arguments.next() {
            let (slot, value) = match argument.to_str() {
                Some("--store") => (&mut store, arguments.next()),
                Some("--ledger") => (&mut ledger, arguments.next()),
                Some("--threads") => (&mut threads, arguments.next()),
                Some("--answers") => (&mut answers, arguments.next()),
                Some(option) if option.starts_with("--") => return Err(format!("unknown option {option}")),
                _ => (&mut deliveries, Some(argument.clone())),
            };
            let name = argument.display();
            let value = value.ok_or_else(|| format!("{name} needs a value"))?;
            if slot.replace(value).is_some() {
                return Err(format!("{name} is one too many"));
            }
        }
        let threads = match threads {
            Some(number) => number
                .to_str()
                .and_then(|number| number.parse().ok())
                .ok_or_else(|| format!("--threads takes a number from 1, not {}", number.display()))?,
            None => thread::available_parallelism().unwrap_or(NonZeroUsize::MIN),
        };
        Ok(Arguments {
            deliveries: deliveries.ok_or("FILE is missing")?.into(),
            store: store.ok_or("--store is missing")?.into(),
            ledger: ledger.ok_or("--ledger is missing")?.into(),
            threads,
            answers: answers.map(PathBuf::from),
        })
    }
}

/// What became of the lines: `lines` = `performed` + `replayed` + `mismatched` + `rejected`.
#[derive(Debug, Default, Serialize)]
struct Counts {
    lines: u64,
    performed: u64,
    replayed: u64,
    mismatched: u64,
    rejected: u64,
    /// How many of the replayed ones were in doubt, and found in the ledger.
    reconciled: u64,
}

impl Counts {
    fn add(&mut self, answer: &Answer) {
        self.lines += 1;
        match answer {
            Answer::Performed(_) => self.performed += 1,
            Answer::Replayed { reconciled, .. } => {
                self.replayed += 1;
                self.reconciled += u64::from(*reconciled);
            }
            Answer::Mismatched { .. } => self.mismatched += 1,
            Answer::Rejected { .. } => self.rejected += 1,
        }
    }

    fn merge(&mut self, other: &Counts) {
        self.lines += other.lines;
        self.performed += other.performed;
        self.replayed += other.replayed;
        self.mismatched += other.mismatched;
        self.rejected += other.rejected;
        self.reconciled += other.reconciled;
    }
}

/// Reads the deliveries and hands each one to the thread that is responsible for its id.
///
/// All lines of one id go through one queue, in their order: whoever came first in the file is the first, however many
/// threads there are. Were they spread at will, a misuse could overtake the delivery whose id it carries, take effect,
/// and have the true one refused.
fn consume(arguments: &Arguments) -> Result<Counts, Trouble> {
    let (path, threads) = (&arguments.deliveries, arguments.threads.get());
    let file = File::open(path).map_err(|error| format!("{}: cannot open: {error}", path.display()))?;
    // The store before the ledger: its lock keeps a second run of this program away from both.
    let store = Options::new().retention(RETENTION).open(&arguments.store)?;
    let ledger = Ledger::open(&arguments.ledger)?;
    let desk =
        Desk { deliveries: path, answers: arguments.answers.as_deref().map(Answers::create).transpose()? };

    let counts = thread::scope(|scope| {
        let (mut queues, mut workers) = (Vec::new(), Vec::new());
        for _ in 0..threads {
            let (queue, deliveries) = sync_channel(QUEUE_LENGTH);
            let (store, ledger, desk) = (&store, &ledger, &desk);
            let worker = thread::Builder::new()
                .spawn_scoped(scope, move || work(store, ledger, desk, &deliveries))
                .map_err(|error| format!("cannot start a thread: {error}"))?;
            queues.push(queue);
            workers.push(worker);
        }

        let mut counts = Counts::default();
        let read = read_lines(path, BufReader::new(file), |number, line| {
            match Delivery::parse(number, line) {
                Ok(delivery) => {
                    let queue = &queues[delivery.responsible(threads)];
                    // A worker that is gone has met trouble. It says so when it is joined.
                    Ok(queue.send(delivery).is_ok())
                }
                Err(reason) => {
                    let answer = Answer::Rejected { reason };
                    counts.add(&answer);
                    desk.give(number, None, &answer).map(|()| true)
                }
            }
        });

        drop(queues);
        let worked: Vec<_> = workers
            .into_iter()
            .map(|worker| worker.join().unwrap_or_else(|panic| resume_unwind(panic)))
            .collect();
        for of_worker in worked {
            counts.merge(&of_worker?);
        }
        read.map(|()| counts)
    })?;
    desk.close()?;
    store.close()?;
    Ok(counts)
}

/// Calls `each` with the number and the bytes of every line, until it says that it wants no more.
fn read_lines(
    path: &Path,
    mut reader: impl BufRead,
    mut each: impl FnMut(u64, &[u8]) -> Result<bool, Trouble>,
) -> Result<(), Trouble> {
    let mut line = Vec::new();
    for number in 1.. {
        line.clear();
        let read = reader.read_until(b'\n', &mut line);
        let length = read.map_err(|error| format!("{}:{number}: cannot read: {error}", path.display()))?;
        if length == 0 || !each(number, line.strip_suffix(b"\n").unwrap_or(&line))? {
            break;
        }
    }
    Ok(())
}

/// Handles the deliveries of one queue.
fn work(
    store: &Store,
    ledger: &Ledger,
    desk: &Desk<'_>,
    deliveries: &Receiver<Delivery>,
) -> Result<Counts, Trouble> {
    let mut counts = Counts::default();
    for delivery in deliveries {
        let answer = handle(store, ledger, &delivery)
            .map_err(|error| format!("{}:{}: {error}", desk.deliveries.display(), delivery.line))?;
        counts.add(&answer);
        desk.give(delivery.line, Some(&delivery.id), &answer)?;
    }
    Ok(counts)
}

/// Performs a delivery once, however often it comes. This is what oncekey is for.
fn handle(
    store: &Store,
    ledger: &Ledger,
    delivery: &Delivery,
) -> Result<Answer, RunError<Receipt, LedgerError>> {
    let found_in_ledger = Cell::new(false);
    let outcome = store
        .operation(&delivery.id)
        .codec(JsonText)
        .request(&(&delivery.event, &delivery.payload))
        .reconcile(|_attempt| {
            // The ledger is our own file, synced before it is asked: what is not in it did not happen.
            let found = ledger.find(&delivery.id);
            found_in_ledger.set(matches!(found, Ok(Some(_))));
            found
        })
        .release_if(|error: &LedgerError| error.nothing_was_written)
        .run(|_attempt| ledger.append(&delivery.id, &delivery.event));
    match outcome {
        Ok(Outcome::Done(receipt)) => Ok(Answer::Performed(receipt)),
        Ok(Outcome::AlreadyDone(receipt)) => {
            Ok(Answer::Replayed { receipt, reconciled: found_in_ledger.get() })
        }
        Err(RunError::Store(error @ Error::Mismatch { .. })) => {
            Ok(Answer::Mismatched { reason: error.to_string() })
        }
        // An id that is empty or too long is the sender's mistake, as a missing one would be.
        Err(RunError::Store(error @ Error::Key { .. })) => Ok(Answer::Rejected { reason: error.to_string() }),
        Err(error) => Err(error),
    }
}

/// One delivery, as it came.
#[derive(Debug)]
struct Delivery {
    line: u64,
    id: String,
    event: String,
    /// The text of the payload, byte for byte. A redelivery is the same bytes, and a sender that signs signs bytes; to
    /// compare values instead would take payloads for equal that only look so, such as two long numbers that are one
    /// as floating point.
    payload: String,
}

impl Delivery {
    fn parse(line: u64, bytes: &[u8]) -> Result<Delivery, String> {
        #[derive(Deserialize)]
        struct Envelope {
            delivery: String,
            event: String,
            #[serde(rename = "payload")]
            _payload: IgnoredAny,
        }

        if bytes.trim_ascii().is_empty() {
            return Err("the line is empty".into());
        }
        let text = str::from_utf8(bytes).map_err(|error| format!("not UTF-8: {error}"))?;
        let Envelope { delivery: id, event, .. } =
            serde_json::from_str(text).map_err(|error| reason_within_line(&error))?;
        // Only an array, which serde takes for a struct too, has all three and no member called `payload`.
        let payload = member_text(text, "payload").ok_or("not a JSON object")?;
        Ok(Delivery { line, id, event, payload: payload.to_owned() })
    }

    /// Which of the threads handles this delivery and all others of the same id.
    fn responsible(&self, threads: usize) -> usize {
        let mut hasher = DefaultHasher::new();
        self.id.hash(&mut hasher);
        // Less than `threads`, so it fits.
        usize::try_from(hasher.finish() % threads as u64).unwrap_or_default()
    }
}

/// What is wrong with a line. Its number is said elsewhere; serde_json, which was given this line only, calls it 1.
fn reason_within_line(error: &serde_json::Error) -> String {
    let text = error.to_string();
    let place = format!(" at line {} column {}", error.line(), error.column());
    match text.strip_suffix(&place) {
        Some(reason) => format!("{reason} (column {})", error.column()),
        None => text,
    }
}

/// The text of the member `name`, as it stands in the text of a JSON object.
///
/// This is what `serde_json::value::RawValue` is for; it takes a feature of that crate which oncekey does not need.
fn member_text<'text>(object: &'text str, name: &str) -> Option<&'text str> {
    let mut rest = object.trim_start().strip_prefix('{')?;
    loop {
        let (key, _) = next_value::<String>(&mut rest)?;
        rest = rest.trim_start().strip_prefix(':')?;
        let (_, text) = next_value::<IgnoredAny>(&mut rest)?;
        if key == name {
            return Some(text);
        }
        rest = rest.trim_start().strip_prefix(',')?;
    }
}

/// Takes one JSON value off the front of `rest`; gives it and its text.
fn next_value<'text, T: Deserialize<'text>>(rest: &mut &'text str) -> Option<(T, &'text str)> {
    let mut values = serde_json::Deserializer::from_str(rest).into_iter();
    let value = values.next()?.ok()?;
    let (text, after) = rest.split_at(values.byte_offset());
    *rest = after;
    Some((value, text.trim_start()))
}

/// JSON for requests and results. As `oncekey::Json`, which is behind a feature that this example can do without.
struct JsonText;

impl Codec for JsonText {
    const ID: u8 = 128;
    const POSITIONAL: bool = false;

    fn encode<T: Serialize + ?Sized>(&self, value: &T) -> Result<Vec<u8>, CodecError> {
        Ok(serde_json::to_vec(value)?)
    }

    fn decode<T: DeserializeOwned>(&self, bytes: &[u8]) -> Result<T, CodecError> {
        Ok(serde_json::from_slice(bytes)?)
    }
}

/// The result of a delivery: where in the ledger it stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
struct Receipt {
    /// The number of its entry, from 1.
    entry: u64,
}

/// A line of the ledger.
#[derive(Debug, Serialize, Deserialize)]
struct Entry<'text> {
    entry: u64,
    #[serde(borrow)]
    delivery: Cow<'text, str>,
    #[serde(borrow)]
    event: Cow<'text, str>,
}

/// The outside world: a file in which each delivery leaves a line.
///
/// A line counts once it has been synced, for an act must last as long as the record that it was performed.
#[derive(Debug)]
struct Ledger {
    path: PathBuf,
    book: Mutex<Book>,
}

#[derive(Debug)]
struct Book {
    file: File,
    /// The entries by delivery.
    receipts: HashMap<String, Receipt>,
    last_entry: u64,
    /// Why there can be no more entries: how the file ends is unknown since a write or a sync failed.
    broken: Option<String>,
}

impl Ledger {
    /// Opens the ledger, or creates it, and reads what is in it.
    fn open(path: &Path) -> Result<Ledger, LedgerError> {
        let trouble =
            |doing: &str, error: io::Error| LedgerError::new(path, format!("cannot {doing}: {error}"));
        let mut file = OpenOptions::new()
            .read(true)
            .append(true)
            .create(true)
            .open(path)
            .map_err(|error| trouble("open", error))?;
        if !file.metadata().map_err(|error| trouble("open", error))?.is_file() {
            return Err(LedgerError::new(path, "no regular file"));
        }
        // Two programs with two stores could still share a ledger, and one would cut off what the other is writing.
        file.try_lock().map_err(|error| match error {
            TryLockError::WouldBlock => LedgerError::new(path, "in use already"),
            TryLockError::Error(error) => trouble("lock", error),
        })?;

        let (mut receipts, mut last_entry, mut whole_bytes) = (HashMap::new(), 0, 0);
        let mut reader = BufReader::new(&mut file);
        let mut line = Vec::new();
        let torn = loop {
            line.clear();
            let length = reader.read_until(b'\n', &mut line).map_err(|error| trouble("read", error))?;
            if line.last() != Some(&b'\n') {
                break &line;
            }
            let number = last_entry + 1;
            let entry = serde_json::from_slice::<Entry<'_>>(&line)
                .ok()
                .filter(|entry| entry.entry == number)
                .ok_or_else(|| LedgerError::new(path, format!("line {number} is not entry {number}")))?;
            receipts.insert(entry.delivery.into_owned(), Receipt { entry: number });
            last_entry = number;
            whole_bytes += length as u64;
        };
        if !torn.is_empty() {
            // A line without its end was never synced, so nobody was told of it: the act did not happen. But a file
            // that only came here by a slip of the keyboard is not ours to cut.
            let begins = entry_begins(last_entry + 1);
            if !torn.starts_with(&begins) && !begins.starts_with(torn) {
                return Err(LedgerError::new(path, format!("does not end in entry {}", last_entry + 1)));
            }
            file.set_len(whole_bytes).map_err(|error| trouble("cut off a torn line", error))?;
        }
        // What the last run wrote and could not sync is about to be believed, so it has to last. (Should a sync fail,
        // run again only when the cause is known: what a file system says after that is its own affair.)
        file.sync_all().map_err(|error| trouble("sync", error))?;
        sync_directory_of(path).map_err(|error| trouble("sync the directory", error))?;
        let book = Book { file, receipts, last_entry, broken: None };
        Ok(Ledger { path: path.to_owned(), book: Mutex::new(book) })
    }

    /// Where a delivery stands in the ledger, if it does.
    fn find(&self, delivery: &str) -> Result<Option<Receipt>, LedgerError> {
        Ok(self.book()?.receipts.get(delivery).copied())
    }

    /// Adds the line of a delivery.
    ///
    /// The book is held until the line is synced: so only the last line can be torn, and two lines cannot run into
    /// each other.
    fn append(&self, delivery: &str, event: &str) -> Result<Receipt, LedgerError> {
        let mut book = self.book().map_err(LedgerError::before_writing)?;
        let number = book.last_entry + 1;
        let entry = Entry { entry: number, delivery: delivery.into(), event: event.into() };
        let written = serde_json::to_vec(&entry).map_err(io::Error::from).and_then(|mut line| {
            line.push(b'\n');
            book.file.write_all(&line)?;
            book.file.sync_data()
        });
        if let Err(error) = written {
            // Whether the line is there shows when the ledger is opened again.
            let reason = format!("cannot write entry {number}: {error}");
            book.broken = Some(reason.clone());
            return Err(LedgerError::new(&self.path, reason));
        }
        let receipt = Receipt { entry: number };
        book.receipts.insert(delivery.to_owned(), receipt);
        book.last_entry = number;
        Ok(receipt)
    }

    /// The book, unless nobody knows what is in it.
    fn book(&self) -> Result<MutexGuard<'_, Book>, LedgerError> {
        let book = self.book.lock().map_err(|_| LedgerError::new(&self.path, "a thread died over it"))?;
        match &book.broken {
            Some(reason) => {
                Err(LedgerError::new(&self.path, format!("unusable since an earlier failure: {reason}")))
            }
            None => Ok(book),
        }
    }
}

/// How the line of an entry begins, by which it is known even if it is torn.
fn entry_begins(number: u64) -> Vec<u8> {
    format!("{{\"entry\":{number},").into_bytes()
}

/// Makes the name of a file that was just created as durable as the file.
#[cfg(unix)]
fn sync_directory_of(path: &Path) -> io::Result<()> {
    let directory = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    File::open(directory)?.sync_all()
}

/// Elsewhere a directory cannot be opened as a file, and the file system sees to it.
#[cfg(not(unix))]
fn sync_directory_of(_path: &Path) -> io::Result<()> {
    Ok(())
}

/// What is wrong with the ledger.
#[derive(Debug)]
struct LedgerError {
    path: PathBuf,
    reason: Cow<'static, str>,
    nothing_was_written: bool,
}

impl LedgerError {
    fn new(path: &Path, reason: impl Into<Cow<'static, str>>) -> LedgerError {
        LedgerError { path: path.to_owned(), reason: reason.into(), nothing_was_written: false }
    }

    /// The same, where the book could not be had: it was not written in.
    fn before_writing(self) -> LedgerError {
        LedgerError { nothing_was_written: true, ..self }
    }
}

impl fmt::Display for LedgerError {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "ledger {}: {}", self.path.display(), self.reason)
    }
}

impl std::error::Error for LedgerError {}

/// What the sender of a line is told.
#[derive(Debug, Serialize)]
#[serde(tag = "answer", rename_all = "lowercase")]
enum Answer {
    Performed(Receipt),
    Replayed {
        #[serde(flatten)]
        receipt: Receipt,
        /// Whether it had to be found out.
        reconciled: bool,
    },
    Mismatched {
        reason: String,
    },
    Rejected {
        reason: String,
    },
}

/// Where answers are given out.
#[derive(Debug)]
struct Desk<'a> {
    deliveries: &'a Path,
    answers: Option<Answers>,
}

impl Desk<'_> {
    fn give(&self, line: u64, delivery: Option<&str>, answer: &Answer) -> Result<(), Trouble> {
        if let Answer::Mismatched { reason } | Answer::Rejected { reason } = answer {
            complain(&format!("{}:{line}: {reason}", self.deliveries.display()));
        }
        match &self.answers {
            Some(answers) => answers.write(line, delivery, answer),
            None => Ok(()),
        }
    }

    fn close(self) -> Result<(), Trouble> {
        self.answers.map_or(Ok(()), Answers::close)
    }
}

/// The answers as a file, one line of JSON for each line of the deliveries, in the order in which they were given.
#[derive(Debug)]
struct Answers {
    path: PathBuf,
    file: Mutex<BufWriter<File>>,
}

impl Answers {
    /// Creates the file. One that exists is left alone: it could be anything, even the deliveries.
    fn create(path: &Path) -> Result<Answers, Trouble> {
        let file =
            File::create_new(path).map_err(|error| format!("{}: cannot create: {error}", path.display()))?;
        Ok(Answers { path: path.to_owned(), file: Mutex::new(BufWriter::new(file)) })
    }

    fn write(&self, line: u64, delivery: Option<&str>, answer: &Answer) -> Result<(), Trouble> {
        #[derive(Serialize)]
        struct Answered<'a> {
            line: u64,
            #[serde(skip_serializing_if = "Option::is_none")]
            delivery: Option<&'a str>,
            #[serde(flatten)]
            answer: &'a Answer,
        }

        let mut text = serde_json::to_vec(&Answered { line, delivery, answer })?;
        text.push(b'\n');
        let mut file =
            self.file.lock().map_err(|_| format!("{}: a thread died over it", self.path.display()))?;
        file.write_all(&text).map_err(|error| self.cannot_write(&error))
    }

    fn close(self) -> Result<(), Trouble> {
        let mut file =
            self.file.lock().map_err(|_| format!("{}: a thread died over it", self.path.display()))?;
        file.flush().map_err(|error| self.cannot_write(&error))
    }

    fn cannot_write(&self, error: &io::Error) -> Trouble {
        format!("{}: cannot write: {error}", self.path.display()).into()
    }
}
