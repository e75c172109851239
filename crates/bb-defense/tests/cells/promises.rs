//! What the trait promises of every defense of the registry: how many clean images it is given and which, and that
//! nothing else reaches it.
//!
//! What cannot even be written down is shown not to compile, in the documentation of `bb_defense::method` and
//! `bb_defense::data`.

use super::methods::quick_of;
use super::*;
use bb_core::artifact::sha256_hex;
use bb_core::data::Split;
use bb_defense::data::CleanBudget;
use bb_defense::registry::DEFENSES;

/// What the benchmark gives a defender of one of its datasets.
struct Bench {
    dataset: &'static str,
    /// Its training images.
    images: usize,
    /// Name of the benchmark's list of indices, which are 5 % of them.
    list: &'static str,
    /// Shares: how many images each is, and the SHA-256 of as many lines from the head of the list.
    shares: [(f64, usize, &'static str); 2],
}

const CIFAR: [(f64, usize, &str); 2] = [
    (
        0.05,
        2500,
        "dd661641185143faa424ca4d964b5943c59236890cff2391ed2a7bbf5d82a139",
    ),
    (
        0.01,
        500,
        "eda8dce564368795efc9f5a3c50d4cb4d84470562ec465dab92d3437041f566e",
    ),
];

const BENCH: [Bench; 4] = [
    Bench {
        dataset: "cifar10",
        images: 50_000,
        list: "clean_index_cifar10_5pct_seed0.txt",
        shares: CIFAR,
    },
    Bench {
        dataset: "cifar100",
        images: 50_000,
        list: "clean_index_cifar10_5pct_seed0.txt",
        shares: CIFAR,
    },
    Bench {
        dataset: "gtsrb",
        images: 39_209,
        list: "clean_index_gtsrb_5pct_seed0.txt",
        shares: [
            (
                0.05,
                1960,
                "6b484d02e5147a22acf660560029073b37e748b09480be9c293586f76e849f40",
            ),
            (
                0.01,
                392,
                "1e8cdbc2b205a57a5ce5d163656bf27e1309e5092a1aca08d6bc08a4049337ba",
            ),
        ],
    },
    Bench {
        dataset: "tiny",
        images: 100_000,
        list: "clean_index_tiny_5pct_seed0.txt",
        shares: [
            (
                0.05,
                5000,
                "d637da08b1a087777607e419b1c93003b5373d54fe84c5d995b3e7f835770542",
            ),
            (
                0.01,
                1000,
                "a3a1cab6c167aec0e1180e0aa0876f52533275951456ff981085aeb93f750be0",
            ),
        ],
    },
];

/// A dataset with as many training images as the benchmark's, each a single pixel that says its number, and no test
/// image.
fn numbered(bench: &Bench) -> Dataset {
    let mut spec = data::spec(bench.dataset).expect("a dataset").clone();
    (spec.height, spec.width) = (1, 1);
    let pixels: Vec<u8> = (0..bench.images)
        .flat_map(|i| [(i >> 16) as u8, (i >> 8) as u8, i as u8])
        .collect();
    let images = Images::new(bench.images, 1, 1, pixels).expect("the length fits");
    let train = Split {
        images,
        labels: (0..bench.images)
            .map(|i| (i % spec.classes) as u32)
            .collect(),
    };
    Dataset {
        test: train.take(0),
        train,
        digest: String::new(),
        class_names: (0..spec.classes).map(|class| class.to_string()).collect(),
        notes: Vec::new(),
        spec,
    }
}

/// Indices as the benchmark writes them, one a line.
fn lines(indices: &[usize]) -> String {
    let words: Vec<String> = indices.iter().map(usize::to_string).collect();
    words.join("\n") + "\n"
}

#[test]
fn every_defense_gets_the_share_and_the_images_that_the_benchmark_gives() {
    let mut given = 0;
    for bench in &BENCH {
        let dataset = numbered(bench);
        for defense in DEFENSES {
            let id = defense.info().id;
            let ready = defense
                .resolve(bench.dataset, &Given::default())
                .expect("a valid recipe");
            let armed = ready.grant(&dataset).expect("granted");
            let Some(granted) = armed.granted() else {
                assert_eq!(defense.info().needs, Needs::DataFree, "{id}");
                assert!(ready.tree().get("clean").is_none(), "{id} has a budget");
                continue;
            };
            assert_eq!(defense.info().needs, Needs::CleanFraction, "{id}");
            let ratio = ready.tree()["clean"]["ratio"].as_f64().expect("a share");
            let share = bench
                .shares
                .iter()
                .find(|(known, ..)| known.total_cmp(&ratio).is_eq());
            let (_, images, indices) =
                share.unwrap_or_else(|| panic!("{id} has {ratio} of {}", bench.dataset));
            assert_eq!(
                (granted.images, granted.of, granted.indices_sha256.as_str()),
                (*images, bench.images, *indices),
                "{id} on {}",
                bench.dataset
            );
            given += 1;
        }
    }
    assert!(given >= 4 * 4, "only {given} were given an image");
}

/// A defense that tells which images it was given, in its notes.
struct Spy;

#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct SpyConfig {
    clean: CleanBudget,
}

impl Validate for SpyConfig {
    fn validate(&self) -> Result<(), SettingsError> {
        self.clean.validate()
    }
}

impl Defense for Spy {
    const INFO: MethodInfo = MethodInfo {
        id: "spy",
        title: "Spy",
        paper: "none",
        needs: Needs::CleanFraction,
        status: Status::Experimental,
        summary: "tells what it was given",
        docs: "",
    };
    type Data = CleanImages;
    type Config = SpyConfig;

