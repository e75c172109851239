//! Under which settings a published number was made.
//!
//! A committed recipe is what we think best to begin with: it draws its own trigger where the published one is somebody's
//! picture, and mends what the published code does by mistake. So a run by the recipe need not be the published one.
//! A profile says, for each method, which settings make it so, which files it needs, and what no setting can make alike.
//! It is read from the tables `[[attack]]` and `[[defense]]` of the files in `docs/papers`:
//!
//! ```toml
//! [[defense]]
//! method = "fp"
//! source = "defense/fp.py"                         # where that can be seen
//! set = { prune.keep = "last-tried" }              # over the committed recipe of the dataset
//! departures = ["the test set judges there"]       # what no setting changes: such a number never stands plainly
//!
//! [[attack]]
//! method = "lf"
//! files = [                                        # by the content, wherever they lie
//!   { setting = "trigger.file", name = "a.npy", sha256 = "...", dataset = "cifar10", arch = "preactresnet18" },
//! ]
//! ```
//!
//! A file with `built_in = true` is what the attack makes without one.
use std::collections::{BTreeMap, BTreeSet};

use bb_core::cell::Kind;
use bb_zoo::strict::{Document, StrictError, Table};
use serde_json::Value;

use crate::leaves::leaves;

/// What the code behind published numbers does otherwise than the committed recipes, by method.
#[derive(Debug, Clone, Default)]
pub struct Profile {
    methods: BTreeMap<(&'static str, String), Published>,
}

/// What the published code does otherwise than the committed recipe of one method.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Published {
    /// Settings `key=value`, over the recipe.
    pub set: Vec<String>,
    /// Files that the published code reads.
    pub files: Vec<PublishedFile>,
    /// What no setting can make alike, in words.
    pub departures: Vec<String>,
}

/// A file that the published code reads, such as a trigger.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PublishedFile {
    /// The setting that names it.
    pub setting: String,
    /// What it is called.
    pub name: String,
    /// The digest of its content.
    pub sha256: String,
    /// The dataset that it is for, if it is for one.
    pub dataset: Option<String>,
    /// The architecture that it is for, if it is for one.
    pub arch: Option<String>,
    /// Whether the method makes the same without a file.
    pub built_in: bool,
}

/// The settings of a cell, as far as a profile looks at them.
#[derive(Debug, Clone, Copy)]
pub struct Own<'a> {
    /// The complete settings.
    pub settings: &'a Value,
    /// The digests of the files that they name, by setting.
    pub digests: &'a BTreeMap<String, String>,
    /// The dataset.
    pub dataset: &'a str,
    /// The architecture without the width.
    pub arch: &'a str,
}

impl Profile {
    /// Adds what a document says; what was there before is kept where it says nothing.
    ///
    /// # Errors
    /// For unknown keys, wrong types, and values that are no digest.
    pub fn add(&mut self, top: &Table<'_>) -> Result<(), StrictError> {
        for kind in [Kind::Attack, Kind::Defense] {
            for table in top.tables(kind.as_str())? {
                table.only(&["method", "source", "set", "files", "departures"])?;
                table.str("source")?;
                let method = table
                    .str("method")?
                    .ok_or_else(|| table.missing("method", "a string"))?;
                let set = table.table("set")?.map(|set| set.assignments());
                let words = table.strs("departures")?.unwrap_or_default();
                let files: Result<Vec<_>, _> = table.tables("files")?.iter().map(file).collect();
                let key = (kind.as_str(), method.value);
                let entry = self.methods.entry(key).or_default();
                entry.set.extend(set.into_iter().flatten().map(|f| f.value));
                entry.files.extend(files?);
                for word in words {
                    entry
                        .departures
                        .push(word.check(|text| one_line(text), ONE_LINE)?.value);
                }
            }
        }
        Ok(())
    }

    /// Reads the text of a file with nothing but methods.
    ///
    /// # Errors
    /// As [`Profile::add`], and if it is no TOML.
    pub fn read(&mut self, document: &Document) -> Result<(), StrictError> {
        document.parse(|top| {
            top.only(&[Kind::Attack.as_str(), Kind::Defense.as_str()])?;
            self.add(&top)
        })
    }

    /// What is known of a method; nothing if it is published as our recipe has it.
    pub fn method(&self, kind: Kind, method: &str) -> Published {
        let found = self.methods.get(&(kind.as_str(), method.to_owned()));
        found.cloned().unwrap_or_default()
    }

    /// The methods of which something is known.
    pub fn methods(&self) -> impl Iterator<Item = (&'static str, &str)> {
        self.methods
            .keys()
            .map(|(kind, method)| (*kind, method.as_str()))
    }
}

/// What a note prints of somebody's file.
const ONE_LINE: &str = "one line of text";

fn one_line(text: &str) -> bool {
    !text.trim().is_empty() && !text.contains(char::is_control)
}

