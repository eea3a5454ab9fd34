//! The pending messages: those that were emitted and are not acknowledged, in the order in which they are handed out, and
//! which of them are out.
//!
//! A message is identified by the version that it got when it was committed, its *id*. Like the table of unfinished
//! operations, this state holds no addresses, which are the index's: reclaiming can move a message without changing it.
//! It is filled by recovery, and changed by the write path and by the calls of the outbox. Only the engine uses it.
//!
//! Invariants, and what each prevents:
//!
//! - The messages of a topic are handed out in the order of their ids. A commit gets its ids before it is written, and
//!   commits are applied in any order, so an id is handed out only while no commit that may have a lower one is under
//!   way: see [`UnappliedIds`]. Otherwise a consumer could see id 7 before id 5.
//! - A topic has at most one delivery out. With two, the second could be published before the first.
//! - A delivery that was dropped is given back after a pause that grows with each drop, so that a message which no
//!   consumer can take does not keep a processor busy. Its topic waits for it, or messages would overtake it.
//! - A delivery whose acknowledgement failed stays out: whether the acknowledgement is on disk is known only when the
//!   store is opened again.
//! - The space for each message's acknowledgement is reserved, so that a full disk never refuses one.
//!
//! A message takes 16 bytes, and up to twice as much while the queue of its topic grows.

use std::collections::hash_map::Entry;
use std::collections::{BTreeSet, HashMap, VecDeque};

use crate::error::Result;
use crate::log::Reservation;
use crate::planted::{Bug, planted};
use crate::record::PendingMessage;
use crate::status::Version;
use crate::sync::Mutex;
use crate::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

/// The pause after the first drop of a delivery. Each further drop of the same messages doubles it.
const FIRST_PAUSE_MS: u64 = 100;
/// The maximum pause after a drop.
const MAX_PAUSE_MS: u64 = 60_000;

/// A topic with fewer messages than this never gives memory back.
const MIN_SHRUNK: usize = 64;

/// A message in the queue of its topic: the id, and the time and the length in one number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Queued {
    id: Version,
    /// The time in units of [`TIME_UNIT_MS`], above the length in units of [`LENGTH_UNIT_BYTES`].
    time_and_length: u64,
}

/// Times are rounded down to this, so that a time and a length fit 8 bytes until the year 2527.
const TIME_UNIT_MS: u64 = 16;
const LENGTH_UNIT_BYTES: u64 = crate::format::ALIGNMENT_BYTES;
/// Enough for the longest record, which is shorter than 64 MiB.
const LENGTH_BITS: u32 = 24;

impl Queued {
    fn new(message: &PendingMessage) -> Queued {
        let length = (message.length_bytes / LENGTH_UNIT_BYTES).min((1 << LENGTH_BITS) - 1);
        Queued { id: message.id, time_and_length: (message.time_ms / TIME_UNIT_MS) << LENGTH_BITS | length }
    }

    fn time_ms(self) -> u64 {
        (self.time_and_length >> LENGTH_BITS) * TIME_UNIT_MS
    }

    fn length_bytes(self) -> u64 {
        (self.time_and_length & ((1 << LENGTH_BITS) - 1)) * LENGTH_UNIT_BYTES
    }
}

/// The right of a delivery to end: which topic it is of, and which delivery of the store's session it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Ticket {
    topic: u64,
    number: u64,
}

/// The messages of a delivery.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Taken {
    pub(super) ticket: Ticket,
    /// The id of each message, and how often it was handed out in this session, this time included.
    pub(super) messages: Vec<(Version, u32)>,
}

/// The pending messages of one topic.
#[derive(Debug, Default)]
struct Topic {
    /// In the order of their ids.
    queue: VecDeque<Queued>,
    /// How often each of the first messages was handed out.
    handed_out: VecDeque<u32>,
    /// The number of the delivery that is out, and of how many messages it is.
    out: Option<(u64, usize)>,
    /// How often in a row a delivery was dropped.
    drops: u32,
    /// The store time before which nothing is handed out.
    not_before_ms: u64,
}

impl Topic {
    fn insert(&mut self, message: Queued) {
        // Commits are applied roughly in the order of their ids.
        let after = self.queue.iter().rev().take_while(|queued| queued.id > message.id).count();
        self.queue.insert(self.queue.len() - after, message);
    }

