//! A listed file arrives whole and unchanged, or not at all.

use std::path::Path;

use bb_core::artifact::sha256_hex;
use bb_core::cli::{Coded, exit};
use bb_zoo::fetch::{FetchError, Source, check, fetch};
use bb_zoo::index::Listed;

fn content() -> Vec<u8> {
    (0..200_000u32)
        .map(|i| (i.wrapping_mul(i) >> 7) as u8)
        .collect()
}

fn listed(content: &[u8]) -> Listed {
    Listed {
        bytes: content.len() as u64,
        sha256: sha256_hex(content),
        mirrors: Vec::new(),
        path: None,
    }
}

fn get(sources: &[Source], target: &Path) -> Result<(), FetchError> {
    fetch(sources, &listed(&content()), target, &mut |_| {})
}

fn names(folder: &Path) -> Vec<String> {
    let entries = fs_err::read_dir(folder).expect("a folder");
    let name = |e: std::io::Result<fs_err::DirEntry>| {
        e.expect("an entry")
            .file_name()
            .to_string_lossy()
            .into_owned()
    };
    let mut names: Vec<String> = entries.map(name).collect();
    names.sort();
    names
}

#[test]
fn words_of_the_user_are_paths_or_addresses() {
    for (text, expected) in [
        ("a/b.pt", Source::Path("a/b.pt".into())),
        ("file:///a/b.pt", Source::Path("/a/b.pt".into())),
        ("https://h/a", Source::Address("https://h/a".into())),
        ("http://h/a", Source::Address("http://h/a".into())),
    ] {
        assert_eq!(Source::parse(text).expect("a source"), expected);
    }
    for text in ["ftp://h/a", "file://host/a"] {
        let error = Source::parse(text).expect_err("no source");
        assert_eq!(error.exit_code(), exit::USAGE);
        assert!(
            error
                .to_string()
                .starts_with(&format!("`{text}` is no source"))
        );
    }
}

#[test]
fn a_copy_is_checked_before_it_gets_its_name() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let target = folder.path().join("model.pt");
    let put = |name: &str, bytes: &[u8]| {
        let path = folder.path().join(name);
        fs_err::write(&path, bytes).expect("a small file");
        Source::Path(path)
    };
    let mut flipped = content();
    flipped[77_777] ^= 1;
    let pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n";
    let bad = [
        put("short", &content()[..1000]),
        put("flipped", &flipped),
        put("pointer", pointer),
        put(
            "page",
            b"\xef\xbb\xbf\n<!DOCTYPE html><title>Not found</title>",
        ),
        Source::Path(folder.path().join("absent")),
    ];
    let error = get(&bad, &target).expect_err("none of them is right");
    assert_eq!(error.exit_code(), exit::INPUT);
    let text = error.to_string();
    for part in [
        "short: 1000 bytes, expected 200000",
        "flipped: SHA-256 ",
        "pointer: it is a Git LFS pointer",
        "page: it is a web page",
        "absent: failed to open file",
    ] {
        assert!(text.contains(part), "{part} in {text}");
    }
    // Neither the file nor a part of it is left.
    assert_eq!(
        names(folder.path()),
        ["flipped", "page", "pointer", "short"]
    );

    let good = put("good", &content());
    get(&[bad[1].clone(), good], &target).expect("the second source is right");
    assert_eq!(fs_err::read(&target).expect("it is there"), content());
    // What is there and right is kept without any source.
    get(&[], &target).expect("it is there");
    fs_err::write(&target, &flipped).expect("a small file");
    let error = get(&[], &target).expect_err("another file").to_string();
    assert!(
        error.contains("model.pt` is another file: SHA-256"),
        "{error}"
    );
    assert!(matches!(check(&target, &listed(&flipped)), Ok(None)));
    fs_err::remove_file(&target).expect("it is ours");
    let error = get(&[], &target).expect_err("no source");
    assert!(matches!(error, FetchError::NoSource { .. }));
}

#[test]
#[cfg(not(feature = "download"))]
fn without_the_feature_a_download_says_how_to_get_it() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let source = Source::Address("https://localhost/model.pt".to_owned());
    let error = get(&[source], &folder.path().join("model.pt")).expect_err("no downloads");
    let hint = error.hint().expect("a remedy");
    assert!(hint.contains("--features download"), "{hint}");
    assert!(names(folder.path()).is_empty());
}

