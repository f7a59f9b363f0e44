//! Keys of series: the values of their labels.

use super::family::SEPARATOR;
use crate::config::RegistryConfig;

/// How long names and values of labels may be, bytes; what is longer is cut.
#[derive(Clone, Copy, Debug)]
pub(super) struct Lengths {
    pub(super) name: usize,
    pub(super) value: usize,
}

impl Lengths {
    pub(super) fn new(registry: &RegistryConfig) -> Self {
        let length = |limit: usize| if limit == 0 { usize::MAX } else { limit };
        Self { name: length(registry.max_label_name_length), value: length(registry.max_label_value_length) }
    }

    /// Appends a value, which is UTF-8, to a key.
    #[inline]
    pub(super) fn push(self, key: &mut Vec<u8>, value: impl AsRef<[u8]>) {
        self.push_with(key, |key| key.extend_from_slice(value.as_ref()));
    }

    /// The same, written in parts.
    #[inline]
    pub(super) fn push_with(self, key: &mut Vec<u8>, write: impl FnOnce(&mut Vec<u8>)) {
        let begin = key.len();
        write(key);
        if key.len() - begin > self.value {
            key.truncate(begin + whole(key.get(begin..).unwrap_or_default(), self.value));
        }
        key.push(SEPARATOR);
    }

    /// Appends a name and its value.
    pub(super) fn push_named(self, key: &mut Vec<u8>, name: &str, value: &str) {
        // Names of labels are ASCII.
        Self { value: self.name, ..self }.push(key, name);
        self.push(key, value);
    }
}

/// Length of the beginning of a text that is no longer than this, and has no part of a letter.
fn whole(text: &[u8], length: usize) -> usize {
    let is_begin = |place: &usize| text.get(*place).is_none_or(|byte| byte & 0xc0 != 0x80);
    (0..=length).rev().find(is_begin).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn values_are_cut_between_letters(value in "\\PC{0,12}", length in 0..12_usize) {
            let mut key = b"x".to_vec();
            Lengths { name: 3, value: length }.push(&mut key, &value);
            prop_assert_eq!(key.pop(), Some(SEPARATOR));
            let cut = std::str::from_utf8(&key[1..]).unwrap();
            prop_assert!(value.starts_with(cut) && cut.len() <= length);
            prop_assert!(cut == value || cut.len() + 4 > length);
        }
    }

    #[test]
    fn names_have_a_length_of_their_own() {
        let mut key = Vec::new();
        Lengths { name: 2, value: 4 }.push_named(&mut key, "name", "value");
        assert_eq!(key, [b"na".as_slice(), &[SEPARATOR], b"valu", &[SEPARATOR]].concat());
    }
}
