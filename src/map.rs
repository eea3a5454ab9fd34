//! Mapped memory.
//!
//! - [`Map`] is a read-only view of a range of the file. `storage` and `log` use it.
//! - [`Words`] is anonymous memory. `index` uses it.
//! - [`ForkMark`] is a page that the kernel zeroes in a forked child. `engine` uses it.
//! - [`threads_that_fit`] estimates for how many threads there is memory. `recover` uses it.
//!
//! The crate has unsafe code only here and in `log/reader.rs`. This module proves that mapped memory is valid and in
//! bounds. `log/reader.rs` is the only caller of [`Map::read`] and proves that nothing writes to the bytes meanwhile.

#![allow(unsafe_code, reason = "mapped memory is read through a raw pointer")]

use memmap2::{Advice, Mmap, MmapMut, MmapOptions, MmapRaw};
use std::fmt;
use std::fs::File;
use std::io;
use std::ops::{Deref, DerefMut};
use std::slice;
#[cfg(any(target_os = "linux", target_os = "android"))]
use std::sync::atomic::{AtomicU32, Ordering};

/// A shared, read-only mapping of a range of the file, read in short slices.
///
/// # Contract
///
/// The store writes to the file while it is mapped. So there is never a `&[u8]` over the whole mapping, which would
/// assert to the compiler that none of those bytes change. [`Map::read`] creates a slice over the requested bytes only,
/// for one call only. It is unsafe because the caller must prevent writes to those bytes meanwhile.
///
/// The requested bytes must also lie within the current length of the file. A map may extend beyond the end of the file,
/// and shows the file once it has grown, but reading beyond the end raises SIGBUS.
///
/// Once a write through the file has returned, it is visible in the map, because both are views of the same page cache.
///
/// # Hazards
///
/// If another program truncates the file, or the disk cannot read a page, reading raises SIGBUS, which by default ends
/// the process. If another program overwrites the file, the bytes of a slice may change, which is undefined behaviour. The
/// lock on the file keeps out other stores, but nothing keeps out other programs. With `Options::mmap(false)`, the store
/// reads through the file instead and gets errors in place of signals.
///
/// # Lifetime
///
/// The mapping stays valid until it is dropped, even after the file is closed. On Linux it also keeps the lock on the file
/// until then, because the lock belongs to the open file description, to which the mapping refers.
pub(crate) struct Map {
    /// Raw, because a `memmap2::Mmap` dereferences to a slice over the whole mapping.
    memory: MmapRaw,
}

