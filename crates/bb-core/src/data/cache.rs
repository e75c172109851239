//! Decoded splits kept on disk, so that the images of a dataset are decoded once.
//!
//! One file per split and place: a header of 128 bytes, the pixels as they lie in memory, the labels, and as JSON what
//! else the reader learned ([`Facts`]).
//! The header has a key made from the source files (names, sizes, times, the bytes at both ends of each) and digests
//! of everything else.
//! A file that is absent, of another key, or damaged is made anew without a word; one that cannot be written is
//! done without, because the cache only saves time.

use std::io::{Read, Seek, SeekFrom, Write};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::UNIX_EPOCH;

use memmap2::Mmap;
use sha2::{Digest, Sha256};

use super::images::{Images, Split, byte_count};
use super::{DataError, DatasetSpec, Decoded, Facts};
use crate::artifact::atomic;

const MAGIC: &[u8; 8] = b"bb-data\0";
/// Raised whenever the layout of the file or the decoding of images changes.
const VERSION: u32 = 2;
const HEADER: usize = 128;
/// Bytes read at each end of a source file for the key; the end of a Parquet file describes all of it.
const SAMPLE: u64 = 64 * 1024;

/// SHA-256 of a split: its shape, pixels and labels.
pub(super) type SplitDigest = [u8; 32];

/// A split with its digest, which the facts are no part of.
pub(super) struct Digested {
    pub(super) split: Split,
    pub(super) facts: Facts,
    pub(super) digest: SplitDigest,
}

impl Digested {
    pub(super) fn new(Decoded { split, facts }: Decoded) -> Self {
        let digest = digest(&split);
        Self {
            split,
            facts,
            digest,
        }
    }

    fn take(self, limit: Option<usize>) -> Self {
        match limit {
            Some(n) if n < self.split.len() => Self::new(Decoded {
                split: self.split.take(n),
                facts: self.facts,
            }),
            _ => self,
        }
    }
}

/// What names a cache file and decides whether it is still right.
pub(super) struct Key<'a> {
    pub(super) spec: &'a DatasetSpec,
    pub(super) split: &'static str,
    /// The name of the test split where it was chosen, which gets a file of its own.
    pub(super) chosen: Option<&'a str>,
    /// The folder of the source files, which gives the file its name.
    pub(super) place: &'a Path,
    /// The source files, in order.
    pub(super) sources: &'a [PathBuf],
    /// The labels, where they follow from folders and tables and not from the sources.
    pub(super) labels: &'a [u32],
}

/// The first `limit` images of a split from the cache in `dir`, or else by `build`, which gets the number of images that
/// are enough.
pub(super) fn open(
    dir: Option<&Path>,
    key: &Key<'_>,
    limit: Option<usize>,
    build: impl FnOnce(Option<usize>) -> Result<Decoded, DataError>,
) -> Result<Digested, DataError> {
    let Some(dir) = dir else {
        return Ok(Digested::new(build(limit)?).take(limit));
    };
    let fingerprint = key.fingerprint()?;
    let path = dir.join(key.file_name());
    if let Some(cached) = load(&path, &fingerprint) {
        return Ok(cached.take(limit));
    }
    let built = Digested::new(build(None)?);
    let written = store(&path, &fingerprint, &built);
    // The mapped file replaces the copy in memory, which the system could not take back when memory is short.
    let cached = written.then(|| load(&path, &fingerprint)).flatten();
    Ok(cached.unwrap_or(built).take(limit))
}

impl Key<'_> {
    fn file_name(&self) -> String {
        let place = fs_err::canonicalize(self.place).unwrap_or_else(|_| self.place.to_path_buf());
        let mut hash = Sha256::new_with_prefix(place.as_os_str().as_encoded_bytes());
        if let Some(chosen) = self.chosen {
            // No path has this byte.
            hash.update([0]);
            hash.update(chosen);
        }
        let place = hash.finalize();
        let place = u64::from_be_bytes(place[..8].try_into().expect("a digest has 32 bytes"));
        format!("{}-{}-{place:016x}.u8", self.spec.id, self.split)
    }

    fn fingerprint(&self) -> Result<[u8; 32], DataError> {
        let mut hash = Sha256::new();
        let spec = self.spec;
        for number in [spec.classes, spec.height, spec.width, self.sources.len()] {
            hash.update((number as u64).to_le_bytes());
        }
        for path in self.sources {
            let failed = || DataError::io(path);
            // The place of the folder does not matter, the names below it do: they order the images.
            let name = path.strip_prefix(self.place).unwrap_or(path);
            let name = name.as_os_str().as_encoded_bytes();
            let facts = fs_err::metadata(path).map_err(failed())?;
            let time = facts.modified().ok();
            let time = time.and_then(|time| time.duration_since(UNIX_EPOCH).ok());
            hash.update((name.len() as u64).to_le_bytes());
            hash.update(name);
            hash.update(facts.len().to_le_bytes());
            hash.update(time.map_or(0, |time| time.as_nanos()).to_le_bytes());
            // Small files are the images of a folder; reading them all would cost what the cache saves.
            if facts.len() > SAMPLE {
                let file = fs_err::File::open(path).map_err(failed())?;
                hash.update(ends(file, facts.len()).map_err(failed())?);
            }
        }
        for label in self.labels {
            hash.update(label.to_le_bytes());
        }
        Ok(hash.finalize().into())
    }
}

/// The first and the last bytes of a file.
fn ends(file: fs_err::File, length: u64) -> std::io::Result<Vec<u8>> {
    let mut sample = Vec::new();
    let mut head = file.take(SAMPLE);
    head.read_to_end(&mut sample)?;
    let mut file = head.into_inner();
    file.seek(SeekFrom::Start(length.saturating_sub(SAMPLE)))?;
    file.take(SAMPLE).read_to_end(&mut sample)?;
    Ok(sample)
}

