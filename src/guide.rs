//! How to do things with oncekey, page by page.
//!
//! **Begin here**
//!
//! - [Quick start](quick_start): from an empty project to an operation that survives a crash.
//! - [Charging once](charging_once): one side effect, in a complete function for production, line by line.
//!
//! **The side effect**
//!
//! - [A provider that takes idempotency keys](provider_with_keys): `rerun()` and the token, with one sync.
//! - [A provider that does not](provider_without_keys): `reconcile` looks up what happened.
//! - [Webhooks and queues](webhooks_and_queues): an at-least-once consumer, with two syncs for each poll of 500 messages.
//! - [A job of several side effects](jobs): steps, and a worker that resumes what a crash has interrupted.
//! - [Recovering forward](recovering_forward): a step is refused for good after others are done.
//! - [Naming steps](naming_steps): by the item, across attempts and deploys.
//! - [Publishing](publishing): messages that are committed with the result, and what their consumers do.
//! - [Deadlines and fencing](deadlines_and_fencing): how another caller takes over an attempt that hangs.
//!
//! **Settings**
//!
//! - [Retention and clocks](retention_and_clocks): how long operations are remembered, and by which clock.
//! - [Choosing durability](choosing_durability): when a call returns, and how many syncs it takes.
#![cfg_attr(
    all(feature = "bincode", feature = "json"),
    doc = "- [Evolving types](evolving_types): which recorded results and requests still match after a deploy changes a type."
)]
//!
//! **In your program**
//!
//! - [Testing your own service](testing): a store in memory, a clock that the test moves, deliberate failures.
//! - [Calling it from async code](async_code): one blocking task that owns begin, side effect and completion.
//! - [Operating](operating): what to watch, how to resolve a doubt by hand, what to do when the disk fails.
//! - [Backup and restore](backup_and_restore): how to copy a store in use, and what a restored copy has forgotten.
//! - [Damage](damage): from `Corrupt` to a running store, step by step.
//! - [Forks, containers and file systems](environments): what oncekey expects of its environment.
//! - [Events](events): what is reported through `tracing`, and what to alert on.
//!
//! **Reference**
//!
//! - [Errors](errors): every error, and what to do about it.
//! - [Limits and the small print](limits): every limit, and the guarantees in full.
//! - [File format](file_format): the bytes of a store's file.
//!
//! The examples need the feature `bincode`, which is on by default, unless they say otherwise.

// In the order of the list above. Each page is a module without code, so that it has its own URL.

#[doc = include_str!("guide/quick_start.md")]
pub mod quick_start {}

#[doc = include_str!("guide/charging_once.md")]
pub mod charging_once {}

#[doc = include_str!("guide/provider_with_keys.md")]
pub mod provider_with_keys {}

#[doc = include_str!("guide/provider_without_keys.md")]
pub mod provider_without_keys {}

#[doc = include_str!("guide/webhooks_and_queues.md")]
pub mod webhooks_and_queues {}

#[doc = include_str!("guide/jobs.md")]
pub mod jobs {}

#[doc = include_str!("guide/recovering_forward.md")]
pub mod recovering_forward {}

#[doc = include_str!("guide/naming_steps.md")]
pub mod naming_steps {}

#[doc = include_str!("guide/publishing.md")]
pub mod publishing {}

#[doc = include_str!("guide/deadlines_and_fencing.md")]
pub mod deadlines_and_fencing {}

#[doc = include_str!("guide/retention_and_clocks.md")]
pub mod retention_and_clocks {}

#[doc = include_str!("guide/choosing_durability.md")]
pub mod choosing_durability {}

// This page links to both codecs, which exist only with their features.
#[doc = include_str!("guide/evolving_types.md")]
#[cfg(all(feature = "bincode", feature = "json"))]
#[cfg_attr(docsrs, doc(cfg(all(feature = "bincode", feature = "json"))))]
pub mod evolving_types {}

#[doc = include_str!("guide/testing.md")]
pub mod testing {}

#[doc = include_str!("guide/async_code.md")]
pub mod async_code {}

#[doc = include_str!("guide/operating.md")]
pub mod operating {}

#[doc = include_str!("guide/backup_and_restore.md")]
pub mod backup_and_restore {}

#[doc = include_str!("guide/damage.md")]
pub mod damage {}

#[doc = include_str!("guide/environments.md")]
pub mod environments {}

#[doc = include_str!("guide/events.md")]
pub mod events {}

#[doc = include_str!("guide/errors.md")]
pub mod errors {}

#[doc = include_str!("guide/limits.md")]
pub mod limits {}

#[doc = include_str!("format/format.md")]
pub mod file_format {}
