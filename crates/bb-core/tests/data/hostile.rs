//! Files that say more than they have. Each ends in one error, at once.

use std::io::Write as _;
use std::path::Path;
use std::time::{Duration, Instant};

use bb_core::data::DataError;
use flate2::{Compression, Crc, write::GzEncoder, write::ZlibEncoder};
use image::{ExtendedColorType, ImageEncoder as _};

use crate::data_files::{message, picture, pixels, plain, png, put};

const TRAIN: &str = "train-00000-of-00001.parquet";
const TEST: &str = "test-00000-of-00001.parquet";
/// How long a refusal may take: a second, and time for what else the machine does.
const AT_MOST: Duration = Duration::from_secs(5);
/// Numbers of encodings and codecs.
const PLAIN: i64 = 0;
const DELTA_LENGTHS: i64 = 6;
const DELTA_PREFIXES: i64 = 7;
const DICTIONARY: i64 = 8;
const NO_CODEC: i64 = 0;
const GZIP: i64 = 2;
const BROTLI: i64 = 4;
const LZ4: i64 = 5;

fn varint(mut number: u64) -> Vec<u8> {
    let mut bytes = Vec::new();
    while number > 0x7f {
        bytes.push(number as u8 | 0x80);
        number >>= 7;
    }
    bytes.push(number as u8);
    bytes
}

fn zigzag(number: i64) -> Vec<u8> {
    varint(((number << 1) ^ (number >> 63)).cast_unsigned())
}

fn count(n: usize) -> i64 {
    i64::try_from(n).expect("a small number")
}

/// A struct of Thrift's compact protocol, in which everything can be a lie.
#[derive(Clone, Default)]
struct Fields {
    bytes: Vec<u8>,
    last: u8,
}

impl Fields {
    fn put(mut self, id: u8, kind: u8, bytes: &[u8]) -> Self {
        self.bytes.push(((id - self.last) << 4) | kind);
        self.bytes.extend(bytes);
        self.last = id;
        self
    }

    fn int(self, id: u8, number: i64) -> Self {
        self.put(id, 6, &zigzag(number))
    }

    fn text(self, id: u8, text: &str) -> Self {
        self.put(id, 8, &[varint(text.len() as u64), text.into()].concat())
    }

    fn fields(self, id: u8, fields: Self) -> Self {
        self.put(id, 12, &fields.end())
    }

    fn list(self, id: u8, kind: u8, items: &[Vec<u8>]) -> Self {
        let head = [vec![0xf0 | kind], varint(items.len() as u64)].concat();
        self.put(id, 9, &[head, items.concat()].concat())
    }

    fn end(mut self) -> Vec<u8> {
        self.bytes.push(0);
        self.bytes
    }
}

/// An element of a schema: physical type and number of children, where there are some.
fn element(name: &str, kind: Option<i64>, children: Option<i64>) -> Vec<u8> {
    let mut fields = Fields::default();
    if let Some(kind) = kind {
        fields = fields.int(1, kind);
    }
    fields = fields.int(3, 0).text(4, name);
    if let Some(children) = children {
        fields = fields.int(5, children);
    }
    fields.end()
}

/// Columns `img.bytes` and `label`, none of which may be null.
fn schema() -> Vec<Vec<u8>> {
    vec![
        element("schema", None, Some(2)),
        element("img", None, Some(1)),
        element("bytes", Some(6), None),
        element("label", Some(2), None),
    ]
}

/// A page: its field in the head, and what its head says of values and bytes.
fn page(field: u8, values: i64, encoding: i64, unpacked: usize, bytes: &[u8]) -> Vec<u8> {
    let kind = if field == 7 { 2 } else { 0 };
    let mut facts = Fields::default().int(1, values).int(2, encoding);
    if field == 5 {
        facts = facts.int(3, 3).int(4, 3);
    }
    let head = Fields::default()
        .int(1, kind)
        .int(2, count(unpacked))
        .int(3, count(bytes.len()))
        .fields(field, facts);
    [head.end(), bytes.to_vec()].concat()
}

fn data(values: i64, encoding: i64, bytes: &[u8]) -> Vec<u8> {
    page(5, values, encoding, bytes.len(), bytes)
}

