//! BackdoorBench's settings, converted by the script of the repository and read by the program.

use std::path::Path;
use std::process::Command;

/// Root of the repository.
fn root() -> std::path::PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

/// What the script makes of files of these contents, and what it says.
fn convert(contents: &[&str]) -> (String, String) {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let mut command = Command::new("python3");
    command.arg(root().join("scripts/interop/backdoorbench_config.py"));
    command.arg("attack");
    for (k, content) in contents.iter().enumerate() {
        let path = folder.path().join(format!("{k}.yaml"));
        fs_err::write(&path, content).expect("a writable folder");
        command.arg(path);
    }
    let output = command
        .output()
        .expect("this test needs python3 with PyYAML");
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).expect("UTF-8");
    let (stdout, stderr) = (text(output.stdout), text(output.stderr));
    assert!(output.status.success(), "{stderr}");
    (stdout, stderr)
}

/// The settings of a run with the converted file, one a line with its origin.
fn shown(method: &str, dataset: &str, settings: &str) -> String {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let file = folder.path().join("bench.toml");
    fs_err::write(&file, settings).expect("a writable folder");
    let output = Command::new(env!("CARGO_BIN_EXE_bb-attack"))
        .args([method, "--dataset", dataset, "--show-config", "-c"])
        .arg(&file)
        .current_dir(root())
        .output()
        .expect("the program starts");
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{stderr}\nof\n{settings}");
    String::from_utf8(output.stdout).expect("UTF-8")
}

#[track_caller]
fn assert_set(shown: &str, settings: &[&str]) {
    for setting in settings {
        let set =
            |line: &str| line.starts_with(&format!("{setting}  # ")) && line.contains(".toml:");
        assert!(shown.lines().any(set), "{shown}\nlacks {setting}");
    }
}

/// What the settings of the bench's attacks have in common.
const TRAINING: &str = "dataset: gtsrb\nmodel: preactresnet18\nepochs: 50\nbatch_size: 128\nlr: 0.01\n\
                        lr_scheduler: CosineAnnealingLR\nsgd_momentum: 0.9\nwd: 0.0005\n";

#[test]
#[ignore = "needs python3 with PyYAML"]
fn the_cosine_has_the_benchs_period_whatever_the_epochs() {
    let check = |more: &str, t_max: &str| {
        let (settings, stderr) = convert(&[TRAINING, "attack: badnet\npratio: 0.1\n", more]);
        assert!(!stderr.contains("cos_t_max"), "{stderr}");
        let shown = shown("badnets", "gtsrb", &settings);
        let t_max = format!("train.schedule.t_max = {t_max}");
        let kind = "train.schedule.kind = \"cosine\"";
        assert_set(&shown, &["train.epochs = 50", kind, &t_max]);
    };
    check("epochs: 50\n", "100");
    check("cos_t_max:\n", "100");
    check("cos_t_max: 30\n", "30");
}

#[test]
#[ignore = "needs python3 with PyYAML"]
fn what_the_bench_always_does_is_set() {
    let check = |attack: &str, method: &str, more: &str, expect: &[&str]| {
        let attack = format!("attack: {attack}\n{more}");
        let (settings, stderr) = convert(&[TRAINING, &attack]);
        assert_set(&shown(method, "gtsrb", &settings), expect);
        stderr
    };
    let milestones = "lr_scheduler: MultiStepLR\nsteplr_milestones: [100, 200]\n";
    check(
        "trojannn",
        "trojan",
        "num_neuron: 2\n",
        &[
            "trigger.head = \"random\"",
            "trigger.normalised = false",
            "trigger.iterate = \"last\"",
            "trigger.addition = \"wrap\"",
            "trigger.neurons = 2",
        ],
    );
    check(
        "wanet",
        "wanet",
        milestones,
        &[
            "rounding = \"truncate\"",
            "augmentation = \"batch\"",
            "train.schedule.milestones = [100, 200]",
        ],
    );
    check(
        "inputaware",
        "inputaware",
        "clean_train_epochs: 25\nschedulerC_milestones: [100, 200]\n",
        &[
            "rounding = \"truncate\"",
            "mask.counted = true",
            "mask.clean_train_epochs = 25",
            "generator.double_tanh = true",
            "generator.accumulate_gradients = true",
        ],
    );
    let search = [
        "trigger.deepfool.evaluate_per_class = 0",
        "trigger.deepfool.normalised = false",
    ];
    let stderr = check("lowFrequency", "lf", "", &search);
    let default =
        "lowFrequencyPatternPath = ./resource/lowFrequency/gtsrb_preactresnet18_0_255.npy";
    assert!(stderr.contains(default), "{stderr}");
    // A pattern that is named is taken, without a source beside it.
    let folder = tempfile::tempdir().expect("a temporary folder");
    let pattern = folder.path().join("p.npy");
    fs_err::write(&pattern, "looked for, and not read yet").expect("a writable folder");
    let named = format!("lowFrequencyPatternPath: {}\n", pattern.display());
    let file = format!("trigger.file = {:?}", pattern.display().to_string());
    let stderr = check("lowFrequency", "lf", &named, &[&file]);
    assert!(!stderr.contains("lowFrequencyPatternPath"), "{stderr}");
    let stderr = check("SSBA", "ssba", "", &["train.epochs = 50"]);
    assert!(
        stderr.contains("./resource/ssba/gtsrb_ssba_train_b1.npy"),
        "{stderr}"
    );
    let files = ["a.npy", "b.npy"].map(|name| {
        let path = folder.path().join(name);
        fs_err::write(&path, "looked for, and not read yet").expect("a writable folder");
        path.display().to_string()
    });
    let [train, test] = &files;
    let named =
        format!("attack_train_replace_imgs_path: {train}\nattack_test_replace_imgs_path: {test}\n");
    let expect = [
        "trigger.source = \"file\"",
        &format!("trigger.test_file = {test:?}"),
    ];
    check("SSBA", "ssba", &named, &expect);
}
