//! Networks as other people save them, imported and looked at.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use bb_core::cell::{Cell, MODEL};
use bb_core::cli::Failure;
use bb_eval::zoo::{ImportRequest, Report, Rules, import, tensors};
use bb_nn::{ArchSpec, Compute, Net, StateDict};
use bb_zoo::torch::{Item, NamedTensor, TensorData, write};
use serde_json::json;

/// A small network's tensors.
fn state() -> Vec<NamedTensor> {
    let spec = ArchSpec::new("preactresnet18", 2, 10).expect("a known one");
    let state = Net::new(&spec, 3).state().expect("its tensors");
    tensors::named(&state).expect("floats and integers")
}

fn behind(prefix: &str) -> Vec<NamedTensor> {
    let mut all = state();
    for tensor in &mut all {
        tensor.name.insert_str(0, prefix);
    }
    all
}

fn put(folder: &Path, name: &str, item: &Item) -> PathBuf {
    let path = folder.join(name);
    let mut bytes = std::io::Cursor::new(Vec::new());
    write::archive(&mut bytes, "x", item).expect("memory");
    fs_err::write(&path, bytes.into_inner()).expect("a small file");
    path
}

fn request(path: &Path) -> ImportRequest {
    ImportRequest {
        path: path.to_owned(),
        dataset: "synthetic".to_owned(),
        arch: Some("preactresnet18".to_owned()),
        out: path.parent().expect("a folder").join("runs"),
        ..ImportRequest::default()
    }
}

fn imported(request: &ImportRequest) -> Result<(Cell, Report), Failure> {
    import(request, &Compute::Cpu)
}

/// Error and hint as the user sees them, and the exit code.
fn refused(request: &ImportRequest) -> (u8, String) {
    let failure = imported(request).expect_err("it must be refused");
    (failure.exit_code(), failure.report(false))
}

fn bits(state: &[NamedTensor]) -> Vec<(String, Vec<u32>)> {
    let words = |data: &TensorData| match data {
        TensorData::Float(values) => values.iter().map(|v| v.to_bits()).collect(),
        TensorData::Int(values) => values.iter().map(|v| *v as u32).collect(),
    };
    let pair = |t: &NamedTensor| (t.name.clone(), words(&t.data));
    state.iter().map(pair).collect()
}

fn has_our_bits(cell: &Cell) {
    let found = StateDict::load(&cell.file(MODEL)).expect("a network");
    let found = tensors::named(&found).expect("floats and integers");
    assert_eq!(bits(&found), bits(&state()));
}

#[test]
fn networks_are_found_below_keys_and_behind_prefixes() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let below = |key: &str, state| {
        let identity = NamedTensor {
            name: "grid".to_owned(),
            shape: vec![1],
            data: TensorData::Float(vec![0.0]),
        };
        Item::dict([
            ("epoch", Item::Int(3)),
            (key, Item::State(state)),
            ("other", Item::State(vec![identity])),
        ])
    };
    for (item, prefix) in [
        (below("netC", state()), None),
        (below("state_dict", behind("model.")), Some("model.")),
        (below("net", behind("module.")), Some("module.")),
        (Item::dict([("ema", below("a.b", state()))]), None),
        (
            Item::State(behind("module.module.")),
            Some("module.module."),
        ),
        (
            Item::State(behind("module._orig_mod.")),
            Some("module._orig_mod."),
        ),
    ] {
        let path = put(folder.path(), "model.pth", &item);
        let (cell, report) = imported(&request(&path)).expect("one network");
        has_our_bits(&cell);
        let expected = prefix.map(|prefix| (prefix.to_owned(), 102));
        assert_eq!(report.prefix, expected);
        let text = report.to_string();
        let said = text.contains("left out the prefix");
        assert!(
            text.starts_with("102 loaded") && said == prefix.is_some(),
            "{text}"
        );
        assert!(cell.manifest.settings["imported"].get("key").is_none());
    }
}

