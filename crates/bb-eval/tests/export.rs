//! Cells written for other programs, and read back.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use bb_attack::AttackRequest;
use bb_attack::method::Given;
use bb_core::cell::{Cell, MODEL, POISON_TEST, POISON_TRAIN};
use bb_core::precision::Precision;
use bb_eval::paper::Paper;
use bb_eval::zoo::{ExportRequest, Format, ImportRequest, Rules, export, import};
use bb_nn::{ArchSpec, Compute, Net, StateDict};
use bb_zoo::torch::{AttackResult, Checkpoint, Item, attack, write};
use serde_json::{Value, json};

/// One epoch of an attack on a few synthetic images.
fn cell(out: &Path, method: &str) -> Cell {
    bb_attack::run(&AttackRequest {
        method: method.to_owned(),
        dataset: "synthetic".to_owned(),
        data: None,
        train_limit: Some(200),
        test_limit: Some(60),
        test_split: None,
        arch: "preactresnet18".to_owned(),
        width: 4,
        precision: Precision::F32,
        compute: Compute::Cpu,
        given: Given {
            files: Vec::new(),
            set: vec![
                "train.epochs=1".to_owned(),
                "train.batch_size=50".to_owned(),
            ],
        },
        seed: 0,
        out: out.to_owned(),
        quiet: true,
    })
    .expect("a small run")
}

fn request(cell: &Cell, format: Format, out: PathBuf) -> ExportRequest {
    ExportRequest {
        cell: cell.dir.clone(),
        format,
        data: None,
        out,
    }
}

fn import_of(path: PathBuf, out: &Path) -> ImportRequest {
    ImportRequest {
        path,
        dataset: "synthetic".to_owned(),
        data: None,
        arch: None,
        attack: Some("badnets".to_owned()),
        key: None,
        rules: Rules::default(),
        report: None,
        test_split: None,
        test_limit: None,
        match_rows: false,
        quiet: true,
        out: out.to_owned(),
    }
}

/// Bits of every tensor, by name.
fn bits(path: &Path) -> Vec<(String, Vec<u32>)> {
    let state = StateDict::load(path).expect("a network");
    let tensors = bb_eval::zoo::tensors::named(&state).expect("floats and integers");
    let words = |data: &bb_zoo::torch::TensorData| match data {
        bb_zoo::torch::TensorData::Float(values) => values.iter().map(|v| v.to_bits()).collect(),
        bb_zoo::torch::TensorData::Int(values) => values.iter().map(|v| *v as u32).collect(),
    };
    let pairs = tensors.iter().map(|t| (t.name.clone(), words(&t.data)));
    pairs.collect()
}

#[test]
fn a_folder_for_backdoorbench_is_imported_as_the_same_cell() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let cell = cell(folder.path(), "badnets");
    let out = folder.path().join("record/synthetic_badnets");
    let exported = export(&request(&cell, Format::BackdoorBench, out.clone())).expect("a cell");
    assert_eq!(exported.dir, out);
    // Narrow, and of a dataset that the benchmark lacks.
    assert_eq!(exported.warnings.len(), 2, "{:?}", exported.warnings);

    let same = ImportRequest {
        test_limit: Some(60),
        ..import_of(out.clone(), folder.path())
    };
    let (back, report) = import(&same, &Compute::Cpu).expect("our own folder");
    assert_eq!(report.to_string(), "102 loaded");
    assert_eq!(bits(&back.file(MODEL)), bits(&cell.file(MODEL)));
    for name in [POISON_TRAIN, POISON_TEST] {
        let read = |cell: &Cell| fs_err::read(cell.file(name)).expect("a set");
        assert_eq!(read(&back), read(&cell), "{name}");
    }
    for score in ["acc", "asr", "ra"] {
        let of = |cell: &Cell| cell.manifest.results[score].clone();
        assert_eq!(of(&back), of(&cell), "{score}");
    }
    let data = |cell: &Cell| cell.manifest.settings["data"].clone();
    assert_eq!(data(&back), data(&cell));
    // 20 of 200 images, which the settings of a stranger's cell do not say.
    assert_eq!(
        bb_eval::collect::facts(&back, &Paper::tsbd_table1()).ratio,
        Some(0.1)
    );

    // The record says what the benchmark's own does.
    let record = AttackResult::read(&out.join("attack_result.pt")).expect("a record");
    assert_eq!(record.test.images, 60);
    let train = record.train.expect("a training set");
    assert_eq!((train.images, train.kept.len()), (200, 200));
    assert_eq!(train.records.len(), 20);
    let checkpoint = Checkpoint::open(&out.join("attack_result.pt")).expect("a checkpoint");
    let pickle = checkpoint.pickle();
    let keys: Vec<String> = pickle
        .dict(&pickle.root)
        .expect("a dictionary")
        .iter()
        .map(|(key, _)| match key {
            bb_zoo::torch::pickle::Value::Text(text) => text.to_string(),
            other => panic!("{other:?}"),
        })
        .collect();
    assert_eq!(
        keys,
        [
            "model_name",
            "num_classes",
            "model",
            "data_path",
            "img_size",
            "clean_data",
            "bd_train",
            "bd_test"
        ]
    );
}

