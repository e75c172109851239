//! Decoded splits kept on disk, so that the images of a dataset are decoded once.
//!
//! One file per split and place: a header of 128 bytes, the pixels as they lie in memory, the labels, and as JSON what
//! else the reader learned ([`Facts`]).
//! The header has a key made from the source files (names, sizes, times, the content of small ones and the bytes at both
//! ends of large ones) and digests of everything else.
//! It is read and not mapped: who cuts a mapped file kills whoever looks at it, and the digest goes over all bytes anyway.
//! For the 150 MB of CIFAR-10 reading costs as much as the digest, 80 ms each. What is lost is that processes share the
//! pixels, and that the system can let go of them when memory is short: a dataset must fit into memory beside the network.
//! The content of 50,000 small files costs half a second on one thread, their sizes and times alone 0.15.
//! Of a split of which a part is wanted, only that part is kept.
//!
//! A file that is absent, of another key, or damaged is replaced without a word. One that cannot be written is done
//! without, because the cache only saves time; so is a folder that is a link, which in a stranger's results could lead
//! anywhere.

use std::io::{Read, Write};
use std::ops::Range;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::time::UNIX_EPOCH;

use rayon::prelude::*;
use sha2::{Digest, Sha256};

use super::images::{Images, Split, byte_count};
use super::{DataError, DatasetSpec, Decoded, Facts};
use crate::artifact::atomic;
use crate::files::{self, Links};

const MAGIC: &[u8; 8] = b"bb-data\0";
/// Raised whenever the layout of the file or the decoding of images changes.
const VERSION: u32 = 3;
const HEADER: usize = 128;
/// Most bytes of a source file that is read whole for the key; the images of a folder are smaller.
const WHOLE: u64 = 4 << 20;
/// Bytes read at each end of a larger one; the end of a Parquet file describes all of it.
const SAMPLE: u64 = 64 * 1024;
/// Bytes of a cache file that are read at a time.
const STEP: usize = 1 << 20;
/// Most bytes of the facts at the end of a cache file, which are mainly the names of the classes.
const MOST_FACTS: u64 = 64 << 20;

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
    let linked = |dir: &Path| fs_err::symlink_metadata(dir).is_ok_and(|facts| facts.is_symlink());
    let Some(dir) = dir.filter(|dir| !linked(dir)) else {
        return Ok(Digested::new(build(limit)?).take(limit));
    };
    let fingerprint = key.fingerprint()?;
    let path = dir.join(key.file_name());
    if let Some(cached) = load(&path, &fingerprint, limit) {
        return Ok(cached);
    }
    let built = Digested::new(build(None)?);
    store(&path, &fingerprint, &built);
    Ok(built.take(limit))
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
        let files: Result<Vec<[u8; 32]>, DataError> = self
            .sources
            .par_iter()
            .map(|path| self.source(path).map_err(DataError::io(path)))
            .collect();
        for file in files? {
            hash.update(file);
        }
        for label in self.labels {
            hash.update(label.to_le_bytes());
        }
        Ok(hash.finalize().into())
    }

    /// What one source file is taken to be.
    fn source(&self, path: &Path) -> std::io::Result<[u8; 32]> {
        // The place of the folder does not matter, the names below it do: they order the images.
        let name = path.strip_prefix(self.place).unwrap_or(path);
        let name = name.as_os_str().as_encoded_bytes();
        let file = files::open(path, Links::Follow)?;
        let facts = file.metadata()?;
        let time = facts.modified().ok();
        let time = time.and_then(|time| time.duration_since(UNIX_EPOCH).ok());
        let mut hash = Sha256::new();
        hash.update((name.len() as u64).to_le_bytes());
        hash.update(name);
        hash.update(facts.len().to_le_bytes());
        hash.update(time.map_or(0, |time| time.as_nanos()).to_le_bytes());
        // Another picture can have the size and, where times are rough or copied, the time of the one before.
        let parts: &[(u64, u64)] = match facts.len() {
            length @ 0..=WHOLE => &[(0, length)],
            length => &[(0, SAMPLE), (length - SAMPLE, SAMPLE)],
        };
        for (start, size) in parts {
            let mut bytes = vec![0; *size as usize];
            file.file().read_exact_at(&mut bytes, *start)?;
            hash.update(bytes);
        }
        Ok(hash.finalize().into())
    }
}