#[test]
fn where_several_networks_may_be_meant_the_keys_are_listed() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let mut other = state();
    other[0].shape.reverse();
    let two = Item::dict([
        ("net", Item::State(state())),
        ("ema", Item::dict([("net", Item::State(other))])),
    ]);
    let path = put(folder.path(), "two.pth", &two);
    let (code, text) = refused(&request(&path));
    assert_eq!(code, 3, "{text}");
    assert!(
        text.contains("has several dictionaries of tensors that fit"),
        "{text}"
    );
    assert!(
        text.contains("with `--key KEY`; tensors lie below `net`, below `ema.net`"),
        "{text}"
    );
    let of = |key: &str| ImportRequest {
        key: Some(key.to_owned()),
        ..request(&path)
    };
    let (cell, _) = imported(&of("net")).expect("the one that is named");
    has_our_bits(&cell);
    assert_eq!(cell.manifest.settings["imported"]["key"], "net");
    let (_, text) = refused(&of("ema.net"));
    assert!(text.contains("of another shape (`conv1.weight"), "{text}");
    let (code, text) = refused(&of("nett"));
    assert_eq!(code, 2, "{text}");
    assert!(text.contains("has no dictionary at `nett`"), "{text}");

    let none = Item::dict([
        ("epoch", Item::Int(1)),
        ("args", Item::dict([("lr", Item::Int(1))])),
    ]);
    let (code, text) = refused(&request(&put(folder.path(), "none.pth", &none)));
    assert_eq!(code, 3);
    assert!(
        text.contains("has no dictionary that holds tensors and nothing else"),
        "{text}"
    );
    let list = Item::List(vec![Item::Int(1)]);
    let (_, text) = refused(&request(&put(folder.path(), "list.pth", &list)));
    assert!(
        text.contains("list.pth` is a list, expected a dictionary"),
        "{text}"
    );
}

#[test]
fn rules_see_the_names_of_the_file_and_errors_say_which_would_help() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let mut both = behind("module.");
    both.extend(state());
    let both = put(folder.path(), "both.pth", &Item::State(both));
    let rules = |rename: &[&str], ignore: &[&str]| {
        let mut rules = Rules::default();
        for rule in rename {
            rules.add(rule).expect("a rule");
        }
        rules.ignore = ignore.iter().map(|&s| s.to_owned()).collect();
        rules
    };
    let with = |path: &Path, rules| ImportRequest {
        rules,
        ..request(path)
    };
    let (code, text) = refused(&request(&both));
    assert_eq!(code, 3);
    assert!(text.contains("102 unused (`module.conv1.weight`"), "{text}");
    assert!(
        text.contains("hint: `--ignore module.` makes all names fit"),
        "{text}"
    );
    let (cell, report) = imported(&with(&both, rules(&[], &["module."]))).expect("the rule");
    has_our_bits(&cell);
    assert_eq!(report.ignored.len(), 102);

    let parallel = put(
        folder.path(),
        "parallel.pth",
        &Item::State(behind("module.")),
    );
    let (cell, _) =
        imported(&with(&parallel, rules(&["module.="], &[]))).expect("what is done anyway");
    has_our_bits(&cell);
    let counter = "module.layer1.0.bn1.num_batches_tracked";
    let (_, report) = imported(&with(&parallel, rules(&[], &[counter]))).expect("no need of it");
    assert_eq!(report.ignored, [counter]);

    let mut other = behind("backbone.");
    for tensor in &mut other {
        tensor.name = tensor.name.replace("backbone.linear.", "head.");
    }
    let other = put(folder.path(), "other.pth", &Item::State(other));
    let (_, text) = refused(&request(&other));
    let proposed = "`--rename backbone.= --rename head.=linear.` makes all names fit";
    assert!(text.contains(proposed), "{text}");
    let proposed = rules(&["backbone.=", "head.=linear."], &[]);
    has_our_bits(&imported(&with(&other, proposed)).expect("as proposed").0);

    let mut long = state();
    long[0].name = "x".repeat(5000);
    let long = put(folder.path(), "long.pth", &Item::State(long));
    let (_, text) = refused(&request(&long));
    assert!(text.len() < 1000, "{text}");
    let wrong = ImportRequest {
        arch: Some("resnet18".to_owned()),
        ..request(&parallel)
    };
    let (_, text) = refused(&wrong);
    assert!(
        text.contains("its tensors are those of preactresnet18"),
        "{text}"
    );
    let absent = ImportRequest {
        arch: None,
        ..request(&parallel)
    };
    let (code, text) = refused(&absent);
    assert_eq!(code, 2);
    assert!(text.contains("`--arch preactresnet18`"), "{text}");
}