fn dictionary(values: i64, bytes: &[u8]) -> Vec<u8> {
    page(7, values, PLAIN, bytes.len(), bytes)
}

fn with_length(bytes: &[u8]) -> Vec<u8> {
    [&(bytes.len() as u32).to_le_bytes(), bytes].concat()
}

/// `n` times the first value of a dictionary.
fn run(n: i64) -> Vec<u8> {
    let run = [vec![1], varint((n as u64) << 1), vec![0]].concat();
    data(n, DICTIONARY, &run)
}

/// A column chunk: codec, pages, and whether the first is a dictionary.
struct Chunk(i64, Vec<Vec<u8>>, bool);

fn labels(n: i64) -> Chunk {
    Chunk(NO_CODEC, vec![dictionary(1, &[0; 8]), run(n)], true)
}

/// A whole file with one row group of images and labels.
fn file(rows: i64, images: Chunk, labels: Chunk) -> Vec<u8> {
    encoded(rows, &[PLAIN, DICTIONARY], images, labels)
}

/// [`file`] with the encodings that its columns name.
fn encoded(rows: i64, encodings: &[i64], images: Chunk, labels: Chunk) -> Vec<u8> {
    let encodings: Vec<Vec<u8>> = encodings.iter().map(|number| zigzag(*number)).collect();
    let mut out = b"PAR1".to_vec();
    let mut chunks = Vec::new();
    for (kind, path, Chunk(codec, pages, has_dictionary)) in [
        (6, vec!["img", "bytes"], images),
        (2, vec!["label"], labels),
    ] {
        let start = count(out.len());
        let first = count(pages[0].len());
        out.extend(pages.concat());
        let size = count(out.len()) - start;
        let path: Vec<Vec<u8>> = path
            .iter()
            .map(|part| [varint(part.len() as u64), (*part).into()].concat())
            .collect();
        let mut facts = Fields::default()
            .int(1, kind)
            .list(2, 5, &encodings)
            .list(3, 8, &path)
            .int(4, codec)
            .int(5, rows)
            .int(6, size)
            .int(7, size);
        facts = if has_dictionary {
            facts.int(9, start + first).int(11, start)
        } else {
            facts.int(9, start)
        };
        chunks.push(Fields::default().int(2, start).fields(3, facts).end());
    }
    let group = Fields::default()
        .list(1, 12, &chunks)
        .int(2, 0)
        .int(3, rows)
        .end();
    ended(out, &contents(rows, &schema(), &[group]).end())
}

fn contents(rows: i64, schema: &[Vec<u8>], groups: &[Vec<u8>]) -> Fields {
    Fields::default()
        .int(1, 1)
        .list(2, 12, schema)
        .int(3, rows)
        .list(4, 12, groups)
}

fn ended(mut out: Vec<u8>, contents: &[u8]) -> Vec<u8> {
    out.extend(contents);
    out.extend((contents.len() as u32).to_le_bytes());
    out.extend(b"PAR1");
    out
}

fn bare(contents: &[u8]) -> Vec<u8> {
    ended(b"PAR1".to_vec(), contents)
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut out = GzEncoder::new(Vec::new(), Compression::best());
    out.write_all(bytes).expect("memory");
    out.finish().expect("memory")
}

fn brotli(bytes: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    let mut writer = brotli::CompressorWriter::new(&mut out, 1 << 16, 5, 22);
    writer.write_all(bytes).expect("memory");
    drop(writer);
    out
}

/// A flat grey picture, small as a file.
fn flat(side: u32) -> Vec<u8> {
    let mut out = Vec::new();
    let level = image::codecs::png::CompressionType::Best;
    let filter = image::codecs::png::FilterType::NoFilter;
    image::codecs::png::PngEncoder::new_with_quality(&mut out, level, filter)
        .write_image(
            &vec![77; (side * side) as usize],
            side,
            side,
            ExtendedColorType::L8,
        )
        .expect("a picture can be encoded");
    out
}

/// A picture `n` times, in a few bytes.
fn repeated(picture: &[u8], n: i64) -> Vec<u8> {
    let pages = vec![dictionary(1, &with_length(picture)), run(n)];
    file(n, Chunk(NO_CODEC, pages, true), labels(n))
}