/// Shape, pixels and labels; the labels as little-endian numbers of 32 bits.
fn digest(split: &Split) -> SplitDigest {
    let images = &split.images;
    let mut hash = shape_digest(split.len(), images.height(), images.width());
    hash.update(images.as_bytes());
    for label in &*split.labels {
        hash.update(label.to_le_bytes());
    }
    hash.finalize().into()
}

fn shape_digest(n: usize, h: usize, w: usize) -> Sha256 {
    let mut hash = Sha256::new_with_prefix(b"bb-split-1");
    for number in [n, h, w] {
        hash.update((number as u64).to_le_bytes());
    }
    hash
}

/// Reads the first `limit` images of a cache file; nothing if it is not exactly what [`store`] wrote for this fingerprint.
fn load(path: &Path, fingerprint: &[u8; 32], limit: Option<usize>) -> Option<Digested> {
    let mut file = files::open(path, Links::Refuse).ok()?;
    let length = file.metadata().ok()?.len();
    let mut header = [0; HEADER];
    file.read_exact(&mut header).ok()?;
    let header = Header::parse(&header)?;
    if header.fingerprint != *fingerprint {
        return None;
    }
    let (n, h, w) = (header.n, header.h, header.w);
    let (pixels, labels) = (byte_count(n, h, w)?, n.checked_mul(4)?);
    let body = HEADER.checked_add(pixels)?.checked_add(labels)?;
    let rest = length.checked_sub(body as u64)?;
    if rest > MOST_FACTS {
        return None;
    }
    let kept = limit.map_or(n, |limit| limit.min(n));
    let mut hash = shape_digest(n, h, w);
    let pixels = part(&mut file, pixels, byte_count(kept, h, w)?, &mut hash)?;
    let labels = part(&mut file, labels, 4 * kept, &mut hash)?;
    let whole: SplitDigest = hash.finalize().into();
    let mut json = Vec::new();
    file.take(rest + 1).read_to_end(&mut json).ok()?;
    if whole != header.digest || Sha256::digest(&json)[..] != header.facts {
        return None;
    }
    let labels = labels
        .chunks_exact(4)
        .map(|bytes| u32::from_le_bytes(bytes.try_into().expect("chunks of four")))
        .collect();
    let split = Split {
        images: Images::new(kept, h, w, pixels).ok()?,
        labels,
    };
    let facts = serde_json::from_slice(&json).ok()?;
    Some(Digested {
        digest: if kept == n { whole } else { digest(&split) },
        split,
        facts,
    })
}

/// Hashes the next `length` bytes of a file and keeps the first `kept` of them.
fn part(file: &mut fs_err::File, length: usize, kept: usize, hash: &mut Sha256) -> Option<Vec<u8>> {
    let mut out = Vec::new();
    out.try_reserve_exact(kept).ok()?;
    let mut step = vec![0; STEP.min(length)];
    let mut left = length;
    while left > 0 {
        let bytes = &mut step[..STEP.min(left)];
        file.read_exact(bytes).ok()?;
        hash.update(&*bytes);
        left -= bytes.len();
        let wanted = bytes.len().min(kept - out.len());
        out.extend_from_slice(&bytes[..wanted]);
    }
    Some(out)
}

/// Writes a cache file, if it can be written.
fn store(path: &Path, fingerprint: &[u8; 32], built: &Digested) {
    let images = &built.split.images;
    let Ok(facts) = serde_json::to_vec(&built.facts) else {
        return;
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
    // Without it the images are decoded again.
    let _ = write();
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
