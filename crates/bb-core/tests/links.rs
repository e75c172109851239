//! A stranger's cell holds links and pipes: nothing is written or read through them, and nobody waits.

use std::collections::BTreeMap;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use bb_core::cell::{
    CKPT, CONFIG, Cell, CellError, CellSpec, ENV, FAILED, Failed, Kind, LOG, MANIFEST, METRICS,
    MODEL, Opened, Work, open,
};
use bb_core::cli::{Coded as _, exit};
use bb_core::events::Log;
use rustix::fs::{CWD, FileType, Mode, mknodat};
use serde_json::{Value, json};

fn spec() -> CellSpec {
    CellSpec {
        kind: Kind::Attack,
        method: "badnets".into(),
        dataset: "synthetic".into(),
        arch: "preactresnet18-w16".into(),
        settings: json!({"ratio": 0.1}),
        inputs: BTreeMap::new(),
        seed: 7,
    }
}

/// A folder of results beside a folder that is none of it, with a file in it.
struct Place {
    _root: tempfile::TempDir,
    out: PathBuf,
    outside: PathBuf,
}

impl Place {
    fn new() -> Self {
        let root = tempfile::tempdir().expect("a temporary folder");
        let (out, outside) = (root.path().join("out"), root.path().join("outside"));
        fs_err::create_dir_all(&out).expect("made");
        fs_err::create_dir(&outside).expect("made");
        fs_err::write(outside.join("victim"), "my private key\n").expect("written");
        Self {
            _root: root,
            out,
            outside,
        }
    }

    fn cell(&self) -> PathBuf {
        spec().dir(&self.out)
    }

    /// A link in the cell at `name`, to the file, the folder or to nothing outside.
    fn link(&self, name: &str, target: &str) {
        let path = self.cell().join(name);
        fs_err::create_dir_all(path.parent().expect("it is in the cell")).expect("made");
        symlink(self.outside.join(target), path).expect("linked");
    }

    fn work(&self) -> Box<Work> {
        match open(&self.out, &spec()).expect("it can be opened") {
            Opened::Work(work) => work,
            Opened::Complete(cell) => panic!("`{}` is complete", cell.dir.display()),
        }
    }

    fn refused(&self, what: &str) -> CellError {
        match open(&self.out, &spec()) {
            Err(error) => {
                assert_eq!(error.exit_code(), exit::INPUT, "{what}: {error}");
                error
            }
            Ok(opened) => panic!("{what}: {opened:?}"),
        }
    }

    fn untouched(&self, what: &str) {
        let entries = fs_err::read_dir(&self.outside).expect("the folder is there");
        let names: Vec<_> = entries.map(|e| e.expect("an entry").file_name()).collect();
        assert_eq!(names, ["victim"], "{what}");
        let text = fs_err::read_to_string(self.outside.join("victim")).expect("the file");
        assert_eq!(text, "my private key\n", "{what}");
    }
}

fn pipe(path: &Path) {
    let mode = Mode::from_raw_mode(0o600);
    mknodat(CWD, path, FileType::Fifo, mode, 0).expect("a pipe");
}

#[test]
fn nothing_in_a_cell_that_is_worked_on_is_a_link() {
    let names = [
        "lock", CKPT, LOG, METRICS, ENV, CONFIG, FAILED, MODEL, ".tmp-1-1", "poison", "a/b/c",
    ];
    for name in names {
        for target in ["victim", "", "absent"] {
            let place = Place::new();
            place.link(name, target);
            let what = format!("{name} -> outside/{target}");
            let said = place.refused(&what).to_string();
            let shown = place.cell().join(name).display().to_string();
            assert!(
                said.contains(&shown) && said.contains("is a link"),
                "{said}"
            );
            place.untouched(&what);
        }
    }
    // A manifest that leads nowhere is as good as none, and one that leads somewhere is not read.
    for target in ["victim", "", "absent"] {
        let place = Place::new();
        place.link(MANIFEST, target);
        let error = place.refused(target);
        assert!(error.to_string().contains("is a link"), "{error}");
        assert!(error.hint().is_some());
        place.untouched(target);
    }
}

