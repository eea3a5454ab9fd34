//! Measures the absolute figures that `benches/README.md` quotes, with keys of 36 bytes and results of 256.
//!
//! ```text
//! cargo run --release --example figures -- [syncs | threads | segments | memory | steady]
//! ```
//!
//! Without an argument it measures all of them. The number of syncs is the store's own count;
//! `strace -f -c -e trace=fdatasync` on `syncs` shows the same number.

use std::error::Error;
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use oncekey::{Attempt, Durability, Fingerprint, Options, Store};

type Measured<T = ()> = Result<T, Box<dyn Error + Send + Sync>>;

const RESULT: [u8; 256] = [7; 256];

fn key(number: u64) -> String {
    format!("{number:036}")
}

/// Begins and completes one operation.
fn begin_and_complete(store: &Store, number: u64) -> Measured {
    match store.begin(&key(number), Fingerprint::NONE)? {
        oncekey::Begin::Acquired(mut lease) => lease.complete(&RESULT).map(|_| ())?,
        other => return Err(format!("operation {number} is not new: {other:?}").into()),
    }
    Ok(())
}

/// Measures the syncs per operation of one thread, for each way to run an operation.
fn syncs(directory: &Path) -> Measured {
    const OPERATIONS: u64 = 2_000;
    println!("syncs per operation, with one thread, {OPERATIONS} operations each");
    let store = Store::open(directory.join("syncs.once"))?;
    let measure = |name: &str, operation: &dyn Fn(u64) -> Measured| -> Measured {
        let (before, start) = (store.stats().syncs, Instant::now());
        for number in 0..OPERATIONS {
            operation(number)?;
        }
        let syncs = store.stats().syncs - before;
        #[expect(clippy::cast_precision_loss, reason = "figures for people")]
        let each = syncs as f64 / OPERATIONS as f64;
        println!("  {name:<20} {each:.3}   {:.1?} an operation", start.elapsed() / 2_000);
        Ok(())
    };
    measure("begin + complete", &|number| begin_and_complete(&store, number))?;
    measure("record", &|number| {
        store.record(&key(1_000_000 + number), Fingerprint::NONE, &RESULT)?;
        Ok(())
    })?;
    measure("run, with rerun", &|number| {
        let side_effect = |_: &Attempt| Ok::<_, std::io::Error>(RESULT.to_vec());
        store.operation(&key(2_000_000 + number)).rerun().run(side_effect)?;
        Ok(())
    })?;
    measure("replay", &|number| {
        store.begin(&key(number), Fingerprint::NONE).map(drop)?;
        Ok(())
    })?;
    Ok(store.close()?)
}

/// Measures the syncs per operation of many threads.
fn threads(directory: &Path) -> Measured {
    println!("syncs per operation (begin + complete), by threads");
    for threads in [1_u64, 8, 64] {
        let store = Store::open(directory.join(format!("threads-{threads}.once")))?;
        let before = store.stats().syncs;
        let next = AtomicU64::new(0);
        let operations = 4_000 * threads.min(8);
        let start = Instant::now();
        std::thread::scope(|scope| {
            let workers: Vec<_> = (0..threads)
                .map(|_| {
                    scope.spawn(|| -> Measured {
                        loop {
                            let number = next.fetch_add(1, Ordering::Relaxed);
                            if number >= operations {
                                return Ok(());
                            }
                            begin_and_complete(&store, number)?;
                        }
                    })
                })
                .collect();
            workers
                .into_iter()
                .try_for_each(|worker| worker.join().unwrap_or_else(|_| Err("a thread panicked".into())))
        })?;
        #[expect(clippy::cast_precision_loss, reason = "figures for people")]
        let (each, rate) = (
            (store.stats().syncs - before) as f64 / operations as f64,
            operations as f64 / start.elapsed().as_secs_f64(),
        );
        println!("  {threads:>3} threads   {each:.3}   {rate:.0} operations a second");
        store.close()?;
    }
    Ok(())
}

/// Returns the anonymous memory of this process, in bytes.
fn anonymous_bytes() -> Measured<u64> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:")).ok_or("no RssAnon")?;
    let kibibytes: u64 = line.trim().trim_end_matches(" kB").parse()?;
    Ok(kibibytes << 10)
}

/// The number of operations whose memory is measured.
const OPERATIONS: u64 = 1_000_000;

/// Measures the memory that a million finished operations take, by the size of a segment: the index, and the entries of the
/// segment that is being written. Each size has a process of its own, because memory that one store has freed hides what the
/// next one takes.
fn segments(_: &Path) -> Measured {
    println!("memory of {OPERATIONS} finished operations, by the size of a segment");
    for mebibytes in [4_u64, 64, 1_024] {
        let child =
            Command::new(std::env::current_exe()?).arg(ONE_SIZE).arg(mebibytes.to_string()).status()?;
        if !child.success() {
            return Err(format!("the process that measures {mebibytes} MiB: {child}").into());
        }
    }
    Ok(())
}

