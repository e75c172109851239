//! Our cells for other programs.
//!
//! | format | cell | files |
//! |---|---|---|
//! | `backdoorbench` | of an attack | `attack_result.pt`, `bd_train_dataset/<true label>/<index>.png`, `bd_test_dataset/...` |
//! | | of clean training | `clean_model.pth` |
//! | | of a defense | `defense_result.pt` |
//! | `state-dict` | any | `model.pth`, `model.json` |
//! | `safetensors` | any | `model.safetensors`, `model.json` |
//!
//! BackdoorBench's loader (`utils/save_load_attack.py`, commit f02e353) opens pictures by paths below its own folder, so
//! the folder of an attack is to be put into `record/` there under the name that it was exported with.
//! Its checkpoint says what ours says: of a run that was limited to the first images it lists these only.
//! Images with a trigger and their true label (`cross_train.safetensors` of attacks that poison in the training loop) are
//! left out, since in BackdoorBench's lists they cannot be told from poisoned ones.
//!
//! `model.json` says what a program needs beside the tensors: architecture, width, classes, size of the input and its
//! normalisation, `(value / 255 - mean) / std` per channel.

use std::io::BufWriter;
use std::path::{Path, PathBuf};

use bb_attack::picture::Picture;
use bb_core::artifact::LARGEST_FILE;
use bb_core::artifact::atomic::Folder;
use bb_core::cell::{Cell, Kind, MODEL, POISON_TEST, POISON_TRAIN};
use bb_core::cli::{Failure, catch_interrupts, check_interrupt};
use bb_core::data;
use bb_core::files::{self, Links};
use bb_core::poison::PoisonSet;
use bb_nn::StateDict;
use bb_zoo::torch::{Item, write};
use serde_json::json;

use super::{ATTACK_RESULT, ZooError, tensors};
use crate::{network, verify};

/// BackdoorBench's checkpoint of clean training.
pub const CLEAN_MODEL: &str = "clean_model.pth";
/// BackdoorBench's checkpoint of a defense.
pub const DEFENSE_RESULT: &str = "defense_result.pt";
/// The network's description beside a bare state dictionary.
pub const MODEL_JSON: &str = "model.json";

/// What to write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// What BackdoorBench's own loader reads.
    BackdoorBench,
    /// A state dictionary that `torch.load(weights_only=True)` reads.
    StateDict,
    /// The tensors as safetensors.
    Safetensors,
}

/// What is to be exported.
#[derive(Clone, Debug)]
pub struct ExportRequest {
    /// Folder or manifest of a cell.
    pub cell: PathBuf,
    /// What to write.
    pub format: Format,
    /// Folder with the datasets, for the folder of an attack; `synthetic` needs none.
    pub data: Option<PathBuf>,
    /// Folder to make; nothing may lie there.
    pub out: PathBuf,
}

/// What was written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Exported {
    /// The folder.
    pub dir: PathBuf,
    /// What a reader of it has to know, one line each.
    pub warnings: Vec<String>,
}

/// Writes a cell for other programs; the folder appears when it is complete.
///
/// # Errors
/// A cell or dataset that is not what the manifest says, and a folder that exists already.
pub fn export(request: &ExportRequest) -> Result<Exported, Failure> {
    let cell = Cell::load(&request.cell)?;
    let model = Model::read(&cell)?;
    // From here on a signal has what was begun removed.
    catch_interrupts()?;
    let mut folder = Folder::create(&request.out)?;
    let mut warnings = Vec::new();
    match request.format {
        Format::BackdoorBench => {
            if model.width != 64 {
                warnings.push(format!(
                    "BackdoorBench builds `{}` with width 64; for width {} its models have to be changed",
                    model.arch, model.width
                ));
            }
            backdoorbench(request, &cell, &model, &mut folder, &mut warnings)?;
        }
        Format::StateDict => {
            archive(&mut folder, "model.pth", &model.state()?)?;
            folder.write(MODEL_JSON, model.json(&cell, "model.pth")?)?;
        }
        Format::Safetensors => {
            folder.write(MODEL, &model.bytes)?;
            folder.write(MODEL_JSON, model.json(&cell, MODEL)?)?;
        }
    }
    go_on()?;
    folder.commit()?;
    Ok(Exported {
        dir: request.out.clone(),
        warnings,
    })
}

