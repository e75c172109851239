//! The tensors of a file beside those of an architecture, name by name.
//!
//! Strangers name tensors as they like. [`Rules`] bring their names to ours, [`matched`] says of every name what became
//! of it, in five lists, and nothing is left out silently.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use bb_core::cli::{Coded, exit};
use bb_nn::{ArchSpec, NnError, Slot, Spec, StateDict};
use bb_zoo::strict::{Document, StrictError};
use bb_zoo::torch::pickle::short;
use bb_zoo::torch::{NamedTensor, TensorData};
use candle_core::{DType, Device, Tensor};
use serde_json::{Value, json};

use super::names;

/// How names of a file become those of an architecture: the first rule that fits a name is used, once.
///
/// Rules see the names as the file has them. What wrappers leave in front of all names needs none: see [`matched`]. A file
/// of rules:
///
/// ```toml
/// ignore = ["aux_head."]      # tensors whose names begin so are left out
///
/// [[rename]]
/// from = "backbone.fc."       # the beginning of a name, or all of it
/// to = "linear."
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Rules {
    /// Beginnings of names and what they become.
    pub rename: Vec<(String, String)>,
    /// Beginnings of the names, as the file has them, of tensors that are left out.
    pub ignore: Vec<String>,
}

/// What a file of rules holds: `rename` and `ignore` of [`Rules`].
type Lists = (Vec<(String, String)>, Vec<String>);

/// What is wrong with rules, by themselves or for a file.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RuleError {
    /// The file of rules is not what it should be.
    #[error(transparent)]
    Strict(#[from] StrictError),
    /// An argument has no `=`.
    #[error("`{rule}` is no rule, expected FROM=TO")]
    Syntax {
        /// The argument.
        rule: String,
    },
    /// A rule fits no tensor, so it is a slip of the finger or for another file.
    #[error("rule `{rule}` fits no tensor of `{}`", path.display())]
    Idle {
        /// The rule.
        rule: String,
        /// The file with the tensors.
        path: PathBuf,
        /// A few of its names.
        names: String,
    },
    /// Two tensors end up with one name.
    #[error("`{first}` and `{second}` of `{}` both become `{name}`", path.display())]
    Clash {
        /// Whether the file itself has the name twice, which its format allows.
        twice: bool,
        /// A tensor's name in the file.
        first: String,
        /// Another's.
        second: String,
        /// What both become.
        name: String,
        /// The file with the tensors.
        path: PathBuf,
    },
}

impl Coded for RuleError {
    fn exit_code(&self) -> u8 {
        match self {
            Self::Strict(error) => error.exit_code(),
            Self::Clash { twice: true, .. } => exit::INPUT,
            _ => exit::USAGE,
        }
    }

    fn hint(&self) -> Option<String> {
        match self {
            Self::Strict(error) => error.hint(),
            Self::Idle { names, .. } => Some(format!("its names are {names}")),
            _ => None,
        }
    }
}

impl Rules {
    /// A rule of the command line, `FROM=TO`.
    ///
    /// # Errors
    /// [`RuleError::Syntax`] without `=`.
    pub fn add(&mut self, rule: &str) -> Result<(), RuleError> {
        let (from, to) = rule.split_once('=').ok_or_else(|| RuleError::Syntax {
            rule: rule.to_owned(),
        })?;
        self.rename.push((from.to_owned(), to.to_owned()));
        Ok(())
    }

    /// Adds the rules of a file behind those that are there.
    ///
    /// # Errors
    /// [`RuleError::Strict`] for a file that is not as described above.
    pub fn read(&mut self, path: &Path) -> Result<(), RuleError> {
        let document = Document::read(path)?;
        let (rename, ignore) = document.parse(|top| -> Result<Lists, StrictError> {
            top.only(&["rename", "ignore"])?;
            let mut rename = Vec::new();
            for table in top.tables("rename")? {
                table.only(&["from", "to"])?;
                let text = |name: &str| {
                    let field = table.str(name)?;
                    let field = field.ok_or_else(|| table.missing(name, "a string"))?;
                    Ok::<_, StrictError>(field.value)
                };
                rename.push((text("from")?, text("to")?));
            }
            let ignore = top.strs("ignore")?.unwrap_or_default();
            Ok((
                rename,
                ignore.into_iter().map(|field| field.value).collect(),
            ))
        })?;
        self.rename.extend(rename);
        self.ignore.extend(ignore);
        Ok(())
    }

