//! The parent process: kills the service, starts it again, and writes down what it answers.

use std::io::{self, BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, ChildStdout, Command, ExitStatus, Stdio};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::thread;
use std::time::{Duration, Instant};

use crate::Fallible;
use crate::dice::Dice;
use crate::settings::Settings;
use crate::table::{self, Progress, Tally};
use crate::verdict::Notes;
use crate::wire::{Answer, Ending, Report, Request};

/// A service that says nothing for so long hangs.
const SILENCE: Duration = Duration::from_secs(60);

pub(crate) fn run(settings: &Settings) -> Fallible<bool> {
    writeln!(io::stdout(), "seed {}, {} threads\n", settings.seed, settings.threads)?;
    let directory = directory()?;
    let passed = rage_and_compare(settings, directory.path());
    if !matches!(passed, Ok(true)) {
        eprintln!("store and ledger are kept in {}", directory.keep().display());
    }
    passed
}

fn rage_and_compare(settings: &Settings, directory: &Path) -> Fallible<bool> {
    let mut storm = Storm::new(settings, directory);
    let raged = storm.rage();
    storm.progress.end();
    raged?;
    let verdict = storm.notes.compare(directory, settings)?;
    table::print(settings, &storm.tally, &verdict)?;
    Ok(verdict.passed())
}

/// Beside this program and not where temporary files usually are, for that is often memory and no disk.
fn directory() -> Fallible<tempfile::TempDir> {
    let program = std::env::current_exe()?;
    let mut named = tempfile::Builder::new();
    let named = named.prefix("storm-");
    Ok(named.tempdir_in(program.with_file_name("")).or_else(|_| named.tempdir())?)
}

struct Storm<'a> {
    settings: &'a Settings,
    directory: &'a Path,
    /// Which requests have a result, how many have, and which is the first that has none.
    has_result: Vec<bool>,
    done: u32,
    from: u32,
    /// The kills to come, the next one last.
    kills: Vec<Kill>,
    /// How long it took the last time until the store was open.
    opening: Duration,
    notes: Notes,
    tally: Tally,
    progress: Progress,
}

impl<'a> Storm<'a> {
    fn new(settings: &'a Settings, directory: &'a Path) -> Storm<'a> {
        Storm {
            settings,
            directory,
            has_result: vec![false; settings.requests() as usize],
            done: 0,
            from: 0,
            kills: plan_kills(settings),
            opening: Duration::from_millis(5),
            notes: Notes::new(settings.intents),
            tally: Tally::default(),
            progress: Progress::new(),
        }
    }

    /// Lets the service live and die until every request has its result.
    fn rage(&mut self) -> Fallible<()> {
        while self.one_life()? {}
        Ok(())
    }

    /// Lets the service live once. True if it was killed; false if it was closed, since all is done.
    fn one_life(&mut self) -> Fallible<bool> {
        let mut life = Life::begin(self.directory, self.settings, self.from)?;
        let mut kill_at = self.due_kill().map(|kill| life.began + kill.delay(self.opening));
        loop {
            kill_at = kill_at.or_else(|| Some(Instant::now() + self.due_kill()?.delay(self.opening)));
            if kill_at.is_some_and(|moment| moment <= Instant::now()) {
                self.kill(life)?;
                return Ok(true);
            }
            if kill_at.is_none() && self.done == self.settings.requests() {
                self.close(life)?;
                return Ok(false);
            }
            if !self.hear(&mut life, kill_at)? {
                let status = life.process.wait()?;
                return Err(format!("the service ended, and nobody had killed it: {status}").into());
            }
        }
    }

    fn due_kill(&self) -> Option<&Kill> {
        self.kills.last().filter(|kill| kill.done <= self.done)
    }

    /// Takes in the next report, unless none comes until then. False if there are no more.
    fn hear(&mut self, life: &mut Life, until: Option<Instant>) -> Fallible<bool> {
        let patience = until.map_or(SILENCE, |moment| moment.saturating_duration_since(Instant::now()));
        let report = match life.reports.recv_timeout(patience) {
            Ok(report) => report?,
            Err(RecvTimeoutError::Disconnected) => return Ok(false),
            Err(RecvTimeoutError::Timeout) if until.is_some() => return Ok(true),
            Err(RecvTimeoutError::Timeout) => {
                return Err(format!("the service hangs at request {} or later", self.from).into());
            }
        };
        match report {
            Report::Opened => {
                life.opened = true;
                self.opening = life.began.elapsed();
            }
            // The threads' reports may overtake each other.
            Report::Syncs(syncs) => life.syncs = life.syncs.max(syncs),
            Report::Answer(answer) => self.note(&answer)?,
        }
        Ok(true)
    }

    fn note(&mut self, answer: &Answer) -> Fallible<()> {
        let request = Request::nth(answer.request, self.settings);
        self.tally.count(answer);
        // Every kill begins another life.
        self.notes.take(&request, answer, self.tally.kills);
        match &answer.ending {
            Ending::Acknowledged(..) => {}
            Ending::Refused | Ending::TryAgain => return Ok(()),
            Ending::Broken(problem) => return Err(format!("{request:?} came to this: {problem}").into()),
        }
        // After a kill some have their result for the second time.
        let has_result = &mut self.has_result[answer.request as usize];
        self.done += u32::from(!*has_result);
        *has_result = true;
        while self.has_result.get(self.from as usize) == Some(&true) {
            self.from += 1;
        }
        self.progress.show(self.done, self.settings.requests(), self.tally.kills);
        Ok(())
    }

    fn kill(&mut self, mut life: Life) -> Fallible<()> {
        self.kills.pop();
        // SIGKILL: no destructor runs, nothing is flushed.
        life.process.kill()?;
        self.hear_out(&mut life)?;
        self.tally.kills += 1;
        self.tally.kills_while_opening += usize::from(!life.opened);
        Ok(())
    }

    fn close(&mut self, mut life: Life) -> Fallible<()> {
        drop(life.process.stdin.take());
        let status = self.hear_out(&mut life)?;
        if status.success() { Ok(()) } else { Err(format!("the service could not close: {status}").into()) }
    }

    /// What the service said before its end still counts, and its end is when its last thread is gone.
    fn hear_out(&mut self, life: &mut Life) -> Fallible<ExitStatus> {
        while self.hear(life, None)? {}
        self.tally.syncs += life.syncs;
        Ok(life.process.wait()?)
    }
}

