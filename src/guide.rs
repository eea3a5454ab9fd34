//! How to do things with oncekey, page by page.

#[doc = include_str!("guide/charging_once.md")]
#[cfg(feature = "bincode")]
#[cfg_attr(docsrs, doc(cfg(feature = "bincode")))]
pub mod charging_once {}

#[doc = include_str!("guide/evolving_types.md")]
#[cfg(all(feature = "bincode", feature = "json"))]
#[cfg_attr(docsrs, doc(cfg(all(feature = "bincode", feature = "json"))))]
pub mod evolving_types {}