#[test]
fn an_export_is_whole_or_not_there() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let cell = cell(folder.path(), "badnets");
    let out = folder.path().join("out");
    fs_err::create_dir(&out).expect("a folder");
    let refused = export(&request(&cell, Format::Safetensors, out.clone())).expect_err("it exists");
    assert!(refused.to_string().ends_with("out` exists already"));
    assert_eq!(refused.exit_code(), 2);
    fs_err::remove_dir(&out).expect("it is empty still");

    // The data are not those of the cell, which is found when the folder has been begun.
    let other = json!({ "data": { "train_limit": 200, "test_limit": 61 } });
    let mut manifest: Value = serde_json::to_value(&cell.manifest).expect("plain data");
    manifest["settings"]["data"]["test_limit"] = other["data"]["test_limit"].clone();
    let mut changed = cell.manifest.spec();
    changed.settings["data"]["test_limit"] = json!(61);
    manifest["id"] = json!(changed.id());
    manifest.as_object_mut().expect("a table").remove("digest");
    fs_err::write(cell.file("manifest.json"), manifest.to_string()).expect("a manifest");
    let refused = export(&request(&cell, Format::BackdoorBench, out.clone()));
    let refused = refused.expect_err("another dataset").to_string();
    assert!(refused.contains("is not the one of the cell"), "{refused}");
    let left: Vec<_> = fs_err::read_dir(folder.path())
        .expect("a folder")
        .map(|entry| entry.expect("an entry").file_name())
        .filter(|name| name != "attack" && name != "cache")
        .collect();
    assert!(left.is_empty(), "{left:?}");
}

#[test]
fn a_state_dictionary_and_safetensors_have_the_same_bits() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let cell = cell(folder.path(), "clean");
    let (pth, safe) = (folder.path().join("pth"), folder.path().join("safe"));
    export(&request(&cell, Format::StateDict, pth.clone())).expect("a cell");
    export(&request(&cell, Format::Safetensors, safe.clone())).expect("a cell");
    assert_eq!(bits(&safe.join(MODEL)), bits(&cell.file(MODEL)));
    let checkpoint = Checkpoint::open(&pth.join("model.pth")).expect("a checkpoint");
    let state = attack::state(&checkpoint, "", &checkpoint.pickle().root).expect("tensors");
    let expected = StateDict::load(&cell.file(MODEL)).expect("a network");
    assert_eq!(
        state,
        bb_eval::zoo::tensors::named(&expected).expect("floats and integers")
    );

    let text = fs_err::read_to_string(pth.join("model.json")).expect("a description");
    let described: Value = serde_json::from_str(&text).expect("JSON");
    assert_eq!(described["arch"], "preactresnet18");
    assert_eq!(
        (&described["width"], &described["classes"]),
        (&json!(4), &json!(10))
    );
    assert_eq!(described["tensors"], "model.pth");
    assert_eq!(described["input"]["mean"], json!([0.5, 0.5, 0.5]));
    assert_eq!(described["cell"]["digest"], json!(cell.digest()));

    // The file of clean training for the benchmark is the same dictionary.
    let bench = folder.path().join("bench");
    export(&request(&cell, Format::BackdoorBench, bench.clone())).expect("a cell");
    let checkpoint = Checkpoint::open(&bench.join("clean_model.pth")).expect("a checkpoint");
    let found = attack::state(&checkpoint, "", &checkpoint.pickle().root).expect("tensors");
    assert_eq!(found, state);
}