impl Map {
    /// Maps `length` bytes of `file` from `offset`, which needs no alignment.
    ///
    /// # Errors
    ///
    /// The range ends beyond the largest file offset. Or the operating system refuses: out of memory, too many mappings,
    /// or a file system that does not support mappings.
    pub(crate) fn new(file: &File, offset: u64, length: usize) -> io::Result<Map> {
        // memmap2 casts the offset to a signed number, and the unsafe code below depends on the bound of the length. Both
        // are checked here, so that this does not depend on a version of memmap2 or on the operating system.
        let mappable = isize::try_from(length).is_ok()
            && u64::try_from(length)
                .ok()
                .and_then(|length| offset.checked_add(length))
                .is_some_and(|end| i64::try_from(end).is_ok());
        if !mappable {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "the range cannot be mapped"));
        }

        let memory = MmapOptions::new().offset(offset).len(length).map_raw_read_only(file)?;

        // Successive lookups read unrelated places, so read-ahead would fetch many pages for each one that is needed, and
        // evict as many others. Sequential readers (recovery, reclaiming, verification) use `read_at`, which this does not
        // affect. An error is ignored, because this is only a hint.
        let _ = memory.advise(Advice::Random);

        Ok(Map { memory })
    }

    /// Returns the length in bytes.
    pub(crate) fn len(&self) -> usize {
        self.memory.len()
    }

    /// Calls `read` with the `length` bytes at `offset` of the map. Returns `None`, without calling `read`, if they do not
    /// all lie within the map.
    ///
    /// The bytes should also lie within the file. Otherwise SIGBUS ends the process.
    ///
    /// # Safety
    ///
    /// The behaviour is undefined unless the caller ensures both:
    ///
    /// - From this call until it returns, no thread of this process writes to those bytes of the file. This includes the
    ///   closure `read` itself.
    /// - All earlier writes to those bytes happen before this call, in the sense of the memory model. For example, the
    ///   writing thread has done a release store after the write, and this thread has read the stored value with an acquire
    ///   load.
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
        // - In bounds: we checked `offset <= end <= memory.len()` above. `memory` is a single mapping of at least
        //   `memory.len()` bytes, and `new` ensures that this is at most `isize::MAX`. So neither the pointer nor the slice
        //   leaves the mapping. For `length == 0` the pointer is at most one past its end, and is never null.
        // - Alive: only dropping `memory` removes the mapping, and `&self` prevents that until this function returns. The
        //   slice cannot outlive this call, because `read` must accept every lifetime and so cannot keep its argument.
        // - Initialised and aligned: the kernel initialises every byte of a mapped page, and a `u8` needs no alignment. A
        //   page beyond the end of the file raises SIGBUS instead of yielding a value.
        // - Not written meanwhile: nothing writes through this mapping, because it is PROT_READ and its pointer does not
        //   leave this module. The caller ensures that this process does not write to these bytes through the file, and
        //   the lock on the file excludes other stores. The slice covers only the requested bytes, so writes next to them
        //   do not matter.
        let bytes = unsafe { slice::from_raw_parts(self.memory.as_ptr().add(offset), length) };
        Some(read(bytes))
    }
}

impl fmt::Debug for Map {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Map").field("len", &self.len()).finish_non_exhaustive()
    }
}

/// The address space that a thread needs in addition to its stack. For a thread's first allocation, glibc reserves 128 MiB,
/// of which it returns half. The rest is for what the thread allocates.
const THREAD_BYTES: usize = 132 << 20;
/// The number of mappings that a thread needs: its stack, its signal stack and its heap, each with a guard page.
const THREAD_MAPPINGS: usize = 8;

/// Returns the number of threads, up to `wanted`, for which the process currently has enough address space and mappings.
/// Each thread has a stack of `stack_bytes`.
///
/// This is an estimate, because other threads may use up the space at any time. On a system that counts reserved memory as
/// used, the number is too small, and fewer threads than possible do the work.
pub(crate) fn threads_that_fit(wanted: usize, stack_bytes: usize) -> usize {
    (1..=wanted).rev().find(|threads| have_space(*threads, stack_bytes)).unwrap_or(0)
}

/// Whether the process currently has enough address space and mappings for this number of threads.
fn have_space(threads: usize, stack_bytes: usize) -> bool {
    let bytes = threads.saturating_mul(THREAD_BYTES.saturating_add(stack_bytes));
    let Ok(_addresses) = MmapOptions::new().len(bytes).no_reserve_swap().map_anon() else { return false };
    // Every second mapping is made read-only, because the kernel merges neighbouring mappings with the same protection.
    let mapping = |number: usize| -> io::Result<(Option<MmapMut>, Option<Mmap>)> {
        let page = MmapMut::map_anon(1)?;
        Ok(if number.is_multiple_of(2) { (Some(page), None) } else { (None, Some(page.make_read_only()?)) })
    };
    let mappings: io::Result<Vec<_>> = (0..threads * THREAD_MAPPINGS).map(mapping).collect();
    mappings.is_ok()
}

/// Returns the minimum size of [`Words`] that have a mapping of their own: one page, the smallest mapping.
fn min_mapped_bytes() -> usize {
    #[cfg(any(target_os = "linux", target_os = "android"))]
    return rustix::param::page_size();
    // The largest page size of any other system.
    #[cfg(not(any(target_os = "linux", target_os = "android")))]
    return 16 * 1024;
}

