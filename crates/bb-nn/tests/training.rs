//! The batch assembly, the training loop and its checkpoints, on a tiny synthetic set.

use bb_core::artifact::checkpoint;
use bb_core::cli::{Coded as _, exit};
use bb_core::data::{self, Dataset, Images, OpenOptions, Split};
use bb_core::poison::PoisonSet;
use bb_nn::data::{Batch, LoaderOptions, batches, gather, order};
use bb_nn::kernels::loss::Loss;
use bb_nn::net::{Mode, Net};
use bb_nn::schedule::{Kind, Schedule};
use bb_nn::train::{Checkpoints, EpochRow, Hooks, Recipe, StepAt, TrainError, fit};
use bb_nn::{ArchSpec, Flat, NnError, StateDict, eval};
use candle_core::{Device, Tensor};
use std::collections::BTreeMap;

fn dataset(train: usize) -> Dataset {
    let options = OpenOptions {
        train_limit: Some(train),
        test_limit: Some(64),
        ..OpenOptions::default()
    };
    data::open("synthetic", None, &options).expect("the synthetic set needs no file")
}

fn recipe(epochs: usize) -> Recipe {
    Recipe {
        epochs,
        batch_size: 32,
        lr: 0.05,
        schedule: Schedule {
            kind: Kind::Triangle,
            ..Schedule::default()
        },
        ..Recipe::default()
    }
}

fn net() -> Net {
    Net::new(
        &ArchSpec::new("preactresnet18", 4, 10).expect("a small network"),
        3,
    )
}

fn bits(net: &Net) -> Vec<u8> {
    net.state().unwrap().to_bytes(&BTreeMap::new()).unwrap()
}

#[derive(Default)]
struct Rows {
    rows: Vec<EpochRow>,
    stop_in: Option<usize>,
}

impl Hooks for Rows {
    fn gradients(
        &mut self,
        net: &mut Net,
        at: StepAt,
        batch: &mut Batch,
        grads: &mut Flat,
    ) -> Result<Loss, TrainError> {
        let StepAt { epoch, .. } = at;
        match self.stop_in {
            Some(stop) if stop == epoch => Err(TrainError::Interrupted { epoch }),
            _ => Ok(net.loss_grad(&batch.input, &batch.labels, Mode::Train, grads)),
        }
    }

    fn epoch(&mut self, _: &mut Net, row: &EpochRow) -> Result<(), TrainError> {
        self.rows.push(row.clone());
        Ok(())
    }
}

/// Losses that a script names, two for each epoch, and no gradients.
struct Script {
    losses: Vec<[f32; 2]>,
    rates: Vec<f64>,
    stop_in: Option<usize>,
}

impl Hooks for Script {
    fn gradients(
        &mut self,
        _: &mut Net,
        StepAt { epoch, step, .. }: StepAt,
        _: &mut Batch,
        grads: &mut Flat,
    ) -> Result<Loss, TrainError> {
        if self.stop_in == Some(epoch) {
            return Err(TrainError::Interrupted { epoch });
        }
        grads.data_mut().fill(0.0);
        Ok(Loss {
            mean: self.losses[epoch][step],
            correct: 0,
        })
    }

    fn epoch(&mut self, _: &mut Net, row: &EpochRow) -> Result<(), TrainError> {
        self.rates.push(row.lr);
        let [one, two] = self.losses[row.epoch].map(f64::from);
        assert!((row.train_loss - f64::midpoint(one, two)).abs() < 1e-6);
        Ok(())
    }
}