fn file(table: &Table<'_>) -> Result<PublishedFile, StrictError> {
    table.only(&["setting", "name", "sha256", "dataset", "arch", "built_in"])?;
    let word = |name| {
        let field = table.str(name)?;
        let field = field.ok_or_else(|| table.missing(name, "a string"))?;
        field.check(|text| one_line(text), ONE_LINE)
    };
    let digest = |text: &String| text.len() == 64 && text.bytes().all(|b| b.is_ascii_hexdigit());
    let optional = |name| Ok::<_, StrictError>(table.str(name)?.map(|field| field.value));
    Ok(PublishedFile {
        setting: word("setting")?.value,
        name: word("name")?.value,
        sha256: word("sha256")?
            .check(digest, "a SHA-256 of 64 hexadecimal digits")?
            .value
            .to_lowercase(),
        dataset: optional("dataset")?,
        arch: optional("arch")?,
        built_in: table.bool("built_in")?.is_some_and(|field| field.value),
    })
}

/// Most differences that a note lists; the others are counted.
const NAMED: usize = 4;
/// Tables that the harness adds to a method's own settings.
const ADDED: [&str; 4] = ["compute", "data", "model", "imported"];

/// Whether a setting says only how often is measured and what is recorded or tried beside the result.
pub fn measures(key: &str) -> bool {
    // ANP's masks are looked at once a round, and are trained on regardless.
    matches!(
        key,
        "eval_every" | "probe_every" | "record_layer" | "sweep" | "mask.round"
    ) || key.starts_with("sweep_")
}

impl Published {
    /// The settings over the recipe, with files by their names, for a dataset and an architecture.
    pub fn given(&self, dataset: &str, arch: &str) -> Vec<String> {
        let mut set = self.set.clone();
        for setting in self.file_settings() {
            let name = match self.file(setting, dataset, arch) {
                Some(file) if file.built_in => continue,
                Some(file) => &file.name,
                None => "none",
            };
            set.push(format!("{setting}={name:?}"));
        }
        set
    }

    /// What a run did otherwise, in words; `expected` are the settings by [`Published::given`].
    ///
    /// What is `compared` elsewhere is left out, by key.
    pub fn differences(&self, own: Own<'_>, expected: &Value, compared: &[&str]) -> Vec<String> {
        let files = self.file_settings();
        let mut found: Vec<String> = files
            .iter()
            .filter_map(|setting| self.unlike_file(setting, own))
            .collect();
        let plain = |key: &&String| {
            let table = key.split('.').next().unwrap_or_default();
            !ADDED.contains(&table)
                && !measures(key)
                && !compared.contains(&key.as_str())
                && !files.contains(key.as_str())
        };
        let (ours, theirs) = (leaves(own.settings), leaves(expected));
        let keys: BTreeSet<&String> = ours.keys().chain(theirs.keys()).filter(plain).collect();
        let value = |values: &BTreeMap<String, String>, key| match values.get(key) {
            Some(value) if value.is_empty() => "none".to_owned(),
            Some(value) => value.clone(),
            None => "unknown".to_owned(),
        };
        let differing: Vec<String> = keys
            .into_iter()
            .filter(|key| ours.get(*key) != theirs.get(*key))
            .map(|key| {
                format!(
                    "{key} {} instead of {}",
                    value(&ours, key),
                    value(&theirs, key)
                )
            })
            .collect();
        let more = differing.len().saturating_sub(NAMED);
        found.extend(differing.into_iter().take(NAMED));
        if more > 0 {
            let plural = if more == 1 { "" } else { "s" };
            found.push(format!("{more} more setting{plural}"));
        }
        found.extend(self.departures.iter().cloned());
        found
    }

    /// The settings that name files.
    fn file_settings(&self) -> BTreeSet<&str> {
        self.files
            .iter()
            .map(|file| file.setting.as_str())
            .collect()
    }

    fn file(&self, setting: &str, dataset: &str, arch: &str) -> Option<&PublishedFile> {
        let fits = |wanted: &Option<String>, found: &str| {
            wanted.as_ref().is_none_or(|wanted| wanted == found)
        };
        self.files.iter().find(|file| {
            file.setting == setting && fits(&file.dataset, dataset) && fits(&file.arch, arch)
        })
    }

