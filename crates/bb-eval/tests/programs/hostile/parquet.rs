//! Writes Parquet in which every number can be a lie.

use std::io::Write as _;

/// A struct in Thrift's compact protocol.
#[derive(Clone, Default)]
pub(super) struct Thrift {
    bytes: Vec<u8>,
    last: i16,
}

pub(super) fn varint(mut n: u64) -> Vec<u8> {
    let mut bytes = Vec::new();
    while n > 0x7f {
        bytes.push(n as u8 | 0x80);
        n >>= 7;
    }
    bytes.push(n as u8);
    bytes
}

fn long(n: usize) -> i64 {
    i64::try_from(n).expect("nothing is as long")
}

pub(super) fn zigzag(n: i64) -> Vec<u8> {
    varint(((n << 1) ^ (n >> 63)) as u64)
}

const STRUCT: u8 = 12;

impl Thrift {
    fn field(mut self, id: i16, kind: u8, value: &[u8]) -> Self {
        let step = id - self.last;
        if (1..16).contains(&step) {
            self.bytes.push((step as u8) << 4 | kind);
        } else {
            self.bytes.push(kind);
            self.bytes.extend(zigzag(id.into()));
        }
        self.bytes.extend_from_slice(value);
        self.last = id;
        self
    }

    pub(super) fn int(self, id: i16, n: i64) -> Self {
        let kind = if i32::try_from(n).is_ok() { 5 } else { 6 };
        self.field(id, kind, &zigzag(n))
    }

    pub(super) fn long(self, id: i16, n: i64) -> Self {
        self.field(id, 6, &zigzag(n))
    }

    pub(super) fn text(self, id: i16, text: &[u8]) -> Self {
        self.field(id, 8, &[varint(text.len() as u64), text.to_vec()].concat())
    }

    pub(super) fn inner(self, id: i16, inner: Self) -> Self {
        self.field(id, STRUCT, &inner.end())
    }

    /// A list that says it has `count` items.
    pub(super) fn list(self, id: i16, kind: u8, items: &[Vec<u8>], count: u64) -> Self {
        let head = if count < 15 {
            vec![(count as u8) << 4 | kind]
        } else {
            [vec![0xf0 | kind], varint(count)].concat()
        };
        self.field(id, 9, &[head, items.concat()].concat())
    }

    pub(super) fn end(self) -> Vec<u8> {
        [self.bytes, vec![0]].concat()
    }
}

/// An element of a schema: a group of `children`, or a leaf of a type.
pub(super) fn element(name: &str, leaf: Option<i64>, children: Option<i64>) -> Vec<u8> {
    let mut element = Thrift::default();
    if let Some(kind) = leaf {
        element = element.int(1, kind);
    }
    element = element.int(3, 1).text(4, name.as_bytes());
    if let Some(children) = children {
        element = element.int(5, children);
    }
    element.end()
}

/// `img { bytes, path }` and `label`, as on the hub.
pub(super) fn schema() -> Vec<Vec<u8>> {
    vec![
        element("schema", None, Some(2)),
        element("img", None, Some(2)),
        element("bytes", Some(6), None),
        element("path", Some(6), None),
        element("label", Some(2), None),
    ]
}

/// Lies about a page; the truth where there are none.
#[derive(Clone, Default)]
pub(super) struct Lies {
    pub(super) values: Option<i64>,
    pub(super) plain: Option<i64>,
    pub(super) packed: Option<i64>,
}

/// A page of a column whose values are all there at level `level`.
pub(super) struct Page {
    pub(super) body: Vec<u8>,
    pub(super) values: i64,
    pub(super) is_dictionary: bool,
    /// 0 plain, 8 places in the dictionary.
    pub(super) encoding: i64,
    pub(super) level: u8,
    pub(super) gzip: bool,
    pub(super) lies: Lies,
}

impl Page {
    pub(super) fn data(body: Vec<u8>, values: i64, level: u8) -> Self {
        Self {
            body,
            values,
            is_dictionary: false,
            encoding: 0,
            level,
            gzip: false,
            lies: Lies::default(),
        }
    }

    fn bytes(&self) -> Vec<u8> {
        let mut plain = Vec::new();
        if !self.is_dictionary {
            let run = [varint((self.values as u64) << 1), vec![self.level]].concat();
            plain.extend_from_slice(&(run.len() as u32).to_le_bytes());
            plain.extend(run);
        }
        plain.extend_from_slice(&self.body);
        let packed = if self.gzip {
            gzip(&plain)
        } else {
            plain.clone()
        };
        let values = self.lies.values.unwrap_or(self.values);
        let head = Thrift::default()
            .int(1, if self.is_dictionary { 2 } else { 0 })
            .int(2, self.lies.plain.unwrap_or(long(plain.len())))
            .int(3, self.lies.packed.unwrap_or(long(packed.len())));
        let head = if self.is_dictionary {
            head.inner(7, Thrift::default().int(1, values).int(2, 0))
        } else {
            let own = Thrift::default().int(1, values).int(2, self.encoding);
            head.inner(5, own.int(3, 3).int(4, 3))
        };
        [head.end(), packed].concat()
    }
}

pub(super) fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut writer = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    let written = writer.write_all(bytes).and_then(|()| writer.finish());
    written.expect("memory")
}