/// The rate falls in the epoch after the one whose loss was one too many without improvement, also where the run was
/// interrupted while it waited. The loss of an epoch is the mean over its batches.
#[test]
fn a_plateau_of_the_epochs_losses_lowers_the_rate() {
    let data = dataset(64);
    let recipe = Recipe {
        lr: 0.5,
        schedule: Schedule {
            kind: Kind::Plateau,
            patience: 1,
            ..Schedule::default()
        },
        ..recipe(7)
    };
    // Means 1, 0.9, 0.95, 0.9, 0.8, 0.8, 0.8: two bad epochs in a row end in the fourth and in the last one.
    let losses = [
        [1.0, 1.0],
        [0.2, 1.6],
        [1.0, 0.9],
        [0.9, 0.9],
        [0.7, 0.9],
        [0.8, 0.8],
        [0.8, 0.8],
    ];
    let expect = [0.5, 0.5, 0.5, 0.5, 0.05, 0.05, 0.05];
    let folder = tempfile::tempdir().expect("a temporary folder");
    let run = |checkpoints: &Checkpoints, stop_in| {
        let mut script = Script {
            losses: losses.to_vec(),
            rates: Vec::new(),
            stop_in,
        };
        let (train, spec) = (&data.train, &data.spec);
        let ended = fit(
            &mut net(),
            train,
            spec,
            &recipe,
            1,
            checkpoints,
            &mut script,
        );
        assert_eq!(ended.is_err(), stop_in.is_some());
        script.rates
    };
    let checkpoints = Checkpoints::at(folder.path().join("state.safetensors"), 1);
    assert_eq!(run(&Checkpoints::none(), None), expect);
    assert_eq!(run(&checkpoints, Some(3)), expect[..3]);
    assert_eq!(run(&checkpoints, None), expect[3..]);
}

/// A rate of nothing leaves the parameters as they are from exactly the milestone on, the first epoch being 0.
#[test]
fn the_optimizer_steps_by_the_rate_of_its_epoch() {
    let data = dataset(64);
    let parameters = |epochs, milestones: &[usize]| {
        let recipe = Recipe {
            schedule: Schedule {
                kind: Kind::Multistep,
                milestones: milestones.to_vec(),
                gamma: 1e-30,
                ..Schedule::default()
            },
            ..recipe(epochs)
        };
        let mut net = net();
        let mut rows = Rows::default();
        fit(
            &mut net,
            &data.train,
            &data.spec,
            &recipe,
            1,
            &Checkpoints::none(),
            &mut rows,
        )
        .unwrap();
        let rates: Vec<f64> = rows.rows.iter().map(|row| row.lr).collect();
        (net.params().data().to_vec(), rates)
    };
    let (stopped, rates) = parameters(4, &[2]);
    assert_eq!(rates[..2], [0.05, 0.05]);
    assert!(rates[2..].iter().all(|&rate| rate < 1e-30), "{rates:?}");
    assert_eq!(stopped, parameters(2, &[]).0);
    assert_ne!(stopped, parameters(1, &[]).0);
    assert_ne!(stopped, parameters(3, &[]).0);
}

#[test]
fn training_learns_and_repeats_bit_for_bit_on_any_number_of_threads() {
    let data = dataset(256);
    let run = |threads| {
        let pool = rayon::ThreadPoolBuilder::new()
            .num_threads(threads)
            .build()
            .expect("a thread pool");
        pool.install(|| {
            let mut net = net();
            let mut rows = Rows::default();
            fit(
                &mut net,
                &data.train,
                &data.spec,
                &recipe(3),
                1,
                &Checkpoints::none(),
                &mut rows,
            )
            .unwrap();
            (bits(&net), rows.rows)
        })
    };
    let (one, rows) = run(1);
    let (two, same_rows) = run(2);
    assert!(one == two, "another number of threads gave other bits");
    assert_eq!(rows, same_rows);
    assert!(rows[2].train_loss < rows[0].train_loss, "{rows:?}");
    assert_eq!((rows[0].train_total, rows[0].epoch), (256, 0));
}

#[test]
fn an_interrupted_run_ends_with_the_same_bits() {
    for arch in ["preactresnet18", "vgg19_bn"] {
        check_interruption(|| {
            let width = if arch == "vgg19_bn" { 1 } else { 4 };
            let spec = ArchSpec::new(arch, width, 10).expect("a small network");
            Net::new(&spec, 3)
        });
    }
}