#[test]
fn a_test_image_of_the_attacked_class_is_refused() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let cell = cell(folder.path(), "badnets");
    let out = folder.path().join("record/a");
    export(&request(&cell, Format::BackdoorBench, out.clone())).expect("a cell");
    // The attacked label of one record becomes its true one: `K<0>K<label>e` at the end of a list.
    let path = out.join("attack_result.pt");
    let record = AttackResult::read(&path).expect("a record");
    let first = record.test.records.first().expect("a poisoned image");
    let mut bytes = fs_err::read(&path).expect("a file");
    let wanted = format!("bd_test_dataset/{}/{}.png", first.original, first.index);
    let at = bytes
        .windows(wanted.len())
        .position(|window| window == wanted.as_bytes())
        .expect("its path");
    let list = bytes[at..]
        .windows(3)
        .position(|window| window == [b'K', 0, b'K'])
        .expect("its labels");
    bytes[at + list + 1] = u8::try_from(first.original).expect("one of ten classes");
    // The checksum of the pickle, in both headers.
    repair_checksum(&mut bytes, "attack_result/data.pkl");
    fs_err::write(&path, bytes).expect("a file");
    let refused = import(&import_of(out, folder.path()), &Compute::Cpu).expect_err("a wrong label");
    assert_eq!(refused.exit_code(), 3);
    let (text, label) = (refused.to_string(), first.original);
    let expected = format!(
        "image {} of `bd_test` has the true label {label}, which is the attacked one, too",
        first.index
    );
    assert!(text.contains(&expected), "{text}");
}

/// Writes the right CRC-32 of the first file of an archive into its two headers.
fn repair_checksum(bytes: &mut [u8], name: &str) {
    let word = |bytes: &[u8], at: usize| {
        u32::from_le_bytes(bytes[at..at + 4].try_into().expect("four bytes"))
    };
    let half = |bytes: &[u8], at: usize| {
        usize::from(u16::from_le_bytes(
            bytes[at..at + 2].try_into().expect("two bytes"),
        ))
    };
    let (old, size) = (word(bytes, 14), word(bytes, 22) as usize);
    let begin = 30 + half(bytes, 26) + half(bytes, 28);
    assert_eq!(&bytes[30..30 + name.len()], name.as_bytes());
    let new = !bytes[begin..begin + size].iter().fold(!0u32, |crc, byte| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| {
            (crc >> 1) ^ (0xedb8_8320 & (crc & 1).wrapping_neg())
        })
    });
    let mut places = 0;
    for at in 0..bytes.len() - 4 {
        if word(bytes, at) == old {
            bytes[at..at + 4].copy_from_slice(&new.to_le_bytes());
            places += 1;
        }
    }
    assert_eq!(places, 2, "the local header and the directory");
}

