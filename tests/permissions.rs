//! Checks that a store can be created and reopened in an unreadable directory, and reopened if it was created under any umask.
//!
//! Modes do not restrict root, so the child processes run as a user without privileges. If that is not possible, a test
//! prints the reason and is skipped.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs, reason = "tests")]
#![cfg(unix)]

mod common;

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use common::{NONE, skipped, small};

/// If this environment variable is set, the test `child` acts as the child process and opens the file at this path.
const PATH: &str = "ONCEKEY_PERMISSIONS_PATH";
/// The user `nobody` on most systems.
const USER: u32 = 65_534;

/// A directory with a copy of this program that a user without privileges may execute, and a subdirectory `store` that belongs to that
/// user.
struct Home {
    directory: tempfile::TempDir,
    program: PathBuf,
    /// The user to run the child as, or `None` if this process is already without privileges.
    user: Option<u32>,
}

impl Home {
    /// Creates the directory. Returns `None`, after printing the reason, if this process cannot run a program as such a user.
    fn new() -> Option<Home> {
        let directory = tempfile::tempdir().unwrap();
        fs::set_permissions(directory.path(), fs::Permissions::from_mode(0o755)).unwrap();
        let program = directory.path().join("program");
        fs::copy(std::env::current_exe().unwrap(), &program).unwrap();
        let store = directory.path().join("store");
        fs::create_dir(&store).unwrap();
        let is_root = fs::metadata(&store).unwrap().uid() == 0;
        let user = is_root.then_some(USER);
        if let Some(user) = user {
            chown(&store, Some(user), Some(user)).unwrap();
        }
        let home = Home { directory, program, user };
        let trial = home.command("umask 022").arg("--list").output();
        match trial {
            Ok(output) if output.status.success() => Some(home),
            other => {
                skipped(format_args!("no program can run as a user without privileges: {other:?}"));
                None
            }
        }
    }

    fn store(&self) -> PathBuf {
        self.directory.path().join("store")
    }

    fn set_mode(&self, mode: u32) {
        fs::set_permissions(self.store(), fs::Permissions::from_mode(mode)).unwrap();
    }

    /// Returns a command that runs `preparation` in a shell, and then this program.
    fn command(&self, preparation: &str) -> Command {
        let mut command = Command::new("sh");
        command.arg("-c").arg(format!("{preparation}; exec \"$0\" \"$@\"")).arg(&self.program);
        if let Some(user) = self.user {
            command.uid(user).gid(user);
        }
        command
    }

    /// Runs a child that opens the store, records a key and closes the store.
    fn use_store(&self, preparation: &str) -> Output {
        let mut command = self.command(preparation);
        command.args(["--exact", "child", "--nocapture"]);
        command.env(PATH, self.store().join("test.once")).output().unwrap()
    }
}

/// The child process. Does nothing unless one of the tests below starts it.
#[test]
fn child() {
    let Ok(path) = std::env::var(PATH) else { return };
    let store = small().open(Path::new(&path)).unwrap();
    let recorded = store.record("key", NONE, b"result").unwrap();
    println!("used: {recorded:?}");
    store.close().unwrap();
}

#[test]
fn a_directory_without_read_permission_can_hold_a_store() {
    let Some(home) = Home::new() else { return };
    home.set_mode(0o311);
    for session in ["first session", "second session"] {
        let output = home.use_store("umask 022");
        assert!(output.status.success(), "{session}: {output:?}");
        assert!(String::from_utf8_lossy(&output.stdout).contains("used: "), "{session}: {output:?}");
    }
}

#[test]
fn a_file_created_under_any_umask_opens_again() {
    let Some(home) = Home::new() else { return };
    for umask in ["0777", "0600", "0277"] {
        let path = home.store().join("test.once");
        let output = home.use_store(&format!("umask {umask}"));
        assert!(output.status.success(), "umask {umask}: {output:?}");
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o600, "umask {umask}");
        let output = home.use_store("umask 022");
        assert!(output.status.success(), "the file does not open again after umask {umask}: {output:?}");
        fs::remove_file(&path).unwrap();
    }
}
