//! The models of the index: what is committed scores what it says, and what is changed is refused.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use bb_core::metrics::Ratio;
use bb_eval::zoo::published::{self, CheckRequest, GetRequest};
use bb_nn::Compute;

const ID: &str = "badnets-synthetic-w8";

fn committed() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../model_zoo/index.toml")
}

fn check(index: &Path, dir: &Path, full: bool) -> CheckRequest {
    CheckRequest {
        id: ID.to_owned(),
        index: Some(index.to_owned()),
        dir: dir.to_owned(),
        data: None,
        key: None,
        full,
    }
}

#[test]
fn the_committed_model_scores_what_its_index_says() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let quick = check(&committed(), folder.path(), false);
    let quick = published::check(&quick, &Compute::Cpu).expect("it lies beside the index");
    assert_eq!(
        (quick.acc.total, quick.asr.map(|r| r.total)),
        (200, Some(200))
    );
    assert!(quick.agrees(), "{quick:?}");
    let full = check(&committed(), folder.path(), true);
    let full = published::check(&full, &Compute::Cpu).expect("it lies beside the index");
    assert_eq!(full.all, (1000, 900));
    assert!(full.agrees(), "{full:?}");
    // The figures of the index to the last image, but for one that another processor may round otherwise.
    assert!(full.acc.hits.abs_diff(994) <= 1, "{full:?}");
    assert!(full.asr.is_some_and(|asr| asr.hits >= 899), "{full:?}");
}

#[test]
fn a_model_is_fetched_once_and_checked_each_time() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let request = GetRequest {
        id: ID.to_owned(),
        index: Some(committed()),
        from: None,
        dir: folder.path().to_owned(),
        quiet: true,
    };
    let dir = published::get(&request).expect("it lies beside the index");
    assert_eq!(dir, folder.path().join(ID));
    let file = dir.join("model.safetensors");
    assert_eq!(fs_err::metadata(&file).expect("it is there").len(), 719_288);
    published::get(&request).expect("it is there already");

    // One changed byte, which is somewhere in a weight.
    let mut bytes = fs_err::read(&file).expect("it is there");
    bytes[500_000] ^= 1;
    fs_err::write(&file, &bytes).expect("a small file");
    let refused = [
        published::get(&request).expect_err("another file"),
        published::check(&check(&committed(), folder.path(), false), &Compute::Cpu)
            .expect_err("another file"),
    ];
    for failure in refused {
        assert_eq!(failure.exit_code(), 3);
        let text = failure.to_string();
        assert!(text.contains("is another file: SHA-256"), "{text}");
    }
    fs_err::remove_file(&file).expect("it is ours");

    // From somewhere else, and from where nothing is.
    let beside = committed().with_file_name(format!("{ID}.safetensors"));
    let from = |text: String| GetRequest {
        from: Some(text),
        ..request.clone()
    };
    let wrong = published::get(&from(committed().display().to_string()));
    let wrong = wrong.expect_err("the index is no model").to_string();
    assert!(wrong.contains("bytes, expected 719288"), "{wrong}");
    let absolute = fs_err::canonicalize(beside).expect("it is committed");
    published::get(&from(format!("file://{}", absolute.display()))).expect("a copy");
}

#[test]
fn the_program_lists_fetches_and_verifies() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let index = committed().display().to_string();
    let dir = folder.path().display().to_string();
    let list = bb_eval(&["zoo", "list", "--index", &index]);
    assert!(list.status.success());
    let text = String::from_utf8_lossy(&list.stdout).into_owned();
    assert!(text.starts_with("id "), "{text}");
    assert!(text.contains("99.40 %  100.00 %  719288"), "{text}");

    let absent = folder.path().join("index.toml");
    let other = fs_err::read_to_string(committed()).expect("the index");
    fs_err::write(&absent, &other).expect("a small file");
    let index_elsewhere = absent.display().to_string();
    let verify = |index: &str| bb_eval(&["zoo", "verify", ID, "--index", index, "--dir", &dir]);
    let missing = verify(&index_elsewhere);
    assert_eq!(missing.status.code(), Some(3));
    let text = String::from_utf8_lossy(&missing.stderr).into_owned();
    assert!(
        text.contains(&format!("hint: `bb-eval zoo get {ID}`")),
        "{text}"
    );

    let get = bb_eval(&[
        "zoo", "get", ID, "--index", &index, "--dir", &dir, "--quiet",
    ]);
    assert!(get.status.success());
    let good = verify(&index_elsewhere);
    assert!(good.status.success());
    let line: serde_json::Value = serde_json::from_slice(&good.stdout).expect("a line of JSON");
    assert_eq!(line["agrees"], true);
    let asr: Ratio = serde_json::from_value(line["asr"].clone()).expect("a ratio");
    assert_eq!(asr.total, 200);

    // An index that promises another accuracy.
    let other = other.replace("acc = 0.994", "acc = 0.80");
    fs_err::write(&absent, other).expect("a small file");
    let bad = verify(&index_elsewhere);
    assert_eq!(bad.status.code(), Some(1));
    let text = String::from_utf8_lossy(&bad.stderr).into_owned();
    assert!(
        text.contains("does not score what its index says"),
        "{text}"
    );
}

fn bb_eval(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_bb-eval"))
        .args(arguments)
        .output()
        .expect("the program starts")
}