/// Fails if the export was asked to stop.
fn go_on() -> Result<(), Failure> {
    let stopped = |error| Failure::from(error).hint("nothing was written");
    check_interrupt().map_err(stopped)
}

/// The network of a cell and what its file says about it.
struct Model {
    bytes: Vec<u8>,
    tensors: StateDict,
    arch: String,
    width: usize,
    classes: usize,
}

impl Model {
    fn read(cell: &Cell) -> Result<Self, Failure> {
        let path = cell.listed(MODEL)?;
        let bytes = files::read(&path, Links::Refuse, LARGEST_FILE)?;
        let metadata = StateDict::metadata(&bytes, &path)?;
        let field = |name: &'static str| {
            metadata.get(name).ok_or_else(|| ZooError::NoField {
                path: path.clone(),
                field: name,
            })
        };
        let number = |name| {
            field(name)?.parse().map_err(|_| ZooError::NoField {
                path: path.clone(),
                field: name,
            })
        };
        Ok(Self {
            tensors: StateDict::from_bytes(&bytes, &path).map_err(network::in_file(&path))?,
            arch: field("arch")?.clone(),
            width: number("width")?,
            classes: number("classes")?,
            bytes,
        })
    }

    fn state(&self) -> Result<Item, Failure> {
        Ok(Item::State(tensors::named(&self.tensors)?))
    }

    /// What stands in `model.json`.
    fn json(&self, cell: &Cell, file: &str) -> Result<String, Failure> {
        let manifest = &cell.manifest;
        let spec = data::spec(&manifest.dataset)?;
        // The size of a folder's images is known to the folder only.
        let size = |n: usize| (n > 0).then_some(n);
        let text = serde_json::to_string_pretty(&json!({
            "format": "bb-model-1",
            "tensors": file,
            "arch": self.arch,
            "width": self.width,
            "classes": self.classes,
            "input": {
                "channels": "RGB",
                "layout": "NCHW",
                "height": size(spec.height),
                "width": size(spec.width),
                "mean": spec.mean,
                "std": spec.std,
            },
            "cell": {
                "kind": manifest.kind,
                "method": manifest.method,
                "dataset": manifest.dataset,
                "id": manifest.id,
                "digest": cell.digest(),
            },
            "results": manifest.results,
        }));
        let mut text = text.expect("plain data are valid JSON");
        text.push('\n');
        Ok(text)
    }
}

/// Writes a file in PyTorch's format.
fn archive(folder: &mut Folder, name: &str, item: &Item) -> Result<(), Failure> {
    let mut file = folder.file(name)?;
    let root = name.split('.').next().unwrap_or(name);
    write::archive(BufWriter::new(&mut file), root, item)?;
    Ok(folder.finish(name, &file)?)
}