#[test]
fn names_of_others_are_brought_to_ours() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let cell = cell(folder.path(), "clean");
    let state = StateDict::load(&cell.file(MODEL)).expect("a network");
    let mut tensors = bb_eval::zoo::tensors::named(&state).expect("floats and integers");
    // As of a larger model, on several GPUs, with another head; and without the counters that older versions lack.
    tensors.retain(|tensor| !tensor.name.ends_with("num_batches_tracked"));
    for tensor in &mut tensors {
        tensor.name = match tensor.name.strip_prefix("linear.") {
            Some(rest) => format!("module.net.head.fc.{rest}"),
            None => format!("module.net.{}", tensor.name),
        };
    }
    let mut extra = tensors[0].clone();
    extra.name = "module.projector.weight".to_owned();
    tensors.push(extra);
    // An optimiser may list the tensors in any order; the width is read off the first convolution by name.
    tensors.reverse();
    let path = folder.path().join("theirs.pth");
    let file = fs_err::File::create(&path).expect("a file");
    bb_zoo::torch::write::archive(file, "theirs", &bb_zoo::torch::Item::State(tensors))
        .expect("a small file");

    let lists = folder.path().join("lists.json");
    let mut request = import_of(path, folder.path());
    request.arch = Some("preactresnet18".to_owned());
    request.attack = None;
    request.report = Some(lists.clone());
    let refused = import(&request, &Compute::Cpu)
        .expect_err("other names")
        .to_string();
    assert!(
        refused.contains("86 missing (`conv1.weight`, "),
        "{refused}"
    );
    assert!(
        refused.contains("87 unused (`module.projector.weight`, "),
        "{refused}"
    );
    let read = || -> Value {
        let text = fs_err::read_to_string(&lists).expect("the lists");
        serde_json::from_str(&text).expect("JSON")
    };
    assert_eq!(read()["unused"].as_array().map(Vec::len), Some(87));

    request.rules.add("net.head.fc.=linear.").expect("a rule");
    request.rules.add("net.=").expect("a rule");
    request.rules.ignore.push("projector.".to_owned());
    let (back, report) = import(&request, &Compute::Cpu).expect("our names");
    assert_eq!((report.loaded.len(), report.ignored.len()), (86, 17));
    assert_eq!(report.ignored[0], "module.projector.weight");
    assert_eq!(read()["ignored"][0], "module.projector.weight");
    assert!(report.is_clean());
    let floats = |cell: &Cell| {
        let all = bits(&cell.file(MODEL));
        let kept = |(name, _): &(String, Vec<u32>)| !name.ends_with("num_batches_tracked");
        all.into_iter().filter(kept).collect::<Vec<_>>()
    };
    assert_eq!(floats(&back), floats(&cell));
    assert_eq!(back.manifest.method, "clean");
}

#[test]
fn our_own_safetensors_name_their_network() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let cell = cell(folder.path(), "clean");
    let out = folder.path().join("safe");
    export(&request(&cell, Format::Safetensors, out.clone())).expect("a cell");
    let mut request = import_of(out.join(MODEL), folder.path());
    request.attack = None;
    let (back, report) = import(&request, &Compute::Cpu).expect("our own file");
    assert_eq!(report.to_string(), "102 loaded");
    assert_eq!(bits(&back.file(MODEL)), bits(&cell.file(MODEL)));
    assert_eq!(back.manifest.settings["imported"]["format"], "safetensors");
}

#[test]
fn weights_that_are_no_numbers_are_refused_before_anything_is_measured() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let cell = cell(folder.path(), "clean");
    let state = StateDict::load(&cell.file(MODEL)).expect("a network");
    for wrong in [f32::NAN, f32::INFINITY] {
        let mut tensors = bb_eval::zoo::tensors::named(&state).expect("floats and integers");
        let bb_zoo::torch::TensorData::Float(values) = &mut tensors[0].data else {
            panic!("the first tensor is a convolution");
        };
        values[5] = wrong;
        let path = folder.path().join("theirs.pth");
        let file = fs_err::File::create(&path).expect("a file");
        bb_zoo::torch::write::archive(file, "theirs", &bb_zoo::torch::Item::State(tensors))
            .expect("a small file");
        let mut request = import_of(path.clone(), folder.path());
        request.arch = Some("preactresnet18".to_owned());
        let refused = import(&request, &Compute::Cpu).expect_err("no numbers");
        let expect = format!(
            "error: the network in `{}` cannot be used\n\
             caused by: tensor `conv1.weight` holds NaN or an infinity at flat index 5\n",
            path.display()
        );
        assert_eq!(refused.report(false), expect);
    }
    // A cell that was begun is not complete.
    let cells: Vec<_> = fs_err::read_dir(folder.path().join("attack/badnets"))
        .into_iter()
        .flatten()
        .collect();
    for task in cells {
        let task = task.expect("an entry").path();
        for id in fs_err::read_dir(task).expect("a folder") {
            let id = id.expect("an entry").path();
            assert!(!id.join("manifest.json").exists(), "{}", id.display());
        }
    }
}

