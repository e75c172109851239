//! Datasets from the outside: files of every kind, whole and broken, built at test time.

#[path = "data/cache.rs"]
mod data_cache;
#[path = "data/files.rs"]
mod data_files;
#[path = "data/folder.rs"]
mod data_folder;
#[path = "data/golden.rs"]
mod data_golden;
#[path = "data/hostile.rs"]
mod data_hostile;
#[path = "data/layouts.rs"]
mod data_layouts;
#[path = "data/names.rs"]
mod data_names;
#[path = "data/parquet_files.rs"]
mod data_parquet;
#[path = "data/synthetic.rs"]
mod data_synthetic;