    /// What a name becomes; nothing for a tensor that is left out.
    pub fn rename(&self, name: &str) -> Option<String> {
        match self.rule_for(name) {
            Some(Use::Ignore(_)) => None,
            Some(Use::Rename(_, new)) => Some(new),
            None => Some(name.to_owned()),
        }
    }

    /// The rule for a name as the file has it, or else behind the `module.` of several GPUs, which a rule need not say.
    fn rule_for(&self, name: &str) -> Option<Use> {
        let rule = |name: &str| {
            let ignored = self.ignore.iter().position(|start| name.starts_with(start));
            ignored.map(Use::Ignore).or_else(|| {
                let mut rules = self.rename.iter().enumerate();
                rules.find_map(|(i, (from, to))| {
                    let rest = name.strip_prefix(from.as_str())?;
                    Some(Use::Rename(i, format!("{to}{rest}")))
                })
            })
        };
        rule(name).or_else(|| rule(name.strip_prefix("module.")?))
    }

    /// Renames the tensors of a file; gives those that stay and the names of those that are left out.
    ///
    /// # Errors
    /// A rule that fits nothing, two tensors with one name.
    pub fn apply(
        &self,
        path: &Path,
        tensors: Vec<NamedTensor>,
    ) -> Result<(Vec<NamedTensor>, Vec<String>), RuleError> {
        let mut used = BTreeSet::new();
        let (mut kept, mut ignored) = (Vec::with_capacity(tensors.len()), Vec::new());
        let mut seen = BTreeMap::<String, String>::new();
        let some_names = tensors.iter().take(4).map(|t| short(&t.name));
        let some_names = some_names
            .map(|name| format!("`{name}`"))
            .collect::<Vec<_>>();
        for mut tensor in tensors {
            let old = tensor.name.clone();
            match self.rule_for(&old) {
                Some(Use::Ignore(i)) => {
                    used.insert((false, i));
                    ignored.push(old);
                    continue;
                }
                Some(Use::Rename(i, new)) => {
                    used.insert((true, i));
                    tensor.name = new;
                }
                None => {}
            }
            if let Some(first) = seen.insert(tensor.name.clone(), old.clone()) {
                return Err(RuleError::Clash {
                    twice: first == old,
                    first: short(&first),
                    second: short(&old),
                    name: short(&tensor.name),
                    path: path.to_owned(),
                });
            }
            kept.push(tensor);
        }
        let renames = self.rename.iter().enumerate();
        let renames = renames.map(|(i, (from, to))| ((true, i), format!("{from}={to}")));
        let ignores = self.ignore.iter().enumerate();
        let ignores = ignores.map(|(i, start)| ((false, i), format!("ignore {start}")));
        match renames.chain(ignores).find(|(key, _)| !used.contains(key)) {
            None => Ok((kept, ignored)),
            Some((_, rule)) => Err(RuleError::Idle {
                rule,
                path: path.to_owned(),
                names: some_names.join(", "),
            }),
        }
    }
}

/// What a rule, by its number, does with a name.
enum Use {
    Ignore(usize),
    Rename(usize, String),
}

/// How the tensors of a file meet those of an architecture, by name.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// Taken over.
    pub loaded: Vec<String>,
    /// The architecture has them, the file does not.
    pub missing: Vec<String>,
    /// The file has them, the architecture does not.
    pub unused: Vec<String>,
    /// Both have them, with these sizes in file and architecture.
    pub mismatched: Vec<String>,
    /// Left out on request, or not needed: counters of batches that are not there or are no whole numbers.
    pub ignored: Vec<String>,
    /// What was left out in front of names, and of how many.
    pub prefix: Option<(String, usize)>,
}