#[test]
fn a_repaired_model_is_exported_as_the_result_of_a_defense() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let attacked = cell(folder.path(), "badnets");
    let repaired = bb_defense::run(&bb_defense::DefenseRequest {
        defense: bb_defense::registry::find("clp", &[]).expect("it is registered"),
        model: attacked.dir.clone(),
        data: None,
        given: bb_defense::method::Given::default(),
        precision: Precision::F32,
        compute: Compute::Cpu,
        seed: 0,
        out: folder.path().to_owned(),
        cache: None,
        quiet: true,
    })
    .expect("a small run");
    let out = folder.path().join("clp");
    export(&request(&repaired, Format::BackdoorBench, out.clone())).expect("a cell");
    let mut request = import_of(out.join("defense_result.pt"), folder.path());
    request.attack = None;
    // The file names its network, as the benchmark's does.
    let (back, report) = import(&request, &Compute::Cpu).expect("our own file");
    assert_eq!(report.to_string(), "102 loaded");
    assert_eq!(bits(&back.file(MODEL)), bits(&repaired.file(MODEL)));
    assert_eq!(back.manifest.method, "clean");
}

#[test]
fn a_file_of_another_dataset_or_of_other_classes_is_refused() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let cell = cell(folder.path(), "badnets");
    let refused = |request: &ImportRequest| {
        let failure = import(request, &Compute::Cpu).expect_err("it must be refused");
        assert_eq!(failure.exit_code(), 3);
        failure.report(false)
    };
    let of = |path: PathBuf| ImportRequest {
        arch: Some("preactresnet18".to_owned()),
        ..import_of(path, folder.path())
    };

    // Our own file says what it belongs to.
    let ours = of(cell.file(MODEL));
    let text = refused(&ImportRequest {
        dataset: "gtsrb".to_owned(),
        ..ours.clone()
    });
    assert!(
        text.contains("model.safetensors` is a model for `synthetic`, expected `gtsrb`"),
        "{text}"
    );
    import(&ours, &Compute::Cpu).expect("its own dataset");

    let spec = ArchSpec::new("preactresnet18", 4, 43).expect("a known one");
    let state = Net::new(&spec, 0).state().expect("a network");
    let file = |name: &str, state: &StateDict, metadata: &[(&str, &str)]| {
        let metadata = metadata.iter().map(|&(k, v)| (k.to_owned(), v.to_owned()));
        let bytes = state.to_bytes(&metadata.collect()).expect("finite");
        let path = folder.path().join(name);
        fs_err::write(&path, bytes).expect("written");
        path
    };
    let path = file("said.safetensors", &state, &[("classes", "43")]);
    let text = refused(&of(path.clone()));
    let expect = format!(
        "error: `{}`: `classes` is 43, the dataset has 10\n",
        path.display()
    );
    assert_eq!(text, expect);
    let path = file("unsaid.safetensors", &state, &[]);
    let text = refused(&of(path.clone()));
    assert!(
        text.contains(&path.display().to_string())
            && text.contains("linear.weight [43, 32] for [10, 32]"),
        "{text}"
    );
    // A state dictionary of PyTorch, bare and as a defense of the benchmark leaves it.
    let tensors = || {
        let named = bb_eval::zoo::tensors::named(&state).expect("floats and integers");
        Item::State(named)
    };
    let torch = |name: &str, item: &Item| {
        let path = folder.path().join(name);
        let mut bytes = std::io::Cursor::new(Vec::new());
        write::archive(&mut bytes, "archive", item).expect("an archive");
        fs_err::write(&path, bytes.into_inner()).expect("written");
        path
    };
    let text = refused(&of(torch("bare.pth", &tensors())));
    assert!(
        text.contains("linear.weight [43, 32] for [10, 32]"),
        "{text}"
    );
    let result = Item::dict([
        ("model_name", Item::text("preactresnet18")),
        ("num_classes", Item::size(43)),
        ("model", tensors()),
    ]);
    let text = refused(&of(torch("defense_result.pt", &result)));
    assert!(
        text.contains("defense_result.pt`: `num_classes` is 43, the dataset has 10\n"),
        "{text}"
    );
}