/// A folder with this as the train split and a good test split.
fn place(train: &[u8]) -> tempfile::TempDir {
    let root = tempfile::tempdir().expect("a folder");
    put(root.path(), TRAIN, train);
    put(root.path(), TEST, &repeated(&picture(1), 10));
    root
}

/// The message of the error, which comes at once.
fn refused(id: &str, root: &Path) -> String {
    let start = Instant::now();
    let error: DataError = plain(id, root).expect_err("it must be refused");
    let text = message(&error, root);
    assert!(start.elapsed() < AT_MOST, "{text}");
    assert!(text.len() < 1000, "{} bytes: {text}", text.len());
    text
}

#[test]
fn a_repeated_picture_is_read() {
    let root = place(&repeated(&picture(3), 40));
    let read = plain("cifar10", root.path()).expect("opens");
    assert_eq!(read.train.len(), 40);
    assert_eq!(read.train.images.image(39), pixels(3, 32, 32));
    // The same in the encodings and codecs that are looked into.
    let one = picture(3);
    let size = zigzag(count(one.len()));
    let lengths = [vec![0x80, 1, 4, 1], size, one.clone()].concat();
    let prefixes = [vec![0x80, 1, 4, 1, 0], lengths.clone()].concat();
    let raw = with_length(&one);
    let packed =
        |codec, bytes: &[u8]| Chunk(codec, vec![page(5, 1, PLAIN, raw.len(), bytes)], false);
    let in_encoding =
        |encoding, bytes: &[u8]| Chunk(NO_CODEC, vec![data(1, encoding, bytes)], false);
    for images in [
        in_encoding(DELTA_LENGTHS, &lengths),
        in_encoding(DELTA_PREFIXES, &prefixes),
        packed(GZIP, &gzip(&raw)),
        packed(BROTLI, &brotli(&raw)),
    ] {
        let root = place(&encoded(1, &[DELTA_PREFIXES, PLAIN], images, labels(1)));
        let read = plain("cifar10", root.path()).expect("opens");
        assert_eq!(read.train.images.image(0), pixels(3, 32, 32));
    }
}

#[test]
fn a_table_of_contents_is_not_taken_at_its_word() {
    let deep = [
        vec![element("s", None, Some(1))],
        vec![element("g", None, Some(1)); 9300],
        vec![element("x", Some(6), None)],
    ];
    let wide = [
        vec![element("s", None, Some(4096))],
        vec![element("x", Some(6), None); 5000],
    ];
    let named = [
        element("s", None, Some(1)),
        element(&"x".repeat(257), Some(6), None),
    ];
    let groups = [-1, i64::from(i32::MAX)].map(|children| [element("s", None, Some(children))]);
    // The reader would take the bytes of the text for the number of the version and fields behind it.
    let other = Fields::default().text(1, "12").list(2, 12, &schema());
    // Two thousand million truth values, which have no bytes where they are skipped.
    let truths = contents(0, &schema(), &[]).put(14, 9, &[0xf1, 255, 255, 255, 255, 7]);
    let nested = contents(0, &schema(), &[]).put(14, 12, &[0x1c; 40]);
    for (bytes, expect) in [
        (
            contents(0, &deep.concat(), &[]).end(),
            "the depth of its schema is 33, expected at most 32",
        ),
        (
            contents(0, &wide.concat(), &[]).end(),
            "the number of columns is 4097, expected at most 4096",
        ),
        (
            contents(0, &named, &[]).end(),
            "the length of a column's name is 257, expected at most 256",
        ),
        (
            contents(0, &groups[0], &[]).end(),
            "the number of columns in a group is -1, expected at most 4096",
        ),
        (
            contents(0, &groups[1], &[]).end(),
            "the number of columns in a group is 2147483647, expected at most 4096",
        ),
        (other.end(), "a field has another type than it should"),
        (truths.end(), "it has a list of truth values"),
        (nested.end(), "it has more than 32 structs in one another"),
        (
            vec![0; (8 << 20) + 1],
            "the size of its table of contents is 8388609, expected at most 8388608",
        ),
    ] {
        let root = place(&bare(&bytes));
        let text = refused("cifar10", root.path());
        assert!(
            text.contains(TRAIN) && text.contains(expect),
            "{text}\nlacks {expect}"
        );
    }
}

