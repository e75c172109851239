//! What a run tells: rows in JSONL files, progress without a terminal, facts about the machine.

use bb_core::events::{JsonLines, Log, Progress};
use serde_json::{Value, json};

fn rows(path: &std::path::Path) -> Vec<Value> {
    let text = fs_err::read_to_string(path).unwrap();
    assert!(text.is_empty() || text.ends_with('\n'), "{text}");
    text.lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect()
}

#[test]
fn rows_are_appended_one_a_line() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("metrics.jsonl");
    JsonLines::open(&path)
        .unwrap()
        .write(&json!({ "epoch": 1, "loss": 0.5 }))
        .unwrap();
    let mut again = JsonLines::open(&path).unwrap();
    again.write(&json!({ "text": "two\nlines" })).unwrap();
    again.write(&json!({ "loss": f64::NAN })).unwrap();
    let expected = "{\"epoch\":1,\"loss\":0.5}\n{\"text\":\"two\\nlines\"}\n{\"loss\":null}\n";
    assert_eq!(fs_err::read_to_string(&path).unwrap(), expected);
}

#[test]
fn a_row_that_a_crash_cut_off_is_dropped() {
    let cases = [
        ("", ""),
        ("{\"a\":1", ""),
        ("{\"a\":1}\n", "{\"a\":1}\n"),
        ("{\"a\":1}\n{\"a\":2}\n{\"a\"", "{\"a\":1}\n{\"a\":2}\n"),
    ];
    let folder = tempfile::tempdir().unwrap();
    for (index, (before, kept)) in cases.into_iter().enumerate() {
        let path = folder.path().join(format!("{index}.jsonl"));
        fs_err::write(&path, before).unwrap();
        JsonLines::open(&path)
            .unwrap()
            .write(&json!({ "a": 3 }))
            .unwrap();
        assert_eq!(
            fs_err::read_to_string(&path).unwrap(),
            format!("{kept}{{\"a\":3}}\n"),
            "{before}"
        );
    }
}

#[test]
fn a_file_that_cannot_be_opened_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("absent").join("log.jsonl");
    let error = Log::open(&path, true).expect_err("the folder does not exist");
    assert!(
        error.to_string().contains(&path.display().to_string()),
        "{error}"
    );
}

#[test]
fn the_log_keeps_what_people_are_told_and_more() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("log.jsonl");
    let log = Log::open(&path, true).unwrap();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            log.info("epoch", "epoch 1 of 2", &json!({ "loss": 0.5 }))
                .unwrap();
        });
    });
    log.warn("poison", "no image was poisoned", &()).unwrap();
    Log::new(true)
        .info("unkept", "nobody sees this", &())
        .unwrap();

    let rows = rows(&path);
    let keys: Vec<Vec<_>> = rows
        .iter()
        .map(|row| {
            row.as_object()
                .unwrap()
                .keys()
                .map(String::as_str)
                .collect()
        })
        .collect();
    assert_eq!(
        keys,
        [
            vec!["time", "level", "event", "text", "data"],
            vec!["time", "level", "event", "text"]
        ]
    );
    assert_eq!(
        (
            &rows[0]["level"],
            &rows[0]["event"],
            &rows[0]["text"],
            &rows[0]["data"]
        ),
        (
            &json!("info"),
            &json!("epoch"),
            &json!("epoch 1 of 2"),
            &json!({ "loss": 0.5 })
        )
    );
    assert_eq!(
        (&rows[1]["level"], &rows[1]["text"]),
        (&json!("warning"), &json!("no image was poisoned"))
    );
    assert!(rows.iter().all(|row| is_time(&row["time"])), "{rows:?}");
}

#[test]
fn progress_can_be_made_from_any_thread() {
    for quiet in [true, false] {
        let progress = Progress::new("test", "images", 100, quiet).resumed_at(20);
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    progress.note("half way");
                    progress.add(20);
                });
            }
        });
        progress.finish();
    }
}

/// Whether this has the form of RFC 3339 in UTC.
fn is_time(value: &Value) -> bool {
    let form: String = value
        .as_str()
        .unwrap_or_default()
        .chars()
        .map(|c| if c.is_ascii_digit() { '0' } else { c })
        .collect();
    form == "0000-00-00T00:00:00Z"
}