impl Report {
    /// Whether all tensors of the architecture were found, and nothing else.
    pub fn is_clean(&self) -> bool {
        self.missing.is_empty() && self.unused.is_empty() && self.mismatched.is_empty()
    }
}

/// Names of a list that a message shows.
const SHOWN: usize = 6;

impl std::fmt::Display for Report {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} loaded", self.loaded.len())?;
        for (word, names) in [
            ("missing", &self.missing),
            ("unused", &self.unused),
            ("of another shape", &self.mismatched),
            ("ignored", &self.ignored),
        ] {
            if names.is_empty() {
                continue;
            }
            let shown = names.iter().take(SHOWN);
            let shown: Vec<String> = shown.map(|n| format!("`{}`", short(n))).collect();
            write!(f, ", {} {word} ({}", names.len(), shown.join(", "))?;
            f.write_str(if names.len() > SHOWN { ", ...)" } else { ")" })?;
        }
        if let Some((prefix, names)) = &self.prefix {
            write!(
                f,
                ", left out the prefix `{}` of {names} names",
                short(prefix)
            )?;
        }
        Ok(())
    }
}

impl Report {
    /// The five lists in full, and the prefix where one was left out.
    pub fn to_json(&self) -> Value {
        let mut lists = json!({
            "loaded": self.loaded,
            "missing": self.missing,
            "unused": self.unused,
            "mismatched": self.mismatched,
            "ignored": self.ignored,
        });
        if let Some((prefix, _)) = &self.prefix {
            lists["prefix"] = json!(prefix);
        }
        lists
    }
}

/// Whether a network computes the same without a tensor of this name: a counter of batches.
pub(super) fn is_optional(name: &str) -> bool {
    name.ends_with("num_batches_tracked")
}

/// The tensors of an architecture, in PyTorch's order; none of them is made.
fn slots(spec: &ArchSpec) -> Vec<Slot> {
    Spec::from(spec).tensors()
}

/// The names of an architecture's tensors, in PyTorch's order.
pub(super) fn names_of(arch: &str) -> Result<Vec<String>, NnError> {
    let slots = slots(&ArchSpec::new(arch, 1, 2)?);
    Ok(slots.into_iter().map(|slot| slot.name).collect())
}

/// Whether these are the names of an architecture's tensors, but for counters and what stands in front of all of them.
pub(super) fn are_names<'a>(names: impl Iterator<Item = &'a str>, arch: &[String]) -> bool {
    let known: BTreeSet<&str> = arch.iter().map(String::as_str).collect();
    let names: Vec<&str> = names.collect();
    let prefix = names::prefix(&names, &known).unwrap_or_default();
    let found: BTreeSet<&str> = names.iter().map(|name| without(name, prefix)).collect();
    found.len() == names.len()
        && found.is_subset(&known)
        && known
            .iter()
            .all(|name| found.contains(name) || is_optional(name))
}

fn without<'a>(name: &'a str, prefix: &str) -> &'a str {
    name.strip_prefix(prefix).unwrap_or(name)
}

/// The tensors with the names that they have behind a prefix of the file's, in its order, and the prefix.
fn behind_prefix<'a>(
    found: &'a [NamedTensor],
    slots: &[Slot],
) -> (Vec<(&'a str, &'a NamedTensor)>, &'a str) {
    let names: Vec<&str> = found.iter().map(|tensor| tensor.name.as_str()).collect();
    let known: BTreeSet<&str> = slots.iter().map(|slot| slot.name.as_str()).collect();
    let prefix = names::prefix(&names, &known).unwrap_or_default();
    let named = found.iter().map(|tensor| {
        let name = tensor.name.as_str();
        let is_known = known.contains(name);
        (
            if is_known {
                name
            } else {
                without(name, prefix)
            },
            tensor,
        )
    });
    (named.collect(), prefix)
}

