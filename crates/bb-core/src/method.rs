//! What a method says about itself, and how it is found by name.
//!
//! The decision this module embodies: the head comment of a method's `mod.rs` is its documentation, for readers of the
//! source and for users of `show <method>` alike, so there is one text and it cannot drift from the code it heads.

use serde::Serialize;

use crate::cli::{Coded, exit};
use crate::settings::did_you_mean;

/// The headings that every method's head comment has, in this order.
pub const HEADINGS: [&str; 7] = [
    "What it does",
    "Threat model",
    "Algorithm",
    "Differences from the authors' code",
    "Settings",
    "Cost",
    "References",
];

/// An attack or a defense as its list shows it.
#[derive(Clone, Copy, Debug)]
pub struct MethodInfo {
    /// Name on the command line and in paths: lower case, unique among its kind.
    pub id: &'static str,
    /// Name in tables.
    pub title: &'static str,
    /// The paper: authors, short title, venue, year.
    pub paper: &'static str,
    /// What it is given.
    pub needs: Needs,
    /// How far it has been checked.
    pub status: Status,
    /// What it does in a few words, lower case, no full stop.
    pub summary: &'static str,
    /// The source of its `mod.rs`, by `include_str!("mod.rs")`; see [`MethodInfo::markdown`].
    pub docs: &'static str,
}

/// What a method is given besides the settings.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Needs {
    /// Nothing: an attack, which makes its own model.
    Nothing,
    /// The suspect model alone; no image can be reached.
    DataFree,
    /// The suspect model and a small share of clean training images.
    CleanFraction,
}

/// How far a method has been checked against its paper.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Status {
    /// It runs, and little or nothing was compared yet.
    Experimental,
    /// Tests compare its parts with outputs of the reference implementation, under the reference's settings. Which of
    /// our defaults are others, the head comment says.
    Matched,
    /// The figures of the paper were measured again; names the claim.
    Reproduced(&'static str),
}

impl Needs {
    /// In words, for lists.
    pub fn describe(self) -> &'static str {
        match self {
            Self::Nothing => "nothing",
            Self::DataFree => "the model only",
            Self::CleanFraction => "the model and a share of clean data",
        }
    }
}

impl MethodInfo {
    /// The head comment as Markdown.
    pub fn markdown(&self) -> String {
        head_comment(self.docs)
    }

    /// The page of `show <method>`: the head comment, with `settings` (TOML) at the end of its section on settings.
    ///
    /// Links to items of the source become plain code, because a terminal has nothing to follow them to.
    pub fn page(&self, settings: &str) -> String {
        let mut page = String::new();
        let mut in_settings = false;
        let block = format!("```toml\n{}\n```\n", settings.trim_end());
        for line in self.markdown().lines() {
            if line.starts_with("## ") {
                if in_settings {
                    page.push_str(&block);
                    page.push('\n');
                }
                in_settings = heading(line) == Some("Settings");
            }
            page.push_str(&unlinked(line));
            page.push('\n');
        }
        if in_settings {
            page.push_str(&block);
        }
        page
    }
}

/// The `//!` comment at the head of a source file, as Markdown.
pub fn head_comment(source: &str) -> String {
    let lines = source
        .lines()
        .map(str::trim)
        .skip_while(|line| !line.starts_with("//!"));
    let mut markdown = String::new();
    for line in lines.map_while(|line| line.strip_prefix("//!")) {
        markdown.push_str(line.strip_prefix(' ').unwrap_or(line));
        markdown.push('\n');
    }
    markdown
}

/// The [`HEADINGS`] that `docs` (a source file, or Markdown) lacks, or has with nothing below them.
///
/// Below `Settings` nothing is needed, because the settings are listed by the program.
pub fn check_headings(docs: &str) -> Vec<&'static str> {
    let markdown = if docs
        .lines()
        .any(|line| line.trim_start().starts_with("//!"))
    {
        head_comment(docs)
    } else {
        docs.to_owned()
    };
    let has = |wanted: &str| {
        let mut below = markdown
            .lines()
            .skip_while(|line| heading(line) != Some(wanted));
        below.next().is_some()
            && (wanted == "Settings"
                || below
                    .take_while(|line| !line.starts_with("## "))
                    .any(|line| !line.trim().is_empty()))
    };
    HEADINGS.into_iter().filter(|wanted| !has(wanted)).collect()
}