#[test]
fn counters_may_have_any_type_and_weights_may_not() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let mut averaged = state();
    let mut counts = [7.0, 0.5, f32::NAN, 1e30].into_iter().cycle();
    for tensor in &mut averaged {
        if tensor.name.ends_with("num_batches_tracked") {
            let count = counts.next().expect("it has no end");
            tensor.data = TensorData::Float(vec![count]);
            tensor.shape = vec![1];
        }
    }
    let path = put(folder.path(), "averaged.pth", &Item::State(averaged));
    let (cell, report) = imported(&request(&path)).expect("counters are not used");
    let unused = report.ignored.len();
    assert!(
        report.loaded.len() + unused == 102 && unused > 10,
        "{report}"
    );
    let found = StateDict::load(&cell.file(MODEL)).expect("a network");
    let first = found
        .get("layer1.0.bn1.num_batches_tracked")
        .expect("a counter");
    assert_eq!(first.to_scalar::<i64>().expect("an integer"), 7);

    let mut whole = state();
    let TensorData::Float(values) = &whole[0].data else {
        panic!("a weight is no integer");
    };
    whole[0].data = TensorData::Int(values.iter().map(|_| 1).collect());
    let (code, text) = refused(&request(&put(
        folder.path(),
        "whole.pth",
        &Item::State(whole),
    )));
    assert_eq!(code, 3);
    assert!(
        text.contains("whole.pth") && text.contains("`conv1.weight` has type I64"),
        "{text}"
    );
    let mut broken = state();
    let TensorData::Float(values) = &mut broken[0].data else {
        panic!("a weight is no integer");
    };
    values[5] = f32::NAN;
    let (code, text) = refused(&request(&put(
        folder.path(),
        "nan.pth",
        &Item::State(broken),
    )));
    assert_eq!(code, 3);
    assert!(
        text.contains("nan.pth") && text.contains("`conv1.weight`") && text.contains('5'),
        "{text}"
    );
}

/// Our tensors as safetensors, floats as `dtype` of these bytes each.
fn safetensors(dtype: &str, bytes: impl Fn(f32) -> Vec<u8>) -> Vec<u8> {
    let (mut header, mut data) = (serde_json::Map::new(), Vec::new());
    for tensor in state() {
        let begin = data.len();
        let word = match &tensor.data {
            TensorData::Float(values) => {
                data.extend(values.iter().flat_map(|v| bytes(*v)));
                dtype
            }
            TensorData::Int(values) => {
                data.extend(values.iter().flat_map(|v| (*v as i32).to_le_bytes()));
                "I32"
            }
        };
        let offsets = [begin, data.len()];
        header.insert(
            tensor.name,
            json!({ "dtype": word, "shape": tensor.shape, "data_offsets": offsets }),
        );
    }
    let header = serde_json::Value::Object(header).to_string();
    [
        &(header.len() as u64).to_le_bytes(),
        header.as_bytes(),
        &data,
    ]
    .concat()
}

#[test]
fn safetensors_come_in_all_widths() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let path = folder.path().join("model.safetensors");
    fs_err::write(
        &path,
        safetensors("F64", |v| f64::from(v).to_le_bytes().into()),
    )
    .expect("a file");
    has_our_bits(&imported(&request(&path)).expect("64 bits").0);
    fs_err::write(&path, safetensors("BF16", |v| v.to_le_bytes()[2..].into())).expect("a file");
    let (cell, _) = imported(&request(&path)).expect("16 bits");
    let found = StateDict::load(&cell.file(MODEL)).expect("a network");
    let found = found
        .floats("conv1.weight")
        .expect("it is there")
        .expect("floats");
    let TensorData::Float(ours) = &state()[0].data else {
        panic!("a weight is no integer");
    };
    let cut = |v: &f32| f32::from_bits(v.to_bits() & 0xffff_0000);
    assert_eq!(found, ours.iter().map(cut).collect::<Vec<_>>());
    fs_err::write(&path, safetensors("F8_E5M2", |_| vec![0])).expect("a file");
    let (code, text) = refused(&request(&path));
    assert_eq!(code, 3);
    assert!(
        text.contains("`conv1.weight` is of type F8_E5M2, expected F64"),
        "{text}"
    );
}