#[test]
fn a_complete_cell_has_nothing_written_through_its_links() {
    let place = Place::new();
    let work = place.work();
    work.write(MODEL, b"weights").expect("written");
    let cell = work.finish(Value::Null).expect("finished");
    fs_err::remove_file(cell.file("lock")).expect("it was there");
    place.link("lock", "victim");
    // What makes a run look into the cell again, to clear it up.
    fs_err::create_dir(cell.file(CKPT)).expect("made");
    let opened = open(&place.out, &spec()).expect("it is complete");
    assert!(matches!(opened, Opened::Complete(_)));
    place.untouched("lock");
    // The same where the folder to be cleared is the link.
    fs_err::remove_file(cell.file("lock")).expect("it was there");
    fs_err::remove_dir(cell.file(CKPT)).expect("it was there");
    place.link(CKPT, "");
    open(&place.out, &spec()).expect("it is complete");
    place.untouched("ckpt");
}

#[test]
fn folders_below_that_of_the_results_are_no_links_and_that_itself_may_be_one() {
    let below: Vec<PathBuf> = {
        let dir = spec().dir(Path::new(""));
        let above = dir.ancestors().filter(|part| *part != Path::new(""));
        above.map(Path::to_owned).collect()
    };
    assert_eq!(below.len(), 4);
    for part in below {
        let place = Place::new();
        let link = place.out.join(&part);
        fs_err::create_dir_all(link.parent().expect("it is below")).expect("made");
        symlink(&place.outside, &link).expect("linked");
        let error = place.refused("a folder");
        assert!(
            matches!(&error, CellError::Link { path } if *path == link),
            "{error}"
        );
        assert!(error.hint().is_some_and(|hint| hint.contains("`--store`")));
        place.untouched(&part.display().to_string());
    }
    let place = Place::new();
    let linked = place.outside.join("results");
    symlink(&place.out, &linked).expect("linked");
    assert!(matches!(open(&linked, &spec()), Ok(Opened::Work(_))));
    assert!(matches!(
        open(&linked.join("."), &spec()),
        Ok(Opened::Work(_))
    ));
}

#[test]
fn a_link_that_comes_while_a_cell_is_worked_on_is_not_followed_either() {
    let place = Place::new();
    let work = place.work();
    place.link(METRICS, "victim");
    place.link(LOG, "victim");
    for done in [
        work.append_line(METRICS, "{}"),
        work.truncate_lines(METRICS, |_| false),
        work.write(METRICS, b"{}"),
    ] {
        let error = done.expect_err("it is a link");
        assert_eq!(error.exit_code(), exit::INPUT);
        assert!(error.to_string().contains("is a link"), "{error}");
    }
    let error = Log::open(&work.dir().join(LOG), true).expect_err("it is a link");
    assert!(error.to_string().contains("is a link"), "{error}");
    place.untouched("links made later");
}

#[test]
fn nobody_waits_for_a_pipe_in_a_cell() {
    for name in ["lock", MANIFEST, METRICS, "ckpt/state"] {
        let place = Place::new();
        let path = place.cell().join(name);
        fs_err::create_dir_all(path.parent().expect("it is in the cell")).expect("made");
        pipe(&path);
        let said = place.refused(name).to_string();
        assert!(said.contains(&path.display().to_string()), "{said}");
    }
    let place = Place::new();
    fs_err::create_dir_all(place.cell()).expect("made");
    pipe(&place.cell().join(FAILED));
    let error = Failed::read(&place.cell()).expect_err("it is a pipe");
    assert!(matches!(error, CellError::NotAFile { .. }));
    pipe(&place.cell().join(MANIFEST));
    let error = Cell::load(place.cell()).expect_err("it is a pipe");
    assert!(
        error
            .to_string()
            .ends_with("is a named pipe, expected a regular file")
    );
}