    fn budget(cfg: &SpyConfig) -> CleanBudget {
        cfg.clean.clone()
    }

    fn repair(
        _: &Valid<SpyConfig>,
        suspect: Suspect<'_, CleanImages>,
        _: &mut Ctx<'_>,
    ) -> Result<Repaired, DefenseError> {
        let clean = suspect.clean();
        let pixels = clean.images.as_bytes().chunks_exact(3);
        let numbers: Vec<usize> = pixels
            .map(|p| usize::from(p[0]) << 16 | usize::from(p[1]) << 8 | usize::from(p[2]))
            .collect();
        let mut repaired = Repaired::single(suspect.state().clone());
        repaired.notes = json!({ "images": numbers, "labels": clean.labels.to_vec() });
        Ok(repaired)
    }
}

#[test]
#[expect(clippy::print_stderr, reason = "a test that did not run must say so")]
fn what_a_defense_sees_are_the_images_of_the_benchmarks_list() {
    let arch = ArchSpec::new("preactresnet18", 1, 10).expect("a small network");
    let state = Net::new(&arch, 0).state().expect("a state");
    let tables = std::env::var_os("BB_SHARED").map(PathBuf::from);
    if tables.is_none() {
        eprintln!(
            "compared with digests only: BB_SHARED, which has the benchmark's lists, is not set"
        );
    }
    for bench in &BENCH {
        let dataset = numbered(bench);
        for (ratio, images, digest) in bench.shares {
            let given = Given {
                set: vec![format!("clean.ratio={ratio}")],
                ..Given::default()
            };
            let ready = Spy.resolve(bench.dataset, &given).expect("valid settings");
            let armed = ready.grant(&dataset).expect("granted");
            let repaired = armed.repair(
                &arch,
                &dataset.spec,
                &state,
                Precision::F32,
                &Compute::Cpu,
                &mut Ctx::detached(0),
            );
            let notes = repaired.expect("it only looks").notes;
            let seen: Vec<usize> = serde_json::from_value(notes["images"].clone()).expect("a list");
            let labels: Vec<usize> =
                serde_json::from_value(notes["labels"].clone()).expect("a list");
            assert_eq!(seen.len(), images);
            assert_eq!(sha256_hex(lines(&seen)), digest);
            let own = seen.iter().map(|i| i % dataset.spec.classes);
            assert!(own.eq(labels), "the true label of each");
            if let Some(shared) = &tables {
                let path = shared.join("reference/tables").join(bench.list);
                let list = fs_err::read_to_string(path).expect("the benchmark's list");
                let head: Vec<usize> = list
                    .lines()
                    .take(images)
                    .map(|line| line.parse().expect("an index"))
                    .collect();
                assert_eq!(seen, head);
            }
        }
    }
}

/// An attack's cell that differs from [`Draft::new`] in whatever a defense must not see: half of the test images, and
/// other poisoned ones among them, with another trigger and another target.
fn other_test() -> Draft {
    let mut draft = Draft::new();
    let options = OpenOptions {
        train_limit: Some(TRAIN),
        test_limit: Some(TEST / 2),
        ..OpenOptions::default()
    };
    let other = data::open("synthetic", None, &options).expect("the synthetic data need no file");
    assert_eq!(
        other.train,
        dataset().train,
        "what a defense may see is the same"
    );
    let indices: Vec<usize> = (0..other.test.len())
        .filter(|&i| other.test.labels[i] != 7)
        .step_by(2)
        .collect();
    let mut pixels = other.test.images.select(&indices).as_bytes().to_vec();
    pixels
        .iter_mut()
        .step_by(5)
        .for_each(|value| *value = !*value);
    let (h, w) = (other.test.images.height(), other.test.images.width());
    let poisoned = PoisonSet::new(
        indices.clone(),
        Images::new(indices.len(), h, w, pixels).expect("the length fits"),
        vec![7; indices.len()],
        indices.iter().map(|&i| other.test.labels[i]).collect(),
    )
    .expect("parts of one length");
    draft.spec.settings["data"]["test_limit"] = json!(TEST / 2);
    draft.spec.inputs = BTreeMap::from([("dataset".to_owned(), other.digest)]);
    let changed = [
        ("poison_test.safetensors", poisoned.to_bytes()),
        ("poison_train.safetensors", b"no set of images".to_vec()),
    ];
    draft.files.extend(changed);
    draft
}

pub(super) fn tensors(state: &StateDict) -> Vec<u8> {
    state.to_bytes(&BTreeMap::new()).expect("finite")
}

#[test]
fn no_defense_depends_on_what_it_must_not_see() {
    for defense in DEFENSES {
        let quick = quick_of(*defense);
        let set: Vec<&str> = quick.set.iter().chain(quick.more).copied().collect();
        let repair = |draft: &Draft| {
            let out = folder();
            let attack = draft.write(out.path());
            let cell = run(&request(*defense, &attack.dir, out.path(), &set)).expect("repaired");
            let model = StateDict::load(&cell.file("model.safetensors")).expect("a model");
            let suspect = StateDict::load(&attack.file("model.safetensors")).expect("a model");
            (results(&cell), model, suspect)
        };
        let (own, model, suspect) = repair(&Draft::new());
        let (other, same_model, _) = repair(&other_test());
        let id = quick.id;
        assert_ne!(tensors(&model), tensors(&suspect), "{id} did something");
        // What the harness measured is something else, so the two cells do differ.
        assert_ne!(own.before.acc.total, other.before.acc.total);
        assert_ne!(own.before.asr.total, other.before.asr.total);
        // What the method did and chose is not.
        assert_eq!(tensors(&model), tensors(&same_model), "{id}");
        assert_eq!(own.chosen, other.chosen, "{id}");
        assert_eq!(
            (&own.notes, &own.clean),
            (&other.notes, &other.clean),
            "{id}"
        );
        let said = |results: &Results| -> Vec<(String, Value)> {
            let candidates = results.candidates.iter();
            candidates
                .map(|candidate| (candidate.name.clone(), candidate.notes.clone()))
                .collect()
        };
        assert_eq!(said(&own), said(&other), "{id}");

        // Nor is it where there is neither a test set nor anybody who measures.
        let mut dataset = dataset();
        dataset.test = dataset.test.take(0);
        let given = Given {
            set: set.iter().map(|&s| s.to_owned()).collect(),
            ..Given::default()
        };
        let ready = defense
            .resolve("synthetic", &given)
            .expect("valid settings");
        let armed = ready.grant(&dataset).expect("granted");
        let arch =
            ArchSpec::new("preactresnet18", WIDTH, dataset.spec.classes).expect("a small network");
        let alone = armed.repair(
            &arch,
            &dataset.spec,
            &suspect,
            Precision::F32,
            &Compute::Cpu,
            &mut Ctx::detached(0),
        );
        let alone = alone.expect("repaired");
        let chosen = &alone.candidates[alone.chosen];
        assert_eq!(chosen.name, own.chosen, "{id}");
        assert_eq!(tensors(&chosen.state), tensors(&model), "{id}");
    }
}
