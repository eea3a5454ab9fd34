//! Checks the structure of the source: a module uses only modules that are declared before it, and no file is too long.
//!
//! The checks read the text of the files, so they do not see uses that a macro generates.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs, reason = "tests")]

use std::fs;
use std::path::{Path, PathBuf};

/// The maximum number of lines of a file, without the tests at its end.
const MAX_LINES: usize = 500;
/// Modules that only tests use.
const TEST_MODULES: [&str; 3] = ["tests.rs", "trees.rs", "shuttle_tests"];

fn source() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("src")
}

/// Returns the lines of a file, with comments and the tests at its end removed.
fn code(file: &Path) -> Vec<String> {
    let text = fs::read_to_string(file).unwrap();
    let lines: Vec<&str> = text.lines().collect();
    let is_test = |at: usize| {
        lines[at] == "#[cfg(test)]" && lines[at + 1..].iter().take(3).any(|line| line.starts_with("mod "))
    };
    let end = (0..lines.len()).find(|at| is_test(*at)).unwrap_or(lines.len());
    lines[..end].iter().map(|line| line.split("//").next().unwrap_or_default().to_owned()).collect()
}

/// Returns the modules that a file declares, in order.
fn declared(file: &Path) -> Vec<String> {
    let name = |line: &String| {
        let rest = line.strip_prefix("pub(crate) ").or(line.strip_prefix("pub(super) ")).unwrap_or(line);
        let rest = rest.strip_prefix("pub ").unwrap_or(rest);
        Some(rest.strip_prefix("mod ")?.trim_end_matches([';', '{', ' ']).to_owned())
    };
    code(file).iter().filter_map(name).collect()
}

/// Returns every name that directly follows `prefix` in a path, also within braces.
fn names_after(code: &[String], prefix: &str) -> Vec<String> {
    let text = code.join("\n");
    let is_name = |c: char| c.is_alphanumeric() || c == '_';
    let mut names = Vec::new();
    for (at, _) in text.match_indices(prefix) {
        if text[..at].ends_with(|c| is_name(c) || c == ':') {
            continue;
        }
        let rest = &text[at + prefix.len()..];
        let Some(group) = rest.strip_prefix('{') else {
            names.push(rest.chars().take_while(|c| is_name(*c)).collect());
            continue;
        };
        let mut depth = 0;
        let mut item = String::new();
        for c in group.chars() {
            match c {
                '{' => depth += 1,
                '}' if depth == 0 => break,
                '}' => depth -= 1,
                ',' if depth == 0 => names.push(std::mem::take(&mut item)),
                _ if depth == 0 => item.push(c),
                _ => {}
            }
        }
        names.push(item);
    }
    let first = |name: &String| name.trim().chars().take_while(|c| is_name(*c)).collect();
    names.iter().map(first).collect()
}

/// Returns the files of a module: `name.rs` and all files in `name/`, except test modules.
fn files_of(directory: &Path, name: &str) -> Vec<PathBuf> {
    let mut files = vec![directory.join(name).with_extension("rs")];
    files.retain(|file| file.exists());
    let mut directories = vec![directory.join(name)];
    while let Some(directory) = directories.pop() {
        let Ok(entries) = fs::read_dir(&directory) else { continue };
        for entry in entries {
            let path = entry.unwrap().path();
            if path.is_dir() {
                directories.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                files.push(path);
            }
        }
    }
    files.retain(|file| !TEST_MODULES.iter().any(|name| file.to_str().unwrap().contains(name)));
    files
}

/// Finds modules of a directory that use another module of the directory that is declared after them. `prefixes` are the
/// paths by which they can refer to each other.
fn uses_of_later_modules(modules: &[String], directory: &Path, prefixes: &[&str]) -> Vec<String> {
    let mut found = Vec::new();
    for (at, module) in modules.iter().enumerate() {
        for file in files_of(directory, module) {
            let code = code(&file);
            let used = prefixes.iter().flat_map(|prefix| names_after(&code, prefix));
            for name in used {
                if modules[at + 1..].contains(&name) {
                    found.push(format!("{} uses {name}", file.display()));
                }
            }
        }
    }
    found
}

#[test]
fn a_module_uses_only_modules_declared_before_it() {
    let modules = declared(&source().join("lib.rs"));
    assert!(modules.len() > 30 && modules[0] == "planted", "{modules:?}");
    let mut found = uses_of_later_modules(&modules, &source(), &["crate::"]);
    for module in &modules {
        for parent in [source().join(module).join("mod.rs"), source().join(module).with_extension("rs")] {
            if !parent.exists() {
                continue;
            }
            let within = format!("crate::{module}::");
            found.extend(uses_of_later_modules(
                &declared(&parent),
                &source().join(module),
                &["super::", &within],
            ));
            for child in declared(&parent) {
                let file = source().join(module).join(&child).join("mod.rs");
                if file.exists() {
                    let within = format!("crate::{module}::{child}::");
                    found.extend(uses_of_later_modules(
                        &declared(&file),
                        file.parent().unwrap(),
                        &["super::", &within],
                    ));
                }
            }
        }
    }
    found.sort();
    found.dedup();
    assert!(found.is_empty(), "uses of modules that are declared later:\n{}", found.join("\n"));
}

#[test]
fn no_file_has_more_than_500_lines_without_its_tests() {
    let modules = declared(&source().join("lib.rs"));
    let files = modules.iter().flat_map(|module| files_of(&source(), module));
    let long: Vec<_> = files.filter(|file| code(file).len() > MAX_LINES).collect();
    assert!(long.is_empty(), "{long:?}");
}

#[test]
fn names_after_a_prefix_include_those_in_braces() {
    let code: Vec<String> =
        ["use crate::log::{Log, x};", "use crate::{a::B, c, d::{E, f}};", "let x = crate::e::g();"]
            .map(str::to_owned)
            .to_vec();
    assert_eq!(names_after(&code, "crate::"), ["log", "a", "c", "d", "e"]);
}
