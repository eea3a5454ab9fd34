//! Mapped memory: a read-only view of a range of the file, words of no file, and a page that a forked child finds empty.
//!
//! The crate has unsafe code here and in `log/reader.rs`, which alone looks at mapped records and says why it may.

#![allow(unsafe_code, reason = "looking at mapped memory goes through a raw pointer")]

use memmap2::{Advice, Mmap, MmapMut, MmapOptions, MmapRaw};
use std::fmt;
use std::fs::File;
use std::io;
use std::ops::{Deref, DerefMut};
use std::slice;
#[cfg(any(target_os = "linux", target_os = "android"))]
use std::sync::atomic::{AtomicU32, Ordering};

/// A shared, read-only mapping of a range of the file, looked at in short slices.
///
/// # Contract
///
/// The file goes on being written while it is mapped, so no `&[u8]` over the whole mapping is ever made: it
/// would promise the compiler that none of those bytes change. [`Map::read`] makes one over the asked bytes
/// only and for one call only, and is unsafe because the caller must keep those bytes from being written meanwhile.
/// They must also lie within the file as it is now: the range of a map may reach beyond the end of the file, and a
/// file that grows into it is seen, but looking beyond the end raises SIGBUS.
///
/// A write through the file is visible in the map once it has returned; both are views of the same page
/// cache.
///
/// # Hazards
///
/// A file that something else cuts short, and a medium that cannot read a page, raise SIGBUS at the moment of
/// looking, which by default ends the process. A file that something else overwrites breaks the promise of
/// immutability; the lock on the file keeps out other stores, and nothing keeps out other programs.
/// `Options::mmap(false)` reads through the file instead and gets errors in place of signals.
///
/// # Lifetime
///
/// The mapping stays valid after the file is closed, until it is dropped. On Linux it also keeps the file's
/// lock for that long, because the lock belongs to the open file, which the mapping refers to.
pub(crate) struct Map {
    /// Raw on purpose: unlike `memmap2::Mmap` it never turns into a slice by itself.
    memory: MmapRaw,
}

impl Map {
    /// Maps `length` bytes of `file` from `offset`, which need not be aligned to anything.
    ///
    /// # Errors
    ///
    /// A range that ends beyond the largest offset, or whatever the operating system says: no memory, too
    /// many mappings, a file system that cannot map.
    pub(crate) fn new(file: &File, offset: u64, length: usize) -> io::Result<Map> {
        // memmap2 casts the offset to a signed number, and what is unsafe below rests on the length: both are
        // checked here, so as not to depend on what a version of it or a system refuses by itself.
        let mappable = isize::try_from(length).is_ok()
            && u64::try_from(length)
                .ok()
                .and_then(|length| offset.checked_add(length))
                .is_some_and(|end| i64::try_from(end).is_ok());
        if !mappable {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "the range cannot be mapped"));
        }

        let memory = MmapOptions::new().offset(offset).len(length).map_raw_read_only(file)?;

        // A lookup touches one record, and the next lookup touches another at a place that has nothing to do
        // with it: reading ahead would fetch, and push out of the cache, many pages for each one that is
        // needed. Those who read in order (scan, retire, verify) use `read_at`, whose reading ahead this does
        // not change. It is a hint, so a system that refuses it is no worse a place to run.
        let _ = memory.advise(Advice::Random);

        Ok(Map { memory })
    }

    /// The length in bytes.
    pub(crate) fn len(&self) -> usize {
        self.memory.len()
    }

    /// Shows `length` bytes at `offset` of the map to `read`; `None` if they do not all lie within the map.
    ///
    /// # Safety
    ///
    /// Until `read` returns, nothing writes to the file at those bytes: no other thread of this process, and `read`
    /// itself neither. Writes that returned before are harmless if they happened before this call, in the sense of the
    /// memory model: the thread that made them has published since that they are done.
    ///
    /// The bytes must lie within the file too, but only so that the process is not ended by SIGBUS.
    pub(crate) unsafe fn read<R>(
        &self,
        offset: usize,
        length: usize,
        read: impl FnOnce(&[u8]) -> R,
    ) -> Option<R> {
        let end = offset.checked_add(length)?;
        if end > self.memory.len() {
            return None;
        }
        #[cfg(test)]
        tests::FURTHEST.set(tests::FURTHEST.get().max(end));

        // SAFETY:
        // - In bounds: `offset <= end <= memory.len()` was checked just now, and `memory` is one mapping of
        //   at least `memory.len()` bytes, which `new` bounded by `isize::MAX`; so neither the addition nor
        //   the slice leaves the allocation, and for `length == 0` the pointer is at most one past its end
        //   and never null.
        // - Alive: the mapping is removed only when `memory` is dropped, and `&self` forbids that until this
        //   function returns. The slice cannot outlast it: `read` must accept every lifetime, so it cannot
        //   keep its argument.
        // - Initialised and aligned: every byte of a mapped page is initialised by the kernel, and bytes have
        //   no alignment. A page behind which there is no file (any more) raises SIGBUS instead of giving a
        //   value: the process is stopped, not misled.
        // - Not written meanwhile: nothing can write through this mapping, it is PROT_READ and its pointer
        //   does not leave this module. Writes through the file, by this process, are what the caller rules
        //   out for the bytes asked for, and the lock on the file rules out other stores. The slice covers
        //   no byte beyond those asked for, so writes next to it do not matter.
        let bytes = unsafe { slice::from_raw_parts(self.memory.as_ptr().add(offset), length) };
        Some(read(bytes))
    }
}

