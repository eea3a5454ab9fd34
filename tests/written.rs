//! Counts the bytes that a job of a thousand steps writes. In a file of its own, because the count is that of the process.
#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used, clippy::panic, missing_docs, reason = "tests")]

use oncekey::Options;

/// The bytes that this process has passed to the operating system to be written.
fn written_bytes() -> u64 {
    let io = std::fs::read_to_string("/proc/self/io").unwrap();
    io.lines().find_map(|line| line.strip_prefix("wchar: ")).unwrap().parse().unwrap()
}

#[test]
fn a_job_of_a_thousand_steps_writes_little_more_than_their_results() {
    const STEPS: u64 = 1_000;
    const RESULT_BYTES: u64 = 10_000;
    // In memory if possible: the count does not depend on how long a sync takes.
    let directory = tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).unwrap();
    let store = Options::new().min_size(64 << 20).open(directory.path().join("jobs.once")).unwrap();
    let before = written_bytes();
    let outcome = store.operation("job").input(&"all of it".to_owned()).run(|job| {
        for number in 0..STEPS {
            let step = job.step(format!("item-{number}"));
            step.run(|_| Ok::<_, String>(vec![7_u8; 10_000])).map_err(|error| error.to_string())?;
        }
        Ok::<_, String>(())
    });
    assert!(outcome.is_ok(), "{outcome:?}");
    let written = written_bytes() - before;
    store.close().unwrap();
    let results = STEPS * RESULT_BYTES;
    println!(
        "{written} bytes written for results of {results} bytes, {:.3} times",
        written as f64 / results as f64
    );
    assert!(written * 10 <= results * 12, "{written} bytes for results of {results}");
}
