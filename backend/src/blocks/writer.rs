//! Who commits.

use std::fmt;
use std::fs::{self, File};
use std::hash::{BuildHasher, RandomState};
use std::io::{self, Write};
use std::path::Path;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::BlocksError;

const FILE: &str = "writer-id";

/// Identity of a backend among those that share a store: 16 random bytes, kept in the data directory beside the log, so
/// that a checkpoint belongs to the log that it is about.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd, Deserialize, Serialize)]
#[serde(try_from = "String", into = "String")]
pub struct WriterId([u8; 16]);

/// Not 32 hexadecimal digits.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[error("{0:?} is not a writer id: expected 32 lower-case hexadecimal digits")]
pub struct InvalidWriterId(String);

impl WriterId {
    /// A new identity.
    pub fn random() -> Self {
        Self(random())
    }

    /// Reads the identity from the file `writer-id` of a data directory; makes one, on stable storage, if there is none.
    ///
    /// Two backends must not have the same: never copy the file.
    pub fn load(dir: &Path) -> Result<Self, BlocksError> {
        let path = dir.join(FILE);
        let read = match fs::read_to_string(&path) {
            Ok(text) => text.trim_end().parse().map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Self::make(dir),
            Err(error) => Err(error),
        };
        read.map_err(|source| BlocksError::WriterId { path, source })
    }

    fn make(dir: &Path) -> io::Result<Self> {
        let id = Self::random();
        let new = dir.join("writer-id.new");
        let mut file = File::create(&new)?;
        file.write_all(format!("{id}\n").as_bytes())?;
        file.sync_all()?;
        fs::rename(&new, dir.join(FILE))?;
        File::open(dir)?.sync_all()?;
        Ok(id)
    }
}

impl fmt::Display for WriterId {
    /// 32 hexadecimal digits.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        hexadecimal(&self.0, f)
    }
}

impl FromStr for WriterId {
    type Err = InvalidWriterId;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let digits = |byte: u8| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte);
        match u128::from_str_radix(text, 16) {
            Ok(number) if text.len() == 32 && text.bytes().all(digits) => Ok(Self(number.to_be_bytes())),
            _ => Err(InvalidWriterId(text.to_owned())),
        }
    }
}

impl TryFrom<String> for WriterId {
    type Error = InvalidWriterId;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl From<WriterId> for String {
    fn from(id: WriterId) -> Self {
        id.to_string()
    }
}

/// 16 bytes that nobody else draws. The hasher's key is 128 bits of the operating system's chance.
fn random() -> [u8; 16] {
    let hasher = RandomState::new();
    let [high, low] = [0_u8, 1].map(|half| u128::from(hasher.hash_one(half)));
    ((high << 64) | low).to_be_bytes()
}

/// A name for one commit, so that its writer knows it again: 32 hexadecimal digits.
pub(super) fn random_commit() -> String {
    WriterId(random()).to_string()
}

fn hexadecimal(bytes: &[u8], f: &mut fmt::Formatter<'_>) -> fmt::Result {
    bytes.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_stays_the_same() {
        let dir = tempfile::tempdir().unwrap();
        let made = WriterId::load(dir.path()).unwrap();
        assert_eq!(WriterId::load(dir.path()).unwrap(), made);
        assert_ne!(WriterId::load(tempfile::tempdir().unwrap().path()).unwrap(), made);
        assert_eq!(made.to_string().parse(), Ok(made));
    }

    #[test]
    fn a_damaged_file_is_an_error() {
        let dir = tempfile::tempdir().unwrap();
        let whole = format!("{}\n", WriterId::random()).into_bytes();
        for length in 0..32 {
            fs::write(dir.path().join(FILE), &whole[..length]).unwrap();
            let error = WriterId::load(dir.path()).unwrap_err();
            assert!(matches!(error, BlocksError::WriterId { .. }), "{length}: {error}");
        }
        fs::write(dir.path().join(FILE), "A".repeat(32)).unwrap();
        WriterId::load(dir.path()).unwrap_err();
    }
}
