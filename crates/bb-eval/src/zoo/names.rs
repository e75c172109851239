//! What stands in front of a file's names, and which rules would bring them to an architecture's.
//!
//! Wrappers leave prefixes: `module.` (several GPUs), `_orig_mod.` (a compiled network), `model.` or `net.` (a training
//! framework), also in one another. Where all names that are not known share one, and all are known without it, there is
//! nothing else that the file can mean. In all other cases the user is told a rule, and nothing is guessed.

use std::collections::{BTreeMap, BTreeSet};

use super::Rules;

/// Longest name that is looked at; nobody gives longer ones.
const LONGEST: usize = 200;

/// The beginning that all unknown names share, if without it all of them are known and none comes twice.
pub(super) fn prefix<'a>(names: &[&'a str], known: &BTreeSet<&str>) -> Option<&'a str> {
    let (known_ones, unknown): (Vec<&str>, Vec<&str>) =
        names.iter().copied().partition(|name| known.contains(name));
    let there: BTreeSet<&str> = known_ones.into_iter().collect();
    let first = *unknown.first().filter(|name| name.len() <= LONGEST)?;
    let fits = |prefix: &str| {
        let rest = |name: &&str| {
            let rest = name.strip_prefix(prefix);
            rest.is_some_and(|rest| known.contains(rest) && !there.contains(rest))
        };
        unknown.iter().all(rest)
    };
    let ends = first.match_indices('.').map(|(i, _)| &first[..=i]);
    ends.into_iter().find(|prefix| fits(prefix))
}

/// Rules that bring names of a file to those of an architecture.
pub(super) struct Help {
    /// As arguments of the command line.
    pub(super) arguments: String,
    /// Whether all names fit then.
    pub(super) whole: bool,
    /// How many more names fit then.
    pub(super) more: usize,
}

impl Help {
    /// One line for people.
    pub(super) fn hint(&self) -> String {
        let Self {
            arguments, more, ..
        } = self;
        if self.whole {
            format!("`{arguments}` makes all names fit")
        } else {
            format!("`{arguments}` makes {more} more names fit")
        }
    }
}

/// Most rules that are proposed at once.
const MOST_RULES: usize = 4;
/// Most names that rules are looked for among.
const MOST_NAMES: usize = 2000;

/// Which rules, behind those that there are, would make more of a file's names those of an architecture.
///
/// `names` are as the file has them, `known` those of the architecture, `optional` says which of these need not be there.
pub(super) fn help(
    names: &[&str],
    rules: &Rules,
    known: &BTreeSet<&str>,
    optional: impl Fn(&str) -> bool,
) -> Option<Help> {
    if names.len() > MOST_NAMES {
        return None;
    }
    // Known names that the file has under these rules, and the file's own names of all others.
    let state = |rules: &Rules| {
        let (mut fitting, mut unused) = (BTreeSet::new(), Vec::new());
        for &name in names {
            match rules.rename(name) {
                Some(new) if known.contains(new.as_str()) && fitting.insert(new.clone()) => {}
                Some(_) => unused.push(name),
                None => {}
            }
        }
        (fitting, unused)
    };
    let behind = |added: &[(String, String)]| {
        let mut all = rules.clone();
        all.rename.extend_from_slice(added);
        all
    };
    let (mut fitting, mut unused) = state(rules);
    let before = fitting.len();
    let mut added: Vec<(String, String)> = Vec::new();
    while added.len() < MOST_RULES {
        let missing = known.iter().filter(|name| !fitting.contains(**name));
        let Some(rule) = best_rule(&unused, missing.copied()) else {
            break;
        };
        // The first rule that fits a name is used, so a longer beginning goes before a shorter one.
        let place = added.iter().position(|(from, _)| rule.0.starts_with(from));
        let mut with = added.clone();
        with.insert(place.unwrap_or(added.len()), rule);
        let (now, left) = state(&behind(&with));
        if now.len() <= fitting.len() {
            break;
        }
        (added, fitting, unused) = (with, now, left);
    }
    let complete = known
        .iter()
        .all(|name| fitting.contains(*name) || optional(name));
    let mut arguments: Vec<String> = added
        .iter()
        .map(|(from, to)| format!("--rename {from}={to}"))
        .collect();
    // Nothing is missing, so the others can be left out, if a few beginnings say which they are.
    let mut whole = complete && unused.is_empty();
    if complete && !unused.is_empty() {
        let used: Vec<&&str> = names.iter().filter(|name| !unused.contains(name)).collect();
        let begin = |name: &str| {
            let ends = name.match_indices('.').map(|(i, _)| i + 1);
            let mut begins = ends.chain([name.len()]).map(|end| &name[..end]);
            let begin = begins.find(|begin| !used.iter().any(|used| used.starts_with(begin)));
            begin.filter(|begin| is_plain(begin)).map(str::to_owned)
        };
        let begins: Option<BTreeSet<String>> = unused.iter().map(|name| begin(name)).collect();
        if let Some(begins) = begins.filter(|begins| begins.len() <= MOST_RULES) {
            arguments.extend(begins.iter().map(|begin| format!("--ignore {begin}")));
            whole = true;
        }
    }
    let help = Help {
        arguments: arguments.join(" "),
        whole,
        more: fitting.len() - before,
    };
    Some(help).filter(|_| !arguments.is_empty())
}

