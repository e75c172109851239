//! The edges of what can be repaired: networks that give no numbers, images too small for the network, few images.

use bb_defense::registry::DEFENSES;

use super::methods::quick_of;
use super::*;

impl Draft {
    /// The same with other tensors of the network.
    fn with_network(mut self, change: impl Fn(&mut Net)) -> Self {
        let classes = dataset().spec.classes;
        let arch = ArchSpec::new("preactresnet18", WIDTH, classes).expect("a small network");
        let mut net = Net::new(&arch, 0);
        change(&mut net);
        let state = net.state().expect("a state").to_bytes(&BTreeMap::new());
        self.files
            .insert("model.safetensors", state.expect("finite"));
        self
    }

    /// An attack on images of a folder, by an untrained network.
    fn of_folder(data: &Path, arch: &str) -> Self {
        let options = OpenOptions::default();
        let dataset = data::open("folder", Some(data), &options).expect("images");
        let arch = ArchSpec::new(arch, 2, dataset.spec.classes).expect("a small network");
        let state = Net::new(&arch, 0).state().expect("a state");
        let Self {
            mut spec,
            mut files,
        } = Self::new();
        "folder".clone_into(&mut spec.dataset);
        spec.arch = arch.label();
        spec.settings["data"] = json!({ "dataset": "folder" });
        spec.settings["model"] =
            json!({ "arch": arch.name(), "width": 2, "classes": arch.classes() });
        spec.inputs
            .insert("dataset".to_owned(), dataset.digest.clone());
        let model = state.to_bytes(&BTreeMap::new()).expect("finite");
        files.insert("model.safetensors", model);
        files.insert("poison_test.safetensors", poisoned(&dataset).to_bytes());
        Self { spec, files }
    }
}

/// Image folders with `count` noisy images of each of `classes` classes in both splits.
fn images(data: &Path, (height, width): (u32, u32), classes: usize, count: usize) {
    for split in ["train", "test"] {
        for class in 0..classes {
            let dir = data.join(split).join(class.to_string());
            fs_err::create_dir_all(&dir).expect("a writable folder");
            for i in 0..count {
                let level = |x: u32, y: u32, c: u32| {
                    ((x * 31 + y * 17 + c * 5) as usize * (i + 3) * (class + 2) % 256) as u8
                };
                let image = image::RgbImage::from_fn(width, height, |x, y| {
                    image::Rgb([level(x, y, 0), level(x, y, 1), level(x, y, 2)])
                });
                image
                    .save(dir.join(format!("{i}.png")))
                    .expect("a writable folder");
            }
        }
    }
}

fn every_parameter_is(net: &mut Net, factor: f32) {
    for value in net.params_mut().data_mut() {
        *value *= factor;
    }
}

#[test]
fn a_suspect_model_without_logits_has_no_scores_to_begin_with() {
    let out = folder();
    // The weights are finite.
    let broken = Draft::new().with_network(|net| every_parameter_is(net, 1e20));
    let attack = broken.write(out.path());
    for &defense in DEFENSES {
        let set = quick_of(defense).set;
        let error = run(&request(defense, &attack.dir, out.path(), set)).expect_err("no logits");
        let DefenseError::Scores { network, source } = &error else {
            panic!("{error}");
        };
        assert!(network.starts_with("the suspect model `"), "{network}");
        assert!(network.contains("model.safetensors`"), "{network}");
        assert_eq!(
            source.to_string(),
            "60 of 60 clean test images have logits that are NaN or infinite, the first is clean test image 0"
        );
        assert_eq!(error.exit_code(), 4);
    }
}

#[test]
fn a_suspect_model_with_a_variance_below_zero_is_no_input() {
    let out = folder();
    let negative = |net: &mut Net| {
        let tensor = net.buffers().layout().position("layer2.0.bn1.running_var");
        net.buffers_mut().tensor_mut(tensor.expect("it has one"))[1] = -0.5;
    };
    let attack = Draft::new().with_network(negative).write(out.path());
    for &defense in DEFENSES {
        let set = quick_of(defense).set;
        let error = run(&request(defense, &attack.dir, out.path(), set)).expect_err("a variance");
        let said = error.to_string();
        assert!(said.contains("model.safetensors"), "{said}");
        assert!(
            said.ends_with("tensor `layer2.0.bn1.running_var` holds -0.5 at flat index 1, expected variances of at least 0"),
            "{said}"
        );
        assert_eq!(error.exit_code(), 3);
    }
}

