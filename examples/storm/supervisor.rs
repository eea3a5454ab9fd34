//! The parent process: kills the service, starts it again, and remembers its answers. It sends no requests, because the
//! service derives them from the seed.

use std::io::{self, BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, ChildStdout, Command, ExitStatus, Stdio};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::thread;
use std::time::{Duration, Instant};

use crate::dice::Dice;
use crate::settings::{Fallible, Settings};
use crate::table::{self, ProgressBar, Tally};
use crate::verdict::Acknowledged;
use crate::wire::{Answer, Ending, Report, Request};

/// The longest time between two reports. If a service sends none for longer, the storm ends with an error, because the service
/// hangs.
const MAX_SILENCE: Duration = Duration::from_secs(60);

/// Runs the storm and checks it. Returns true if every charge happened once and every acknowledged result is unchanged.
pub(crate) fn run(settings: &Settings) -> Fallible<bool> {
    writeln!(io::stdout(), "seed {}, {} threads\n", settings.seed, settings.threads)?;
    let directory = directory()?;
    let passed = run_and_compare(settings, directory.path());
    if !matches!(passed, Ok(true)) {
        eprintln!("store and ledger are kept in {}", directory.keep().display());
    }
    passed
}

/// Runs the storm, compares the acknowledged results with the ledger and the store, and prints the table.
fn run_and_compare(settings: &Settings, directory: &Path) -> Fallible<bool> {
    let mut storm = Storm::new(settings, directory);
    let ended = storm.run();
    storm.progress.clear();
    ended?;
    let verdict = storm.acknowledged.compare(directory, settings)?;
    table::print(settings, &storm.tally, &verdict)?;
    Ok(verdict.passed())
}

/// Creates a directory next to this program, because the usual place for temporary files is often in memory and not on a disk.
fn directory() -> Fallible<tempfile::TempDir> {
    let program = std::env::current_exe()?;
    let mut named = tempfile::Builder::new();
    let named = named.prefix("storm-");
    Ok(named.tempdir_in(program.with_file_name("")).or_else(|_| named.tempdir())?)
}

struct Storm<'a> {
    settings: &'a Settings,
    directory: &'a Path,
    /// For each request, whether it has a result.
    has_result: Vec<bool>,
    /// The number of requests that have a result.
    done: u32,
    /// The first request without a result. The next service starts with it.
    first_pending: u32,
    /// The planned kills that are still to come, the next one last.
    kills: Vec<Kill>,
    /// The time that the last service took until its store was open.
    open_duration: Duration,
    acknowledged: Acknowledged,
    tally: Tally,
    progress: ProgressBar,
}