pub(super) struct Column {
    pub(super) path: &'static [&'static str],
    pub(super) kind: i64,
    pub(super) pages: Vec<Page>,
    pub(super) values: i64,
}

/// A file, of which every part can be replaced.
pub(super) struct File {
    pub(super) columns: Vec<Column>,
    pub(super) rows: i64,
    pub(super) schema: Vec<Vec<u8>>,
    pub(super) schema_count: Option<u64>,
    /// How often the row group is listed.
    pub(super) groups: usize,
    pub(super) group_count: Option<u64>,
    /// In place of the footer's length.
    pub(super) footer: Option<u32>,
    /// Added to where pages begin.
    pub(super) shift: i64,
}

impl File {
    pub(super) fn new(columns: Vec<Column>, rows: i64) -> Self {
        Self {
            columns,
            rows,
            schema: schema(),
            schema_count: None,
            groups: 1,
            group_count: None,
            footer: None,
            shift: 0,
        }
    }

    pub(super) fn bytes(&self) -> Vec<u8> {
        let mut out = b"PAR1".to_vec();
        let mut chunks = Vec::new();
        for column in &self.columns {
            let begin = long(out.len());
            let mut data = None;
            for page in &column.pages {
                if !page.is_dictionary {
                    data = data.or(Some(long(out.len())));
                }
                out.extend(page.bytes());
            }
            let size = long(out.len()) - begin;
            let has_dictionary = column.pages.first().is_some_and(|page| page.is_dictionary);
            let gzip = column.pages.first().is_some_and(|page| page.gzip);
            let names: Vec<Vec<u8>> = (column.path.iter())
                .map(|part| [varint(part.len() as u64), part.as_bytes().to_vec()].concat())
                .collect();
            let data = data.unwrap_or(begin).wrapping_add(self.shift);
            let mut facts = Thrift::default()
                .int(1, column.kind)
                .list(2, 5, &[zigzag(0), zigzag(8)], 2)
                .list(3, 8, &names, names.len() as u64)
                .int(4, if gzip { 2 } else { 0 })
                .long(5, column.values)
                .long(6, size)
                .long(7, size)
                .long(9, data);
            if has_dictionary {
                facts = facts.long(11, begin.wrapping_add(self.shift));
            }
            chunks.push(Thrift::default().long(2, begin).inner(3, facts).end());
        }
        let group = Thrift::default()
            .list(1, STRUCT, &chunks, chunks.len() as u64)
            .long(2, long(out.len()))
            .long(3, self.rows)
            .end();
        let groups = vec![group; self.groups];
        let elements = self.schema_count.unwrap_or(self.schema.len() as u64);
        let footer = Thrift::default()
            .int(1, 1)
            .list(2, STRUCT, &self.schema, elements)
            .long(3, self.rows.saturating_mul(long(self.groups.max(1))))
            .list(
                4,
                STRUCT,
                &groups,
                self.group_count.unwrap_or(self.groups as u64),
            )
            .text(6, b"x")
            .end();
        let len = self.footer.unwrap_or(footer.len() as u32).to_le_bytes();
        [out, footer, len.to_vec(), b"PAR1".to_vec()].concat()
    }
}

fn value(bytes: &[u8]) -> Vec<u8> {
    [&(bytes.len() as u32).to_le_bytes(), bytes].concat()
}

/// The three columns of pictures and their labels.
pub(super) fn columns(image: Vec<Page>, label: Vec<Page>, rows: i64) -> Vec<Column> {
    vec![
        Column {
            path: &["img", "bytes"],
            kind: 6,
            pages: image,
            values: rows,
        },
        Column {
            path: &["img", "path"],
            kind: 6,
            pages: vec![Page::data(Vec::new(), 0, 0)],
            values: 0,
        },
        Column {
            path: &["label"],
            kind: 2,
            pages: label,
            values: rows,
        },
    ]
}

/// A table of these pictures.
pub(super) fn images(pictures: &[Vec<u8>], gzip: bool) -> File {
    let rows = long(pictures.len());
    let body = pictures.iter().flat_map(|picture| value(picture)).collect();
    let labels = (0..rows).flat_map(|i| (i % 10).to_le_bytes()).collect();
    let pages = |body, level| {
        let page = Page::data(body, rows, level);
        vec![Page { gzip, ..page }]
    };
    File::new(columns(pages(body, 2), pages(labels, 1), rows), rows)
}

/// One picture `rows` times, by a dictionary with one entry and a run of its place.
pub(super) fn repeated(picture: &[u8], rows: i64, pages: i64) -> File {
    let own = rows / pages;
    let run = [vec![1], varint((own as u64) << 1), vec![0]].concat();
    let column = |entry: Vec<u8>, level| {
        let dictionary = Page {
            is_dictionary: true,
            ..Page::data(entry, 1, level)
        };
        let data = || Page {
            encoding: 8,
            ..Page::data(run.clone(), own, level)
        };
        let mut all = vec![dictionary];
        all.extend((0..pages).map(|_| data()));
        all
    };
    let (image, label) = (
        column(value(picture), 2),
        column(1i64.to_le_bytes().to_vec(), 1),
    );
    File::new(columns(image, label, rows), rows)
}
