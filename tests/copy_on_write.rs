//! Checks, on copy-on-write file systems, that operations in progress can be completed on a full disk, and that the store
//! reports a file for which it cannot guarantee that.
//!
//! The tests mount small file systems, which requires root, a loop device and the tools of the file system. Without these, a
//! test prints the reason and is skipped.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs, reason = "tests")]
#![cfg(target_os = "linux")]

mod common;

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;

use common::{NONE, acquire, perform, skipped, small};
use oncekey::{Error, Lease, Store};

/// A small file system that is unmounted on drop.
struct Mounted {
    directory: tempfile::TempDir,
}

impl Mounted {
    /// Makes and mounts a file system. Returns `None`, after printing the reason, if this machine cannot do so.
    fn new(kind: &str, megabytes: u64) -> Option<Mounted> {
        let directory = tempfile::tempdir().unwrap();
        let image = directory.path().join("image");
        std::fs::File::create(&image).unwrap().set_len(megabytes << 20).unwrap();
        let root = directory.path().join("root");
        std::fs::create_dir(&root).unwrap();
        let mut make = Command::new(format!("mkfs.{kind}"));
        make.arg("-q").arg(&image);
        let mut mount = Command::new("mount");
        mount.args(["-o", "loop"]).arg(&image).arg(&root);
        for command in [&mut make, &mut mount] {
            match command.output() {
                Ok(output) if output.status.success() => {}
                other => {
                    skipped(format_args!("cannot mount a {kind} file system: {command:?}: {other:?}"));
                    return None;
                }
            }
        }
        Some(Mounted { directory })
    }

    fn root(&self) -> PathBuf {
        self.directory.path().join("root")
    }

    /// Writes files until the disk has no space for another byte.
    fn fill(&self) {
        for piece_bytes in [1 << 20, 4_096, 1] {
            let path = self.root().join(format!("filler-{piece_bytes}"));
            let Ok(mut filler) = std::fs::File::create(path) else { return };
            while filler.write_all(&vec![7; piece_bytes]).and_then(|()| filler.sync_data()).is_ok() {}
        }
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg(self.root()).output();
    }
}

fn is_nocow(path: &Path) -> bool {
    use rustix::fs::{IFlags, ioctl_getflags};
    ioctl_getflags(std::fs::File::open(path).unwrap()).unwrap().contains(IFlags::NOCOW)
}

/// Completes operations that began before the disk was full, and checks that a store on the full disk soon refuses records.
fn complete_on_a_full_disk(store: &Store, mounted: &Mounted) {
    let leases: Vec<Lease> = (0..8).map(|number| acquire(store, &format!("begun {number}"))).collect();
    mounted.fill();
    for mut lease in leases {
        lease.complete(&[7; 10_000]).unwrap();
    }
    let refusal =
        (0..100_000).find_map(|number| store.record(&format!("more {number}"), NONE, &[7; 4_000]).err());
    assert!(matches!(refusal, Some(Error::Full { .. })), "{refusal:?}");
    for number in 0..8 {
        assert_eq!(store.get(&format!("begun {number}")).unwrap().result(), Some(&[7; 10_000][..]));
    }
}

#[test]
fn on_btrfs_a_new_file_completes_operations_on_a_full_disk() {
    let Some(mounted) = Mounted::new("btrfs", 128) else { return };
    let path = mounted.root().join("test.once");
    let store = small().min_size(1 << 20).open(&path).unwrap();
    complete_on_a_full_disk(&store, &mounted);
    assert!(is_nocow(&path));
    assert!(!store.stats().copy_on_write);
}

#[test]
fn on_btrfs_a_copied_file_reports_copy_on_write() {
    let Some(mounted) = Mounted::new("btrfs", 128) else { return };
    let place = common::Place::new();
    perform(&place.open(), "key", b"result");
    let path = mounted.root().join("test.once");
    std::fs::copy(&place.path, &path).unwrap();
    let store = small().open(&path).unwrap();
    assert!(store.stats().copy_on_write);
    assert_eq!(store.get("key").unwrap().result(), Some(&b"result"[..]));
    assert!(
        !place.open().stats().copy_on_write || is_nocow(&place.path),
        "a temporary directory on another kind of file system reports copy-on-write"
    );
}

#[test]
fn on_xfs_opening_a_reflink_copy_unshares_its_blocks() {
    let Some(mounted) = Mounted::new("xfs", 400) else { return };
    let original = mounted.root().join("original.once");
    let store = small().min_size(1 << 20).open(&original).unwrap();
    perform(&store, "key", b"result");
    store.close().unwrap();
    let path = mounted.root().join("test.once");
    let copied = Command::new("cp").arg("--reflink=always").args([&original, &path]).output().unwrap();
    if !copied.status.success() {
        skipped(format_args!("this XFS does not share blocks: {copied:?}"));
        return;
    }
    let store = small().open(&path).unwrap();
    assert!(!store.stats().copy_on_write);
    complete_on_a_full_disk(&store, &mounted);
    drop(store);
    // On a full disk the store cannot find out whether the file shares blocks, and must open it all the same.
    let store = small().open(&path).unwrap();
    assert_eq!(store.get("key").unwrap().result(), Some(&b"result"[..]));
}