#[test]
fn the_columns_of_a_message_are_few() {
    let schema = [
        vec![element("s", None, Some(1000))],
        vec![element("x", Some(6), None); 1000],
    ];
    let root = place(&bare(&contents(0, &schema.concat(), &[]).end()));
    let text = refused("cifar10", root.path());
    assert!(text.contains("`x` and 992 more"), "{text}");
}

#[test]
fn rows_and_values_are_held_against_the_bytes() {
    let one = with_length(&picture(1));
    let images = |pages| Chunk(NO_CODEC, pages, true);
    let plain_images =
        |values, bytes: &[u8]| Chunk(NO_CODEC, vec![data(values, PLAIN, bytes)], false);
    let lengths = [vec![0x80, 1, 4], varint(1 << 40), vec![0]].concat();
    for (bytes, expect) in [
        (
            repeated(&picture(1), 1 << 30),
            "number of rows of 1073741824, expected at most",
        ),
        (
            repeated(&flat(32), 40_000),
            "images that become 32x32, expected at most",
        ),
        (
            file(
                40,
                images(vec![dictionary((1 << 31) - 1, &[]), run(40)]),
                labels(40),
            ),
            "the number of values of a dictionary is 2147483647, expected at most 0",
        ),
        (
            file(
                40,
                images(vec![dictionary(70_000, &[0; 280_000]), run(40)]),
                labels(40),
            ),
            "the number of values of a dictionary is 70000, expected at most 65536",
        ),
        (
            file(3, images(vec![dictionary(1, &one), run(4)]), labels(3)),
            "the number of values of a page is 4, expected at most 3",
        ),
        (
            file(
                1,
                Chunk(NO_CODEC, vec![data(1, DELTA_LENGTHS, &lengths)], false),
                labels(1),
            ),
            "the number of lengths of a page is 1099511627776, expected at most 1",
        ),
        (
            file(
                1,
                Chunk(NO_CODEC, vec![data(1, DELTA_PREFIXES, &lengths)], false),
                labels(1),
            ),
            "a page has the encoding DELTA_BYTE_ARRAY, which its column does not name",
        ),
        (
            file(
                1,
                Chunk(
                    NO_CODEC,
                    vec![page(5, 1, PLAIN, 9, &one)[..20].to_vec()],
                    false,
                ),
                labels(1),
            ),
            "the size of a page is",
        ),
        (
            file(2, plain_images(1, &one), labels(2)),
            "column `img.bytes` of",
        ),
    ] {
        let root = place(&bytes);
        let text = refused("cifar10", root.path());
        assert!(
            text.contains(TRAIN) && text.contains(expect),
            "{text}\nlacks {expect}"
        );
    }
    // Where the labels alone tell the number of classes, all of them are read first.
    let root = place(&repeated(&picture(1), 1 << 30));
    let text = refused("folder", root.path());
    assert!(text.contains("number of rows of 1073741824"), "{text}");
}

#[test]
fn pages_are_unpacked_as_far_as_their_bytes_are_worth() {
    let zeros = vec![0; 80 << 20];
    let gzipped = gzip(&zeros);
    let chunk = |codec, unpacked, bytes: &[u8]| {
        file(
            1,
            Chunk(codec, vec![page(5, 1, PLAIN, unpacked, bytes)], false),
            labels(1),
        )
    };
    for (bytes, expect) in [
        (
            chunk(GZIP, 100 << 20, &gzipped),
            "the size of its pages once unpacked is 104857600",
        ),
        (
            chunk(GZIP, 1000, &gzipped),
            "a page has more than the 1000 bytes that its head says",
        ),
        (
            chunk(BROTLI, 1000, &brotli(&zeros)),
            "a page has more than the 1000 bytes that its head says",
        ),
        (
            chunk(LZ4, 1000, &[4, 0x22, 0x4d, 0x18, 0]),
            "a page is an LZ4 frame, expected blocks",
        ),
        (
            chunk(GZIP, (1 << 31) - 1, &gzipped),
            "the size of a page once unpacked is 2147483647",
        ),
    ] {
        let root = place(&bytes);
        let text = refused("cifar10", root.path());
        assert!(
            text.contains(TRAIN) && text.contains(expect),
            "{text}\nlacks {expect}"
        );
    }
}