fn backdoorbench(
    request: &ExportRequest,
    cell: &Cell,
    model: &Model,
    folder: &mut Folder,
    warnings: &mut Vec<String>,
) -> Result<(), Failure> {
    let named = |name: &'static str, value: Item| (Item::text(name), value);
    let mut entries = vec![
        named("model_name", Item::text(&model.arch)),
        named("num_classes", Item::size(model.classes)),
        named("model", model.state()?),
    ];
    if cell.manifest.kind == Kind::Defense {
        return archive(folder, DEFENSE_RESULT, &Item::Dict(entries));
    }
    if PoisonSet::load(cell.listed(POISON_TEST)?)?.is_empty() {
        return archive(folder, CLEAN_MODEL, &model.state()?);
    }
    let id = &cell.manifest.dataset;
    let dataset = verify::open_data(cell, request.data.as_deref())?;
    let spec = &dataset.spec;
    let train = verify::open_set(cell, POISON_TRAIN, &dataset.train, spec.classes)?;
    let test = verify::open_set(cell, POISON_TEST, &dataset.test, spec.classes)?;
    if !["cifar10", "cifar100", "gtsrb", "tiny"].contains(&id.as_str()) {
        warnings.push(format!(
            "BackdoorBench knows no dataset `{id}`, so only `bb-eval zoo import` reads the folder"
        ));
    }
    let name = request.out.file_name().and_then(|name| name.to_str());
    let Some(name) = name.filter(|name| !name.chars().any(char::is_control)) else {
        return Err(ZooError::OutName {
            path: request.out.clone(),
        }
        .into());
    };
    let place = |set: &str| format!("./record/{name}/{set}");

    let set = "bd_train_dataset";
    let all = (0..dataset.train.len()).collect();
    pictures(folder, set, &train)?;
    let bd_train = dataset_state(&place(set), &train, all, dataset.train.len());
    let set = "bd_test_dataset";
    let mut kept = test.indices.clone();
    kept.sort_unstable();
    pictures(folder, set, &test)?;
    let bd_test = dataset_state(&place(set), &test, kept, dataset.test.len());

    let sizes = [spec.height, spec.width, 3].map(Item::size);
    entries.extend([
        named("data_path", Item::text(format!("./data/{id}"))),
        named("img_size", Item::Tuple(sizes.into())),
        named("clean_data", Item::text(id)),
        named("bd_train", bd_train),
        named("bd_test", bd_test),
    ]);
    // Last, because a folder without it is no record.
    archive(folder, ATTACK_RESULT, &Item::Dict(entries))
}

/// Writes the images of a set as `<set>/<true label>/<index>.png`.
fn pictures(folder: &mut Folder, set: &str, images: &PoisonSet) -> Result<(), Failure> {
    let (height, width) = (images.images.height(), images.images.width());
    for (row, (index, label)) in images
        .indices
        .iter()
        .zip(&images.original_labels)
        .enumerate()
    {
        let picture = Picture::new(height, width, images.images.image(row).to_vec());
        go_on()?;
        let name = format!("{set}/{label}/{index}.png");
        folder.write(Path::new(&name), picture.to_png())?;
    }
    Ok(())
}

/// What `prepro_cls_DatasetBD_v2.retrieve_state` gives: `kept` are the images of the set, `images` those of the dataset.
fn dataset_state(place: &str, set: &PoisonSet, kept: Vec<usize>, images: usize) -> Item {
    let mut rows: Vec<usize> = (0..set.len()).collect();
    rows.sort_unstable_by_key(|row| set.indices[*row]);
    let mut indicator = vec![0.0; images];
    let mut records = Vec::with_capacity(rows.len());
    for row in rows {
        let (index, original) = (set.indices[row], set.original_labels[row]);
        indicator[index] = 1.0;
        let labels = [set.labels[row], original].map(|label| Item::Int(label.into()));
        let record = Item::dict([
            (
                "path",
                Item::text(format!("{place}/{original}/{index}.png")),
            ),
            ("other_info", Item::List(labels.into())),
        ]);
        records.push((Item::size(index), record));
    }
    Item::dict([
        (
            "bd_data_container",
            Item::dict([
                ("save_folder_path", Item::text(place)),
                ("data_dict", Item::Dict(records)),
                ("save_file_format", Item::text(".png")),
            ]),
        ),
        ("getitem_all", Item::Bool(true)),
        ("getitem_all_switch", Item::Bool(false)),
        (
            "original_index_array",
            Item::Integers(kept.into_iter().map(signed).collect()),
        ),
        ("poison_indicator", Item::Floats(indicator)),
        ("save_folder_path", Item::text(place)),
    ])
}

fn signed(index: usize) -> i64 {
    i64::try_from(index).expect("no split has 2^63 images")
}