/// VGG's dropout masks go on where they were, too.
fn check_interruption(net: impl Fn() -> Net) {
    let data = dataset(128);
    let folder = tempfile::tempdir().unwrap();
    let mut whole = net();
    fit(
        &mut whole,
        &data.train,
        &data.spec,
        &recipe(4),
        1,
        &Checkpoints::none(),
        &mut (),
    )
    .unwrap();

    let store = Checkpoints::at(folder.path().join("train.safetensors"), 1);
    let mut stop = Rows {
        stop_in: Some(2),
        ..Rows::default()
    };
    let error = fit(
        &mut net(),
        &data.train,
        &data.spec,
        &recipe(4),
        1,
        &store,
        &mut stop,
    )
    .unwrap_err();
    assert!(
        matches!(error, TrainError::Interrupted { epoch: 2 }),
        "{error}"
    );
    let mut resumed = net();
    let mut rows = Rows::default();
    fit(
        &mut resumed,
        &data.train,
        &data.spec,
        &recipe(4),
        1,
        &store,
        &mut rows,
    )
    .unwrap();
    assert_eq!(
        rows.rows.iter().map(|r| r.epoch).collect::<Vec<_>>(),
        [2, 3]
    );
    assert!(bits(&whole) == bits(&resumed));
}

#[test]
fn a_foreign_checkpoint_is_refused() {
    let data = dataset(64);
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("train.safetensors");
    let other = Net::new(&ArchSpec::new("preactresnet18", 2, 10).unwrap(), 0);
    let about = BTreeMap::from([("epochs_done".to_owned(), "1".to_owned())]);
    let bytes = other.state().unwrap().to_bytes(&about).unwrap();
    checkpoint::write(&path, &bytes).unwrap();
    let error = fit(
        &mut net(),
        &data.train,
        &data.spec,
        &recipe(1),
        1,
        &Checkpoints::at(&path, 1),
        &mut (),
    )
    .unwrap_err();
    assert!(error.to_string().contains("conv1.weight"), "{error}");
}

/// Whatever happens to the file of a run that stopped in its fourth epoch, the resumed run ends with the same bits.
#[test]
fn a_damaged_checkpoint_gives_no_other_result() {
    let data = dataset(64);
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("train.safetensors");
    let before = folder.path().join("train.safetensors.before");
    let train = |checkpoints: &Checkpoints, stop_in| {
        let mut net = net();
        let mut hook = Told {
            rows: Rows {
                stop_in,
                ..Rows::default()
            },
            told: Vec::new(),
        };
        let (train, spec) = (&data.train, &data.spec);
        let ended = fit(&mut net, train, spec, &recipe(4), 1, checkpoints, &mut hook);
        assert_eq!(ended.is_err(), stop_in.is_some());
        let first = hook.rows.rows.first().map(|row| row.epoch);
        (bits(&net), first, hook.told)
    };
    let (whole, ..) = train(&Checkpoints::none(), None);
    let store = Checkpoints::at(&path, 1);
    train(&store, Some(3));
    let [last, one_before] = [&path, &before].map(|path| fs_err::read(path).unwrap());
    let resumed = |last: Option<&[u8]>, older: Option<&[u8]>| {
        for (path, bytes) in [(&path, last), (&before, older)] {
            match bytes {
                Some(bytes) => fs_err::write(path, bytes).unwrap(),
                None => fs_err::remove_file(path).unwrap(),
            }
        }
        let (found, first, told) = train(&store, None);
        assert!(found == whole, "another result, {told:?}");
        (first, told)
    };
    assert_eq!(resumed(Some(&last), Some(&one_before)), (Some(3), vec![]));
    for i in 0..40 {
        let bit = 8 * last.len() * i / 40;
        let mut flipped = last.clone();
        flipped[bit / 8] ^= 1 << (bit % 8);
        let (first, told) = resumed(Some(&flipped), Some(&one_before));
        assert_eq!((first, told.len()), (Some(2), 1), "bit {bit}: {told:?}");
        assert!(
            told[0].contains("train.safetensors` is not used"),
            "{told:?}"
        );
    }
    let cut = &last[..last.len() / 2];
    for (last, older, first, told) in [
        (Some(cut), Some(&one_before[..]), Some(2), 1),
        (Some(&[][..]), Some(&one_before[..]), Some(2), 1),
        // Killed between the two renames.
        (None, Some(&one_before[..]), Some(2), 0),
        (Some(cut), Some(cut), Some(0), 2),
        (Some(cut), None, Some(0), 1),
        (None, None, Some(0), 0),
        // The older one under the newer one's name is whole, and so is the newer one under the older one's.
        (Some(&one_before[..]), Some(&last[..]), Some(2), 0),
    ] {
        let found = resumed(last, older);
        assert_eq!((found.0, found.1.len()), (first, told));
    }
    // As earlier versions wrote it, without a digest.
    let old = &last[..last.len() - 40];
    let (first, told) = resumed(Some(old), None);
    assert_eq!(first, Some(0));
    assert!(told[0].contains("of an earlier version"), "{told:?}");
}