    /// How the file of a setting is another than the published one.
    fn unlike_file(&self, setting: &str, own: Own<'_>) -> Option<String> {
        // `trigger` of `trigger.file`.
        let what = setting.split('.').next().unwrap_or_default();
        let Some(file) = self.file(setting, own.dataset, own.arch) else {
            return Some(format!(
                "no published {what} is known for {} on {}",
                own.arch, own.dataset
            ));
        };
        let ours = match own.digests.get(setting) {
            Some(digest) if *digest == file.sha256 => return None,
            None if file.built_in => return None,
            Some(_) => "another",
            None => "built-in",
        };
        Some(format!("{ours} {what} instead of {}", file.name))
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    const TEXT: &str = r#"
[[attack]]
method = "a"
set = { rounding = "truncate" }
files = [
  { setting = "trigger.file", name = "ours.png", sha256 = "SHA0", dataset = "cifar10", built_in = true },
  { setting = "trigger.file", name = "theirs.png", sha256 = "SHA1", dataset = "gtsrb", arch = "vgg19_bn" },
]

[[defense]]
method = "d"
departures = ["another judge there"]
"#;

    fn profile() -> Profile {
        let text = TEXT.replace("SHA0", &"0".repeat(64));
        let text = text.replace("SHA1", &"A".repeat(64));
        let mut profile = Profile::default();
        profile
            .read(&Document::new("profile.toml", text))
            .expect("a profile");
        profile
    }

    fn settings() -> Value {
        json!({
            "eval_every": 1, "ratio": 0.1, "rounding": "truncate", "sweep": false, "sweep_ratios": [0.1],
            "train": { "epochs": 100, "lr": 0.01, "schedule": { "kind": "cosine", "t_max": 100 } },
            "trigger": { "file": "" },
        })
    }

    /// What differs if some settings are others.
    fn differences(change: &Value) -> Vec<String> {
        let mut ours = settings();
        for (key, value) in change.as_object().expect("a table") {
            ours[key] = value.clone();
        }
        let own = Own {
            settings: &ours,
            digests: &BTreeMap::new(),
            dataset: "cifar10",
            arch: "preactresnet18",
        };
        let compared = ["ratio", "train.epochs"];
        let published = profile().method(Kind::Attack, "a");
        published.differences(own, &settings(), &compared)
    }

    #[test]
    fn settings_that_make_another_model_differ_and_no_others() {
        for change in [
            json!({}),
            json!({ "eval_every": 4, "sweep": true, "sweep_ratios": [0.2] }),
            json!({ "probe_every": 1, "record_layer": "last" }),
            json!({ "ratio": 0.2 }),
            json!({ "data": { "test_limit": 5 }, "model": {}, "compute": { "precision": "bf16" } }),
        ] {
            assert_eq!(differences(&change), [""; 0], "{change}");
        }
        assert_eq!(
            differences(&json!({ "rounding": "nearest", "target": 3 })),
            [
                "rounding nearest instead of truncate",
                "target 3 instead of unknown"
            ]
        );
        // A cell of a version that lacked the setting says nothing of it.
        assert_eq!(
            differences(&json!({ "train": { "epochs": 100, "lr": 0.01 } })),
            [
                "train.schedule.kind unknown instead of cosine",
                "train.schedule.t_max unknown instead of 100"
            ]
        );
    }

    #[test]
    fn four_settings_are_named_and_the_others_counted() {
        let train = json!({
            "epochs": 12, "lr": 0.1, "schedule": { "kind": "triangle", "t_max": 5, "warmup": 0.2 },
        });
        let mut expect = vec![
            "train.lr 0.1 instead of 0.01".to_owned(),
            "train.schedule.kind triangle instead of cosine".to_owned(),
            "train.schedule.t_max 5 instead of 100".to_owned(),
            "train.schedule.warmup 0.2 instead of unknown".to_owned(),
        ];
        assert_eq!(differences(&json!({ "train": train })), expect);
        expect.insert(0, "rounding nearest instead of truncate".to_owned());
        expect[4] = "1 more setting".to_owned();
        let change = json!({ "train": train, "rounding": "nearest" });
        assert_eq!(differences(&change), expect);
    }

    #[test]
    fn a_file_is_known_by_its_content() {
        let published = profile().method(Kind::Attack, "a");
        let settings = settings();
        let said = |digest: Option<&str>, dataset: &str, arch: &str| {
            let digests = digest.map(|digest| ("trigger.file".to_owned(), digest.repeat(64)));
            let digests = digests.into_iter().collect();
            let own = Own {
                settings: &settings,
                digests: &digests,
                dataset,
                arch,
            };
            published.differences(own, &settings, &[]).join(", ")
        };
        for (digest, dataset, arch, expect) in [
            (Some("0"), "cifar10", "resnet18", ""),
            (None, "cifar10", "resnet18", ""),
            (
                Some("1"),
                "cifar10",
                "resnet18",
                "another trigger instead of ours.png",
            ),
            (Some("a"), "gtsrb", "vgg19_bn", ""),
            (
                None,
                "gtsrb",
                "vgg19_bn",
                "built-in trigger instead of theirs.png",
            ),
            (
                None,
                "gtsrb",
                "resnet18",
                "no published trigger is known for resnet18 on gtsrb",
            ),
        ] {
            assert_eq!(said(digest, dataset, arch), expect, "{digest:?} {dataset}");
        }
        let given = |dataset, arch| published.given(dataset, arch);
        assert_eq!(given("cifar10", "a"), ["rounding=\"truncate\""]);
        assert_eq!(
            given("gtsrb", "vgg19_bn"),
            ["rounding=\"truncate\"", "trigger.file=\"theirs.png\""]
        );
    }

    #[test]
    fn what_no_setting_changes_is_always_said() {
        let published = profile().method(Kind::Defense, "d");
        let settings = json!({ "u": 3 });
        let own = Own {
            settings: &settings,
            digests: &BTreeMap::new(),
            dataset: "cifar10",
            arch: "resnet18",
        };
        let said = published.differences(own, &settings, &[]);
        assert_eq!(said, ["another judge there"]);
        assert_eq!(profile().method(Kind::Defense, "e"), Published::default());
    }
}
