//! What runs begin from: a cell, a record, a model, images, a grid.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use bb_attack::picture::Picture;
use bb_core::artifact::sha256_hex;
use tempfile::TempDir;

use crate::run::{Call, End};

/// What the scenarios read, in a folder that no run may change.
pub(crate) struct Inputs(pub(crate) TempDir);

pub(crate) const SMALL: &str = "--dataset synthetic --width 1 --train-limit 64 --test-limit 20 \
    --threads 1 -q --set train.batch_size=32";

const GRID: &str = "\
[grid]
name = \"g\"
dataset = \"synthetic\"
width = 1
seeds = [0]
train_limit = 64
test_limit = 20

[[attack]]
method = \"badnets\"
set = { train = { epochs = 1, batch_size = 32 } }

[[defense]]
method = \"clp\"

[[defense]]
method = \"ft\"
set = { clean.ratio = 0.2, finetune.epochs = 1 }
";

impl Inputs {
    pub(crate) fn new() -> Self {
        let inputs = Self(tempfile::tempdir().expect("a temporary folder"));
        let zoo = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../model_zoo");
        for name in ["index.toml", "badnets-synthetic-w8.safetensors"] {
            fs_err::copy(zoo.join(name), inputs.place(name)).expect("a model of the zoo");
        }
        fs_err::write(inputs.place("grid.toml"), GRID).expect("written");
        for split in ["train", "test"] {
            for (class, grey) in [("a", 40), ("b", 200)] {
                let folder = inputs.place("images").join(split).join(class);
                fs_err::create_dir_all(&folder).expect("a folder");
                for i in 0..8 {
                    let picture = Picture::new(8, 8, vec![grey + i; 192]);
                    let path = folder.join(format!("{i}.png"));
                    fs_err::write(path, picture.to_png()).expect("a picture");
                }
            }
        }
        let base = format!("badnets {SMALL} --set train.epochs=1 --out base");
        inputs.made("bb-attack", &base);
        let cell = inputs.cell("base");
        let repair = format!("clp --model {cell} --threads 1 -q --out repair");
        inputs.made("bb-defense", &repair);
        let record = "--format backdoorbench --out record/e";
        inputs.made("bb-eval", &format!("zoo export {cell} {record}"));
        inputs
    }

    pub(crate) fn place(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn made(&self, program: &str, args: &str) {
        let args = words(args);
        let done = call(program, &args, self.0.path(), &[]).run();
        assert_eq!(done.end, End::Exit(0), "{args:?}: {}", done.stderr);
    }

    /// The folder of the only cell below `out`: `base`, an attack's, or `repair`, its defense's.
    pub(crate) fn cell(&self, out: &str) -> String {
        let files = files(&self.place(out));
        let manifest = files.keys().find(|name| name.ends_with("/manifest.json"));
        let manifest = self.place(out).join(manifest.expect("a cell"));
        text(manifest.parent().expect("a file has a folder"))
    }
}

pub(crate) fn words(text: &str) -> Vec<String> {
    text.split_whitespace().map(str::to_owned).collect()
}

pub(crate) fn text(path: &Path) -> String {
    path.to_str().expect("a plain path").to_owned()
}

pub(crate) fn call<'a>(
    program: &'a str,
    args: &'a [String],
    folder: &'a Path,
    shim: &'a [(&'a str, String)],
) -> Call<'a> {
    Call {
        program,
        args,
        folder,
        shim,
        mib: 0,
        seconds: 120,
    }
}

/// All files below a folder, by relative path, with their digests.
pub(crate) fn files(folder: &Path) -> BTreeMap<String, String> {
    fn list(folder: &Path, prefix: &str, found: &mut BTreeMap<String, String>) {
        for entry in fs_err::read_dir(folder).into_iter().flatten().flatten() {
            let name = format!("{prefix}{}", entry.file_name().to_string_lossy());
            if entry.path().is_dir() {
                list(&entry.path(), &format!("{name}/"), found);
            } else {
                let bytes = fs_err::read(entry.path()).expect("readable");
                found.insert(name, sha256_hex(bytes));
            }
        }
    }
    let mut found = BTreeMap::new();
    list(folder, "", &mut found);
    found
}