    /// Removes the first `count` messages, and returns how many bytes their records have.
    fn remove_first(&mut self, count: usize) -> u64 {
        let bytes = self.queue.drain(..count).map(Queued::length_bytes).sum();
        self.handed_out.drain(..count.min(self.handed_out.len()));
        // A queue keeps at most four times the memory that it needs.
        if self.queue.capacity() > MIN_SHRUNK && self.queue.len() < self.queue.capacity() / 4 {
            self.queue.shrink_to(2 * self.queue.len());
        }
        bytes
    }
}

#[derive(Debug)]
struct State {
    /// By the hash of the topic's name. Each has messages.
    topics: HashMap<u64, Topic>,
    /// For each commit that has ids and is not applied: the lowest of them.
    unapplied: BTreeSet<Version>,
    /// The number of deliveries so far.
    deliveries: u64,
    /// Space for the acknowledgements of all pending messages.
    room: Reservation,
}

/// The pending messages of one store.
#[derive(Debug)]
pub(super) struct PendingMessages {
    state: Mutex<State>,
    /// The number of messages, and the bytes of their records. Kept as atomics, so that they can be read in a forked
    /// child, and at each begin without a lock.
    count: AtomicUsize,
    bytes: AtomicU64,
}

impl PendingMessages {
    /// Creates the state from the messages that recovery found, and the space for their acknowledgements.
    pub(super) fn new(mut found: Vec<PendingMessage>, room: Reservation) -> PendingMessages {
        found.sort_unstable_by_key(|message| message.id);
        let mut state = State { topics: HashMap::new(), unapplied: BTreeSet::new(), deliveries: 0, room };
        let mut bytes = 0;
        // Most messages have the topic of the one before.
        for of_topic in found.chunk_by(|one, next| one.topic == next.topic) {
            let queued = of_topic.iter().map(Queued::new);
            bytes += queued.clone().map(Queued::length_bytes).sum::<u64>();
            state.topics.entry(of_topic[0].topic).or_default().queue.extend(queued);
        }
        PendingMessages {
            state: Mutex::new(state),
            count: AtomicUsize::new(found.len()),
            bytes: AtomicU64::new(bytes),
        }
    }