impl<'a> Storm<'a> {
    fn new(settings: &'a Settings, directory: &'a Path) -> Storm<'a> {
        Storm {
            settings,
            directory,
            has_result: vec![false; settings.requests() as usize],
            done: 0,
            first_pending: 0,
            kills: plan_kills(settings),
            open_duration: Duration::from_millis(5),
            acknowledged: Acknowledged::new(settings.intents),
            tally: Tally::default(),
            progress: ProgressBar::new(),
        }
    }

    /// Starts and kills the service until every request has its result.
    fn run(&mut self) -> Fallible<()> {
        while self.run_service()? {}
        Ok(())
    }

    /// Runs the service once. Returns true if the service was killed, and false if it was closed because every request is
    /// done.
    fn run_service(&mut self) -> Fallible<bool> {
        let mut service = ServiceProcess::start(self.directory, self.settings, self.first_pending)?;
        // A kill becomes due when enough requests have a result, and happens after a further delay. If it is due before the service
        // starts, the delay counts from that start.
        let mut kill_at = self.time_of_due_kill(service.started);
        loop {
            // If it becomes due while the service runs, the delay counts from the moment at which that is noticed.
            kill_at = kill_at.or_else(|| self.time_of_due_kill(Instant::now()));
            if kill_at.is_some_and(|moment| moment <= Instant::now()) {
                self.kill(service)?;
                return Ok(true);
            }
            if kill_at.is_none() && self.done == self.settings.requests() {
                self.close(service)?;
                return Ok(false);
            }
            if !self.receive(&mut service, kill_at)? {
                let status = service.process.wait()?;
                return Err(format!("the service ended without a kill: {status}").into());
            }
        }
    }

    /// Returns the time of the next kill if it is due, with its delay counted from `from`.
    fn time_of_due_kill(&self, from: Instant) -> Option<Instant> {
        let kill = self.kills.last().filter(|kill| kill.due_after_requests <= self.done)?;
        Some(from + kill.delay(self.open_duration))
    }

    /// Processes the next report, or none if there is no report before `until`. Returns false if the service has ended.
    fn receive(&mut self, service: &mut ServiceProcess, until: Option<Instant>) -> Fallible<bool> {
        let timeout = until.map_or(MAX_SILENCE, |moment| moment.saturating_duration_since(Instant::now()));
        let report = match service.reports.recv_timeout(timeout) {
            Ok(report) => report?,
            Err(RecvTimeoutError::Disconnected) => return Ok(false),
            Err(RecvTimeoutError::Timeout) if until.is_some() => return Ok(true),
            Err(RecvTimeoutError::Timeout) => {
                return Err(format!("the service hangs at request {} or later", self.first_pending).into());
            }
        };
        match report {
            Report::Opened => {
                service.opened = true;
                self.open_duration = service.started.elapsed();
            }
            // Reports of different threads can arrive out of order.
            Report::Syncs(syncs) => service.syncs = service.syncs.max(syncs),
            Report::Answer(answer) => self.add(&answer)?,
        }
        Ok(true)
    }

    /// Counts an answer, and remembers its result.
    fn add(&mut self, answer: &Answer) -> Fallible<()> {
        let request = Request::nth(answer.request, self.settings);
        self.tally.count(answer);
        // The number of kills identifies the process, because each kill is followed by a new process.
        self.acknowledged.add(&request, answer, self.tally.kills);
        match &answer.ending {
            Ending::Acknowledged(..) => {}
            // Only a forged call is refused, which is no result for the request whose key it reuses. That request had its result
            // before the service forged the call, so `done` counts it already.
            Ending::Refused => return Ok(()),
            // The service calls again until the request has a result.
            Ending::TryAgain => return Ok(()),
            Ending::Broken(problem) => return Err(format!("{request:?} failed: {problem}").into()),
        }
        // After a kill some requests are answered a second time.
        let has_result = &mut self.has_result[answer.request as usize];
        self.done += u32::from(!*has_result);
        *has_result = true;
        while self.has_result.get(self.first_pending as usize) == Some(&true) {
            self.first_pending += 1;
        }
        self.progress.show(self.done, self.settings.requests(), self.tally.kills);
        Ok(())
    }

    /// Kills the service with the next planned kill.
    fn kill(&mut self, mut service: ServiceProcess) -> Fallible<()> {
        self.kills.pop();
        // This sends SIGKILL, so no destructor runs and no buffer is flushed.
        service.process.kill()?;
        self.receive_rest(&mut service)?;
        self.tally.kills += 1;
        self.tally.kills_while_opening += usize::from(!service.opened);
        Ok(())
    }

    /// Lets the service close its store and end.
    fn close(&mut self, mut service: ServiceProcess) -> Fallible<()> {
        // The service closes the store when its standard input ends.
        drop(service.process.stdin.take());
        let status = self.receive_rest(&mut service)?;
        if status.success() { Ok(()) } else { Err(format!("the service could not close: {status}").into()) }
    }

    /// Processes the remaining reports, because their results were acknowledged before the service ended. Then waits until
    /// the process has ended with all its threads, so that none of them still charges when the next service starts.
    fn receive_rest(&mut self, service: &mut ServiceProcess) -> Fallible<ExitStatus> {
        while self.receive(service, None)? {}
        self.tally.syncs += service.syncs;
        Ok(service.process.wait()?)
    }
}

