//! Names of blocks.

use std::fmt;
use std::hash::{BuildHasher, RandomState};
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// Identity of a block: 16 bytes, the first six of which are the time at which it was made, in milliseconds since the
/// epoch. So names sort by age. The rest is random, so that two writers never take the same.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd, Deserialize, Serialize)]
#[serde(try_from = "String", into = "String")]
pub struct BlockId([u8; 16]);

/// Not 32 hexadecimal digits.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[error("{0:?} is not a block id: expected 32 lower-case hexadecimal digits")]
pub struct InvalidBlockId(String);

impl BlockId {
    /// A name for a block that is made now; `random` should be 80 bits of chance.
    pub fn new(now_ns: u64, random: u128) -> Self {
        let millis = u128::from(now_ns / 1_000_000) & ((1 << 48) - 1);
        Self(((millis << 80) | (random & ((1 << 80) - 1))).to_be_bytes())
    }

    /// A name for a block that is made now. The hasher's key is 128 bits of the operating system's chance.
    pub fn random(now_ns: u64) -> Self {
        let hasher = RandomState::new();
        let [high, low] = [0_u8, 1].map(|half| u128::from(hasher.hash_one(half)));
        Self::new(now_ns, (high << 64) | low)
    }

    /// When it was made, nanoseconds since the epoch, to the millisecond.
    pub fn created_ns(self) -> u64 {
        (u128::from_be_bytes(self.0) >> 80) as u64 * 1_000_000
    }
}

impl fmt::Display for BlockId {
    /// 32 hexadecimal digits.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl FromStr for BlockId {
    type Err = InvalidBlockId;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let digits = |byte: u8| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte);
        match u128::from_str_radix(text, 16) {
            Ok(number) if text.len() == 32 && text.bytes().all(digits) => Ok(Self(number.to_be_bytes())),
            _ => Err(InvalidBlockId(text.to_owned())),
        }
    }
}

impl TryFrom<String> for BlockId {
    type Error = InvalidBlockId;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl From<BlockId> for String {
    fn from(id: BlockId) -> Self {
        id.to_string()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn text_and_time_survive(millis in 0_u64..1 << 44, random: u128) {
            let id = BlockId::new(millis * 1_000_000 + 999_999, random);
            prop_assert_eq!(id.to_string().parse(), Ok(id));
            prop_assert_eq!(id.created_ns(), millis * 1_000_000);
            prop_assert_eq!(BlockId::random(millis * 1_000_000).created_ns(), id.created_ns());
        }

        #[test]
        fn other_text_is_refused(text in "\\PC{0,40}") {
            if let Ok(id) = text.parse::<BlockId>() {
                prop_assert_eq!(id.to_string(), text);
            }
        }
    }
}