/// Rows, and what was said of checkpoints.
struct Told {
    rows: Rows,
    told: Vec<String>,
}

impl Hooks for Told {
    fn gradients(
        &mut self,
        net: &mut Net,
        at: StepAt,
        batch: &mut Batch,
        grads: &mut Flat,
    ) -> Result<Loss, TrainError> {
        self.rows.gradients(net, at, batch, grads)
    }

    fn epoch(&mut self, net: &mut Net, row: &EpochRow) -> Result<(), TrainError> {
        self.rows.epoch(net, row)
    }

    fn unusable(&mut self, why: &str) -> Result<(), TrainError> {
        self.told.push(why.to_owned());
        Ok(())
    }
}

#[test]
fn divergence_is_reported_with_its_place() {
    let data = dataset(64);
    let mut net = net();
    let recipe = Recipe {
        lr: 1e30,
        schedule: Schedule {
            kind: Kind::Constant,
            ..Schedule::default()
        },
        ..recipe(3)
    };
    let error = fit(
        &mut net,
        &data.train,
        &data.spec,
        &recipe,
        1,
        &Checkpoints::none(),
        &mut (),
    )
    .unwrap_err();
    assert!(matches!(error, TrainError::Diverged { .. }), "{error}");
}

/// The loss of the only step is finite, so only the weights and the logits tell what its update did.
#[test]
fn the_last_step_may_diverge_too() {
    let data = dataset(32);
    let train = |lr: f64| {
        let schedule = Schedule {
            kind: Kind::Constant,
            ..Schedule::default()
        };
        let recipe = Recipe {
            lr,
            schedule,
            ..recipe(1)
        };
        let mut net = net();
        let none = Checkpoints::none();
        let ended = fit(
            &mut net,
            &data.train,
            &data.spec,
            &recipe,
            1,
            &none,
            &mut (),
        );
        (ended, net)
    };
    let error = train(1e300).0.expect_err("infinite weights");
    assert_eq!(error.exit_code(), exit::NUMERICAL);
    let text = error.to_string();
    assert!(text.starts_with("training diverged: tensor `"), "{text}");
    assert!(text.ends_with("after epoch 1"), "{text}");

    // Weights that are finite, and yet products of them are not.
    let (ended, mut net) = train(1e10);
    ended.expect("finite weights");
    let test = eval::accuracy(&mut net, &data.test, &data.spec).expect_err("no logits");
    assert_eq!(test.exit_code(), exit::NUMERICAL);
    assert_eq!(
        test.to_string(),
        "64 of 64 clean images have logits that are NaN or infinite, the first is clean image 0"
    );
}

