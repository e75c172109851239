//! Records beside datasets in another order, records with few poisoned images, and networks that others repaired.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use bb_attack::AttackRequest;
use bb_attack::method::Given;
use bb_attack::picture::Picture;
use bb_core::cell::{self, Cell, CellSpec, ENV, Kind, MODEL, Opened, POISON_TEST, POISON_TRAIN};
use bb_core::data::{self, OpenOptions};
use bb_core::metrics::Ratio;
use bb_core::poison::PoisonSet;
use bb_core::precision::Precision;
use bb_eval::zoo::{
    ExportRequest, Format, ImportRequest, RepairedRequest, export, import, import_repaired,
};
use bb_nn::{ArchSpec, Compute, Net};
use bb_zoo::torch::{AttackResult, DatasetState, Item, write};
use serde_json::{Value, json};

const CLASSES: usize = 4;
const TRAIN: usize = 15;
const TEST: usize = 12;

/// A folder dataset of synthetic images, 15 and 12 for each of four classes; `name` gives image `i` of a class its place.
fn folder_dataset(root: &Path, name: impl Fn(usize, usize) -> usize) {
    let options = OpenOptions {
        train_limit: Some(10 * TRAIN),
        test_limit: Some(10 * TEST),
        ..OpenOptions::default()
    };
    let synthetic = data::open("synthetic", None, &options).expect("it is made by the program");
    for (split, images, count) in [
        ("train", &synthetic.train, TRAIN),
        ("test", &synthetic.test, TEST),
    ] {
        for class in 0..CLASSES {
            let folder = root.join(split).join(class.to_string());
            fs_err::create_dir_all(&folder).expect("a folder");
            let own = (0..images.len()).filter(|&i| images.labels[i] as usize == class);
            for (i, row) in own.enumerate() {
                let picture = Picture::new(32, 32, images.images.image(row).to_vec());
                let path = folder.join(format!("{:03}.png", name(i, count)));
                fs_err::write(path, picture.to_png()).expect("a picture");
            }
        }
    }
}

/// One epoch of BadNets, or another method.
fn attack(method: &str, dataset: &str, data: Option<&Path>, out: &Path, set: &[&str]) -> Cell {
    let limit = |n| (dataset == "synthetic").then_some(n);
    bb_attack::run(&AttackRequest {
        method: method.to_owned(),
        dataset: dataset.to_owned(),
        data: data.map(Path::to_owned),
        train_limit: limit(200),
        test_limit: limit(60),
        test_split: None,
        arch: "preactresnet18".to_owned(),
        width: 4,
        precision: Precision::F32,
        compute: Compute::Cpu,
        given: Given {
            files: Vec::new(),
            set: ["train.epochs=1", "train.batch_size=20"]
                .iter()
                .chain(set)
                .map(|&set| set.to_owned())
                .collect(),
        },
        seed: 0,
        out: out.to_owned(),
        quiet: true,
    })
    .expect("a small run")
}

fn record(cell: &Cell, data: Option<&Path>, out: PathBuf) -> PathBuf {
    export(&ExportRequest {
        cell: cell.dir.clone(),
        format: Format::BackdoorBench,
        data: data.map(Path::to_owned),
        out,
    })
    .expect("a record")
    .dir
}

fn bb_eval(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_bb-eval"))
        .args(arguments)
        .args(["--threads", "1"])
        .output()
        .expect("the program starts")
}

fn text(path: &Path) -> &str {
    path.to_str().expect("a plain path")
}

fn ratio(cell: &Cell, field: &str) -> (u64, u64) {
    let ratio: Ratio =
        serde_json::from_value(cell.manifest.results[field].clone()).expect("a ratio");
    (ratio.hits, ratio.total)
}