#[test]
fn the_description_of_an_export_is_read_where_options_say_nothing() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let path = put(folder.path(), "model.pth", &Item::State(state()));
    let described = json!({
        "format": "bb-model-1", "tensors": "model.pth", "arch": "preactresnet18",
        "cell": { "kind": "attack", "method": "badnets", "dataset": "synthetic" },
    });
    let bare = ImportRequest {
        dataset: String::new(),
        arch: None,
        ..request(&path)
    };
    let (code, text) = refused(&bare);
    assert_eq!(code, 2);
    assert!(text.contains("does not say what dataset"), "{text}");
    let beside = folder.path().join("model.json");
    fs_err::write(&beside, described.to_string()).expect("a small file");
    let (cell, _) = imported(&bare).expect("all is said");
    let manifest = &cell.manifest;
    assert_eq!(
        (manifest.method.as_str(), manifest.dataset.as_str()),
        ("badnets", "synthetic")
    );
    // Of another file it says nothing.
    let other = folder.path().join("other.pth");
    fs_err::copy(&path, &other).expect("a copy");
    let (_, text) = refused(&ImportRequest {
        path: other,
        ..bare
    });
    assert!(text.contains("does not say what dataset"), "{text}");
}

fn bb_eval(folder: &Path, arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_bb-eval"))
        .current_dir(folder)
        .args(arguments)
        .output()
        .expect("the program starts")
}

fn said(output: &Output) -> (Option<i32>, String) {
    let both = [&output.stdout[..], &output.stderr[..]].concat();
    (
        output.status.code(),
        String::from_utf8_lossy(&both).into_owned(),
    )
}

#[test]
fn a_scan_begins_with_what_the_file_is() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let scan = |name: &str, more: &[&str]| {
        let (code, text) = said(&bb_eval(
            folder.path(),
            &[&["zoo", "scan", name], more].concat(),
        ));
        assert_eq!(code, Some(0), "{text}");
        text
    };
    let nested = Item::dict([
        ("epoch", Item::Int(1)),
        ("net", Item::State(behind("module."))),
    ]);
    put(folder.path(), "net.pth", &nested);
    let text = scan("net.pth", &[]);
    let expected = "a state dictionary of 102 tensors below `net` for preactresnet18 of width 2 and 10 classes, behind the prefix `module.`; import it with `bb-eval zoo import net.pth --key net --arch preactresnet18 --dataset NAME`\n";
    assert!(text.starts_with(expected), "{text}");
    assert!(
        text.lines().count() < 30 && text.contains("and 90 more"),
        "{text}"
    );
    assert!(scan("net.pth", &["--all"]).lines().count() > 100);

    let bytes = safetensors("F64", |v| f64::from(v).to_le_bytes().into());
    fs_err::write(folder.path().join("net.safetensors"), bytes).expect("a file");
    let text = scan("net.safetensors", &[]);
    assert!(
        text.starts_with("a state dictionary of 102 tensors for preactresnet18 of width 2"),
        "{text}"
    );
    assert!(
        text.contains("conv1.weight: tensor F64 [2, 3, 3, 3]"),
        "{text}"
    );

    put(folder.path(), "list.pth", &Item::List(Vec::new()));
    let text = scan("list.pth", &[]);
    assert!(text.starts_with("refused: `list.pth` is a list"), "{text}");
}

#[test]
fn the_index_is_a_part_of_the_program_and_attacks_are_known_by_name() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let run = |arguments: &[&str]| said(&bb_eval(folder.path(), arguments));
    let (code, text) = run(&["zoo", "list"]);
    assert!(
        code == Some(0) && text.contains("badnets-synthetic-w8"),
        "{text}"
    );
    let (code, text) = run(&["zoo", "get", "badnets-synthetic-w8"]);
    assert_eq!(code, Some(3), "{text}");
    assert!(
        text.contains("lies in the project's repository as `model_zoo/"),
        "{text}"
    );
    let (code, text) = run(&["zoo", "verify", "badnets-synthetic-w8"]);
    assert!(
        code == Some(3) && text.contains("has not been fetched"),
        "{text}"
    );

    put(folder.path(), "a.pth", &Item::State(state()));
    let import = [
        "zoo",
        "import",
        "a.pth",
        "--arch",
        "preactresnet18",
        "--dataset",
        "synthetic",
    ];
    let with = |more: &[&str]| run(&[&import[..], more].concat());
    let (code, text) = with(&["--attack", "bandet"]);
    assert_eq!(code, Some(2), "{text}");
    assert!(
        text.contains("did you mean `badnets`?") && text.contains("--attack-name"),
        "{text}"
    );
    let (code, text) = with(&["--attack", "badnet"]);
    assert!(code == Some(0) && text.contains("/badnets/"), "{text}");
    let (code, text) = with(&["--attack-name", "mine"]);
    assert!(code == Some(0) && text.contains("/mine/"), "{text}");
}