#[test]
fn pipes_and_links_are_refused_where_they_could_be_waited_for_or_written_through() {
    use rustix::fs::{CWD, FileType, Mode, mknodat};
    let folder = tempfile::tempdir().expect("a temporary folder");
    let place = |name: &str| folder.path().join(name);
    let pipe = |name: &str| {
        mknodat(
            CWD,
            place(name),
            FileType::Fifo,
            Mode::from_raw_mode(0o600),
            0,
        )
        .expect("a pipe");
        place(name)
    };
    let said = |sources: &[Source], target: &str| {
        let error = get(sources, &place(target)).expect_err("it must be refused");
        assert_eq!(error.exit_code(), exit::INPUT);
        error.to_string()
    };
    let source = Source::Path(pipe("source"));
    let expect = "is a named pipe, expected a regular file";
    assert!(said(std::slice::from_ref(&source), "a").contains(expect));
    pipe("b");
    assert!(said(std::slice::from_ref(&source), "b").contains(expect));
    pipe("c.part");
    assert!(said(std::slice::from_ref(&source), "c").contains(expect));

    fs_err::write(place("mine"), b"of the user").expect("a file");
    fs_err::write(place("good"), content()).expect("a file");
    fs_err::os::unix::fs::symlink(place("mine"), place("d.part")).expect("a link");
    let text = said(&[Source::Path(place("good"))], "d");
    assert!(
        text.contains("is a link, expected a regular file"),
        "{text}"
    );
    assert_eq!(fs_err::read(place("mine")).expect("there"), b"of the user");
}

#[cfg(feature = "download")]
mod server {
    //! Downloads from a server of this test, on this machine.

    use super::*;
    use std::io::{BufRead, BufReader, Write};
    use std::net::TcpListener;
    use std::sync::{Arc, Mutex};

    /// How a server answers one request: its status line and headers, and the bytes it sends before it hangs up.
    type Answer = (String, Vec<u8>);

    /// Makes an answer of the value of `Range`.
    type Responder = Box<dyn Fn(Option<&str>) -> Answer + Send>;

    /// Answers request `i` by the `i`-th function, which gets the value of `Range`; gives its address and the values.
    fn serve(answers: Vec<Responder>) -> (Source, Arc<Mutex<Vec<Option<String>>>>) {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let port = listener.local_addr().expect("bound").port();
        let asked = Arc::new(Mutex::new(Vec::new()));
        let log = Arc::clone(&asked);
        std::thread::spawn(move || {
            for answer in answers {
                let Ok((mut stream, _)) = listener.accept() else {
                    return;
                };
                let mut range = None;
                let mut lines = BufReader::new(stream.try_clone().expect("a socket")).lines();
                while let Some(Ok(line)) = lines.next() {
                    if line.is_empty() {
                        break;
                    }
                    if let Some((name, value)) = line.split_once(':')
                        && name.eq_ignore_ascii_case("range")
                    {
                        range = Some(value.trim().to_owned());
                    }
                }
                let (head, body) = answer(range.as_deref());
                log.lock().expect("no panic").push(range);
                // The client may hang up first.
                let _ = stream.write_all(format!("HTTP/1.1 {head}\r\n\r\n").as_bytes());
                let _ = stream.write_all(&body);
            }
        });
        let address = format!("http://127.0.0.1:{port}/model.pt");
        (Source::Address(address), asked)
    }

    /// The file from the asked byte on, of which only `sent` bytes are sent.
    fn range(sent: usize) -> Responder {
        Box::new(move |range| {
            let all = content();
            let begin = range
                .and_then(|r| r.strip_prefix("bytes=")?.strip_suffix('-')?.parse().ok())
                .unwrap_or(0);
            let rest = &all[begin..];
            let head = match range {
                None => format!("200 OK\r\nContent-Length: {}", rest.len()),
                Some(_) => format!(
                    "206 Partial Content\r\nContent-Length: {}\r\nContent-Range: bytes {begin}-{}/{}",
                    rest.len(),
                    all.len() - 1,
                    all.len()
                ),
            };
            (head, rest[..sent.min(rest.len())].to_vec())
        })
    }

    fn fixed(head: &str, body: &[u8]) -> Responder {
        let (head, body) = (head.to_owned(), body.to_vec());
        Box::new(move |_| (head.clone(), body.clone()))
    }

    fn target() -> (tempfile::TempDir, std::path::PathBuf) {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let target = folder.path().join("model.pt");
        (folder, target)
    }

    fn is_right(folder: &tempfile::TempDir, target: &Path) {
        assert_eq!(fs_err::read(target).expect("it is there"), content());
        assert_eq!(names(folder.path()), ["model.pt"]);
    }

    #[test]
    fn a_broken_connection_is_continued() {
        let (source, asked) = serve(vec![range(70_000), range(50_000), range(usize::MAX)]);
        let (folder, target) = target();
        let mut told = Vec::new();
        let wanted = listed(&content());
        fetch(&[source], &wanted, &target, &mut |bytes| told.push(bytes)).expect("in the end");
        is_right(&folder, &target);
        let asked = asked.lock().expect("no panic").clone();
        let ranges = [None, Some("bytes=70000-"), Some("bytes=120000-")];
        assert_eq!(asked, ranges.map(|r| r.map(str::to_owned)));
        assert_eq!(told.last(), Some(&200_000));
    }