/// A planned kill of the service.
struct Kill {
    /// The kill is due once this many requests have a result. If that many already have one when the service starts, the
    /// service is killed while it is opening the store or shortly after.
    due_after_requests: u32,
    /// The time between the moment when the kill becomes due and the kill itself, in percent of the maximum delay.
    delay_percent: u32,
    /// Whether the kill should hit the service while it is opening the store.
    while_opening: bool,
}

impl Kill {
    /// Returns the time between the moment when the kill becomes due and the kill itself.
    fn delay(&self, open_duration: Duration) -> Duration {
        let max_delay = if self.while_opening { open_duration } else { Duration::from_millis(5) };
        max_delay * self.delay_percent / 100
    }
}

/// Plans the kills and returns them in reverse order, so that the next one is the last. None of them is due in the last
/// tenth of the requests.
fn plan_kills(settings: &Settings) -> Vec<Kill> {
    let mut dice = Dice::new(settings.seed, &[]);
    let stormy_requests = settings.requests() - settings.requests() / 10;
    let mut thresholds: Vec<_> = (0..settings.kills).map(|_| dice.below(stormy_requests)).collect();
    thresholds.sort_unstable();
    let mut previous = 0;
    let mut kills = Vec::new();
    for threshold in thresholds {
        // The first kill hits the very first start of the service. One in four of the other kills hits the start that follows
        // the previous kill. Such a kill gets the threshold of the previous one, so it is due as soon as the service starts.
        let while_opening = kills.is_empty() || dice.chance(25);
        let due_after_requests = if while_opening { previous } else { threshold };
        kills.push(Kill { due_after_requests, delay_percent: dice.below(100), while_opening });
        previous = due_after_requests;
    }
    kills.reverse();
    kills
}

/// A running service, which is killed when this value is dropped.
struct ServiceProcess {
    process: Child,
    /// The reports that the service writes to its standard output.
    reports: Receiver<Fallible<Report>>,
    started: Instant,
    /// Whether the service has opened the store.
    opened: bool,
    /// The highest number of syncs that the service has reported.
    syncs: u64,
}

impl ServiceProcess {
    fn start(directory: &Path, settings: &Settings, first_request: u32) -> Fallible<ServiceProcess> {
        let started = Instant::now();
        let Settings { intents, threads, seed, .. } = settings;
        let mut process = Command::new(std::env::current_exe()?)
            .arg("--serve-in")
            .arg(directory)
            .args(["--from", &first_request.to_string(), "--intents", &intents.to_string()])
            .args(["--threads", &threads.to_string(), "--seed", &seed.to_string()])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        let (sender, reports) = mpsc::channel();
        if let Some(output) = process.stdout.take() {
            thread::spawn(move || read_reports(output, &sender));
        }
        Ok(ServiceProcess { process, reports, started, opened: false, syncs: 0 })
    }
}

impl Drop for ServiceProcess {
    fn drop(&mut self) {
        // Usually the process has already ended. If not, the storm has failed with an error that `run` returns.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// Reads the reports of a service and sends them on, until the output of the service ends.
fn read_reports(output: ChildStdout, sender: &Sender<Fallible<Report>>) {
    let mut output = BufReader::new(output);
    let mut line = Vec::new();
    loop {
        line.clear();
        let report = match output.read_until(b'\n', &mut line) {
            // This is the end of the output, or a last line that a kill has cut off.
            Ok(_) if !line.ends_with(b"\n") => return,
            Ok(_) => serde_json::from_slice(&line).map_err(Into::into),
            Err(error) => Err(error.into()),
        };
        if sender.send(report).is_err() {
            return;
        }
    }
}