impl fmt::Debug for Map {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Map").field("len", &self.len()).finish_non_exhaustive()
    }
}

/// Addresses that a thread takes beside its stack: the C library of Linux reserves 128 MiB when a thread first asks for
/// memory, and gives half of them back; and the least that its work takes.
const THREAD_BYTES: usize = 132 << 20;
/// Mappings that a thread takes: its stack, the stack for its signals and its memory, each with a guard beside it.
const THREAD_MAPPINGS: usize = 8;

/// How many of `wanted` threads there is room for now, each with a stack of `stack_bytes`: addresses, and mappings.
///
/// Another thread may take the room at any time, so this is no promise. Where it says too few, because a system counts what is
/// only reserved as memory that is used, work goes on with fewer threads.
pub(crate) fn threads_with_room(wanted: usize, stack_bytes: usize) -> usize {
    (1..=wanted).rev().find(|threads| is_room_for(*threads, stack_bytes)).unwrap_or(0)
}

fn is_room_for(threads: usize, stack_bytes: usize) -> bool {
    let bytes = threads.saturating_mul(THREAD_BYTES.saturating_add(stack_bytes));
    let Ok(_addresses) = MmapOptions::new().len(bytes).no_reserve_swap().map_anon() else { return false };
    // Every second one is read-only, or they would become one mapping.
    let mapping = |number: usize| -> io::Result<(Option<MmapMut>, Option<Mmap>)> {
        let page = MmapMut::map_anon(1)?;
        Ok(if number.is_multiple_of(2) { (Some(page), None) } else { (None, Some(page.make_read_only()?)) })
    };
    let mappings: io::Result<Vec<_>> = (0..threads * THREAD_MAPPINGS).map(mapping).collect();
    mappings.is_ok()
}

/// From how many bytes on [`Words`] are a mapping of their own: a page, which is the least that a mapping takes.
fn least_mapped_bytes() -> usize {
    #[cfg(any(target_os = "linux", target_os = "android"))]
    return rustix::param::page_size();
    // As large as pages are anywhere else.
    #[cfg(not(any(target_os = "linux", target_os = "android")))]
    return 16 * 1024;
}

/// Words of memory, all zero at first.
///
/// Many of them are a mapping of their own and go back to the operating system, to the page, as soon as they are dropped.
/// On the heap, tables that grow one after another leave holes that the next one, being larger, does not fit into. They were
/// a seventh of the memory of an index of ten million keys; and as much as the index of a million itself as long as tables of
/// up to 32 KiB came from the heap.
#[derive(Debug)]
pub(crate) struct Words(Memory);

