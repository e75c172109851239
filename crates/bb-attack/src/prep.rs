//! What an attack may use while it prepares its data: a place to keep what took long, and a voice.

use std::path::{Path, PathBuf};

use bb_core::artifact::checkpoint::{self, Found, Version};
use bb_core::events::Log;
use bb_nn::{Compute, Precision};
use serde::Serialize;
use serde_json::Value;

use crate::error::AttackError;

/// The surroundings of [`Attack::prepare`](crate::method::Attack::prepare); by default there are none.
#[derive(Clone, Copy, Debug, Default)]
pub struct Prep<'a> {
    /// Folder for what an interrupted preparation goes on from; what lies there is gone when the cell is complete.
    pub folder: Option<&'a Path>,
    /// Where networks are trained; the CPU if nothing is said.
    pub compute: Option<&'a Compute>,
    /// How their convolutions multiply.
    pub precision: Precision,
    /// What goes on is told here.
    pub log: Option<&'a Log>,
    /// No progress on standard error.
    pub quiet: bool,
}

impl Prep<'_> {
    /// The path of a checkpoint, with its folder made; `None` where nothing is kept.
    pub fn checkpoint(&self, name: &str) -> Result<Option<PathBuf>, AttackError> {
        let Some(folder) = self.folder else {
            return Ok(None);
        };
        fs_err::create_dir_all(folder).map_err(|source| AttackError::Checkpoint {
            path: folder.to_owned(),
            source,
        })?;
        Ok(Some(folder.join(name)))
    }

    /// What `make` gives, or what it gave in an earlier run of the same settings; a damaged file is replaced.
    ///
    /// `fits` says whether bytes can be used.
    pub fn kept(
        &self,
        name: &str,
        fits: impl Fn(&[u8]) -> bool,
        make: impl FnOnce() -> Result<Vec<u8>, AttackError>,
    ) -> Result<Vec<u8>, AttackError> {
        let Some(path) = self.checkpoint(name)? else {
            return make();
        };
        match checkpoint::read(&path, Version::Last)? {
            Found::Whole(bytes) if fits(&bytes) => return Ok(bytes),
            Found::Whole(_) | Found::Absent => {}
            Found::Damaged(damage) => self.warn(&damage.to_string())?,
        }
        let bytes = make()?;
        checkpoint::write(&path, &bytes)?;
        Ok(bytes)
    }

    /// Says that a checkpoint is not used.
    pub fn warn(&self, text: &str) -> Result<(), AttackError> {
        let Some(log) = self.log else {
            return Ok(());
        };
        let dir = self.folder.unwrap_or(Path::new("."));
        log.warn("checkpoint", text, &Value::Null)
            .map_err(AttackError::log(dir))
    }

    /// One line for people and a row of the log.
    pub fn tell(&self, event: &str, text: &str, data: &impl Serialize) -> Result<(), AttackError> {
        let Some(log) = self.log else {
            return Ok(());
        };
        let dir = self.folder.unwrap_or(Path::new("."));
        log.info(event, text, data).map_err(AttackError::log(dir))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_took_long_is_made_once_and_made_anew_if_it_is_damaged() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let folder = folder.path().join("ckpt");
        let prep = Prep {
            folder: Some(&folder),
            ..Prep::default()
        };
        let get = |prep: &Prep<'_>, byte: u8| {
            prep.kept("a.bin", |bytes| bytes.len() == 2, || Ok(vec![byte; 2]))
                .expect("a writable folder")
        };
        assert_eq!(get(&prep, 1), [1, 1]);
        assert_eq!(get(&prep, 2), [1, 1]);
        let path = folder.join("a.bin");
        let mut flipped = fs_err::read(&path).expect("it is there");
        flipped[1] ^= 1;
        fs_err::write(&path, flipped).expect("a writable folder");
        assert_eq!(get(&prep, 3), [3, 3]);
        checkpoint::write(&path, &[1]).expect("a writable folder");
        assert_eq!(get(&prep, 3), [3, 3]);
        assert_eq!(get(&Prep::default(), 4), [4, 4]);
    }
}