    #[test]
    fn the_next_program_and_the_next_mirror_continue() {
        let (folder, target) = target();
        // The first program: one mirror, which breaks and is then gone.
        let (source, _) = serve(vec![
            range(90_000),
            fixed("503 Busy\r\nContent-Length: 0", b""),
        ]);
        let error = get(&[source], &target).expect_err("broken");
        assert_eq!(error.exit_code(), exit::TRY_AGAIN);
        assert!(
            error.to_string().contains("the server answers 503"),
            "{error}"
        );
        assert_eq!(names(folder.path()), ["model.pt.part"]);
        let (gone, _) = serve(vec![fixed("404 Not Found\r\nContent-Length: 0", b"")]);
        let (good, asked) = serve(vec![range(usize::MAX)]);
        get(&[gone, good], &target).expect("the second mirror has it");
        is_right(&folder, &target);
        let asked = asked.lock().expect("no panic").clone();
        assert_eq!(asked, [Some("bytes=90000-".to_owned())]);
    }

    #[test]
    fn a_server_that_cannot_continue_sends_all() {
        let (folder, target) = target();
        fs_err::write(folder.path().join("model.pt.part"), &content()[..60_000]).expect("a part");
        let all = fixed("200 OK\r\nContent-Length: 200000", &content());
        let (source, _) = serve(vec![all]);
        get(&[source], &target).expect("all of it");
        is_right(&folder, &target);

        // A part of another file, continued: the hash tells, and the next source begins anew.
        let (folder, target) = self::target();
        fs_err::write(folder.path().join("model.pt.part"), vec![7; 60_000]).expect("a part");
        let (first, _) = serve(vec![range(usize::MAX)]);
        let (second, asked) = serve(vec![range(usize::MAX)]);
        get(&[first, second], &target).expect("the second begins anew");
        is_right(&folder, &target);
        assert_eq!(asked.lock().expect("no panic").clone(), [None]);
    }

    #[test]
    fn wrong_bytes_of_one_mirror_do_not_block_the_last() {
        let (folder, target) = target();
        // The first sends something else and breaks, the second continues it, and nothing comes behind.
        let wrong = fixed("200 OK\r\nContent-Length: 200000", &[7; 60_000]);
        let busy = || fixed("503 Busy\r\nContent-Length: 0", b"");
        let (first, _) = serve(vec![wrong, busy()]);
        let (second, asked) = serve(vec![range(usize::MAX), range(usize::MAX)]);
        get(&[first, second], &target).expect("the second has it");
        is_right(&folder, &target);
        let asked = asked.lock().expect("no panic").clone();
        assert_eq!(asked, [Some("bytes=60000-".to_owned()), None]);
    }

    #[test]
    fn a_wrong_range_begins_anew() {
        let (folder, target) = target();
        fs_err::write(folder.path().join("model.pt.part"), &content()[..60_000]).expect("a part");
        let other = "206 Partial Content\r\nContent-Length: 10\r\nContent-Range: bytes 0-9/200000";
        let (source, asked) = serve(vec![fixed(other, &[0; 10]), range(usize::MAX)]);
        get(&[source], &target).expect("all of it");
        is_right(&folder, &target);
        let asked = asked.lock().expect("no panic").clone();
        assert_eq!(asked, [Some("bytes=60000-".to_owned()), None]);
    }

    #[test]
    fn what_is_no_such_file_is_named_and_not_kept() {
        let page = b"<html><body>Please log in</body></html>";
        let head = format!(
            "200 OK\r\nContent-Type: text/html\r\nContent-Length: {}",
            page.len()
        );
        let endless = vec![1; 300_000];
        let mut flipped = content();
        flipped[5] ^= 1;
        for (answer, expected) in [
            (fixed(&head, page), "it is a web page"),
            (fixed("200 OK", page), "it is a web page"),
            (
                fixed("200 OK\r\nContent-Length: 12", b"hello, world"),
                "12 bytes, expected 200000",
            ),
            (fixed("200 OK", &endless), "bytes, expected 200000"),
            (
                fixed("200 OK\r\nContent-Length: 200000", &flipped),
                "SHA-256 ",
            ),
            (
                fixed("403 Forbidden\r\nContent-Length: 0", b""),
                "the server answers 403",
            ),
        ] {
            let (folder, target) = target();
            let (source, _) = serve(vec![answer]);
            let error = get(&[source], &target).expect_err(expected);
            assert!(error.to_string().contains(expected), "{expected}: {error}");
            assert_eq!(error.exit_code(), exit::INPUT, "{error}");
            assert!(
                names(folder.path()).is_empty(),
                "{expected}: {:?}",
                names(folder.path())
            );
        }
    }
}