#[test]
fn pictures_are_decoded_as_far_as_their_bytes_are_worth() {
    let root = place(&repeated(&flat(4096), 2000));
    let text = refused("cifar10", root.path());
    assert!(
        text.contains(TRAIN) && text.contains("the images so far decode to more than"),
        "{text}"
    );

    // The same as files, all but the first of them links to one.
    let root = tempfile::tempdir().expect("a folder");
    let images = |split: &str| root.path().join(split).join("a");
    for split in ["train", "test"] {
        put(&images(split), "0.png", &picture(1));
    }
    put(root.path(), "flat.png", &flat(4096));
    for i in 1..50 {
        let link = images("train").join(format!("{i}.png"));
        fs_err::os::unix::fs::symlink(root.path().join("flat.png"), link).expect("a link");
    }
    let text = refused("folder", root.path());
    assert!(
        text.contains("the images so far decode to more than"),
        "{text}"
    );

    // One large picture, and many small ones that become as large.
    let root = tempfile::tempdir().expect("a folder");
    put(root.path(), "test/a/0.png", &picture(1));
    put(root.path(), "train/a/0.png", &flat(2048));
    for i in 1..50 {
        put(
            root.path(),
            &format!("train/a/{i}.png"),
            &png(&[1, 2, 3], 1, 1),
        );
    }
    let text = refused("folder", root.path());
    assert!(
        text.contains("train/a` has 50 images that become 2048x2048, expected at most"),
        "{text}"
    );
}

#[test]
fn a_colour_profile_is_not_unpacked() {
    let good = picture(5);
    let mut profile = ZlibEncoder::new(b"p\0\0".to_vec(), Compression::best());
    profile.write_all(&vec![0; 50 << 20]).expect("memory");
    let profile = profile.finish().expect("memory");
    // The checksum of such a chunk is not looked at, since nothing of it is used.
    let bomb = [
        &good[..33],
        &(profile.len() as u32).to_be_bytes(),
        b"iCCP",
        &profile,
        &[0; 4],
        &good[33..],
    ]
    .concat();
    let start = Instant::now();
    let root = place(&repeated(&bomb, 300));
    let data = plain("cifar10", root.path()).expect("opens");
    assert!(start.elapsed() < AT_MOST);
    assert_eq!(data.train.images.image(299), pixels(5, 32, 32));
}

/// A picture whose palette ends within a colour, which its pixels have. The PNG decoder panics at it.
fn torn_palette() -> Vec<u8> {
    let chunk = |kind: &[u8], content: &[u8]| {
        let mut sum = Crc::new();
        sum.update(kind);
        sum.update(content);
        let length = (content.len() as u32).to_be_bytes();
        [&length, kind, content, &sum.sum().to_be_bytes()].concat()
    };
    let header = [&[0, 0, 0, 32, 0, 0, 0, 32][..], &[8, 3, 0, 0, 0]].concat();
    let mut rows = ZlibEncoder::new(Vec::new(), Compression::best());
    for _ in 0..32 {
        rows.write_all(&[0]).expect("memory");
        rows.write_all(&[33; 32]).expect("memory");
    }
    let rows = rows.finish().expect("memory");
    [
        b"\x89PNG\r\n\x1a\n".to_vec(),
        chunk(b"IHDR", &header),
        chunk(b"PLTE", &[7; 100]),
        chunk(b"IDAT", &rows),
        chunk(b"IEND", &[]),
    ]
    .concat()
}

#[test]
fn a_decoder_that_panics_is_one_error() {
    let root = place(&repeated(&torn_palette(), 3));
    let text = refused("cifar10", root.path());
    assert!(
        text.contains("the image bytes are damaged in a way that the decoder does not know"),
        "{text}"
    );
}

#[test]
fn special_files_in_place_of_data_are_named() {
    use rustix::fs::{CWD, FileType, Mode, mknodat};
    let pipe = |path: &Path| {
        mknodat(CWD, path, FileType::Fifo, Mode::from_raw_mode(0o600), 0).expect("a pipe");
    };
    let root = place(&[]);
    fs_err::remove_file(root.path().join(TRAIN)).expect("there");
    pipe(&root.path().join(TRAIN));
    let text = refused("cifar10", root.path());
    assert!(
        text.contains(TRAIN) && text.contains("is a named pipe, expected a regular file"),
        "{text}"
    );
}
