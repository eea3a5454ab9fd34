//! Reads the lines and distributes them among threads, each with its own queue.
//!
//! All deliveries with the same id go through the same queue, so they are handled in the order of the file. Otherwise a later
//! delivery that misuses an id could be performed before the genuine one, and the genuine one would be refused.

use std::fs::File;
use std::io::{BufRead, BufReader};
use std::num::NonZeroUsize;
use std::panic::resume_unwind;
use std::path::Path;
use std::sync::mpsc::{Receiver, sync_channel};
use std::thread;

use oncekey::RunError;

use crate::answer::{Answer, Answers, Counts};
use crate::delivery::Delivery;
use crate::failure::Failure;
use crate::ledger::{LedgerError, Receipt};

/// The maximum number of deliveries that wait in each queue. This bounds the memory, whatever the size of the input.
const MAX_QUEUED: usize = 64;

/// Reads all deliveries from `input` and calls `handle` for each, in `threads` threads. Stops at the first failure.
pub(crate) fn run(
    input: File,
    threads: NonZeroUsize,
    answers: &Answers<'_>,
    handle: impl Fn(&Delivery) -> Result<Answer, RunError<Receipt, LedgerError>> + Sync,
) -> Result<Counts, Failure> {
    let (threads, handle) = (threads.get(), &handle);
    thread::scope(|scope| {
        let (mut queues, mut workers) = (Vec::new(), Vec::new());
        for _ in 0..threads {
            let (queue, deliveries) = sync_channel(MAX_QUEUED);
            let worker = thread::Builder::new()
                .spawn_scoped(scope, move || work(&deliveries, answers, handle))
                .map_err(|error| format!("cannot start a thread: {error}"))?;
            queues.push(queue);
            workers.push(worker);
        }

        let mut counts = Counts::default();
        let read = read_lines(answers.deliveries, BufReader::new(input), |number, line| {
            match Delivery::parse(number, line) {
                Ok(delivery) => {
                    let queue = &queues[delivery.thread_index(threads)];
                    // Sending fails if the worker has ended with an error. The join below returns that error.
                    Ok(queue.send(delivery).is_ok())
                }
                Err(reason) => {
                    let answer = Answer::Rejected { reason };
                    counts.add(&answer);
                    answers.give(number, None, &answer).map(|()| true)
                }
            }
        });

        drop(queues);
        let results: Vec<_> = workers
            .into_iter()
            .map(|worker| worker.join().unwrap_or_else(|panic| resume_unwind(panic)))
            .collect();
        for result in results {
            counts.merge(&result?);
        }
        read.map(|()| counts)
    })
}

/// Calls `each` with the number and the bytes of every line, until it returns false.
fn read_lines(
    path: &Path,
    mut reader: impl BufRead,
    mut each: impl FnMut(u64, &[u8]) -> Result<bool, Failure>,
) -> Result<(), Failure> {
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
    deliveries: &Receiver<Delivery>,
    answers: &Answers<'_>,
    handle: impl Fn(&Delivery) -> Result<Answer, RunError<Receipt, LedgerError>>,
) -> Result<Counts, Failure> {
    let mut counts = Counts::default();
    for delivery in deliveries {
        let answer = handle(&delivery)
            .map_err(|error| format!("{}:{}: {error}", answers.deliveries.display(), delivery.line))?;
        counts.add(&answer);
        answers.give(delivery.line, Some(&delivery.id), &answer)?;
    }
    Ok(counts)
}
