//! The machine and the versions of a measurement; the CPU time and the memory of this process and the disk space of files.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};
use serde::{Deserialize, Serialize};

/// The environment of a run, which is stored with its figures.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Machine {
    pub processor: String,
    pub cores: usize,
    pub memory_gib: u64,
    pub kernel: String,
    pub file_system: String,
    pub compiler: String,
    pub versions: String,
    pub date: String,
}

fn output(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program).args(arguments).output();
    output.map_or(String::new(), |output| String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

fn field(file: &str, name: &str) -> Option<String> {
    let text = fs::read_to_string(file).ok()?;
    let line = text.lines().find(|line| line.starts_with(name))?;
    Some(line.split_once(':')?.1.trim().to_owned())
}

fn kibibytes(file: &str, name: &str) -> u64 {
    let value = field(file, name).unwrap_or_default();
    value.trim_end_matches(" kB").parse().unwrap_or(0)
}

/// Returns the type of the file system of a directory, which is that of the longest mount point above it.
fn file_system(directory: &Path) -> Option<String> {
    let directory = fs::canonicalize(directory).ok()?;
    let mounts = fs::read_to_string("/proc/self/mounts").ok()?;
    let above = mounts.lines().filter_map(|line| {
        let mut fields = line.split(' ').skip(1);
        let (point, kind) = (fields.next()?, fields.next()?);
        directory.starts_with(point).then_some((point.len(), kind))
    });
    above.max_by_key(|(length, _)| *length).map(|(_, kind)| kind.to_owned())
}

impl Machine {
    /// Describes this machine. `directory` is on the measured file system.
    pub fn describe(directory: &Path) -> Machine {
        Machine {
            processor: field("/proc/cpuinfo", "model name").unwrap_or_default(),
            cores: std::thread::available_parallelism().map_or(0, std::num::NonZero::get),
            memory_gib: (kibibytes("/proc/meminfo", "MemTotal") + (1 << 19)) >> 20,
            kernel: fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default().trim().to_owned(),
            file_system: file_system(directory).unwrap_or_default(),
            compiler: output("rustc", &["--version"]),
            versions: env!("PEERS_VERSIONS").to_owned(),
            date: output("date", &["--utc", "+%Y-%m-%d"]),
        }
    }
}

/// Returns the CPU time of all threads of this process so far, in user mode and in the kernel.
pub fn cpu_time() -> Duration {
    clock_gettime(ClockId::ProcessCPUTime).try_into().expect("CPU time should not be negative")
}

/// Returns the anonymous memory of this process, in bytes.
pub fn anonymous_bytes() -> u64 {
    kibibytes("/proc/self/status", "RssAnon") << 10
}

/// Returns the disk space of the files in a directory, in bytes: their blocks, not their lengths.
pub fn disk_bytes(directory: &Path) -> u64 {
    let entries = fs::read_dir(directory).expect("cannot list the directory");
    entries
        .map(|entry| {
            let path = entry.expect("cannot list the directory").path();
            // A compaction of the store may have removed the file since it was listed. Then it takes no space.
            let Ok(metadata) = fs::symlink_metadata(&path) else { return 0 };
            if metadata.is_dir() { disk_bytes(&path) } else { metadata.blocks() * 512 }
        })
        .sum()
}

/// Reads all files in a directory, to bring them into the page cache.
pub fn warm(directory: &Path) {
    let mut buffer = vec![0; 1 << 20];
    for entry in fs::read_dir(directory).expect("cannot list the directory") {
        let path = entry.expect("cannot list the directory").path();
        if path.is_dir() {
            warm(&path);
        } else if let Ok(mut file) = fs::File::open(&path) {
            use std::io::Read;
            while file.read(&mut buffer).is_ok_and(|count| count > 0) {}
        }
    }
}
