//! The errors of steps fit the error type of the job, whatever that is.

use oncekey::{Error, RunError, Store};

fn refused() -> Result<u64, std::io::Error> {
    Err(std::io::ErrorKind::ConnectionRefused.into())
}

#[test]
fn a_job_with_anyhow_uses_the_question_mark() {
    let store = Store::in_memory().unwrap();
    let run = store.operation("k").run(|job| -> anyhow::Result<u64> {
        let (one, text): (u64, String) =
            (job.step("a").run(|_| Ok::<_, std::io::Error>(1))?, job.step("b").run(|_| "x".parse())?);
        let failed: u64 = job.step("c").run(|_| refused())?;
        Ok(one + failed + text.len() as u64)
    });
    let Err(RunError::InDoubt { error, .. }) = run else { panic!("{run:?}") };
    assert!(matches!(
        error.downcast_ref::<RunError<u64, std::io::Error>>(),
        Some(RunError::InDoubt { error, .. }) if error.kind() == std::io::ErrorKind::ConnectionRefused
    ));
}

#[test]
fn a_job_with_a_boxed_error_uses_the_question_mark() {
    let store = Store::in_memory().unwrap();
    type BoxError = Box<dyn std::error::Error + Send + Sync>;
    let run = store.operation("k").run(|job| -> Result<u64, BoxError> {
        let one: u64 = job.step("a").run(|_| Ok::<_, String>(1))?;
        let inner: u64 = job.step("b").run(|_| -> Result<u64, BoxError> { Ok("2".parse()?) })?;
        Ok(one + inner + job.step("c").run(|_| refused())?)
    });
    let text = run.unwrap_err().to_string();
    assert_eq!(text.matches("may have happened").count(), 2, "once for the step, once for the job: {text}");
    // Not `Send`, and without `Sync`.
    let run = store.operation("k2").run(|job| -> Result<u64, Box<dyn std::error::Error>> {
        Ok(job.step("a").run(|_| Ok::<_, String>(1))?)
    });
    assert_eq!(run.unwrap().into_inner(), 1);
}

#[derive(Debug)]
enum JobError {
    Io(std::io::Error),
    Declined(String),
    Store(Error),
}

impl From<std::io::Error> for JobError {
    fn from(error: std::io::Error) -> JobError {
        JobError::Io(error)
    }
}

impl From<String> for JobError {
    fn from(error: String) -> JobError {
        JobError::Declined(error)
    }
}

impl From<Error> for JobError {
    fn from(error: Error) -> JobError {
        JobError::Store(error)
    }
}

impl<T, E> From<RunError<T, E>> for JobError
where
    JobError: From<E>,
{
    fn from(error: RunError<T, E>) -> JobError {
        error.flatten()
    }
}

impl std::fmt::Display for JobError {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            JobError::Io(error) => error.fmt(out),
            JobError::Declined(reason) => out.write_str(reason),
            JobError::Store(error) => error.fmt(out),
        }
    }
}

#[test]
fn a_job_with_an_enum_uses_the_question_mark() {
    let store = Store::in_memory().unwrap();
    let run = store.operation("k").run(|job| -> Result<u64, JobError> {
        let _: String = job.step("a").run(|_| Ok::<_, String>(String::new()))?;
        let _: u64 = job.step("b").release_if(|_: &std::io::Error| true).run(|_| refused())?;
        Ok(job.input::<u64>()?)
    });
    let Err(RunError::Stopped(JobError::Io(error))) = run else { panic!("{run:?}") };
    assert_eq!(error.kind(), std::io::ErrorKind::ConnectionRefused);
    // Errors of the steps decide about the job, but it stays held by what is done.
    let run = store.operation("k").release_if(|error| matches!(error, JobError::Store(_))).run(|job| {
        let _: u64 =
            job.step("b").run(|_| Err::<u64, _>("declined".to_owned())).map_err(|error| match error {
                RunError::InDoubt { error, .. } => JobError::from(error),
                error => error.into(),
            })?;
        Ok(job.input::<u64>()?)
    });
    assert!(matches!(run, Err(RunError::InDoubt { error: JobError::Declined(_), .. })), "{run:?}");
}

/// The bytes of the result are in no text of an error.
#[test]
fn what_a_step_cannot_record_is_in_hand_and_not_in_the_text() {
    let store = Store::in_memory().unwrap();
    let run = store.operation("k").run(|job| {
        let step = job.step("a").max_result(4).run(|_| Ok::<_, String>("a secret".to_owned()));
        let Err(RunError::Unrecorded { result, source: Error::TooLarge { key, .. }, .. }) = &step else {
            panic!("{step:?}")
        };
        assert_eq!((result.as_str(), key.as_key()), ("a secret", oncekey::Key::new("k").step("a")));
        assert!(!format!("{step:?}").contains("secret"));
        let again = job.steps().unwrap();
        assert_eq!(again[0].status(), oncekey::Status::Completed, "the step is done, without its result");
        Err::<u64, _>("stop")
    });
    assert!(matches!(run, Err(RunError::Stopped("stop"))), "{run:?}");
    let run = store.operation("k").run(|job| job.step("a").run(|_| Ok::<_, String>("again".to_owned())));
    let Err(RunError::Stopped(RunError::Store(Error::ResultNotKept { key, .. }))) = run else {
        panic!("{run:?}")
    };
    assert_eq!(key.as_key().step_name(), Some(&b"a"[..]));
}