#[test]
fn rows_in_another_order_are_refused_and_found() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let place = |name: &str| folder.path().join(name);
    folder_dataset(&place("same"), |i, _| i);
    // Only rows of one class have changed places, which no label shows.
    folder_dataset(&place("moved"), |i, count| (i * 7 + 4) % count);
    folder_dataset(&place("late"), |i, count| (i + 1) % count);
    let data = place("same");
    let trained = attack(
        "badnets",
        "folder",
        Some(&data),
        &place("own"),
        &["ratio=0.5"],
    );
    let out = record(&trained, Some(&data), place("record/folder"));
    let request = |data: &str, match_rows| ImportRequest {
        path: out.clone(),
        dataset: "folder".to_owned(),
        data: Some(place(data)),
        match_rows,
        quiet: true,
        out: place(data).join("runs"),
        ..ImportRequest::default()
    };
    let good = import(&request("same", false), &Compute::Cpu)
        .expect("its own data")
        .0;

    for (data, order) in [
        ("moved", "here the order is another one"),
        ("late", "here the order is another one"),
    ] {
        let refused = import(&request(data, false), &Compute::Cpu).expect_err("another order");
        assert_eq!(refused.exit_code(), 3);
        let said = refused.report(false);
        assert!(
            said.contains("the pictures of `bd_train` are not of the rows that they name: ")
                && said.contains("resemble other images more than the one of their index")
                && said.contains("the benchmark's")
                && said.contains(order)
                && said.contains("`--match-rows`"),
            "{said}"
        );
        // Each picture is beside its own image again.
        let (matched, _) = import(&request(data, true), &Compute::Cpu).expect("every row is there");
        assert_eq!(matched.manifest.settings["imported"]["rows"], "matched");
        assert_ne!(matched.manifest.id, good.manifest.id);
        for score in ["acc", "asr", "ra"] {
            assert_eq!(ratio(&matched, score), ratio(&good, score), "{score}");
        }
        let open = |data: &str| {
            data::open("folder", Some(&place(data)), &OpenOptions::default()).expect("pictures")
        };
        let (right, other) = (open("same"), open(data));
        for (name, splits) in [
            (POISON_TRAIN, [&right.train, &other.train]),
            (POISON_TEST, [&right.test, &other.test]),
        ] {
            let set = |cell: &Cell| PoisonSet::load(cell.file(name)).expect("a set");
            let mut pairs: [Vec<_>; 2] = Default::default();
            for ((pairs, set), split) in pairs
                .iter_mut()
                .zip([set(&good), set(&matched)])
                .zip(splits)
            {
                for (row, &index) in set.indices.iter().enumerate() {
                    pairs.push((
                        set.images.image(row).to_vec(),
                        split.images.image(index).to_vec(),
                    ));
                }
                pairs.sort();
            }
            assert!(!pairs[0].is_empty());
            assert!(pairs[0] == pairs[1], "{data}, {name}");
        }
    }

    // A cell of a version that compared labels only: the sets of the record beside the moved rows.
    let moved = data::open("folder", Some(&place("moved")), &OpenOptions::default());
    let moved = moved.expect("pictures");
    let manifest = &good.manifest;
    let mut spec: CellSpec = manifest.spec();
    spec.inputs
        .insert("dataset".to_owned(), moved.digest.clone());
    let Ok(Opened::Work(work)) = cell::open(&place("old"), &spec) else {
        panic!("a new cell")
    };
    for name in [MODEL, POISON_TRAIN, POISON_TEST] {
        work.write(name, &fs_err::read(good.file(name)).expect("a file"))
            .expect("written");
    }
    work.write(ENV, b"{}").expect("written");
    let old = work.finish(manifest.results.clone()).expect("a cell");
    let (data, old, target) = (place("moved"), text(&old.dir).to_owned(), place("x"));
    for words in [
        &["metrics", &old, "--data", text(&data)][..],
        &[
            "analyze",
            "tac",
            &old,
            "--data",
            text(&data),
            "--out",
            text(&target),
        ],
    ] {
        let output = bb_eval(words);
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(3), "{words:?}: {said}");
        assert!(
            said.contains("poison_test.safetensors` holds no valid set of poisoned images")
                && said.contains("resemble other images more")
                && said.contains("stand in another order"),
            "{words:?}: {said}"
        );
    }
    let refused = export(&ExportRequest {
        cell: PathBuf::from(&old),
        format: Format::BackdoorBench,
        data: Some(data.clone()),
        out: place("again"),
    })
    .expect_err("another order");
    assert!(refused.report(false).contains("poison_train.safetensors"));
    let opened =
        bb_defense::harness::open_data(&Cell::load(&old).expect("a cell"), Some(&data), None);
    assert!(
        opened
            .expect_err("another order")
            .to_string()
            .contains("poison_test.safetensors")
    );
}

