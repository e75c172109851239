//! Thrift's compact protocol as far as Parquet needs it: walked by a table of the fields that its reader knows, so that
//! sizes and counts are known before the reader builds anything of them.
//!
//! The reader takes a known field for what it should be, whatever the file says its type is.
//! So a field of another type is refused here: behind it the two would read different things.

use super::thrift::Kind::{Bool, Byte, Double, Int, List, Struct, Text};

/// Most structs and lists in one another.
const MOST_DEPTH: usize = 32;

/// What a field holds.
#[derive(Clone, Copy, Debug)]
pub(super) enum Kind {
    Bool,
    Byte,
    Double,
    /// Of 16 to 64 bits, which look the same.
    Int,
    Text,
    List(&'static Kind),
    Struct(Fields),
}

/// Known fields of a struct; others are skipped by the type that the file gives them.
type Fields = &'static [(i16, Kind)];

/// What the table of contents begins with, the last part of a file.
pub(super) const FOOTER: Fields = &[
    (1, Int),
    (SCHEMA, List(&Struct(ELEMENT))),
    (3, Int),
    (4, List(&Struct(ROW_GROUP))),
    (5, List(&Struct(&[(1, Text), (2, Text)]))),
    (6, Text),
    (7, List(&Struct(&[(1, EMPTY), (2, EMPTY)]))),
];
/// The list of columns and groups of columns in [`FOOTER`].
pub(super) const SCHEMA: i16 = 2;
/// The name of a column in [`SCHEMA`].
pub(super) const NAME: i16 = 4;
/// How many elements of [`SCHEMA`] are children of this one.
pub(super) const CHILDREN: i16 = 5;

const EMPTY: Kind = Struct(&[]);
const ELEMENT: Fields = &[
    (1, Int),
    (2, Int),
    (3, Int),
    (NAME, Text),
    (CHILDREN, Int),
    (6, Int),
    (7, Int),
    (8, Int),
    (9, Int),
    (10, Struct(LOGICAL_TYPE)),
];
const LOGICAL_TYPE: Fields = &[
    (1, EMPTY),
    (2, EMPTY),
    (3, EMPTY),
    (4, EMPTY),
    (5, Struct(&[(1, Int), (2, Int)])),
    (6, EMPTY),
    (7, Struct(TIME)),
    (8, Struct(TIME)),
    (10, Struct(&[(1, Byte), (2, Bool)])),
    (11, EMPTY),
    (12, EMPTY),
    (13, EMPTY),
    (14, EMPTY),
    (15, EMPTY),
    (16, Struct(&[(1, Byte)])),
    (17, Struct(&[(1, Text)])),
    (18, Struct(&[(1, Text), (2, Int)])),
    (19, EMPTY),
];
const TIME: Fields = &[
    (1, Bool),
    (2, Struct(&[(1, EMPTY), (2, EMPTY), (3, EMPTY)])),
];
const ROW_GROUP: Fields = &[
    (1, List(&Struct(COLUMN))),
    (2, Int),
    (3, Int),
    (4, List(&Struct(&[(1, Int), (2, Bool), (3, Bool)]))),
    (5, Int),
    (7, Int),
];
const COLUMN: Fields = &[
    (1, Text),
    (2, Int),
    (3, Struct(COLUMN_FACTS)),
    (4, Int),
    (5, Int),
    (6, Int),
    (7, Int),
];
const COLUMN_FACTS: Fields = &[
    (1, Int),
    (2, List(&Int)),
    (4, Int),
    (5, Int),
    (6, Int),
    (7, Int),
    (9, Int),
    (10, Int),
    (11, Int),
    (12, Struct(STATISTICS)),
    (13, List(&Struct(&[(1, Int), (2, Int), (3, Int)]))),
    (14, Int),
    (15, Int),
    (16, Struct(&[(1, Int), (2, List(&Int)), (3, List(&Int))])),
    (17, Struct(&[(1, Struct(BOX)), (2, List(&Int))])),
];
const STATISTICS: Fields = &[
    (1, Text),
    (2, Text),
    (3, Int),
    (4, Int),
    (5, Text),
    (6, Text),
    (7, Bool),
    (8, Bool),
    (9, Int),
];
const BOX: Fields = &[
    (1, Double),
    (2, Double),
    (3, Double),
    (4, Double),
    (5, Double),
    (6, Double),
    (7, Double),
    (8, Double),
];

/// What stands before the bytes of a page.
pub(super) const PAGE: Fields = &[
    (PAGE_TYPE, Int),
    (UNPACKED, Int),
    (PACKED, Int),
    (4, Int),
    (DATA, Struct(&[(VALUES, Int), (2, Int), (3, Int), (4, Int)])),
    (6, EMPTY),
    (DICTIONARY, Struct(&[(VALUES, Int), (2, Int), (3, Bool)])),
    (
        DATA_2,
        Struct(&[
            (VALUES, Int),
            (2, Int),
            (3, Int),
            (4, Int),
            (5, Int),
            (6, Int),
            (7, Bool),
        ]),
    ),
];
/// The type of a page in [`PAGE`].
pub(super) const PAGE_TYPE: i16 = 1;
/// Its bytes once unpacked.
pub(super) const UNPACKED: i16 = 2;
/// Its bytes in the file.
pub(super) const PACKED: i16 = 3;
/// What a page of data says of itself.
pub(super) const DATA: i16 = 5;
/// What a dictionary says of itself.
pub(super) const DICTIONARY: i16 = 7;
/// What a page of data in the second version says of itself.
pub(super) const DATA_2: i16 = 8;
/// The number of values in each of the three.
pub(super) const VALUES: i16 = 1;

/// Why bytes are not walked to their end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fault {
    /// They are cut off.
    End,
    /// They are no compact Thrift, or something that no writer puts there.
    Wrong(&'static str),
}

/// Something on the way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Seen {
    /// A whole number.
    Number(i64),
    /// A text of so many bytes.
    Text(usize),
    /// The end of a struct.
    End,
}