#[derive(Debug)]
enum Memory {
    Heap(Box<[u64]>),
    Mapped(MmapMut),
}

impl Words {
    /// So many words.
    ///
    /// Where the operating system makes no mapping, they come from the heap.
    pub(crate) fn zeroed(count: usize) -> Words {
        let bytes = count.saturating_mul(size_of::<u64>());
        // What is unsafe below rests on the upper bound too.
        let is_mappable = bytes >= least_mapped_bytes() && isize::try_from(bytes).is_ok();
        let mapped = is_mappable.then(|| MmapMut::map_anon(bytes).ok()).flatten();
        Words(mapped.map_or_else(|| Memory::Heap(vec![0; count].into()), Memory::Mapped))
    }
}

impl Default for Words {
    fn default() -> Words {
        Words::from(Vec::new())
    }
}

impl From<Vec<u64>> for Words {
    /// These words, in the memory in which they are; what it had room for beside them is given back.
    fn from(words: Vec<u64>) -> Words {
        Words(Memory::Heap(words.into_boxed_slice()))
    }
}

impl Deref for Words {
    type Target = [u64];

    #[inline]
    fn deref(&self) -> &[u64] {
        match &self.0 {
            Memory::Heap(words) => words,
            Memory::Mapped(memory) => {
                let count = memory.len() / size_of::<u64>();
                // SAFETY:
                // - In bounds and alive: `memory` is one mapping of `memory.len()` bytes, at most `isize::MAX`, which are at
                //   least those of `count` words; it is removed only when it is dropped, which the borrow of `self` forbids.
                // - Aligned: a mapping begins at a page.
                // - Initialised: the kernel fills pages of no file with zeroes, and every pattern of bits is a `u64`.
                // - Not written meanwhile: the mapping is private to this process and its pointer does not leave this
                //   module but in a borrow of `self`, of which a mutable one is the only one.
                unsafe { slice::from_raw_parts(memory.as_ptr().cast(), count) }
            }
        }
    }
}

impl DerefMut for Words {
    #[inline]
    fn deref_mut(&mut self) -> &mut [u64] {
        match &mut self.0 {
            Memory::Heap(words) => words,
            Memory::Mapped(memory) => {
                let count = memory.len() / size_of::<u64>();
                // SAFETY: as in `deref`; the mapping can be written to, and nobody else looks at it while `self` is borrowed
                // mutably.
                unsafe { slice::from_raw_parts_mut(memory.as_mut_ptr().cast(), count) }
            }
        }
    }
}

/// Tells the process that made it from one that was forked from it.
///
/// On Linux it is a page that the kernel hands empty to a child: to look at it costs a load. Elsewhere, and where the
/// kernel is older than 4.14 or refuses, it is the process id: a system call at every look.
#[derive(Debug)]
pub(crate) struct ForkMark(Mark);

#[derive(Debug)]
enum Mark {
    /// The first word is 1, and 0 in a child.
    #[cfg(any(target_os = "linux", target_os = "android"))]
    Page(MmapRaw),
    Process(u32),
}

impl ForkMark {
    /// A mark of this process.
    pub(crate) fn new() -> ForkMark {
        #[cfg(any(target_os = "linux", target_os = "android"))]
        if let Some(page) = page_wiped_on_fork() {
            return ForkMark(Mark::Page(page));
        }
        ForkMark(Mark::Process(std::process::id()))
    }

    /// Whether this is another process than the one that made the mark.
    #[inline]
    pub(crate) fn has_forked(&self) -> bool {
        match &self.0 {
            #[cfg(any(target_os = "linux", target_os = "android"))]
            Mark::Page(page) => {
                // SAFETY:
                // - In bounds and alive: the mapping is a page, larger than a word, and is removed only when `page` is
                //   dropped, which the borrow of `self` forbids. The reference does not outlast this expression.
                // - Aligned and initialised: a mapping begins at a page, and every pattern of bits is a `u32`.
                // - Written by nobody else in this process: the only write was made before the mark existed, and is
                //   atomic as this is. The kernel empties the child's copy before the child runs.
                let word = unsafe { AtomicU32::from_ptr(page.as_mut_ptr().cast()) };
                word.load(Ordering::Relaxed) == 0
            }
            Mark::Process(id) => *id != std::process::id(),
        }
    }
}

