//! Checks that `run` and `reconcile` work with the error types that programs use, and that a chain of causes contains each
//! cause once.
//!
//! Half of the check is that this file compiles, although it has no type annotation that only the compiler needs.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs, reason = "tests")]

mod common;

use std::error::Error as StdError;
use std::fmt;
use std::io;

use common::abandon;
use oncekey::{BoxError, Error, ErrorKind, Outcome, RunError, Store};

type Sendable = Box<dyn StdError + Send + Sync>;

/// A gateway whose methods return the kinds of errors that client libraries return.
struct Gateway {
    /// Whether calls succeed.
    succeeds: bool,
}

#[derive(Debug, PartialEq)]
enum GatewayError {
    Timeout,
}

impl fmt::Display for GatewayError {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str("the gateway timed out")
    }
}

impl StdError for GatewayError {}

impl Gateway {
    fn or<E>(&self, error: E) -> Result<u64, E> {
        if self.succeeds { Ok(17) } else { Err(error) }
    }
    fn with_enum(&self, _token: &str) -> Result<u64, GatewayError> {
        self.or(GatewayError::Timeout)
    }
    fn with_io(&self) -> io::Result<u64> {
        self.or(io::ErrorKind::TimedOut.into())
    }
    fn with_text(&self) -> Result<u64, String> {
        self.or("the gateway timed out".to_owned())
    }
    fn with_box(&self) -> Result<u64, Sendable> {
        self.or("the gateway timed out".into())
    }
    fn with_anyhow(&self) -> anyhow::Result<u64> {
        self.or(anyhow::anyhow!(GatewayError::Timeout).context("while charging"))
    }
}

fn both() -> [(Store, Gateway); 2] {
    [true, false].map(|succeeds| (Store::in_memory().unwrap(), Gateway { succeeds }))
}

// Functions that apply `?` to the result of `run`, each with a common error type.

fn in_a_box(store: &Store, gateway: &Gateway) -> Result<u64, Box<dyn StdError>> {
    Ok(store.operation("k").run(|attempt| gateway.with_enum(&attempt.token()))?.into_inner())
}

fn in_a_sendable_box(store: &Store, gateway: &Gateway) -> Result<u64, Sendable> {
    Ok(store.operation("k").run(|_| gateway.with_io())?.into_inner())
}

fn text_in_a_box(store: &Store, gateway: &Gateway) -> Result<u64, Sendable> {
    Ok(store.operation("k").run(|_| gateway.with_text())?.into_inner())
}

fn boxed_by_itself(store: &Store, gateway: &Gateway) -> Result<u64, Sendable> {
    Ok(store.operation("k").run(|_| gateway.with_box())?.into_inner())
}

fn boxed_with_its_chain(store: &Store, gateway: &Gateway) -> Result<u64, Sendable> {
    let outcome = store.operation("k").run(|_| gateway.with_anyhow()).map_err(RunError::into_boxed)?;
    Ok(outcome.into_inner())
}

fn in_anyhow(store: &Store, gateway: &Gateway) -> anyhow::Result<u64> {
    Ok(store.operation("k").run(|_| gateway.with_enum(""))?.into_inner())
}

fn anyhow_in_anyhow(store: &Store, gateway: &Gateway) -> anyhow::Result<u64> {
    Ok(store.operation("k").run(|_| gateway.with_anyhow())?.into_inner())
}

fn several_errors_in_one_closure(store: &Store, gateway: &Gateway) -> anyhow::Result<u64> {
    let outcome = store.operation("k").run(|_| -> anyhow::Result<_> {
        gateway.with_io()?;
        Ok(gateway.with_enum("")?)
    })?;
    Ok(outcome.into_inner())
}

fn as_they_are(store: &Store, gateway: &Gateway) -> Result<Outcome<u64>, RunError<u64, GatewayError>> {
    store.operation("k").run(|_| gateway.with_enum(""))
}

/// The error type of a program, which distinguishes only two cases.
#[derive(Debug, PartialEq)]
enum Refusal {
    TryAgainLater,
    AskAHuman(String),
}

impl<T, E: fmt::Display> From<RunError<T, E>> for Refusal {
    fn from(error: RunError<T, E>) -> Refusal {
        if error.is_retryable() { Refusal::TryAgainLater } else { Refusal::AskAHuman(error.to_string()) }
    }
}

fn in_an_enum(store: &Store, gateway: &Gateway) -> Result<u64, Refusal> {
    Ok(store.operation("k").run(|_| gateway.with_box())?.into_inner())
}

#[test]
fn each_common_error_type_works_with_run_and_the_question_mark() {
    for (store, gateway) in both() {
        type Call = fn(&Store, &Gateway) -> Option<u64>;
        let calls: [Call; 9] = [
            |store, gateway| in_a_box(store, gateway).ok(),
            |store, gateway| in_a_sendable_box(store, gateway).ok(),
            |store, gateway| text_in_a_box(store, gateway).ok(),
            |store, gateway| boxed_by_itself(store, gateway).ok(),
            |store, gateway| boxed_with_its_chain(store, gateway).ok(),
            |store, gateway| in_anyhow(store, gateway).ok(),
            |store, gateway| anyhow_in_anyhow(store, gateway).ok(),
            |store, gateway| several_errors_in_one_closure(store, gateway).ok(),
            |store, gateway| as_they_are(store, gateway).ok().map(Outcome::into_inner),
        ];
        for call in calls {
            assert_eq!(call(&store, &gateway), gateway.succeeds.then_some(17));
            store.forget("k").unwrap();
        }
    }
}