/// The words of a heading of the second level.
fn heading(line: &str) -> Option<&str> {
    line.strip_prefix("## ").map(str::trim)
}

/// The line with ``[`item`]`` as `` `item` ``.
fn unlinked(line: &str) -> String {
    line.replace("[`", "`").replace("`]", "`")
}

/// No method has this name.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("unknown {kind} `{id}`, known are {}", .known.iter().map(|id| format!("`{id}`")).collect::<Vec<_>>().join(", "))]
pub struct UnknownMethod {
    /// What was looked for: `attack` or `defense`.
    pub kind: &'static str,
    /// The name that was given.
    pub id: String,
    /// The names that there are, in the order of their list.
    pub known: Vec<String>,
}

impl Coded for UnknownMethod {
    fn exit_code(&self) -> u8 {
        exit::USAGE
    }

    fn hint(&self) -> Option<String> {
        did_you_mean(&self.id, self.known.iter().map(String::as_str))
    }
}

/// The method named `id` among `methods`; `info` says what a method is.
pub fn find_by_id<'a, T>(
    kind: &'static str,
    id: &str,
    methods: &'a [T],
    info: impl Fn(&T) -> &MethodInfo,
) -> Result<&'a T, UnknownMethod> {
    methods
        .iter()
        .find(|method| info(method).id == id)
        .ok_or_else(|| UnknownMethod {
            kind,
            id: id.to_owned(),
            known: methods
                .iter()
                .map(|method| info(method).id.to_owned())
                .collect(),
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    const SOURCE: &str = "\
// Licence.

//! # Foo: an example
//!
//! ## What it does
//! Nothing, see [`config::Foo`].
//! ## Threat model
//! None.
//! ## Algorithm
//!     indented
//! ## Differences from the authors' code
//! ## Settings
//! ## Cost
//!
//! ## References
//! A paper.

//! Not part of the head.
pub mod config;
";

    fn info(id: &'static str) -> MethodInfo {
        MethodInfo {
            id,
            title: "Foo",
            paper: "Foo et al., 2024",
            needs: Needs::DataFree,
            status: Status::Experimental,
            summary: "an example",
            docs: SOURCE,
        }
    }

    #[test]
    fn the_head_comment_is_what_stands_before_the_code() {
        let markdown = head_comment(SOURCE);
        assert!(
            markdown.starts_with("# Foo: an example\n\n## What it does\n"),
            "{markdown}"
        );
        assert!(markdown.contains("\n    indented\n"), "{markdown}");
        assert!(
            markdown.ends_with("## References\nA paper.\n"),
            "{markdown}"
        );
        assert_eq!(head_comment("fn main() {}\n"), "");
    }

    #[test]
    fn a_heading_with_nothing_below_is_missing_unless_it_is_generated() {
        let missing = ["Differences from the authors' code", "Cost"];
        assert_eq!(check_headings(SOURCE), missing);
        assert_eq!(check_headings(&head_comment(SOURCE)), missing);
        assert_eq!(check_headings(""), HEADINGS);
    }

    #[test]
    fn the_page_lists_the_settings_in_their_section() {
        let page = info("foo").page("lr = 0.01\n\n");
        let expected = "## Settings\n```toml\nlr = 0.01\n```\n\n## Cost\n";
        assert!(page.contains(expected), "{page}");
        assert!(page.contains("see `config::Foo`."), "{page}");
    }

    #[test]
    fn a_method_is_found_by_its_exact_name() {
        let methods = [info("ft"), info("otbr"), info("tsbd"), info("ulrl")];
        let find = |id| find_by_id("defense", id, &methods, |info| info);
        assert_eq!(find("tsbd").map(|info| info.id), Ok("tsbd"));

        let cases = [
            ("tsdb", Some("did you mean `tsbd`?")),
            ("TSBD", Some("did you mean `tsbd`?")),
            ("pruning", None),
            ("", None),
        ];
        for (id, hint) in cases {
            let error = find(id).map(|info| info.id).expect_err("no such method");
            assert_eq!(
                error.to_string(),
                format!("unknown defense `{id}`, known are `ft`, `otbr`, `tsbd`, `ulrl`")
            );
            assert_eq!(error.hint().as_deref(), hint);
            assert_eq!(error.exit_code(), exit::USAGE);
        }
    }
}