/// A page whose first word is 1 and that the kernel hands empty to a child; None where it does not do that.
#[cfg(any(target_os = "linux", target_os = "android"))]
fn page_wiped_on_fork() -> Option<MmapRaw> {
    let page = MmapRaw::from(MmapMut::map_anon(rustix::param::page_size()).ok()?);
    // SAFETY: the range is exactly the mapping that was made just now, of which there is no reference; the advice changes
    // nothing in this process.
    let advised = unsafe {
        rustix::mm::madvise(page.as_mut_ptr().cast(), page.len(), rustix::mm::Advice::LinuxWipeOnFork)
    };
    advised.ok()?;
    // SAFETY: in bounds, aligned and initialised as in `has_forked`; the mapping can be written to, and nobody else knows of it.
    let word = unsafe { AtomicU32::from_ptr(page.as_mut_ptr().cast()) };
    word.store(1, Ordering::Relaxed);
    Some(page)
}

#[cfg(test)]
pub(crate) mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

    use super::*;
    use std::cell::Cell;
    use std::os::unix::fs::FileExt;

    thread_local! {
        /// The furthest end of any slice of a map that this thread was shown.
        pub(crate) static FURTHEST: Cell<usize> = const { Cell::new(0) };
    }

    impl Map {
        /// [`Map::read`] for tests: what they map, they write from the same thread, never while they read.
        pub(crate) fn look<R>(
            &self,
            offset: usize,
            length: usize,
            read: impl FnOnce(&[u8]) -> R,
        ) -> Option<R> {
            // SAFETY: nothing writes meanwhile, as said above.
            unsafe { self.read(offset, length, read) }
        }
    }

    const LENGTH: usize = 64 * 1024;

    fn file_of_zeroes() -> File {
        let file = tempfile::tempfile().unwrap();
        file.set_len(LENGTH as u64).unwrap();
        file
    }

    #[test]
    fn a_map_may_go_to_and_be_read_by_any_thread() {
        fn assert_send_and_sync<T: Send + Sync>() {}
        assert_send_and_sync::<Map>();
    }

    #[test]
    fn a_map_sees_bytes_that_are_written_through_the_file_afterwards() {
        let file = file_of_zeroes();
        let map = Map::new(&file, 0, LENGTH).unwrap();
        assert_eq!(map.look(40_000, 3, <[u8]>::to_vec).unwrap(), [0; 3]);
        file.write_all_at(b"new", 40_000).unwrap();
        assert_eq!(map.look(40_000, 3, <[u8]>::to_vec).unwrap(), b"new");
    }

    #[test]
    fn a_map_may_begin_anywhere_and_counts_from_there() {
        let file = file_of_zeroes();
        file.write_all_at(b"here", 5_001).unwrap();
        let map = Map::new(&file, 5_000, 5).unwrap();
        assert_eq!(map.len(), 5);
        assert_eq!(map.look(0, 5, <[u8]>::to_vec).unwrap(), b"\0here");
    }

    #[test]
    fn bytes_out_of_bounds_are_none_and_the_reader_is_not_called() {
        let file = file_of_zeroes();
        let map = Map::new(&file, 0, 100).unwrap();
        for (offset, length) in [(0, 101), (100, 1), (101, 0), (99, 2), (1, usize::MAX), (usize::MAX, 1)] {
            let answer = map.look(offset, length, |_| panic!("read out of bounds at {offset}"));
            assert!(answer.is_none());
        }
        assert_eq!(map.look(100, 0, <[u8]>::len), Some(0));
        assert_eq!(map.look(0, 100, <[u8]>::len), Some(100));
    }

    #[test]
    fn an_empty_map_has_nothing_to_read() {
        let map = Map::new(&file_of_zeroes(), 0, 0).unwrap();
        assert_eq!(map.look(0, 0, <[u8]>::len), Some(0));
        assert_eq!(map.look(0, 1, <[u8]>::len), None);
    }

    #[test]
    fn a_range_that_cannot_be_mapped_is_an_error_and_not_a_panic() {
        let file = file_of_zeroes();
        for (offset, length) in
            [(0, usize::MAX), (u64::MAX, 1), (i64::MAX as u64, 1), (1, isize::MAX as usize), (1, usize::MAX)]
        {
            assert!(Map::new(&file, offset, length).is_err(), "offset {offset}, length {length}");
        }
    }

    #[test]
    fn a_map_made_ahead_of_the_end_sees_the_file_grow_into_it() {
        let file = tempfile::tempfile().unwrap();
        let map = Map::new(&file, 0, LENGTH).unwrap();
        file.write_all_at(b"grown", 0).unwrap();
        assert_eq!(map.look(0, 5, <[u8]>::to_vec).unwrap(), b"grown");
    }

    #[test]
    fn what_was_cut_off_and_grown_again_reads_as_zeroes_through_an_existing_map() {
        let file = file_of_zeroes();
        file.write_all_at(&vec![0xff; LENGTH], 0).unwrap();
        let map = Map::new(&file, 0, LENGTH).unwrap();
        assert!(map.look(0, LENGTH, |bytes| bytes.iter().all(|&byte| byte == 0xff)).unwrap());

        file.set_len(10).unwrap();
        file.set_len(LENGTH as u64).unwrap();

        assert_eq!(map.look(8, 4, <[u8]>::to_vec).unwrap(), [0xff, 0xff, 0, 0]);
        assert!(map.look(10, LENGTH - 10, |bytes| bytes.iter().all(|&byte| byte == 0)).unwrap());
    }

    #[test]
    fn a_map_outlives_the_handle_it_was_made_from() {
        let file = file_of_zeroes();
        file.write_all_at(b"still here", 0).unwrap();
        let map = Map::new(&file, 0, LENGTH).unwrap();
        drop(file);
        assert_eq!(map.look(0, 10, <[u8]>::to_vec).unwrap(), b"still here");
    }

    #[test]
    fn there_is_no_room_for_more_threads_than_there_are_addresses() {
        assert_eq!(threads_with_room(0, 1 << 20), 0);
        assert_eq!(threads_with_room(1, 1 << 20), 1);
        // Of addresses of 47 bits.
        assert_eq!(threads_with_room(2, 1 << 46), 1);
        assert_eq!(threads_with_room(3, usize::MAX), 0);
    }

    #[test]
    fn words_are_zero_and_keep_what_is_written_whether_they_are_few_or_a_mapping() {
        let least_mapped = least_mapped_bytes() / size_of::<u64>();
        for count in [0, 1, least_mapped - 1, least_mapped, least_mapped + 1, 3 * least_mapped + 5] {
            let mut words = Words::zeroed(count);
            assert_eq!(matches!(words.0, Memory::Mapped(_)), count >= least_mapped);
            assert_eq!(*words, vec![0; count]);
            for (number, word) in (1..).zip(words.iter_mut()) {
                *word = number;
            }
            assert_eq!(*words, (1..=count as u64).collect::<Vec<_>>());
        }
    }

    #[test]
    fn a_mark_of_this_process_is_its_own_and_one_by_its_id_tells_another() {
        assert!(!ForkMark::new().has_forked());
        assert!(!ForkMark(Mark::Process(std::process::id())).has_forked());
        assert!(ForkMark(Mark::Process(std::os::unix::process::parent_id())).has_forked());
    }

    /// That a child finds it empty is shown by `tests/forks`, which can fork.
    #[cfg(any(target_os = "linux", target_os = "android"))]
    #[test]
    fn an_empty_page_is_that_of_a_child() {
        let page = MmapRaw::from(MmapMut::map_anon(rustix::param::page_size()).unwrap());
        assert!(ForkMark(Mark::Page(page)).has_forked());
    }

    #[test]
    fn words_of_a_vector_are_in_its_memory() {
        let vector = vec![7; 100_000];
        let before = vector.as_ptr();
        let words = Words::from(vector);
        assert_eq!((words.as_ptr(), &*words), (before, &[7; 100_000][..]));
    }
}