/// The architecture `name`, as wide as the file's first convolution is.
///
/// A file without such a tensor gets the standard width; what is missing is then for [`matched`] to say.
pub fn spec(name: &str, classes: usize, found: &[NamedTensor]) -> Result<ArchSpec, NnError> {
    const STANDARD: usize = 64;
    let slots = slots(&ArchSpec::new(name, 1, classes)?);
    let (tensors, _) = behind_prefix(found, &slots);
    let first = slots.iter().find(|slot| slot.shape.len() == 4);
    let named = first.and_then(|slot| tensors.iter().find(|(name, _)| *name == slot.name));
    let width = named
        .filter(|(_, tensor)| tensor.shape.len() == 4)
        .map_or(STANDARD, |(_, tensor)| tensor.shape[0]);
    ArchSpec::new(name, width, classes)
}

/// The file's tensors as a state of the architecture, and how they met. The state is whole if the report is clean.
///
/// A beginning that all names share which are not the architecture's is left out, if they are the architecture's then:
/// `module.`, `_orig_mod.`, `model.` and whatever else wrappers leave.
pub fn matched(found: &[NamedTensor], spec: &ArchSpec) -> Result<(StateDict, Report), NnError> {
    let slots = slots(spec);
    let (named, prefix) = behind_prefix(found, &slots);
    let tensors: BTreeMap<&str, &NamedTensor> = named.iter().copied().collect();
    let mut state = StateDict::new();
    let mut report = Report::default();
    for Slot {
        name,
        shape,
        counts,
    } in &slots
    {
        let found = tensors.get(name.as_str()).copied();
        if *counts {
            // Averaging and casting leave any type. Nothing uses it, so what is no count is not needed either.
            let said = found.and_then(count);
            state.insert(name, Tensor::new(said.unwrap_or(0), &Device::Cpu)?);
            match said {
                Some(_) => report.loaded.push(name.clone()),
                None => report.ignored.push(name.clone()),
            }
            continue;
        }
        let Some(tensor) = found else {
            report.missing.push(name.clone());
            continue;
        };
        if tensor.shape != *shape {
            let found = &tensor.shape;
            report
                .mismatched
                .push(format!("{name} {found:?} for {shape:?}"));
            continue;
        }
        let values = match &tensor.data {
            TensorData::Float(values) => Tensor::from_slice(values, shape.as_slice(), &Device::Cpu),
            TensorData::Int(values) => Tensor::from_slice(values, shape.as_slice(), &Device::Cpu),
        };
        state.insert(name, values?);
        report.loaded.push(name.clone());
    }
    let known: BTreeSet<&str> = slots.iter().map(|slot| slot.name.as_str()).collect();
    let unknown = |(name, _): &&(&str, &NamedTensor)| !known.contains(name);
    let unused = named.iter().filter(unknown);
    report.unused = unused.map(|(_, tensor)| tensor.name.clone()).collect();
    if !prefix.is_empty() {
        let is_behind = |tensor: &&NamedTensor| !known.contains(tensor.name.as_str());
        let names = found.iter().filter(is_behind).count();
        report.prefix = Some((prefix.to_owned(), names));
    }
    Ok((state, report))
}

/// The number of batches that a counter says, whatever its type is.
fn count(tensor: &NamedTensor) -> Option<i64> {
    match &tensor.data {
        TensorData::Int(values) => match values[..] {
            [count] => Some(count),
            _ => None,
        },
        TensorData::Float(values) => match values[..] {
            // Up to here 32 bits hold each whole number.
            [count] if count.fract() == 0.0 && count.abs() <= 16_777_216.0 => Some(count as i64),
            _ => None,
        },
    }
}