/// A network that has no logits for white images only.
fn broken_for_white() -> Net {
    let mut net = net();
    for value in net.params_mut().data_mut() {
        *value = 0.0;
    }
    let layout = std::sync::Arc::clone(net.params().layout());
    let at = |name: &str| layout.position(name).expect(name);
    // The features of black images are 0 behind the first ReLU, and those of white ones overflow in the last layer.
    for (name, value) in [("conv1.weight", 1.0), ("linear.weight", f32::MAX)] {
        let tensor = at(name);
        let len = layout.entries()[tensor].range.len();
        net.params_mut().set_plain(tensor, &vec![value; len]);
    }
    for entry in layout.entries() {
        let one = entry.name.contains("bn") && entry.name.ends_with("weight");
        if one {
            let len = entry.range.len();
            net.params_mut().set_plain(at(&entry.name), &vec![1.0; len]);
        }
    }
    // The shortcuts of the later stages hand on what comes.
    for stage in 2..=4 {
        let tensor = at(&format!("layer{stage}.0.shortcut.0.weight"));
        let len = layout.entries()[tensor].range.len();
        net.params_mut().set_plain(tensor, &vec![1.0; len]);
    }
    net
}

#[test]
fn an_image_without_logits_is_named_and_no_score_comes_of_it() {
    let data = dataset(32);
    let (height, width) = (data.spec.height, data.spec.width);
    let split = |white: &[usize]| {
        let mut pixels = vec![0; 5 * height * width * 3];
        for &i in white {
            pixels[i * height * width * 3..][..height * width * 3].fill(255);
        }
        Split {
            images: Images::new(5, height, width, pixels).expect("five images"),
            labels: vec![0; 5].into(),
        }
    };
    let mut net = broken_for_white();
    let black = eval::accuracy(&mut net, &split(&[]), &data.spec).expect("finite logits");
    assert_eq!((black.hits, black.total), (5, 5));
    let error = eval::accuracy(&mut net, &split(&[2, 4]), &data.spec).expect_err("two are broken");
    assert_eq!(
        error.to_string(),
        "2 of 5 clean images have logits that are NaN or infinite, the first is clean image 2"
    );

    let set = |white: &[usize]| {
        let images = split(white).images;
        let places = vec![3, 7, 11, 12, 19];
        PoisonSet::new(places, images, vec![0; 5], vec![1; 5]).expect("a set")
    };
    let mut score = |clean: &[usize], poisoned: &[usize]| {
        eval::scores(&mut net, &split(clean), &set(poisoned), &data.spec)
    };
    assert_eq!(score(&[], &[]).expect("finite logits").asr.hits, 5);
    let error = score(&[1], &[]).expect_err("a clean one is broken");
    assert!(error.to_string().ends_with("clean test image 1"), "{error}");
    let error = score(&[], &[1]).expect_err("a poisoned one is broken");
    assert!(
        error.to_string().ends_with("poisoned test image 7"),
        "the index is that of the test set: {error}"
    );
}

#[test]
fn a_running_variance_below_zero_is_refused_with_its_tensor() {
    let mut state = net().state().expect("a state");
    let name = "layer1.0.bn1.running_var";
    let tensor = state.floats(name).expect("it has one").expect("floats");
    let mut values = tensor.clone();
    values[2] = -1.0;
    let changed = Tensor::from_vec(values, tensor.len(), &Device::Cpu).expect("a tensor");
    state.insert(name, changed);
    let spec = ArchSpec::new("preactresnet18", 4, 10).expect("a small network");
    let error = Net::from_state(&spec, &state).expect_err("a negative variance");
    assert_eq!(error.exit_code(), exit::INPUT);
    assert_eq!(
        error.to_string(),
        "tensor `layer1.0.bn1.running_var` holds -1 at flat index 2, expected variances of at least 0"
    );
    // A mean may be negative, and a variance 0.
    let mean = Tensor::from_vec(vec![-1f32; tensor.len()], tensor.len(), &Device::Cpu);
    state.insert("layer1.0.bn1.running_mean", mean.expect("a tensor"));
    let none = Tensor::from_vec(vec![0f32; tensor.len()], tensor.len(), &Device::Cpu);
    state.insert(name, none.expect("a tensor"));
    Net::from_state(&spec, &state).expect("nothing is wrong with it");
}