    /// Gives `count` ids to a commit, in order. Until the commit is applied and the returned guard is dropped, no id above
    /// them is handed out.
    ///
    /// `next` generates one version. It is called with the state locked: a commit that got its ids and is not noted here
    /// yet would be overtaken.
    pub(super) fn give_ids(
        &self,
        count: usize,
        mut next: impl FnMut() -> Result<Version>,
    ) -> Result<UnappliedIds<'_>> {
        let mut state = self.state.lock();
        let ids = (0..count).map(|_| next()).collect::<Result<Vec<_>>>()?;
        state.unapplied.extend(ids.first());
        drop(state);
        Ok(UnappliedIds { pending: self, ids })
    }

    /// Adds a message, whose record the index points to.
    pub(super) fn add(&self, message: &PendingMessage) {
        let queued = Queued::new(message);
        self.state.lock().topics.entry(message.topic).or_default().insert(queued);
        self.count.fetch_add(1, Ordering::SeqCst);
        self.bytes.fetch_add(queued.length_bytes(), Ordering::SeqCst);
    }

    /// Adds space for the acknowledgements of messages that were committed.
    pub(super) fn add_room(&self, room: Reservation) {
        self.state.lock().room.merge(room);
    }

    /// Takes `bytes` of the space for acknowledgements, or all of it if there is less.
    pub(super) fn take_room(&self, bytes: u64) -> Reservation {
        self.state.lock().room.split(bytes)
    }

    /// Takes the first messages of a topic, at most `max` of them. Returns None if there are none, if others of the topic
    /// are out, or if a delivery of it was dropped a moment ago.
    pub(super) fn take(&self, topic: u64, max: usize, now_ms: u64) -> Option<Taken> {
        let mut state = self.state.lock();
        let lowest_unapplied = state.unapplied.first().copied();
        let number = state.deliveries + 1;
        let Topic { queue, handed_out, out, not_before_ms, .. } = state.topics.get_mut(&topic)?;
        if out.is_some() || now_ms < *not_before_ms {
            return None;
        }
        let may_go = |queued: &&Queued| {
            lowest_unapplied.is_none_or(|lowest| queued.id < lowest) || planted(Bug::MessageOvertakes)
        };
        let ids: Vec<Version> = queue.iter().take(max).take_while(may_go).map(|queued| queued.id).collect();
        if ids.is_empty() {
            return None;
        }
        *out = Some((number, ids.len()));
        if handed_out.len() < ids.len() {
            handed_out.resize(ids.len(), 0);
        }
        let count = |(id, count): (Version, &mut u32)| {
            *count = count.saturating_add(1);
            (id, *count)
        };
        let messages = ids.into_iter().zip(handed_out.iter_mut()).map(count).collect();
        state.deliveries = number;
        Some(Taken { ticket: Ticket { topic, number }, messages })
    }

    /// Reduces a delivery that was not handed out yet to its first `count` messages, because the next one cannot be read.
    /// None are left of one that is reduced to nothing: the topic is then as if nothing had been taken.
    pub(super) fn reduce(&self, ticket: Ticket, count: usize) {
        let mut state = self.state.lock();
        let Some((topic, taken)) = state.out_of(ticket) else { return };
        for handed_out in topic.handed_out.range_mut(count..taken) {
            *handed_out = handed_out.saturating_sub(1);
        }
        topic.out = (count > 0).then_some((ticket.number, count));
    }

    /// Gives the messages of a delivery back. They are handed out again after a pause.
    pub(super) fn give_back(&self, ticket: Ticket, now_ms: u64) {
        let mut state = self.state.lock();
        let Some((topic, _)) = state.out_of(ticket) else { return };
        let pause_ms = FIRST_PAUSE_MS.saturating_mul(1 << topic.drops.min(20)).min(MAX_PAUSE_MS);
        topic.out = None;
        topic.drops += 1;
        topic.not_before_ms = now_ms.saturating_add(pause_ms);
    }

    /// Removes the messages of a delivery, which are acknowledged: their acknowledgements are written, and the index does
    /// not point to them any more.
    pub(super) fn remove(&self, ticket: Ticket) {
        let mut state = self.state.lock();
        let Some((topic, count)) = state.out_of(ticket) else { return };
        let bytes = topic.remove_first(count);
        (topic.out, topic.drops, topic.not_before_ms) = (None, 0, 0);
        if let Entry::Occupied(topic) = state.topics.entry(ticket.topic)
            && topic.get().queue.is_empty()
        {
            topic.remove();
        }
        self.count.fetch_sub(count, Ordering::SeqCst);
        self.bytes.fetch_sub(bytes, Ordering::SeqCst);
    }

    /// The ids of a topic's messages, in order. For tests: hands nothing out.
    #[cfg(feature = "__simulation")]
    pub(super) fn ids(&self, topic: u64) -> Vec<Version> {
        let state = self.state.lock();
        state.topics.get(&topic).into_iter().flat_map(|topic| &topic.queue).map(|queued| queued.id).collect()
    }

    /// The number of messages, and the bytes of their records. Takes no lock.
    pub(super) fn counts(&self) -> (usize, u64) {
        (self.count.load(Ordering::SeqCst), self.bytes.load(Ordering::SeqCst))
    }

    /// When the oldest message was emitted, to within 16 ms. None if there is none.
    pub(super) fn oldest_ms(&self) -> Option<u64> {
        let state = self.state.lock();
        state.topics.values().filter_map(|topic| topic.queue.front()).map(|first| first.time_ms()).min()
    }

    /// The number of messages for which memory is allocated.
    #[cfg(test)]
    fn capacity(&self) -> usize {
        self.state.lock().topics.values().map(|topic| topic.queue.capacity()).sum()
    }
}

impl State {
    /// The topic of a delivery that is out, and the number of its messages.
    fn out_of(&mut self, ticket: Ticket) -> Option<(&mut Topic, usize)> {
        let topic = self.topics.get_mut(&ticket.topic)?;
        let (number, count) = topic.out?;
        (number == ticket.number).then_some((topic, count))
    }
}

/// The ids of the messages of a commit that is not applied yet. Dropping it, after the commit was applied or failed, lets
/// the outbox hand out ids above them.
#[derive(Debug)]
#[must_use = "messages with higher ids may be handed out once this is dropped"]
pub(super) struct UnappliedIds<'a> {
    pending: &'a PendingMessages,
    /// In the order of emission.
    pub(super) ids: Vec<Version>,
}