#[test]
fn safetensors_that_are_not_finite_are_refused_with_their_file() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let cell = cell(folder.path(), "clean");
    let mut bytes = fs_err::read(cell.file(MODEL)).expect("a network");
    let state = StateDict::from_bytes(&bytes, Path::new(MODEL)).expect("a network");
    let bias = state.floats("linear.bias").expect("it is there");
    let bias = bias.expect("floats")[2].to_le_bytes();
    let at = bytes.windows(4).position(|window| window == bias);
    let at = at.expect("the value");
    bytes[at..at + 4].copy_from_slice(&f32::NAN.to_le_bytes());
    let path = folder.path().join("nan.safetensors");
    fs_err::write(&path, bytes).expect("written");
    let refused = import(&import_of(path.clone(), folder.path()), &Compute::Cpu);
    let refused = refused.expect_err("no numbers");
    let expect = format!(
        "error: the network in `{}` cannot be used\n\
         caused by: tensor `linear.bias` holds NaN or an infinity at flat index 2\n",
        path.display()
    );
    assert_eq!(refused.report(false), expect);
    assert_eq!(refused.exit_code(), 3);
}

#[test]
fn a_folder_without_a_result_of_the_benchmark_says_what_is_expected() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let cell = cell(folder.path(), "clean");
    let empty = folder.path().join("empty");
    fs_err::create_dir(&empty).expect("a folder");
    for (path, hint) in [
        (cell.dir, "a cell needs no import: "),
        (
            empty,
            "name the file itself (`.pt`, `.pth` or `.safetensors`)",
        ),
    ] {
        let failure = import(&import_of(path.clone(), folder.path()), &Compute::Cpu);
        let failure = failure.expect_err("nothing to import");
        assert_eq!(failure.exit_code(), 3);
        let expect = format!(
            "error: `{}` has no `attack_result.pt`, expected a folder with one, or a file of tensors\nhint: {hint}",
            path.display()
        );
        let text = failure.report(false);
        assert!(text.starts_with(&expect), "{text}");
    }
}

#[test]
fn an_export_that_is_interrupted_leaves_nothing() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let cell = cell(folder.path(), "badnets");
    let exports = folder.path().join("exports");
    let left = || fs_err::read_dir(&exports).map_or(0, Iterator::count);
    let mut stopped = 0;
    // It may be done before it is stopped, and is then begun again.
    for number in 0..50 {
        let out = exports.join(number.to_string());
        let mut child = Command::new(env!("CARGO_BIN_EXE_bb-eval"))
            .args(["zoo", "export", "--format", "backdoorbench"])
            .arg(&cell.dir)
            .arg("--out")
            .arg(&out)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("it runs");
        while left() == 0 && child.try_wait().expect("a child").is_none() {
            std::thread::sleep(Duration::from_millis(1));
        }
        let kill = Command::new("kill").arg(child.id().to_string()).status();
        let status = child.wait().expect("a child");
        if kill.expect("kill").success() && status.code() == Some(143) {
            assert_eq!(left(), 0, "attempt {number}");
            stopped += 1;
            break;
        }
        fs_err::remove_dir_all(&exports).expect("it was exported");
    }
    assert_eq!(stopped, 1, "no export was stopped while it went on");
}