#[test]
fn a_set_smaller_than_one_batch_is_refused() {
    let data = dataset(16);
    let error = fit(
        &mut net(),
        &data.train,
        &data.spec,
        &recipe(1),
        1,
        &Checkpoints::none(),
        &mut (),
    )
    .unwrap_err();
    let expected = "the training set has 16 images, but `batch_size` is 32 and `drop_last` is true";
    assert_eq!(error.to_string(), expected);
}

#[test]
fn a_recipe_out_of_range_names_the_setting() {
    assert_eq!(recipe(1).first_invalid(), None);
    let check = |change: fn(&mut Recipe), name: &str| {
        let mut recipe = recipe(1);
        change(&mut recipe);
        let found = recipe.first_invalid().map(|(name, ..)| name);
        assert_eq!(found, Some(name));
    };
    check(|r| r.lr = f64::INFINITY, "lr");
    check(|r| r.momentum = 1.0, "momentum");
    check(|r| r.schedule.warmup = -0.1, "schedule.warmup");
    for rate in [-1e-9, f64::INFINITY, f64::NAN] {
        let mut recipe = recipe(1);
        recipe.schedule.min_lr = rate;
        let expect = (
            "schedule.min_lr",
            rate.to_string(),
            "a number of at least 0",
        );
        assert_eq!(recipe.first_invalid(), Some(expect));
    }
}

#[test]
fn batches_cover_the_split_once_and_do_not_depend_on_their_size() {
    let data = dataset(50);
    let options = |batch_size| LoaderOptions {
        batch_size,
        shuffle: true,
        drop_last: false,
        augment: true,
        seed: 9,
        purpose: "test",
    };
    let collect = |size: usize, epoch| -> Vec<(usize, Vec<f32>)> {
        let mut all: Vec<(usize, Vec<f32>)> =
            batches(&data.train, &data.spec, options(size), epoch)
                .flat_map(|b| {
                    let image = b.input.h * b.input.w * 3;
                    let images: Vec<Vec<f32>> = b
                        .input
                        .data
                        .chunks_exact(image)
                        .map(<[f32]>::to_vec)
                        .collect();
                    b.indices.into_iter().zip(images).collect::<Vec<_>>()
                })
                .collect();
        all.sort_by_key(|(i, _)| *i);
        all
    };
    let seven = collect(7, 0);
    assert_eq!(
        seven.iter().map(|(i, _)| *i).collect::<Vec<_>>(),
        (0..50).collect::<Vec<_>>()
    );
    assert!(
        seven == collect(50, 0),
        "an image's augmentation must depend on its index only"
    );
    assert!(seven != collect(7, 1), "every epoch draws anew");
    let plain = LoaderOptions {
        augment: false,
        shuffle: false,
        drop_last: true,
        ..options(16)
    };
    let sizes: Vec<usize> = batches(&data.train, &data.spec, plain, 0)
        .map(|b| b.labels.len())
        .collect();
    assert_eq!(sizes, [16, 16, 16]);

    // One batch can be had without those before it.
    let order = order(50, &options(16), 3);
    let second = batches(&data.train, &data.spec, options(16), 3).nth(1);
    let gathered = gather(&data.train, &data.spec, &options(16), 3, &order[16..32]);
    assert_eq!(second.expect("four batches"), gathered);
}

/// Calls every image the first class, and checks what the loader gives.
struct Own {
    data: Dataset,
    plain: bool,
}

impl Hooks for Own {
    fn loader_augments(&self) -> bool {
        !self.plain
    }