/// The rule that brings most unused names to missing ones that end alike.
fn best_rule<'a>(
    unused: &[&str],
    missing: impl Iterator<Item = &'a str>,
) -> Option<(String, String)> {
    // Whole names, and what is behind each dot.
    let tails = |name: &str| -> Vec<usize> {
        let behind = name.match_indices('.').map(|(i, _)| i + 1);
        std::iter::once(0).chain(behind).collect()
    };
    let mut by_tail = BTreeMap::<&str, Vec<&str>>::new();
    for name in missing {
        for begin in tails(name) {
            by_tail.entry(&name[begin..]).or_default().push(name);
        }
    }
    let mut votes = BTreeMap::<(&str, &str), usize>::new();
    for name in unused.iter().filter(|name| name.len() <= LONGEST) {
        let longest = tails(name).into_iter().find_map(|begin| {
            let fitting = by_tail.get(&name[begin..])?;
            // Where several end alike, as all weights do, none is meant.
            let [one] = fitting[..] else { return None };
            Some((&name[..begin], &one[..one.len() - (name.len() - begin)]))
        });
        if let Some(rule) = longest {
            *votes.entry(rule).or_default() += 1;
        }
    }
    let mut votes: Vec<_> = votes
        .into_iter()
        .filter(|((from, to), _)| is_plain(from) && (to.is_empty() || is_plain(to)))
        .collect();
    votes.sort_by_key(|(_, count)| std::cmp::Reverse(*count));
    match votes[..] {
        // As many names speak for another rule.
        [(_, first), (_, second), ..] if first == second => None,
        [((from, to), _), ..] => Some((from.to_owned(), to.to_owned())),
        [] => None,
    }
}

/// Whether a beginning can be typed as it is.
fn is_plain(text: &str) -> bool {
    !text.is_empty()
        && text
            .chars()
            .all(|c| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-'))
        && !text.starts_with('-')
}

#[cfg(test)]
mod tests {
    use super::*;

    const KNOWN: [&str; 4] = ["conv.weight", "bn.weight", "bn.count", "linear.weight"];

    fn known() -> BTreeSet<&'static str> {
        KNOWN.into()
    }

    fn helped(names: &[&str], rules: &Rules) -> Option<(String, bool)> {
        let help = help(names, rules, &known(), |name| name == "bn.count")?;
        Some((help.arguments, help.whole))
    }

    #[test]
    fn a_prefix_is_left_out_where_nothing_else_can_be_meant() {
        for (names, expected) in [
            (
                &["module.conv.weight", "module.bn.weight"][..],
                Some("module."),
            ),
            (&["module._orig_mod.conv.weight"], Some("module._orig_mod.")),
            (&["module.module.conv.weight"], Some("module.module.")),
            // A part of the names may stand there without it.
            (&["conv.weight", "model.bn.weight"], Some("model.")),
            // None of these says one thing only.
            (&["conv.weight", "module.conv.weight"], None),
            (&["module.conv.weight", "net.bn.weight"], None),
            (&["module.conv.weight", "module.other"], None),
            (&["conv.weight", "bn.weight"], None),
            (&["other"], None),
            (&[], None),
        ] {
            assert_eq!(prefix(names, &known()), expected, "{names:?}");
        }
    }

    #[test]
    fn rules_that_would_fit_are_proposed() {
        let rules = Rules::default();
        for (names, expected, whole) in [
            (
                vec!["a.conv.weight", "a.bn.weight", "a.fc.weight"],
                "--rename a.fc.=linear. --rename a.=",
                true,
            ),
            (
                vec!["a.conv.weight", "a.bn.weight", "a.fc.weight", "loss.weight"],
                "--rename a.=",
                false,
            ),
            (
                vec!["a.conv.weight", "a.bn.weight", "a.linear.weight", "loss.x"],
                "--rename a.= --ignore loss.",
                true,
            ),
            (
                vec!["conv.weight", "bn.module.weight", "linear.weight"],
                "--rename bn.module.=bn.",
                true,
            ),
            (
                vec!["conv.weight", "bn.weight", "linear.weight", "extra"],
                "--ignore extra",
                true,
            ),
        ] {
            let found = helped(&names, &rules);
            assert_eq!(found, Some((expected.to_owned(), whole)), "{names:?}");
        }
        for names in [vec!["x", "y"], vec![], vec!["conv.weight"]] {
            assert_eq!(helped(&names, &rules), None, "{names:?}");
        }
        // Behind rules that there are, and never what would leave out a wanted tensor.
        let mut with = Rules::default();
        with.add("a.fc.=linear.").expect("a rule");
        let names = ["a.conv.weight", "a.bn.weight", "a.fc.weight"];
        assert_eq!(
            helped(&names, &with),
            Some(("--rename a.=".to_owned(), true))
        );
        let other = ["conv.weight", "bn.weight", "linear.weight", "bn.other"];
        let expected = ("--ignore bn.other".to_owned(), true);
        assert_eq!(helped(&other, &rules), Some(expected));
    }
}