/// An array of `u64`, initially zero. If it is at least as large as a page, it has a mapping of its own.
///
/// A mapping is returned to the operating system as soon as it is dropped. On the heap, tables that grow one after another
/// leave holes into which the next table, being larger, does not fit. In an index of ten million keys, these holes were a
/// seventh of the memory. When only tables above 32 KiB were mapped, the holes in an index of a million keys were as large
/// as the index itself.
#[derive(Debug)]
pub(crate) struct Words(Memory);

/// The memory of [`Words`].
#[derive(Debug)]
enum Memory {
    /// Less than a page, a vector's memory, or memory for which the operating system refused a mapping.
    Heap(Box<[u64]>),
    /// A mapping.
    Mapped(MmapMut),
}

impl Words {
    /// Allocates `count` words, all zero. They come from the heap if the operating system refuses the mapping.
    pub(crate) fn zeroed(count: usize) -> Words {
        let bytes = count.saturating_mul(size_of::<u64>());
        // The unsafe code below depends on the upper bound.
        let is_mappable = bytes >= min_mapped_bytes() && isize::try_from(bytes).is_ok();
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
    /// Keeps the words in the vector's memory and frees its excess capacity.
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
                // - In bounds: `memory` is a single mapping of `memory.len()` bytes. `zeroed` ensures that this is at most
                //   `isize::MAX`, and `count` words need no more bytes than that.
                // - Alive: only dropping `memory` removes the mapping, and the borrow of `self` prevents that for the
                //   lifetime of the slice.
                // - Aligned: a mapping begins at a page boundary.
                // - Initialised: the kernel zeroes anonymous pages, and every bit pattern is a valid `u64`.
                // - Not written meanwhile: the mapping is private to this process, and its pointer leaves this module only
                //   as a borrow of `self`. While this shared borrow exists, there is no mutable one.
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
                // SAFETY: in bounds, alive, aligned and initialised as in `deref`. The mapping is writable, and the mutable
                // borrow of `self` ensures that this slice is the only reference to it.
                unsafe { slice::from_raw_parts_mut(memory.as_mut_ptr().cast(), count) }
            }
        }
    }
}

/// Detects that the process was forked since the mark was created.
///
/// On Linux, the mark is a page that the kernel zeroes in a forked child, so a check is one load. On other systems, and if
/// the kernel is older than 4.14 or refuses, the mark is the process id, and a check is a system call.
#[derive(Debug)]
pub(crate) struct ForkMark(Mark);

/// The kinds of [`ForkMark`].
#[derive(Debug)]
enum Mark {
    /// The first word is 1 in the process that created the page, and 0 in a child.
    #[cfg(any(target_os = "linux", target_os = "android"))]
    Page(MmapRaw),
    /// The id of the process that created the mark.
    Process(u32),
}

impl ForkMark {
    /// Creates a mark of this process.
    pub(crate) fn new() -> ForkMark {
        #[cfg(any(target_os = "linux", target_os = "android"))]
        if let Some(page) = page_wiped_on_fork() {
            return ForkMark(Mark::Page(page));
        }
        ForkMark(Mark::Process(std::process::id()))
    }

    /// Whether this process was forked from the one that created the mark.
    #[inline]
    pub(crate) fn has_forked(&self) -> bool {
        match &self.0 {
            #[cfg(any(target_os = "linux", target_os = "android"))]
            Mark::Page(page) => {
                // SAFETY:
                // - In bounds: the mapping is one page, which is larger than a `u32`.
                // - Alive: only dropping `page` removes the mapping, and the borrow of `self` prevents that. `word` is not
                //   used beyond this arm.
                // - Aligned and initialised: a mapping begins at a page boundary, the kernel zeroes it, and every bit
                //   pattern is a valid `u32`.
                // - No data race: this process wrote the word once, atomically, before the mark existed. The kernel zeroes
                //   the child's copy before the child runs.
                let word = unsafe { AtomicU32::from_ptr(page.as_mut_ptr().cast()) };
                word.load(Ordering::Relaxed) == 0
            }
            Mark::Process(id) => *id != std::process::id(),
        }
    }
}