/// With a single step in all, no later loss tells that it went wrong.
#[test]
fn a_repair_whose_last_step_diverges_is_no_result() {
    let out = folder();
    let attack = Draft::new().write(out.path());
    let one_step = [
        "clean.ratio=0.1",
        "finetune.batch_size=1000",
        "finetune.epochs=1",
    ];
    let cases: [(&str, &[&str], &str); 6] = [
        ("ft", &[], "finetune.lr"),
        ("fp", &[], "finetune.lr"),
        (
            "nad",
            &["distill.epochs=1", "distill.batch_size=1000"],
            "distill.lr",
        ),
        (
            "tsbd",
            &[
                "unlearn.max_epochs=1",
                "unlearn.stop_accuracy=0",
                "unlearn.lr=0.001",
            ],
            "finetune.lr",
        ),
        (
            "ibau",
            &["rounds=1", "unlearn.batch_size=1000"],
            "unlearn.lr",
        ),
        (
            "ulrl",
            &[
                "unlearn.max_epochs=1",
                "relearn.epochs=1",
                "relearn.batch_size=1000",
            ],
            "relearn.lr",
        ),
    ];
    for (id, own, lr) in cases {
        let defense = bb_defense::registry::find(id, &[]).expect("a defense");
        for rate in ["1e12", "1e30"] {
            let rate = format!("{lr}={rate}");
            let usual: &[&str] = match id {
                "ibau" | "ulrl" => &one_step[..1],
                _ => &one_step,
            };
            let set = [usual, own, &[&rate]].concat();
            let error = run(&request(defense, &attack.dir, out.path(), &set)).expect_err(id);
            assert_eq!(error.exit_code(), 4, "{id}: {error}");
            let told = matches!(
                error,
                DefenseError::Scores { .. } | DefenseError::NotFinite { .. }
            );
            assert!(told, "{id} with {rate}: {error}");
        }
    }
    // Nothing below is complete.
    let mut folders = vec![out.path().join("defense")];
    while let Some(folder) = folders.pop() {
        for entry in fs_err::read_dir(folder).expect("a folder") {
            let path = entry.expect("an entry").path();
            assert!(!path.ends_with(cell::MANIFEST), "{}", path.display());
            if path.is_dir() {
                folders.push(path);
            }
        }
    }
}

/// A sweep whose second model has finite weights and no logits.
struct Explode;

impl Defense for Explode {
    const INFO: MethodInfo = MethodInfo {
        id: "explode",
        title: "Explode",
        paper: "none",
        needs: Needs::DataFree,
        status: Status::Experimental,
        summary: "makes a good and a broken model",
        docs: "",
    };
    type Data = NoImages;
    type Config = HalveConfig;

    fn repair(
        _: &Valid<HalveConfig>,
        suspect: Suspect<'_, NoImages>,
        _: &mut Ctx<'_>,
    ) -> Result<Repaired, DefenseError> {
        let mut broken = suspect.net()?;
        every_parameter_is(&mut broken, 1e20);
        let candidate = |name: &str, state| Candidate {
            name: name.to_owned(),
            state,
            notes: json!({}),
        };
        Ok(Repaired {
            candidates: vec![
                candidate("good", suspect.state().clone()),
                candidate("broken", broken.state()?),
            ],
            chosen: 0,
            artefacts: Vec::new(),
            notes: json!({}),
        })
    }
}

#[test]
fn a_candidate_without_logits_is_no_oracle() {
    let out = folder();
    let attack = Draft::new().write(out.path());
    let error = run(&request(&Explode, &attack.dir, out.path(), &[])).expect_err("no logits");
    assert_eq!(error.to_string(), "candidate `broken` cannot be scored");
    assert_eq!(error.exit_code(), 4);
}

#[test]
fn images_that_are_too_small_for_the_network_are_refused() {
    let (data, out) = (folder(), folder());
    images(data.path(), (31, 64), 2, 3);
    let attack = Draft::of_folder(data.path(), "vgg19_bn").write(out.path());
    for &defense in DEFENSES {
        let mut request = request(defense, &attack.dir, out.path(), &[]);
        request.data = Some(data.path().to_owned());
        let error = run(&request).expect_err("too small");
        assert_eq!(
            error.to_string(),
            "`vgg19_bn` needs images of at least 32 x 32 pixels, the dataset has 31 x 64"
        );
        assert_eq!(error.exit_code(), 2);
    }
    assert!(!out.path().join("defense").exists());
}

#[test]
fn few_and_tiny_images_give_a_cell_or_one_clear_error() {
    // Height and width, classes, images of each in both splits.
    let sets: [((u32, u32), usize, usize); 4] = [
        ((1, 1), 2, 2),
        ((3, 50), 3, 1),
        ((9, 7), 2, 1),
        ((33, 32), 2, 2),
    ];
    for (size, classes, count) in sets {
        let (data, out) = (folder(), folder());
        images(data.path(), size, classes, count);
        let attack = Draft::of_folder(data.path(), "preactresnet18").write(out.path());
        for &defense in DEFENSES {
            let quick = quick_of(defense).set;
            // All images, and one alone.
            let shares = [1.0, 1.0 / (classes * count) as f64].map(|r| format!("clean.ratio={r}"));
            for share in &shares {
                let mut set = quick.to_vec();
                if defense.info().needs != Needs::DataFree {
                    set.push(share);
                }
                let mut request = request(defense, &attack.dir, out.path(), &set);
                request.data = Some(data.path().to_owned());
                let (id, at) = (defense.info().id, format!("{size:?}, {classes}, {share}"));
                match run(&request) {
                    Ok(cell) => {
                        let total = results(&cell).after.acc.total;
                        assert_eq!(total, (classes * count) as u64, "{id}, {at}");
                    }
                    // So few pixels let a network explode.
                    Err(error) => {
                        assert!(matches!(error.exit_code(), 2 | 4), "{id}, {at}: {error}");
                    }
                }
            }
        }
    }
}
