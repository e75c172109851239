//! Tables of images whose numbers are lies.

use std::path::Path;

use super::parquet::{Column, File, Lies, Page, columns, element, images, repeated, varint};
use super::pictures::grey;
use super::{Case, put};

fn files() -> Vec<(String, Vec<u8>)> {
    let small = grey(32, 32);
    let pictures = || vec![small.clone(); 20];
    let good = || images(&pictures(), false);
    let mut all: Vec<(String, Vec<u8>)> = Vec::new();
    let mut add = |name: &str, file: File| all.push((name.to_owned(), file.bytes()));
    for depth in [40, 1000, 9300, 100_000, 1_000_000] {
        let mut schema = vec![element("schema", None, Some(1))];
        schema.extend((1..depth).map(|_| element("g", None, Some(1))));
        schema.push(element("x", Some(6), None));
        add(
            &format!("schema {depth} deep"),
            File {
                schema,
                groups: 0,
                ..File::new(Vec::new(), 0)
            },
        );
    }
    for children in [1_000_000, i64::from(i32::MAX), -1] {
        let schema = vec![
            element("schema", None, Some(children)),
            element("x", Some(6), None),
        ];
        add(
            &format!("schema with {children} children"),
            File { schema, ..good() },
        );
    }
    for count in [1 << 20, 1 << 31, 1 << 40, u64::MAX] {
        add(
            &format!("{count} elements in the schema"),
            File {
                schema_count: Some(count),
                ..good()
            },
        );
        add(
            &format!("{count} groups of rows"),
            File {
                group_count: Some(count),
                ..good()
            },
        );
    }
    let wide: Vec<Vec<u8>> = std::iter::once(element("schema", None, Some(200_000)))
        .chain((0..200_000).map(|i| element(&format!("c{i}"), Some(2), None)))
        .collect();
    add(
        "200,000 columns",
        File {
            schema: wide,
            groups: 0,
            ..File::new(Vec::new(), 0)
        },
    );
    add(
        "100,000 groups of rows",
        File {
            groups: 100_000,
            ..good()
        },
    );
    for footer in [0, 1, 1 << 20, u32::MAX] {
        add(
            &format!("a footer of {footer} bytes"),
            File {
                footer: Some(footer),
                ..good()
            },
        );
    }
    for shift in [-1_000_000, 1, 1 << 40, i64::MAX / 2] {
        add(
            &format!("pages {shift} bytes further"),
            File { shift, ..good() },
        );
    }
    for (rows, pages) in [
        (1 << 20, 1),
        (1 << 24, 16),
        (1 << 30, 1),
        (1 << 30, 1024),
        (1 << 34, 32),
    ] {
        add(
            &format!("one picture {rows} times in {pages} pages"),
            repeated(&small, rows, pages),
        );
    }
    add(
        "a picture of 4096 x 4096 200 times",
        repeated(&grey(4096, 4096), 200, 1),
    );
    add(
        "a picture of 4096 x 4096 2,000 times",
        repeated(&grey(4096, 4096), 2000, 1),
    );
    for values in [1 << 20, i64::from(i32::MAX), -1, i64::from(i32::MIN)] {
        let with = |is_dictionary: bool| {
            let mut file = repeated(&small, 40, 1);
            let page = usize::from(!is_dictionary);
            file.columns[0].pages[page].lies.values = Some(values);
            file
        };
        add(&format!("a dictionary of {values} values"), with(true));
        add(&format!("a page of {values} values"), with(false));
        let empty = Page {
            is_dictionary: true,
            lies: Lies {
                values: Some(values),
                ..Lies::default()
            },
            ..Page::data(Vec::new(), 1, 2)
        };
        let data = Page {
            encoding: 8,
            ..Page::data([vec![1], varint(80), vec![0]].concat(), 40, 2)
        };
        let labels = vec![Page::data(vec![0; 320], 40, 1)];
        add(
            &format!("an empty dictionary of {values} values"),
            File::new(columns(vec![empty, data], labels, 40), 40),
        );
    }
    for size in [1 << 20, i64::from(i32::MAX), -1, i64::from(i32::MIN)] {
        for packed in [true, false] {
            let mut file = good();
            let lies = &mut file.columns[0].pages[0].lies;
            *(if packed {
                &mut lies.packed
            } else {
                &mut lies.plain
            }) = Some(size);
            let which = if packed { "packed" } else { "unpacked" };
            add(&format!("a page of {size} bytes, {which}"), file);
        }
    }
    for mib in [16, 100] {
        let zeros = vec![0; mib << 20];
        let labels = vec![Page::data(vec![0; 160], 20, 1)];
        let bomb = Page {
            gzip: true,
            ..Page::data(zeros, 20, 2)
        };
        add(
            &format!("a packed page of {mib} MiB of zeros"),
            File::new(columns(vec![bomb], labels, 20), 20),
        );
    }
    for rows in [0, -1, 21, 1 << 40, i64::MAX] {
        add(&format!("{rows} rows of 20"), File { rows, ..good() });
        let mut file = good();
        file.columns[0].values = rows;
        add(&format!("{rows} values of 20"), file);
    }
    let mut file = good();
    file.columns.truncate(1);
    add("a group without labels", file);
    let mut file = good();
    let twice = Column {
        path: &["img", "bytes"],
        kind: 6,
        pages: vec![Page::data(Vec::new(), 20, 2)],
        values: 20,
    };
    file.columns.push(twice);
    add("a column twice", file);
    add("packed, and good", images(&pictures(), true));
    all
}

pub(super) fn cases() -> Vec<Case> {
    let good = images(&vec![grey(32, 32); 20], false).bytes();
    let mut cases = Vec::new();
    for (name, bytes) in files() {
        for limit in ["", " --train-limit 40"] {
            let command = format!(
                "attack badnets --dataset cifar10 --data data --width 1 --threads 1 -q --set train.epochs=1 --set train.batch_size=8{limit} --out out"
            );
            let (bytes, good) = (bytes.clone(), good.clone());
            let case = Case::new(
                "tables of images",
                format!("{name}{limit}"),
                &command,
                move |folder: &Path| {
                    put(&folder.join("data/train-00000-of-00001.parquet"), &bytes);
                    put(&folder.join("data/test-00000-of-00001.parquet"), &good);
                },
            );
            // Not all numbers of a table are of use; those that are not may say what they like.
            let fine = [
                "good",
                " times",
                "schema 40 deep",
                "further",
                "100,000 groups",
                "21 rows",
                "unpacked",
                "values of 20",
            ];
            cases.push(if fine.iter().any(|word| name.contains(word)) {
                case.harmless()
            } else {
                case
            });
        }
    }
    cases
}