    fn gradients(
        &mut self,
        net: &mut Net,
        at: StepAt,
        batch: &mut Batch,
        grads: &mut Flat,
    ) -> Result<Loss, TrainError> {
        let options = LoaderOptions {
            batch_size: 32,
            shuffle: true,
            drop_last: true,
            augment: !self.plain,
            seed: 1,
            purpose: "train",
        };
        let (split, spec) = (&self.data.train, &self.data.spec);
        let mut whole = batches(split, spec, options, at.epoch as u64);
        assert_eq!(whole.nth(at.step).as_ref(), Some(&*batch), "{at:?}");
        // A loss of twice the size: so are its gradients.
        batch.labels.fill(0);
        let mut loss = net.loss_grad(&batch.input, &batch.labels, Mode::Train, grads);
        grads.scale(2.0);
        loss.mean *= 2.0;
        Ok(loss)
    }
}

#[test]
fn a_hook_may_change_the_batch_the_loss_and_the_augmentation() {
    for plain in [false, true] {
        let data = dataset(96);
        let mut hook = Own {
            data: data.clone(),
            plain,
        };
        let mut net = net();
        fit(
            &mut net,
            &data.train,
            &data.spec,
            &Recipe {
                batch_size: 32,
                lr: 0.1,
                ..recipe(3)
            },
            1,
            &Checkpoints::none(),
            &mut hook,
        )
        .unwrap();
        let predictions =
            eval::predict(&mut net, &data.train.images, &data.spec).expect("finite logits");
        assert!(predictions.iter().filter(|&&p| p == 0).count() > 90);
    }
}

#[test]
fn states_survive_their_file_and_bad_ones_are_refused() {
    let net = net();
    let state = net.state().unwrap();
    let bytes = state
        .to_bytes(&BTreeMap::from([("arch".to_owned(), "x".to_owned())]))
        .unwrap();
    let path = std::path::Path::new("model.safetensors");
    let again = StateDict::from_bytes(&bytes, path).unwrap();
    let names = |s: &StateDict| s.iter().map(|(n, _)| n.to_owned()).collect::<Vec<_>>();
    assert_eq!(names(&state), names(&again), "PyTorch's order is kept");
    assert_eq!(
        names(&state)[..3],
        ["conv1.weight", "layer1.0.bn1.weight", "layer1.0.bn1.bias"]
    );
    assert_eq!(StateDict::metadata(&bytes, path).unwrap()["arch"], "x");
    let spec = net.spec().clone();
    assert!(bits(&Net::from_state(&spec, &again).unwrap()) == bits(&net));

    let refused = |change: &dyn Fn(&mut StateDict)| -> NnError {
        let mut bad = state.clone();
        change(&mut bad);
        Net::from_state(&spec, &bad).unwrap_err()
    };
    let zeros = |shape: &[usize]| {
        candle_core::Tensor::zeros(shape, candle_core::DType::F32, &candle_core::Device::Cpu)
            .unwrap()
    };
    assert_eq!(
        refused(&|s| s.insert("linear.bias", zeros(&[11]))).to_string(),
        "tensor `linear.bias` has shape [11], expected [10]"
    );
    assert_eq!(
        refused(&|s| s.insert("head.bias", zeros(&[1]))).to_string(),
        "tensor `head.bias` does not belong to `preactresnet18-w4`"
    );
    let nan = (zeros(&[10]) / 0.0).unwrap();
    assert_eq!(
        refused(&|s| s.insert("linear.bias", nan.clone())).to_string(),
        "tensor `linear.bias` holds NaN or an infinity at flat index 0"
    );
    let mut short = StateDict::new();
    short.insert("conv1.weight", state.get("conv1.weight").unwrap().clone());
    assert_eq!(
        Net::from_state(&spec, &short).unwrap_err().to_string(),
        "tensor `layer1.0.bn1.weight` is missing, expected shape [4]"
    );
    for cut in (0..bytes.len()).step_by(997) {
        assert!(
            StateDict::from_bytes(&bytes[..cut], path).is_err(),
            "cut at {cut}"
        );
    }
}