/// The argument that makes this program measure one size of a segment, in MiB.
const ONE_SIZE: &str = "segments-of";

/// Measures the memory of a million finished operations in a store with segments of one size.
fn segments_of(directory: &Path, mebibytes: u64) -> Measured {
    let options = Options::new().segment_size(mebibytes << 20).durability(Durability::Buffered);
    let store = options.open(directory.join("segments.once"))?;
    let empty = anonymous_bytes()?;
    for number in 0..OPERATIONS {
        begin_and_complete(&store, number)?;
    }
    let added = anonymous_bytes()?.saturating_sub(empty);
    println!(
        "  {mebibytes:>5} MiB   {}.{} bytes a key, of it {} for the index",
        added / OPERATIONS,
        added * 10 / OPERATIONS % 10,
        store.stats().index_bytes as u64 / OPERATIONS,
    );
    Ok(store.close()?)
}

/// Measures the memory and disk space of a million finished operations, and the time to open their store.
fn memory(directory: &Path) -> Measured {
    println!("memory and disk of {OPERATIONS} finished operations");
    let path = directory.join("memory.once");
    let store = Options::new().durability(Durability::Buffered).open(&path)?;
    let empty = anonymous_bytes()?;
    for number in 0..OPERATIONS {
        begin_and_complete(&store, number)?;
    }
    let mebibytes = |bytes: u64| format!("{}.{:02} MiB", bytes >> 20, ((bytes & 0xF_FFFF) * 100) >> 20);
    println!(
        "  anonymous memory that they add         {}",
        mebibytes(anonymous_bytes()?.saturating_sub(empty))
    );
    println!("  of it, the index                       {}", mebibytes(store.stats().index_bytes as u64));
    println!("  file                                   {}", mebibytes(std::fs::metadata(&path)?.len()));
    let start = Instant::now();
    store.compact()?;
    let file_bytes = std::fs::metadata(&path)?.len();
    let stats = store.stats();
    let live_bytes = stats.record_bytes - stats.dead_bytes;
    println!("  file after compact ({:.1?})              {}", start.elapsed(), mebibytes(file_bytes));
    println!(
        "  compacted file / live records          {}.{:03}",
        file_bytes / live_bytes,
        file_bytes * 1_000 / live_bytes % 1_000
    );
    store.close()?;
    let start = Instant::now();
    let store = Store::open(&path)?;
    println!("  opening it again                       {:.1?}", start.elapsed());
    if store.stats().keys as u64 != OPERATIONS {
        return Err(format!("{} keys after opening", store.stats().keys).into());
    }
    Ok(store.close()?)
}

/// Measures the size of a store under steady load, over twelve retentions.
fn steady(directory: &Path) -> Measured {
    const RETENTION: Duration = Duration::from_millis(1_500);
    println!("file size under steady load, retention {RETENTION:?}, buffered");
    let path = directory.join("steady.once");
    let store = Options::new().retention(RETENTION).durability(Durability::Buffered).open(&path)?;
    let start = Instant::now();
    let mut number = 0;
    for turn in 1..=24_u32 {
        while start.elapsed() < RETENTION / 2 * turn {
            for _ in 0..20 {
                store.record(&key(number), Fingerprint::NONE, &RESULT)?;
                number += 1;
            }
            // The pause keeps the load at about 16,000 records a second, so that it does not depend on the machine.
            std::thread::sleep(Duration::from_millis(1));
        }
        let stats = store.stats();
        println!(
            "  {:>4.1} retentions   {:>4} MiB   {:>7} keys   {:>5.1} MiB moved so far",
            f64::from(turn) / 2.0,
            std::fs::metadata(&path)?.len() >> 20,
            stats.keys,
            f64::from(u32::try_from(stats.moved_bytes >> 10)?) / 1_024.0,
        );
    }
    println!("  {number} records written");
    Ok(store.close()?)
}

fn main() -> Measured {
    let selected = std::env::args().nth(1);
    let directory = tempfile::tempdir_in(".")?;
    if selected.as_deref() == Some(ONE_SIZE) {
        let mebibytes = std::env::args().nth(2).ok_or("which size?")?.parse()?;
        return segments_of(directory.path(), mebibytes);
    }
    type Figure = (&'static str, fn(&Path) -> Measured);
    let all: [Figure; 5] = [
        ("syncs", syncs),
        ("threads", threads),
        ("segments", segments),
        ("memory", memory),
        ("steady", steady),
    ];
    let is_known = |selected: &&str| all.iter().any(|(name, _)| name == selected);
    if let Some(unknown) = selected.as_deref().filter(|selected| !is_known(selected)) {
        return Err(
            format!("{unknown}: no such figure; use syncs, threads, segments, memory or steady").into()
        );
    }
    for (name, measure) in all {
        if selected.as_deref().is_none_or(|selected| selected == name) {
            measure(directory.path())?;
        }
    }
    Ok(())
}
