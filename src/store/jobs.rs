//! The calls on operations with steps or an input.

use serde::Serialize;
use serde::de::DeserializeOwned;

use super::Store;
use crate::codec::{Codec, CodecError};
use crate::engine::Resumable;
use crate::error::{Error, Result};
use crate::format::record::Typing;
use crate::key::AnyKey;
use crate::listed_step::ListedStep;
use crate::operation::Operation;
use crate::typed;

impl Store {
    /// Returns the [input](Operation::input) of an unfinished operation, and a builder that goes on with it. Needs only the
    /// key. For a worker that takes up what a crash has left: see [`unfinished`](Store::unfinished).
    ///
    /// Returns `None` if the operation has ended meanwhile, or never began.
    ///
    /// The builder has the request that is recorded, whatever it was. Run it as the first caller would, with the same policy,
    /// best by the same function of the program. It goes on with this one operation: if the operation is completed meanwhile,
    /// `run` returns the recorded result; if it was released or [forgotten](Store::forget), even if another one has begun
    /// under the key since, `run` is [`Error::Fenced`] and begins nothing.
    ///
    /// ```
    /// use oncekey::{Operation, Outcome, Store};
    ///
    /// /// The job, for a new order and for one that was left unfinished.
    /// fn fulfil(operation: Operation<'_>, items: &[String]) -> Option<usize> {
    ///     let outcome = operation.rerun().run(|job| {
    ///         if job.number() == 1 { Err("crashed") } else { Ok(items.len()) }
    ///     });
    ///     outcome.ok().map(Outcome::into_inner)
    /// }
    ///
    /// let store = Store::in_memory()?;
    /// let items = vec!["lamp".to_owned(), "desk".to_owned()];
    /// assert_eq!(fulfil(store.operation("order-7").input(&items), &items), None);
    ///
    /// let (stored, resumed) = store.resume::<Vec<String>>("order-7")?.expect("it is unfinished");
    /// assert_eq!(fulfil(resumed, &stored), Some(2));
    /// assert!(store.resume::<Vec<String>>("order-7")?.is_none(), "it is completed");
    /// # Ok::<(), oncekey::Error>(())
    /// ```
    ///
    /// # Errors
    ///
    /// - [`Error::NoInput`]: the operation was begun without an input.
    /// - [`Error::Decode`]: the input is of a different type, or was encoded with a codec that is not one of this crate's: see
    ///   [`resume_with`](Store::resume_with). Nothing has begun.
    /// - [`Error::Key`], [`Error::Poisoned`], [`Error::Corrupt`], [`Error::Io`], [`Error::Closed`], [`Error::Forked`].
    pub fn resume<'a, I>(&'a self, key: impl Into<AnyKey<'a>>) -> Result<Option<(I, Operation<'a>)>>
    where
        I: Serialize + DeserializeOwned,
    {
        self.resume_as(key.into(), |bytes, typing| typed::decode_as(typing, bytes))
    }

    /// Resumes an operation like [`resume`](Store::resume), with an input that is decoded with `codec`. The result has the
    /// codec that [`Operation::codec`] sets.
    ///
    /// # Errors
    ///
    /// Those of [`resume`](Store::resume).
    pub fn resume_with<'a, C: Codec, I>(
        &'a self,
        codec: &C,
        key: impl Into<AnyKey<'a>>,
    ) -> Result<Option<(I, Operation<'a>)>>
    where
        I: Serialize + DeserializeOwned,
    {
        self.resume_as(key.into(), |bytes, typing| typed::decode(codec, bytes, typing))
    }

    fn resume_as<'a, I>(
        &'a self,
        key: AnyKey<'a>,
        decode: impl FnOnce(&[u8], Option<Typing>) -> std::result::Result<I, CodecError>,
    ) -> Result<Option<(I, Operation<'a>)>> {
        let Some(Resumable { begun, input }) = self.engine.resumable(key.as_key())? else { return Ok(None) };
        let Some(input) = input else { return Err(Error::NoInput { key: key.as_key().to_owned() }) };
        let decoded = decode(input.result.as_deref().unwrap_or_default(), input.typing);
        let input = decoded.map_err(|source| Error::decode(key.as_key(), source))?;
        Ok(Some((input, Operation::going_on(&self.engine, key, &begun))))
    }

    /// Makes `key` absent as [`forget`](Store::forget) does, and returns the steps of its operation, all of which are given up
    /// with it. Returns `None` if the key was already absent.
    ///
    /// The steps that are done happened, and those in doubt may have happened. The list is all that is left of them, so an
    /// operator who forgets an operation can undo them.
    ///
    /// ```
    /// use oncekey::{Status, Store};
    ///
    /// let store = Store::in_memory()?;
    /// let stopped = store.operation("order-7").run(|job| {
    ///     job.step("charge").run(|_| Ok::<u64, String>(17)).map_err(|error| error.to_string())?;
    ///     Err::<(), _>("no such address".to_owned())
    /// });
    /// assert!(stopped.is_err());
    /// let steps = store.forget_with_steps("order-7")?.expect("it was there");
    /// assert_eq!((steps[0].name(), steps[0].status()), (&b"charge"[..], Status::Completed), "to be refunded");
    /// assert!(store.forget_with_steps("order-7")?.is_none());
    /// # Ok::<(), oncekey::Error>(())
    /// ```
    ///
    /// # Errors
    ///
    /// Those of [`forget`](Store::forget). A step whose record cannot be read is missing in the list, and does not prevent the
    /// forget; [`UnfinishedOperation::unreadable_steps`](crate::UnfinishedOperation::unreadable_steps) counts those before.
    pub fn forget_with_steps<'a>(&self, key: impl Into<AnyKey<'a>>) -> Result<Option<Vec<ListedStep>>> {
        let key = key.into();
        let forgotten = self.engine.forget_with_steps(key.as_key(), &self.engine.settings().terms, true)?;
        let steps = forgotten.steps.into_iter().flatten();
        let steps = steps.map(|step| ListedStep::new(key.as_key(), step)).collect();
        Ok(forgotten.was_present.then_some(steps))
    }
}
