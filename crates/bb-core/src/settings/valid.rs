//! Settings that were checked.

use std::fmt::Display;
use std::ops::Deref;

use super::SettingsError;

/// Settings that can say whether they make sense.
pub trait Validate {
    /// The first thing that is wrong, as [`SettingsError::Value`].
    fn validate(&self) -> Result<(), SettingsError>;

    /// What does nothing beside the other settings: a setting or a whole table, and which other setting makes it so.
    ///
    /// A file may hold such settings for another day; one that was given on its own is refused.
    fn idle(&self) -> Vec<Idle> {
        Vec::new()
    }
}

/// A setting or a table that does nothing, and the reason, such as `` `sweep` is false ``.
pub type Idle = (&'static str, &'static str);

/// An error naming `key` unless `ok`; the building block of [`Validate::validate`].
pub fn check(
    key: &str,
    found: impl Display,
    expected: &str,
    ok: bool,
) -> Result<(), SettingsError> {
    if ok {
        return Ok(());
    }
    Err(SettingsError::value(key, found, expected))
}

/// Settings that passed their check, and cannot be changed any more.
///
/// What acts on settings asks for this type, so that none can act on settings nobody looked at.
#[derive(Clone, Debug, PartialEq)]
pub struct Valid<T>(T);

impl<T: Validate> Valid<T> {
    /// Checks the settings.
    pub fn new(settings: T) -> Result<Self, SettingsError> {
        settings.validate()?;
        Ok(Self(settings))
    }
}

impl<T> Valid<T> {
    /// The settings, free to be changed again.
    pub fn into_inner(self) -> T {
        self.0
    }
}

impl<T> Deref for Valid<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.0
    }
}