/// The tensors of a state, in its order.
pub fn named(state: &StateDict) -> Result<Vec<NamedTensor>, NnError> {
    let mut tensors = Vec::with_capacity(state.len());
    for (name, tensor) in state.iter() {
        let flat = tensor.flatten_all()?;
        let data = match tensor.dtype() {
            DType::F32 => TensorData::Float(flat.to_vec1()?),
            DType::I64 => TensorData::Int(flat.to_vec1()?),
            other => {
                return Err(NnError::DType {
                    name: name.to_owned(),
                    expected: "f32 or i64",
                    found: format!("{other:?}"),
                });
            }
        };
        tensors.push(NamedTensor {
            name: name.to_owned(),
            shape: tensor.dims().to_vec(),
            data,
        });
    }
    Ok(tensors)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tensors(names: &[&str]) -> Vec<NamedTensor> {
        let tensor = |name: &&str| NamedTensor {
            name: (*name).to_owned(),
            shape: vec![1],
            data: TensorData::Float(vec![0.0]),
        };
        names.iter().map(tensor).collect()
    }

    fn rules(rename: &[&str], ignore: &[&str]) -> Rules {
        let mut rules = Rules::default();
        for rule in rename {
            rules.add(rule).expect("a rule");
        }
        rules.ignore = ignore.iter().map(|&s| s.to_owned()).collect();
        rules
    }

    fn applied(rules: &Rules, names: &[&str]) -> Result<(Vec<String>, Vec<String>), String> {
        let path = Path::new("m.pth");
        match rules.apply(path, tensors(names)) {
            Ok((kept, ignored)) => Ok((kept.into_iter().map(|t| t.name).collect(), ignored)),
            Err(error) => Err(error.to_string()),
        }
    }

    #[test]
    fn the_first_rule_that_fits_is_used_once() {
        let rules = rules(&["net.fc.=linear.", "net.=", "a=net.a"], &["aux."]);
        let found = applied(&rules, &["net.fc.bias", "net.conv1.weight", "a", "aux.x"]);
        let names = |names: &[&str]| names.iter().map(|&n| n.to_owned()).collect::<Vec<_>>();
        assert_eq!(
            found,
            Ok((
                names(&["linear.bias", "conv1.weight", "net.a"]),
                names(&["aux.x"])
            ))
        );
    }

    #[test]
    fn a_rule_that_does_nothing_and_a_name_that_comes_twice_are_refused() {
        for (rename, ignore, names, expected) in [
            (
                vec!["nett.="],
                vec![],
                vec!["net.a"],
                "rule `nett.=` fits no tensor of `m.pth`",
            ),
            (
                vec![],
                vec!["aux."],
                vec!["net.a"],
                "rule `ignore aux.` fits no tensor of `m.pth`",
            ),
            (
                vec!["x.=", "y.="],
                vec![],
                vec!["x.a", "y.a"],
                "`x.a` and `y.a` of `m.pth` both become `a`",
            ),
        ] {
            let found = applied(&rules(&rename, &ignore), &names);
            assert_eq!(found, Err(expected.to_owned()));
        }
        let error = Rules::default().add("from").expect_err("no rule");
        assert_eq!(error.to_string(), "`from` is no rule, expected FROM=TO");
    }

    #[test]
    fn a_file_of_rules_is_read_strictly() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let path = folder.path().join("rules.toml");
        let read = |text: &str| {
            fs_err::write(&path, text).expect("a small file");
            let mut rules = rules(&["a=b"], &[]);
            rules.read(&path).map(|()| rules)
        };
        let found = read("ignore = [\"aux.\"]\n[[rename]]\nfrom = \"c\"\nto = \"\"\n");
        assert_eq!(found.expect("good rules"), rules(&["a=b", "c="], &["aux."]));
        for (text, expected) in [
            (
                "[[rename]]\nfrom = \"c\"\n",
                "`rename[0].to` is missing, expected a string",
            ),
            (
                "[[rename]]\nfrom = 1\nto = \"\"\n",
                "`rename[0].from` is an integer, expected a string",
            ),
            ("renames = []\n", "unknown key `renames`"),
        ] {
            let error = read(text).expect_err(expected).to_string();
            assert!(error.starts_with(expected), "{error}");
        }
    }
}