/// Creates a page whose first word is 1 and that the kernel zeroes in a forked child. None if the kernel cannot do that.
#[cfg(any(target_os = "linux", target_os = "android"))]
fn page_wiped_on_fork() -> Option<MmapRaw> {
    let page = MmapRaw::from(MmapMut::map_anon(rustix::param::page_size()).ok()?);
    // SAFETY: the range is exactly the mapping created above, and no reference to it exists. The advice does not change the
    // memory of this process.
    let advised = unsafe {
        rustix::mm::madvise(page.as_mut_ptr().cast(), page.len(), rustix::mm::Advice::LinuxWipeOnFork)
    };
    advised.ok()?;
    // SAFETY: in bounds, alive, aligned and initialised as in `has_forked`. The mapping is writable, and no other thread has
    // a pointer to it.
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
        /// The highest end of any slice that this thread has read from a map.
        pub(crate) static FURTHEST: Cell<usize> = const { Cell::new(0) };
    }

    impl Map {
        /// Calls [`Map::read`]. A test may call this only if no other thread writes to the file.
        pub(crate) fn read_in_test<R>(
            &self,
            offset: usize,
            length: usize,
            read: impl FnOnce(&[u8]) -> R,
        ) -> Option<R> {
            // SAFETY: in tests, only this thread writes to the file, and it does not do so while `read` runs.
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
    fn a_map_is_send_and_sync() {
        fn assert_send_and_sync<T: Send + Sync>() {}
        assert_send_and_sync::<Map>();
    }

    #[test]
    fn a_map_shows_later_writes_through_the_file() {
        let file = file_of_zeroes();
        let map = Map::new(&file, 0, LENGTH).unwrap();
        assert_eq!(map.read_in_test(40_000, 3, <[u8]>::to_vec).unwrap(), [0; 3]);
        file.write_all_at(b"new", 40_000).unwrap();
        assert_eq!(map.read_in_test(40_000, 3, <[u8]>::to_vec).unwrap(), b"new");
    }

    #[test]
    fn a_map_may_begin_at_any_offset() {
        let file = file_of_zeroes();
        file.write_all_at(b"here", 5_001).unwrap();
        let map = Map::new(&file, 5_000, 5).unwrap();
        assert_eq!(map.len(), 5);
        assert_eq!(map.read_in_test(0, 5, <[u8]>::to_vec).unwrap(), b"\0here");
    }

    #[test]
    fn reading_out_of_bounds_does_not_call_the_closure() {
        let file = file_of_zeroes();
        let map = Map::new(&file, 0, 100).unwrap();
        for (offset, length) in [(0, 101), (100, 1), (101, 0), (99, 2), (1, usize::MAX), (usize::MAX, 1)] {
            let answer = map.read_in_test(offset, length, |_| panic!("read out of bounds at {offset}"));
            assert!(answer.is_none());
        }
        assert_eq!(map.read_in_test(100, 0, <[u8]>::len), Some(0));
        assert_eq!(map.read_in_test(0, 100, <[u8]>::len), Some(100));
    }

    #[test]
    fn an_empty_map_has_no_bytes() {
        let map = Map::new(&file_of_zeroes(), 0, 0).unwrap();
        assert_eq!(map.read_in_test(0, 0, <[u8]>::len), Some(0));
        assert_eq!(map.read_in_test(0, 1, <[u8]>::len), None);
    }

    #[test]
    fn a_range_that_cannot_be_mapped_is_an_error() {
        let file = file_of_zeroes();
        for (offset, length) in
            [(0, usize::MAX), (u64::MAX, 1), (i64::MAX as u64, 1), (1, isize::MAX as usize), (1, usize::MAX)]
        {
            assert!(Map::new(&file, offset, length).is_err(), "offset {offset}, length {length}");
        }
    }

    #[test]
    fn a_map_beyond_the_end_shows_the_file_once_it_has_grown() {
        let file = tempfile::tempfile().unwrap();
        let map = Map::new(&file, 0, LENGTH).unwrap();
        file.write_all_at(b"grown", 0).unwrap();
        assert_eq!(map.read_in_test(0, 5, <[u8]>::to_vec).unwrap(), b"grown");
    }

    #[test]
    fn a_map_shows_zeroes_where_the_file_was_truncated_and_grown_again() {
        let file = file_of_zeroes();
        file.write_all_at(&vec![0xff; LENGTH], 0).unwrap();
        let map = Map::new(&file, 0, LENGTH).unwrap();
        assert!(map.read_in_test(0, LENGTH, |bytes| bytes.iter().all(|&byte| byte == 0xff)).unwrap());

        file.set_len(10).unwrap();
        file.set_len(LENGTH as u64).unwrap();

        assert_eq!(map.read_in_test(8, 4, <[u8]>::to_vec).unwrap(), [0xff, 0xff, 0, 0]);
        assert!(map.read_in_test(10, LENGTH - 10, |bytes| bytes.iter().all(|&byte| byte == 0)).unwrap());
    }

    #[test]
    fn a_map_outlives_its_file_handle() {
        let file = file_of_zeroes();
        file.write_all_at(b"still here", 0).unwrap();
        let map = Map::new(&file, 0, LENGTH).unwrap();
        drop(file);
        assert_eq!(map.read_in_test(0, 10, <[u8]>::to_vec).unwrap(), b"still here");
    }

    #[test]
    fn threads_are_limited_by_the_address_space() {
        assert_eq!(threads_that_fit(0, 1 << 20), 0);
        assert_eq!(threads_that_fit(1, 1 << 20), 1);
        // In an address space of 47 bits, there is space for one stack of 2^46 bytes, but not for two.
        assert_eq!(threads_that_fit(2, 1 << 46), 1);
        assert_eq!(threads_that_fit(3, usize::MAX), 0);
    }

    #[test]
    fn words_start_at_zero_and_keep_what_is_written() {
        let min_mapped = min_mapped_bytes() / size_of::<u64>();
        for count in [0, 1, min_mapped - 1, min_mapped, min_mapped + 1, 3 * min_mapped + 5] {
            let mut words = Words::zeroed(count);
            assert_eq!(matches!(words.0, Memory::Mapped(_)), count >= min_mapped);
            assert_eq!(*words, vec![0; count]);
            for (number, word) in (1..).zip(words.iter_mut()) {
                *word = number;
            }
            assert_eq!(*words, (1..=count as u64).collect::<Vec<_>>());
        }
    }

    #[test]
    fn a_mark_of_another_process_reports_a_fork() {
        assert!(!ForkMark::new().has_forked());
        assert!(!ForkMark(Mark::Process(std::process::id())).has_forked());
        assert!(ForkMark(Mark::Process(std::os::unix::process::parent_id())).has_forked());
    }

    /// `tests/forks` shows that the kernel zeroes the page in a child.
    #[cfg(any(target_os = "linux", target_os = "android"))]
    #[test]
    fn a_zeroed_page_reports_a_fork() {
        let page = MmapRaw::from(MmapMut::map_anon(rustix::param::page_size()).unwrap());
        assert!(ForkMark(Mark::Page(page)).has_forked());
    }

    #[test]
    fn words_of_a_vector_keep_its_memory() {
        let vector = vec![7; 100_000];
        let before = vector.as_ptr();
        let words = Words::from(vector);
        assert_eq!((words.as_ptr(), &*words), (before, &[7; 100_000][..]));
    }
}