impl Drop for UnappliedIds<'_> {
    fn drop(&mut self) {
        if let Some(lowest) = self.ids.first() {
            self.pending.state.lock().unapplied.remove(lowest);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::log::reservations::{FreeSpace, ReservationClass, SpaceReservations};

    const A: u64 = 1 << 63 | 1;
    const B: u64 = 1 << 63 | 2;

    fn room(bytes: u64) -> Reservation {
        let reservations = Arc::new(SpaceReservations::new(64 << 10, 16 << 10));
        reservations.update(FreeSpace { tail_bytes: 60_000, free_slots: 3, full_segments: 0 }, 0);
        reservations.reservation(bytes, ReservationClass::Forget).unwrap()
    }

    fn id(number: u64) -> Version {
        Version::from_u64(number)
    }

    fn message(number: u64, topic: u64) -> PendingMessage {
        PendingMessage { id: id(number), topic, time_ms: 1_600 + 16 * number, length_bytes: 96 }
    }

    fn pending(messages: &[(u64, u64)]) -> PendingMessages {
        let found = messages.iter().map(|(number, topic)| message(*number, *topic)).collect();
        PendingMessages::new(found, room(0))
    }

    /// The numbers of the messages that are taken, and how often each was handed out.
    fn take(
        pending: &PendingMessages,
        topic: u64,
        max: usize,
        now_ms: u64,
    ) -> Option<(Ticket, Vec<(u64, u32)>)> {
        let Taken { ticket, messages } = pending.take(topic, max, now_ms)?;
        Some((ticket, messages.into_iter().map(|(id, count)| (id.as_u64(), count)).collect()))
    }

    #[test]
    fn messages_are_handed_out_by_topic_in_the_order_of_their_ids() {
        let pending = pending(&[(4, A), (1, A), (3, B), (2, A)]);
        let (first, ids) = take(&pending, A, 2, 0).unwrap();
        assert_eq!(ids, [(1, 1), (2, 1)]);
        assert_eq!(take(&pending, A, 1, 0), None, "a delivery of the topic is out");
        let (other, ids) = take(&pending, B, 9, 0).unwrap();
        assert_eq!(ids, [(3, 1)], "another topic does not wait");
        pending.remove(first);
        assert_eq!(take(&pending, A, 9, 0).unwrap().1, [(4, 1)]);
        pending.remove(other);
        assert_eq!(take(&pending, B, 9, 0), None);
        assert_eq!(pending.counts(), (1, 96));
    }

    #[test]
    fn no_id_is_handed_out_while_a_lower_one_may_be_added() {
        let pending = pending(&[(1, A)]);
        let mut next = 1;
        let mut next_id = || {
            next += 1;
            Ok(id(next))
        };
        let slow = pending.give_ids(2, &mut next_id).unwrap();
        assert_eq!(slow.ids, [id(2), id(3)]);
        let fast = pending.give_ids(1, &mut next_id).unwrap();
        pending.add(&message(4, A));
        drop(fast);
        let (ticket, ids) = take(&pending, A, 9, 0).unwrap();
        assert_eq!(ids, [(1, 1)], "2 and 3 are not applied");
        pending.remove(ticket);
        assert_eq!(take(&pending, A, 9, 0), None);
        pending.add(&message(3, B));
        pending.add(&message(2, A));
        assert_eq!(take(&pending, A, 9, 0), None, "the commit is not applied as a whole");
        assert_eq!(take(&pending, B, 9, 0), None);
        drop(slow);
        assert_eq!(take(&pending, A, 9, 0).unwrap().1, [(2, 1), (4, 1)]);
        assert_eq!(take(&pending, B, 9, 0).unwrap().1, [(3, 1)]);
    }

    #[test]
    fn ids_of_a_commit_that_failed_hold_nothing_up() {
        let pending = pending(&[(7, A)]);
        let failed: Result<UnappliedIds<'_>> = pending.give_ids(1, || Err(crate::Error::Closed));
        assert!(failed.is_err());
        drop(pending.give_ids(1, || Ok(id(3))).unwrap());
        drop(pending.give_ids(0, || Ok(id(4))).unwrap());
        assert_eq!(take(&pending, A, 9, 0).unwrap().1, [(7, 1)]);
    }

    #[test]
    fn a_dropped_delivery_is_handed_out_again_after_a_growing_pause() {
        let pending = pending(&[(1, A), (2, A), (3, A)]);
        let mut now_ms = 5_000;
        let mut pauses = Vec::new();
        for turn in 1..=12 {
            let (ticket, ids) = take(&pending, A, 2, now_ms).unwrap();
            assert_eq!(ids, [(1, turn), (2, turn)]);
            pending.give_back(ticket, now_ms);
            let pause_ms = (0..).find(|after| take_and_undo(&pending, now_ms + after)).unwrap();
            pauses.push(pause_ms);
            now_ms += pause_ms;
        }
        assert_eq!(pauses[..4], [100, 200, 400, 800]);
        assert_eq!(pauses[10..], [60_000, 60_000]);
        let (ticket, ids) = take(&pending, A, 3, now_ms).unwrap();
        assert_eq!(ids, [(1, 13), (2, 13), (3, 1)]);
        pending.remove(ticket);
        pending.add(&message(4, A));
        let (ticket, ids) = take(&pending, A, 3, 0).unwrap();
        assert_eq!(ids, [(4, 1)], "the pause ends with the acknowledgement");
        pending.give_back(ticket, now_ms);
        assert!(take_and_undo(&pending, now_ms + 100), "and the next one is short again");
    }

    /// Whether something can be taken from topic A at this time.
    fn take_and_undo(pending: &PendingMessages, now_ms: u64) -> bool {
        let taken = pending.take(A, 1, now_ms);
        taken.iter().for_each(|taken| pending.reduce(taken.ticket, 0));
        taken.is_some()
    }

    #[test]
    fn what_cannot_be_read_counts_as_not_handed_out() {
        let pending = pending(&[(1, A), (2, A), (3, A)]);
        let (ticket, _) = take(&pending, A, 3, 0).unwrap();
        pending.reduce(ticket, 2);
        assert_eq!(take(&pending, A, 3, 0), None, "two are out");
        pending.give_back(ticket, 0);
        let (ticket, ids) = take(&pending, A, 3, 100).unwrap();
        assert_eq!(ids, [(1, 2), (2, 2), (3, 1)]);
        pending.reduce(ticket, 0);
        let (ticket, ids) = take(&pending, A, 1, 100).unwrap();
        assert_eq!(ids, [(1, 2)], "without a pause");
        pending.remove(ticket);
        assert_eq!(pending.counts().0, 2);
    }

    #[test]
    fn a_delivery_that_has_ended_changes_nothing_any_more() {
        let pending = pending(&[(1, A), (2, A)]);
        let (ended, _) = take(&pending, A, 1, 0).unwrap();
        pending.give_back(ended, 0);
        let (out, _) = take(&pending, A, 1, 100).unwrap();
        pending.give_back(ended, 100);
        pending.remove(ended);
        pending.reduce(ended, 0);
        assert_eq!(take(&pending, A, 1, 1_000_000), None, "the second one is out");
        pending.remove(out);
        pending.remove(out);
        assert_eq!(pending.counts(), (1, 96));
    }

    #[test]
    fn a_delivery_that_is_neither_removed_nor_given_back_stays_out() {
        let pending = pending(&[(1, A), (2, A)]);
        let _failed = take(&pending, A, 1, 0).unwrap();
        assert_eq!(take(&pending, A, 1, u64::MAX), None);
        assert_eq!(pending.counts(), (2, 192));
    }

    #[test]
    fn messages_are_counted_with_their_bytes_and_the_oldest() {
        let pending = pending(&[]);
        assert_eq!((pending.counts(), pending.oldest_ms()), ((0, 0), None));
        let time_ms = 1_700_000_000_005;
        pending.add(&PendingMessage { id: id(2), topic: A, time_ms, length_bytes: 64 << 20 });
        assert_eq!(pending.oldest_ms(), Some(1_700_000_000_000), "rounded down to 16 ms");
        pending.add(&PendingMessage { id: id(1), topic: B, time_ms: 900_000, length_bytes: 80 });
        assert_eq!((pending.counts(), pending.oldest_ms()), ((2, (64 << 20) + 80), Some(900_000)));
        let (ticket, _) = take(&pending, B, 1, 0).unwrap();
        pending.remove(ticket);
        assert_eq!((pending.counts(), pending.oldest_ms()), ((1, 64 << 20), Some(1_700_000_000_000)));
        let (ticket, _) = take(&pending, A, 1, 0).unwrap();
        pending.remove(ticket);
        assert_eq!((pending.counts(), pending.oldest_ms()), ((0, 0), None));
        assert!(pending.state.lock().topics.is_empty());
    }

    #[test]
    fn the_room_of_an_acknowledgement_is_given_out_once() {
        let pending = PendingMessages::new(Vec::new(), room(184));
        let other = pending.take_room(100);
        assert_eq!(other.bytes(), 100);
        assert_eq!(pending.take_room(184).bytes(), 84);
        pending.add_room(other);
        assert_eq!(pending.take_room(184).bytes(), 100);
    }

    #[test]
    fn a_queue_gives_its_memory_back() {
        let pending = PendingMessages::new((0..100_000).map(|number| message(number, A)).collect(), room(0));
        assert!(size_of::<Queued>() == 16 && pending.capacity() <= 200_000);
        while pending.counts().0 > 1 {
            let max = (pending.counts().0 - 1).min(1_000);
            let (ticket, _) = take(&pending, A, max, 0).unwrap();
            pending.remove(ticket);
        }
        assert!(pending.capacity() <= 2 * MIN_SHRUNK, "{}", pending.capacity());
    }
}