/// Bytes, and how far they have been walked.
pub(super) struct Walk<'a> {
    bytes: &'a [u8],
    /// Bytes that are walked.
    pub(super) at: usize,
    /// The numbers of the fields that lead here.
    path: Vec<i16>,
}

impl<'a> Walk<'a> {
    pub(super) fn new(bytes: &'a [u8]) -> Self {
        Self {
            bytes,
            at: 0,
            path: Vec::new(),
        }
    }

    /// Walks a struct, and tells `see` of what is known in it, with the fields that lead there.
    pub(super) fn fields<E: From<Fault>>(
        &mut self,
        fields: Fields,
        see: &mut impl FnMut(&[i16], Seen) -> Result<(), E>,
    ) -> Result<(), E> {
        let mut last = 0;
        while let Some((id, found)) = self.field(last)? {
            match fields.iter().find(|(known, _)| *known == id) {
                Some((_, kind)) => {
                    self.path.push(id);
                    self.value(*kind, found, see)?;
                    self.path.pop();
                }
                None => self.skip(found, MOST_DEPTH)?,
            }
            last = id;
        }
        see(&self.path, Seen::End)
    }

    fn value<E: From<Fault>>(
        &mut self,
        kind: Kind,
        found: u8,
        see: &mut impl FnMut(&[i16], Seen) -> Result<(), E>,
    ) -> Result<(), E> {
        match (kind, found) {
            (Bool, 1 | 2) => {}
            (Byte, 3) => self.pass(1)?,
            (Double, 7) => self.pass(8)?,
            (Int, 4..=6) => {
                let number = self.zigzag()?;
                see(&self.path, Seen::Number(number))?;
            }
            (Text, 8) => {
                let length = self.length()?;
                self.pass(length)?;
                see(&self.path, Seen::Text(length))?;
            }
            (List(kind), 9) => {
                let (found, n) = self.list()?;
                for _ in 0..n {
                    self.value(*kind, found, see)?;
                }
            }
            (Struct(fields), 12) => self.fields(fields, see)?,
            _ => Err(Fault::Wrong("a field has another type than it should"))?,
        }
        Ok(())
    }

    /// Number and type of the next field, nothing at the end of a struct.
    fn field(&mut self, last: i16) -> Result<Option<(i16, u8)>, Fault> {
        let byte = self.byte()?;
        let (step, kind) = (byte >> 4, byte & 15);
        if kind == 0 {
            return Ok(None);
        }
        let id = match step {
            0 => self.zigzag()? as i16,
            _ => last
                .checked_add(i16::from(step))
                .ok_or(Fault::Wrong("a field has no number"))?,
        };
        Ok(Some((id, kind)))
    }

    /// Type and number of the elements of a list, each of which has a byte.
    fn list(&mut self) -> Result<(u8, usize), Fault> {
        let byte = self.byte()?;
        let kind = byte & 15;
        let n = match byte >> 4 {
            15 => self.length()?,
            n => usize::from(n),
        };
        match (kind, n) {
            // The reader skips them without end, since they take no byte there.
            (1 | 2, 1..) => Err(Fault::Wrong("it has a list of truth values")),
            (_, n) if n > self.bytes.len() - self.at => Err(Fault::End),
            found => Ok(found),
        }
    }

    fn skip(&mut self, kind: u8, depth: usize) -> Result<(), Fault> {
        let depth = depth
            .checked_sub(1)
            .ok_or(Fault::Wrong("it has more than 32 structs in one another"))?;
        match kind {
            1 | 2 => Ok(()),
            3 => self.pass(1),
            4..=6 => self.varint().map(drop),
            7 => self.pass(8),
            8 => {
                let length = self.length()?;
                self.pass(length)
            }
            9 | 10 => {
                let (kind, n) = self.list()?;
                (0..n).try_for_each(|_| self.skip(kind, depth))
            }
            12 => {
                while let Some((_, kind)) = self.field(0)? {
                    self.skip(kind, depth)?;
                }
                Ok(())
            }
            13 => self.pass(16),
            _ => Err(Fault::Wrong("a field has a type that no writer puts there")),
        }
    }

    pub(super) fn pass(&mut self, n: usize) -> Result<(), Fault> {
        let end = self.at.checked_add(n).ok_or(Fault::End)?;
        self.at = (end <= self.bytes.len()).then_some(end).ok_or(Fault::End)?;
        Ok(())
    }

    fn byte(&mut self) -> Result<u8, Fault> {
        let byte = *self.bytes.get(self.at).ok_or(Fault::End)?;
        self.at += 1;
        Ok(byte)
    }

    fn length(&mut self) -> Result<usize, Fault> {
        usize::try_from(self.varint()?).map_err(|_| Fault::End)
    }

    /// A number of seven bits in each byte, the lowest first.
    pub(super) fn varint(&mut self) -> Result<u64, Fault> {
        let mut number = 0;
        for shift in (0..64).step_by(7) {
            let byte = self.byte()?;
            number |= u64::from(byte & 0x7f) << shift;
            if byte < 0x80 {
                return Ok(number);
            }
        }
        Err(Fault::Wrong("a number has more than ten bytes"))
    }

    /// A number whose lowest bit is its sign.
    pub(super) fn zigzag(&mut self) -> Result<i64, Fault> {
        let number = self.varint()?;
        Ok((number >> 1).cast_signed() ^ -(number & 1).cast_signed())
    }
}