#[test]
fn one_from_impl_maps_every_run_error() {
    let store = Store::in_memory().unwrap();
    assert_eq!(in_an_enum(&store, &Gateway { succeeds: false }), Err(Refusal::TryAgainLater));
    let Err(Refusal::AskAHuman(text)) = in_an_enum(&store, &Gateway { succeeds: true }) else { panic!() };
    assert!(text.contains("in doubt"), "{text}");
}

#[test]
fn reconcile_accepts_an_option_or_a_clients_result() {
    let store = Store::in_memory().unwrap();
    let gateway = Gateway { succeeds: true };
    let found = |answer: bool| if answer { Some(17_u64) } else { None };
    for answer in [true, false] {
        abandon(&store, "k");
        let outcome = store.operation("k").reconcile(|_| found(answer)).run(|_| gateway.with_io()).unwrap();
        assert_eq!(outcome, if answer { Outcome::AlreadyDone(17) } else { Outcome::Done(17) });
        store.forget("k").unwrap();
        abandon(&store, "k");
        let outcome = store
            .operation("k")
            .reconcile(|attempt| -> anyhow::Result<_> {
                gateway.with_enum(&attempt.token())?;
                Ok(found(answer))
            })
            .run(|_| gateway.with_box());
        assert_eq!(outcome.unwrap().is_replay(), answer);
        store.forget("k").unwrap();
    }
}

/// Returns the texts of an error and its causes, as a program prints them.
fn printed(error: &dyn StdError) -> Vec<String> {
    let mut lines = vec![error.to_string()];
    let mut next = error.source();
    while let Some(cause) = next {
        lines.push(cause.to_string());
        next = cause.source();
    }
    lines
}

fn assert_each_cause_once(lines: &[String], causes: &[&str]) {
    for cause in causes {
        let count = lines.iter().filter(|line| line.contains(cause)).count();
        assert_eq!(count, 1, "{cause:?} in {lines:?}");
    }
}

#[test]
fn an_error_chain_contains_each_cause_once() {
    let store = Store::in_memory().unwrap();
    let gateway = Gateway { succeeds: false };
    let fresh = |error: &dyn StdError, causes: &[&str]| {
        assert_each_cause_once(&printed(error), causes);
        store.forget("k").unwrap();
    };
    fresh(&as_they_are(&store, &gateway).unwrap_err(), &["the gateway timed out", "may have happened"]);
    fresh(&*in_a_box(&store, &gateway).unwrap_err(), &["the gateway timed out"]);
    fresh(&*boxed_by_itself(&store, &gateway).unwrap_err(), &["the gateway timed out"]);
    let chain = ["may have happened", "while charging", "the gateway timed out"];
    fresh(&*boxed_with_its_chain(&store, &gateway).unwrap_err(), &chain);
    fresh(in_anyhow(&store, &gateway).unwrap_err().as_ref(), &["the gateway timed out"]);

    let released = store.operation("k").release_if(|_: &GatewayError| true).run(|_| gateway.with_enum(""));
    fresh(&released.unwrap_err(), &["the gateway timed out", "did not happen"]);
    abandon(&store, "k");
    let in_doubt = as_they_are(&store, &gateway).unwrap_err();
    assert_each_cause_once(&printed(&in_doubt), &["in doubt"]);
    let boxed = in_doubt.into_boxed();
    assert!(boxed.downcast_ref::<Error>().is_some_and(|error| matches!(error, Error::InDoubt { .. })));

    let small = common::small().max_result(3).open_in_memory().unwrap();
    let unrecorded = small.operation("k").run(|_| Ok::<_, GatewayError>("too long".to_owned())).unwrap_err();
    assert_each_cause_once(&printed(&unrecorded), &["was not recorded", "9 bytes"]);
    assert_each_cause_once(&printed(&*unrecorded.into_boxed()), &["was not recorded", "9 bytes"]);
}

#[test]
fn a_run_error_has_a_kind_and_is_retryable_or_not() {
    let store = Store::in_memory().unwrap();
    let error = as_they_are(&store, &Gateway { succeeds: false }).unwrap_err();
    assert_eq!((error.kind(), error.is_retryable()), (ErrorKind::Effect, true));
    let error = as_they_are(&store, &Gateway { succeeds: true }).unwrap_err();
    assert_eq!((error.kind(), error.is_retryable()), (ErrorKind::Answer, false));
    let nan = store.operation("n").codec(oncekey::Json).run(|_| Ok::<_, BoxError>(f64::NAN)).unwrap_err();
    assert_eq!((nan.kind(), nan.is_retryable()), (ErrorKind::Caller, false));
}