#[test]
fn other_labels_are_said_to_be_another_order() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let place = |name: &str| folder.path().join(name);
    let trained = attack("badnets", "synthetic", None, &place("own"), &["ratio=0.3"]);
    let out = record(&trained, None, place("record/synthetic"));
    // The rows of the record and of this dataset are not of one order: here the classes are those of a folder.
    let options = OpenOptions {
        train_limit: Some(200),
        test_limit: Some(60),
        ..OpenOptions::default()
    };
    let synthetic = data::open("synthetic", None, &options).expect("it is made by the program");
    for (name, split) in [("train", &synthetic.train), ("test", &synthetic.test)] {
        for row in 0..split.len() {
            let class = place("sorted")
                .join(name)
                .join(split.labels[row].to_string());
            fs_err::create_dir_all(&class).expect("a folder");
            let picture = Picture::new(32, 32, split.images.image(row).to_vec());
            fs_err::write(class.join(format!("{row:03}.png")), picture.to_png()).expect("written");
        }
    }
    as_of_folder(&out.join("attack_result.pt"));
    let request = ImportRequest {
        path: out.clone(),
        dataset: "folder".to_owned(),
        data: Some(place("sorted")),
        out: place("runs"),
        ..ImportRequest::default()
    };
    let refused = import(&request, &Compute::Cpu).expect_err("another order");
    assert_eq!(refused.exit_code(), 3);
    let said = refused.report(false);
    assert!(
        said.contains("`bd_train: label of image ")
            && said.contains(
                "the rows of the dataset must stand in the order that the record was made with"
            )
            && said.contains("as if the rows had been sorted by class; `--match-rows`"),
        "{said}"
    );
    let matched = ImportRequest {
        match_rows: true,
        ..request
    };
    let (cell, _) = import(&matched, &Compute::Cpu).expect("every row is there");
    assert_eq!(ratio(&cell, "asr"), ratio(&trained, "asr"));
}

/// Writes a record anew, as one of the dataset `folder`.
fn as_of_folder(path: &Path) {
    let record = AttackResult::read(path).expect("a record");
    let state = |state: &DatasetState| {
        let mut marked = vec![0.0; state.images];
        let mut entries = Vec::new();
        for record in &state.records {
            marked[record.index] = 1.0;
            let labels = [record.label, record.original].map(|l| Item::Int(l.into()));
            let entry = Item::dict([
                // As Windows writes it.
                (
                    "path",
                    Item::text(format!(
                        r"C:\users\me\record\{}",
                        record.file().replace('/', r"\")
                    )),
                ),
                ("other_info", Item::List(labels.into())),
            ]);
            entries.push((Item::size(record.index), entry));
        }
        let kept = state
            .kept
            .iter()
            .map(|&i| i64::try_from(i).expect("an index"))
            .collect();
        Item::dict([
            (
                "bd_data_container",
                Item::dict([("data_dict", Item::Dict(entries))]),
            ),
            ("original_index_array", Item::Integers(kept)),
            ("poison_indicator", Item::Floats(marked)),
        ])
    };
    let sizes = [32, 32, 3].map(Item::size);
    let item = Item::dict([
        ("model_name", Item::text(record.model_name)),
        ("num_classes", Item::size(record.classes)),
        ("model", Item::State(record.state)),
        ("img_size", Item::Tuple(sizes.into())),
        ("clean_data", Item::text("folder")),
        (
            "bd_train",
            state(record.train.as_ref().expect("a training set")),
        ),
        ("bd_test", state(&record.test)),
    ]);
    let file = fs_err::File::create(path).expect("a file");
    write::archive(file, "attack_result", &item).expect("a record");
}

#[test]
fn all_clean_images_are_measured_whatever_was_poisoned() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let place = |name: &str| folder.path().join(name);
    let trained = attack("badnets", "synthetic", None, &place("own"), &[]);
    let out = record(&trained, None, place("record/synthetic"));
    let words = |more: &[&str]| -> Output {
        let runs = place("runs");
        let all = [
            &[
                "zoo",
                "import",
                text(&out),
                "--dataset",
                "synthetic",
                "--out",
                text(&runs),
            ],
            more,
        ];
        bb_eval(&all.concat())
    };
    let imported = |more: &[&str]| {
        let output = words(more);
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "{said}");
        let dir = String::from_utf8_lossy(&output.stdout).trim().to_owned();
        (Cell::load(dir).expect("a cell"), said)
    };
    let (cell, said) = imported(&[]);
    assert_eq!((ratio(&cell, "acc").1, ratio(&cell, "asr").1), (1000, 54));
    assert!(
        said.contains("images: 1000 clean test images; 54 poisoned of 900 possible; trained on the first 200 of 5000 images"),
        "{said}"
    );
    assert_eq!(cell.manifest.settings["data"]["test_limit"], Value::Null);
    assert_eq!(cell.manifest.settings["data"]["train_limit"], 200);
    let images = &cell.manifest.results["images"];
    assert_eq!(
        *images,
        json!({
            "train": 200, "train_all": 5000, "test": 1000, "test_all": 1000,
            "test_poisoned": 54, "test_possible": 900, "test_compared": 54, "test_unlike": 0,
        })
    );
    // The figures of the cell that was exported, on request.
    let (cut, said) = imported(&["--test-limit", "60"]);
    for score in ["acc", "asr", "ra"] {
        assert_eq!(cut.manifest.results[score], trained.manifest.results[score]);
    }
    assert!(
        said.contains("images: the first 60 of 1000 clean test images; 54 poisoned of 54 possible"),
        "{said}"
    );
    assert_eq!(ratio(&cut, "asr"), ratio(&cell, "asr"));
    // Both are measured again as they were.
    for cell in [&cell, &cut] {
        let output = bb_eval(&["metrics", text(&cell.dir)]);
        assert!(
            output.status.success(),
            "{}",
            String::from_utf8_lossy(&output.stderr)
        );
    }
    for (limit, expect) in [
        (
            "30",
            "`--test-limit 30` leaves out image 58, which is poisoned, expected at least 59",
        ),
        ("1001", "the test split has 1000 images"),
    ] {
        let output = words(&["--test-limit", limit]);
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(2), "{said}");
        assert!(said.contains(expect), "{said}");
    }
}

