//! Passes the versions of the measured stores to the program, which saves them with its results.

use std::path::Path;

const MEASURED: [&str; 11] = [
    "oncekey",
    "redb",
    "fjall",
    "heed",
    "lmdb-master-sys",
    "rusqlite",
    "libsqlite3-sys",
    "rocksdb",
    "librocksdb-sys",
    "sled",
    "parking_lot",
];

fn main() {
    let directory = std::env::var("CARGO_MANIFEST_DIR").expect("cargo should set CARGO_MANIFEST_DIR");
    let lock = Path::new(&directory).join("Cargo.lock");
    println!("cargo::rerun-if-changed={}", lock.display());
    let text = std::fs::read_to_string(lock).unwrap_or_default();
    let versions: Vec<String> = text
        .split("[[package]]")
        .filter_map(|package| {
            let field = |name: &str| {
                let line = package.lines().find_map(|line| line.strip_prefix(name))?;
                Some(line.trim_matches([' ', '=', '"']).to_owned())
            };
            let name = field("name")?;
            MEASURED.contains(&name.as_str()).then(|| Some(format!("{name} {}", field("version")?)))?
        })
        .collect();
    println!("cargo::rustc-env=PEERS_VERSIONS={}", versions.join(", "));
    println!("cargo::rustc-env=PEERS_PROFILE={}", std::env::var("PROFILE").unwrap_or_default());
}