/// Shape, pixels and labels; the labels as little-endian numbers of 32 bits.
fn digest(split: &Split) -> SplitDigest {
    let mut hash = Sha256::new();
    hash.update(b"bb-split-1");
    for number in [split.len(), split.images.height(), split.images.width()] {
        hash.update((number as u64).to_le_bytes());
    }
    hash.update(split.images.as_bytes());
    for label in &*split.labels {
        hash.update(label.to_le_bytes());
    }
    hash.finalize().into()
}

/// Reads a cache file; nothing if it is not exactly what [`store`] wrote for this fingerprint.
fn load(path: &Path, fingerprint: &[u8; 32]) -> Option<Digested> {
    let map = map(path)?;
    let header = Header::parse(map.get(..HEADER)?)?;
    if header.fingerprint != *fingerprint {
        return None;
    }
    let (n, h, w) = (header.n, header.h, header.w);
    let pixels = byte_count(n, h, w)?;
    let labels = HEADER.checked_add(pixels)?;
    let facts = labels.checked_add(n.checked_mul(4)?)?;
    let json = map.get(facts..)?;
    if Sha256::digest(json)[..] != header.facts {
        return None;
    }
    let facts = serde_json::from_slice(json).ok()?;
    let labels = map[labels..map.len() - json.len()]
        .chunks_exact(4)
        .map(|bytes| u32::from_le_bytes(bytes.try_into().expect("chunks of four")))
        .collect();
    let split = Split {
        images: Images::from_shared(n, h, w, HEADER, Arc::new(map)).ok()?,
        labels,
    };
    let found = Digested::new(Decoded { split, facts });
    (found.digest == header.digest).then_some(found)
}

#[allow(unsafe_code)]
fn map(path: &Path) -> Option<Mmap> {
    let (file, _) = fs_err::File::open(path).ok()?.into_parts();
    // SAFETY: the bytes behind a map must not change while it lives. These files belong to this program: they are
    // only ever replaced as a whole by renaming a finished file onto the name, which leaves a mapped one as it was.
    unsafe { Mmap::map(&file) }.ok()
}

/// Writes a cache file and says whether it stands.
fn store(path: &Path, fingerprint: &[u8; 32], built: &Digested) -> bool {
    let images = &built.split.images;
    let Ok(facts) = serde_json::to_vec(&built.facts) else {
        return false;
    };
    let header = Header {
        n: images.len(),
        h: images.height(),
        w: images.width(),
        fingerprint: *fingerprint,
        digest: built.digest,
        facts: Sha256::digest(&facts).into(),
    };
    let labels: Vec<u8> = built
        .split
        .labels
        .iter()
        .flat_map(|label| label.to_le_bytes())
        .collect();
    let write = || -> Option<()> {
        fs_err::create_dir_all(path.parent()?).ok()?;
        let mut file = atomic::File::create(path).ok()?;
        file.write_all(&header.bytes()).ok()?;
        file.write_all(images.as_bytes()).ok()?;
        file.write_all(&labels).ok()?;
        file.write_all(&facts).ok()?;
        file.commit().ok()
    };
    write().is_some()
}

struct Header {
    n: usize,
    h: usize,
    w: usize,
    fingerprint: [u8; 32],
    digest: SplitDigest,
    /// SHA-256 of the JSON at the end.
    facts: [u8; 32],
}

/// Places in the header; the rest is zero.
const AT_VERSION: Range<usize> = 8..12;
const AT_HEIGHT: Range<usize> = 12..16;
const AT_WIDTH: Range<usize> = 16..20;
const AT_COUNT: Range<usize> = 24..32;
const AT_FINGERPRINT: Range<usize> = 32..64;
const AT_DIGEST: Range<usize> = 64..96;
const AT_FACTS: Range<usize> = 96..128;

impl Header {
    fn bytes(&self) -> [u8; HEADER] {
        let mut out = [0; HEADER];
        out[..8].copy_from_slice(MAGIC);
        out[AT_VERSION].copy_from_slice(&VERSION.to_le_bytes());
        out[AT_HEIGHT].copy_from_slice(&(self.h as u32).to_le_bytes());
        out[AT_WIDTH].copy_from_slice(&(self.w as u32).to_le_bytes());
        out[AT_COUNT].copy_from_slice(&(self.n as u64).to_le_bytes());
        out[AT_FINGERPRINT].copy_from_slice(&self.fingerprint);
        out[AT_DIGEST].copy_from_slice(&self.digest);
        out[AT_FACTS].copy_from_slice(&self.facts);
        out
    }

    fn parse(bytes: &[u8]) -> Option<Self> {
        let u32_at = |at: Range<usize>| -> Option<u32> {
            Some(u32::from_le_bytes(bytes.get(at)?.try_into().ok()?))
        };
        if bytes.get(..8)? != MAGIC || u32_at(AT_VERSION)? != VERSION {
            return None;
        }
        let n = u64::from_le_bytes(bytes.get(AT_COUNT)?.try_into().ok()?);
        Some(Self {
            n: usize::try_from(n).ok()?,
            h: u32_at(AT_HEIGHT)? as usize,
            w: u32_at(AT_WIDTH)? as usize,
            fingerprint: bytes.get(AT_FINGERPRINT)?.try_into().ok()?,
            digest: bytes.get(AT_DIGEST)?.try_into().ok()?,
            facts: bytes.get(AT_FACTS)?.try_into().ok()?,
        })
    }
}