/// When the service is killed.
struct Kill {
    /// When so many requests are done ..
    done: u32,
    /// .. and then somewhat later. If they are done before it starts, it is killed while it opens the store.
    percent: u32,
    while_opening: bool,
}

impl Kill {
    fn delay(&self, opening: Duration) -> Duration {
        let longest = if self.while_opening { opening } else { Duration::from_millis(5) };
        longest * self.percent / 100
    }
}

/// The kills, the next one last. They leave the last tenth of the requests in peace.
fn plan_kills(settings: &Settings) -> Vec<Kill> {
    let mut dice = Dice::new(settings.seed, &[]);
    let stormy = settings.requests() - settings.requests() / 10;
    let mut moments: Vec<_> = (0..settings.kills).map(|_| dice.below(stormy)).collect();
    moments.sort_unstable();
    let mut previous = 0;
    let mut kills = Vec::new();
    for moment in moments {
        // The first one hits the very first start of the service, and one in four the start after another kill.
        let while_opening = kills.is_empty() || dice.chance(25);
        let done = if while_opening { previous } else { moment };
        kills.push(Kill { done, percent: dice.below(100), while_opening });
        previous = done;
    }
    kills.reverse();
    kills
}

/// One run of the service. It does not outlive this.
struct Life {
    process: Child,
    reports: Receiver<Fallible<Report>>,
    began: Instant,
    opened: bool,
    syncs: u64,
}

impl Life {
    fn begin(directory: &Path, settings: &Settings, from: u32) -> Fallible<Life> {
        let began = Instant::now();
        let Settings { intents, threads, seed, .. } = settings;
        let mut process = Command::new(std::env::current_exe()?)
            .arg("--serve-in")
            .arg(directory)
            .args(["--from", &from.to_string(), "--intents", &intents.to_string()])
            .args(["--threads", &threads.to_string(), "--seed", &seed.to_string()])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        let (sender, reports) = mpsc::channel();
        if let Some(output) = process.stdout.take() {
            thread::spawn(move || read_reports(output, &sender));
        }
        Ok(Life { process, reports, began, opened: false, syncs: 0 })
    }
}

impl Drop for Life {
    fn drop(&mut self) {
        // Mostly it is gone already. If it is not, the storm has failed, and says so elsewhere.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn read_reports(output: ChildStdout, sender: &Sender<Fallible<Report>>) {
    let mut output = BufReader::new(output);
    let mut line = Vec::new();
    loop {
        line.clear();
        let report = match output.read_until(b'\n', &mut line) {
            // The end, be it within a line that a kill has cut off.
            Ok(_) if !line.ends_with(b"\n") => return,
            Ok(_) => serde_json::from_slice(&line).map_err(Into::into),
            Err(error) => Err(error.into()),
        };
        if sender.send(report).is_err() {
            return;
        }
    }
}