/// The network of the first case would fill 36 GB, and the values of the second are refused once they are read.
#[test]
fn names_and_shapes_are_compared_before_anything_is_made() {
    let tensor = |shape: &[usize], value: f32| {
        candle_core::Tensor::full(value, shape, &candle_core::Device::Cpu).unwrap()
    };
    let wide = ArchSpec::new("vgg19_bn", 512, 10).unwrap();
    let mut state = StateDict::new();
    state.insert("features.0.weight", tensor(&[512, 0, 3, 3], 0.0));
    assert_eq!(
        Net::from_state(&wide, &state).unwrap_err().to_string(),
        "tensor `features.0.weight` has shape [512, 0, 3, 3], expected [512, 3, 3, 3]"
    );

    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.safetensors");
    let header = r#"{"conv1.weight":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}"#;
    let length = (header.len() as u64).to_le_bytes();
    let nan = f32::NAN.to_le_bytes();
    fs_err::write(&path, [&length[..], header.as_bytes(), &nan].concat()).unwrap();
    assert!(matches!(
        StateDict::load(&path).unwrap_err(),
        NnError::NotFinite { .. }
    ));
    let spec = ArchSpec::new("preactresnet18", 4, 10).unwrap();
    assert_eq!(
        Net::load(&spec, &path).unwrap_err().to_string(),
        "tensor `conv1.weight` has shape [1], expected [4, 3, 3, 3]"
    );
}

#[test]
fn the_declared_order_costs_no_more_than_the_names() {
    let file = |names: usize, order: &str| {
        let bb = serde_json::json!({ "order": serde_json::from_str::<serde_json::Value>(order).unwrap() });
        let mut header = serde_json::json!({ "__metadata__": { "bb": bb.to_string() } });
        for i in 0..names {
            header[format!("x{i}")] =
                serde_json::json!({ "dtype": "F32", "shape": [0], "data_offsets": [0, 0] });
        }
        let header = header.to_string();
        [&(header.len() as u64).to_le_bytes()[..], header.as_bytes()].concat()
    };
    let path = std::path::Path::new("m.safetensors");
    let names = |bytes: &[u8]| -> Vec<String> {
        let state = StateDict::from_bytes(bytes, path).unwrap();
        state.iter().map(|(name, _)| name.to_owned()).collect()
    };
    // The first place of a name counts, unknown ones do not, and the others follow by name.
    let found = names(&file(4, r#"["x2", 7, "y", "x1", "x2"]"#));
    assert_eq!(found, ["x2", "x1", "x0", "x3"]);

    let order: Vec<String> = (0..80_000).map(|i| format!("y{i}")).collect();
    let bytes = file(20_000, &serde_json::json!(order).to_string());
    let begun = std::time::Instant::now();
    assert_eq!(names(&bytes).len(), 20_000);
    // A second is enough by far; comparing each name with each takes minutes.
    assert!(begun.elapsed().as_secs() < 20, "{:?}", begun.elapsed());

    let order: Vec<u8> = vec![0; 200_000];
    let bytes = file(1, &serde_json::json!(order).to_string());
    let error = StateDict::from_bytes(&bytes, path).unwrap_err().to_string();
    assert!(
        error.contains("`bb` in its metadata: more values than 100000"),
        "{error}"
    );
}

#[test]
fn evaluation_counts_every_image() {
    let data = dataset(64);
    let mut net = net();
    let predictions =
        eval::predict(&mut net, &data.test.images, &data.spec).expect("finite logits");
    assert_eq!(predictions.len(), 64);
    let ratio = eval::accuracy(&mut net, &data.test, &data.spec).expect("finite logits");
    let hits = predictions
        .iter()
        .zip(data.test.labels.iter())
        .filter(|(p, l)| p == l)
        .count();
    assert_eq!((ratio.hits, ratio.total), (hits as u64, 64));
}
