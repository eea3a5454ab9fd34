//! Checks that the README stays short, and that every relative link in the documents of the repository is valid.
//!
//! Of a link between pages of the guide (`crate::guide::..`), only the heading is checked here. Rustdoc checks the page.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs, reason = "tests")]

mod common;

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

/// The maximum number of words in the README.
const MAX_WORDS: usize = 900;
/// The maximum number of words in a paragraph of the README.
const MAX_PARAGRAPH_WORDS: usize = 60;

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Whether this is the repository. Prints that the test is skipped if it is not: links in the published package lead to
/// benches and CI, which the package does not contain.
fn is_repository() -> bool {
    let is_repository = root().join(".ci").exists();
    if !is_repository {
        common::skipped(format_args!("the package does not contain all documents"));
    }
    is_repository
}

fn documents() -> Vec<PathBuf> {
    let names = [
        "README.md",
        "CHANGELOG.md",
        "benches/README.md",
        "benches/peers/README.md",
        "benches/peers/drawings/comparison.md",
        "examples/README.md",
        "tests/README.md",
        "src/format/format.md",
    ];
    let pages = fs::read_dir(root().join("src/guide")).unwrap().map(|entry| entry.unwrap().path());
    names.iter().map(|name| root().join(name)).filter(|path| path.exists()).chain(pages).collect()
}

/// Removes code from a text: fenced blocks, and spans between backticks.
fn without_code(text: &str) -> String {
    let mut kept = String::new();
    let mut fenced = false;
    for line in text.lines() {
        if line.trim_start().starts_with("```") {
            fenced = !fenced;
        } else if !fenced {
            for (number, part) in line.split('`').enumerate() {
                if number % 2 == 0 {
                    kept += part;
                }
            }
        }
        kept.push('\n');
    }
    assert!(!fenced, "a fence is not closed");
    kept
}

/// Returns the targets of `[text](target)` and `![text](target)`.
fn links(text: &str) -> Vec<&str> {
    text.match_indices("](")
        .filter_map(|(at, _)| text[at + 2..].split_once(')'))
        .map(|(target, _)| target)
        .collect()
}

/// Returns the anchors that GitHub and rustdoc generate for the headings of a page.
fn anchors(text: &str) -> BTreeSet<String> {
    let mut fenced = false;
    let headings = text.lines().filter(move |line| {
        fenced ^= line.trim_start().starts_with("```");
        !fenced && line.starts_with('#')
    });
    let anchor = |heading: &str| {
        let heading = heading.trim_start_matches('#').trim().to_lowercase();
        let kept = heading.chars().filter(|c| c.is_alphanumeric() || matches!(c, ' ' | '-' | '_'));
        kept.map(|c| if c == ' ' { '-' } else { c }).collect()
    };
    headings.map(anchor).collect()
}

/// Returns the file and the heading to which a link in `document` leads. Returns `None` if the link leads out of the
/// repository, or if rustdoc checks all of it.
fn target(document: &Path, link: &str) -> Option<(PathBuf, Option<String>)> {
    let (path, heading) = match link.split_once('#') {
        Some((path, heading)) => (path, Some(heading.to_owned())),
        None => (link, None),
    };
    if let Some(page) = path.strip_prefix("crate::guide::") {
        let page = root().join("src/guide").join(page).with_extension("md");
        return heading.map(|heading| (page, Some(heading)));
    }
    if path.contains("::") || path.contains("://") {
        return None;
    }
    let file = if path.is_empty() { document.to_owned() } else { document.parent().unwrap().join(path) };
    Some((file, heading))
}

#[test]
fn every_relative_link_leads_to_an_existing_file_and_heading() {
    if !is_repository() {
        return;
    }
    let (mut broken, mut checked) = (Vec::new(), 0);
    for document in documents() {
        let text = fs::read_to_string(&document).unwrap();
        for link in links(&without_code(&text)) {
            let Some((file, heading)) = target(&document, link) else { continue };
            checked += 1;
            let has_heading = || {
                heading.is_none_or(|heading| anchors(&fs::read_to_string(&file).unwrap()).contains(&heading))
            };
            if !file.exists() || !has_heading() {
                broken.push(format!("{}: {link}", document.display()));
            }
        }
    }
    assert!(broken.is_empty(), "broken links:\n{}", broken.join("\n"));
    assert!(checked > 50, "too few links were found: {checked}");
}

#[test]
fn the_readme_has_at_most_900_words_and_no_long_paragraph() {
    let text = fs::read_to_string(root().join("README.md")).unwrap();
    let words = text.split_whitespace().count();
    assert!(words <= MAX_WORDS, "the README has {words} words");
    for paragraph in without_code(&text).split("\n\n") {
        // A reader takes a table row by row and a list item by item, so each counts as a paragraph.
        for piece in paragraph.split("\n|").flat_map(|piece| piece.split("\n- ")) {
            let words = piece.split_whitespace().count();
            assert!(words <= MAX_PARAGRAPH_WORDS, "a paragraph has {words} words: {piece}");
        }
    }
}

#[test]
fn every_page_of_the_guide_is_in_its_index() {
    let index = fs::read_to_string(root().join("src/guide.rs")).unwrap();
    for page in fs::read_dir(root().join("src/guide")).unwrap() {
        let path = page.unwrap().path();
        let name = path.file_stem().unwrap().to_str().unwrap();
        assert!(index.contains(&format!("]({name}): ")), "{name} is missing in the list of pages");
        assert!(
            index.contains(&format!("include_str!(\"guide/{name}.md\")")),
            "{name} is not included as a page"
        );
    }
}