#[test]
fn a_network_of_others_is_measured_on_the_images_of_an_attack() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let place = |name: &str| folder.path().join(name);
    let runs = place("runs");
    let trained = attack("badnets", "synthetic", None, &runs, &["train.epochs=2"]);
    let clean = attack("clean", "synthetic", None, &runs, &[]);
    let line = |words: &[&str], code: i32| -> Value {
        let output = bb_eval(words);
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(code), "{words:?}: {said}");
        serde_json::from_slice(&output.stdout).unwrap_or(Value::String(said))
    };
    let (trained_dir, clean_dir) = (text(&trained.dir), text(&clean.dir));
    let found = line(&["metrics", clean_dir, "--attack", trained_dir], 0);
    assert_eq!(
        (&found["asr_total"], &found["agrees"]),
        (&json!(54), &json!(true))
    );
    assert_eq!(found["acc_hits"].as_u64(), Some(ratio(&clean, "acc").0));
    let of = |cell: &Cell, score: &str| {
        let (hits, total) = ratio(cell, score);
        hits as f64 / total as f64
    };
    let number = |name: &str| found[name].as_f64().expect("a number");
    let fall = |name: &str| (of(&trained, name) - number(name)).max(0.0);
    let expected = f64::midpoint(fall("asr") - fall("acc"), 1.0);
    assert!((number("der") - expected).abs() < 1e-12);
    // The same network as somebody else's file.
    let state = place("state");
    export(&ExportRequest {
        cell: clean.dir.clone(),
        format: Format::BackdoorBench,
        data: None,
        out: state.clone(),
    })
    .expect("a file");
    let file = state.join("clean_model.pth");
    let (bare, _) = import(
        &ImportRequest {
            path: file.clone(),
            dataset: "synthetic".to_owned(),
            arch: Some("preactresnet18".to_owned()),
            out: runs.clone(),
            ..ImportRequest::default()
        },
        &Compute::Cpu,
    )
    .expect("a network");
    let again = line(&["metrics", text(&bare.dir), "--attack", trained_dir], 0);
    for field in ["acc", "asr", "ra", "der"] {
        assert_eq!(again[field], found[field], "{field}");
    }
    // Its manifest is about all 1000 images, and the attack's test split has 60.
    assert_eq!(again["agrees"], Value::Null);

    let said = line(&["metrics", trained_dir, "--attack", clean_dir], 3).to_string();
    assert!(
        said.contains("has no poisoned test image, expected the cell of an attack"),
        "{said}"
    );
    folder_dataset(&place("pictures"), |i, _| i);
    let pictures = place("pictures");
    let other = attack("clean", "folder", Some(&pictures), &runs, &[]);
    let words = ["metrics", text(&other.dir), "--attack", trained_dir];
    let said = line(&words, 3).to_string();
    assert!(
        said.contains("the dataset of `") && said.contains("is folder, expected synthetic as in `"),
        "{said}"
    );

    // As the cell of a defense.
    let request = RepairedRequest {
        path: file,
        attack: trained.dir.clone(),
        defense: Some("nad".to_owned()),
        out: runs.clone(),
        ..RepairedRequest::default()
    };
    let (repaired, report) = import_repaired(&request, &Compute::Cpu).expect("a repair");
    assert!(report.is_clean());
    assert_eq!(
        (repaired.manifest.kind, repaired.manifest.method.as_str()),
        (Kind::Defense, "nad")
    );
    let results = &repaired.manifest.results;
    for score in ["acc", "asr", "ra"] {
        assert_eq!(
            results["before"][score], trained.manifest.results[score],
            "{score}"
        );
        assert_eq!(
            results["after"][score]["hits"],
            found[format!("{score}_hits")],
            "{score}"
        );
    }
    assert_eq!(results["der"], found["der"]);
    assert_eq!(
        import_repaired(&request, &Compute::Cpu)
            .expect("complete")
            .0
            .manifest,
        repaired.manifest
    );
    // It is verified, shown and exported as any other.
    let again = line(&["metrics", text(&repaired.dir)], 0);
    assert_eq!(
        (&again["agrees"], &again["asr"]),
        (&json!(true), &found["asr"])
    );
    let table = Command::new(env!("CARGO_BIN_EXE_bb-eval"))
        .args(["table", text(&runs), "--format", "csv"])
        .output()
        .expect("the program starts");
    let table = String::from_utf8_lossy(&table.stdout).into_owned();
    let shown = |line: &&str| line.starts_with("cell,synthetic") && line.contains(",BadNets,NAD,");
    let rows: Vec<&str> = table.lines().filter(shown).collect();
    assert_eq!(rows.len(), 1, "{table}");
    let (after, total) = (
        &results["after"]["asr"]["hits"],
        &results["after"]["asr"]["total"],
    );
    assert!(rows[0].contains(&format!(",{after},{total},")), "{table}");
    let exported = place("exported");
    export(&ExportRequest {
        cell: repaired.dir.clone(),
        format: Format::BackdoorBench,
        data: None,
        out: exported.clone(),
    })
    .expect("a file");
    assert!(exported.join("defense_result.pt").exists());

    // Another network under the same name would be left out of the table without a word.
    let other = place("other.safetensors");
    let spec = ArchSpec::new("preactresnet18", 4, 10).expect("a known one");
    let state = Net::new(&spec, 7).state().expect("a network");
    fs_err::write(
        &other,
        state.to_bytes(&BTreeMap::default()).expect("finite"),
    )
    .expect("written");
    let second = RepairedRequest {
        path: other,
        ..request.clone()
    };
    let second = |defense: Option<&str>| RepairedRequest {
        defense: defense.map(str::to_owned),
        ..second.clone()
    };
    // safetensors and a pickle are different settings, so the first of these is a column of its own.
    import_repaired(&second(None), &Compute::Cpu).expect("without a name");
    let third = RepairedRequest {
        path: trained.file(MODEL),
        defense: None,
        ..request.clone()
    };
    let refuse =
        |request: &RepairedRequest| import_repaired(request, &Compute::Cpu).expect_err("refused");
    let said = refuse(&RepairedRequest {
        attack: bare.dir.clone(),
        ..request.clone()
    });
    assert!(
        said.to_string().contains("has no poisoned test image"),
        "{said}"
    );
    assert_eq!(said.exit_code(), 3);
    let said = refuse(&RepairedRequest {
        dataset: Some("gtsrb".to_owned()),
        ..request.clone()
    });
    assert!(
        said.to_string()
            .contains("`--dataset` is gtsrb, the attack of `"),
        "{said}"
    );
    let said = refuse(&RepairedRequest {
        path: record(&trained, None, place("record/a")),
        ..request.clone()
    });
    assert!(
        said.to_string().contains("is the record of an attack"),
        "{said}"
    );
    let said = refuse(&RepairedRequest {
        attack: repaired.dir.clone(),
        ..request
    });
    assert!(
        said.to_string().contains("holds the result of a defense"),
        "{said}"
    );
    import_repaired(&third, &Compute::Cpu).expect("it names its network, so its settings differ");
}
