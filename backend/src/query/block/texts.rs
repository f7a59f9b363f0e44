//! Columns of texts and bytes, with or without a dictionary.

use arrow_array::cast::AsArray;
use arrow_array::types::Int32Type;
use arrow_array::{Array, ArrayRef, BinaryArray, Int32Array, StringArray};
use arrow_schema::DataType;

/// A column of texts.
#[derive(Clone, Debug)]
pub(super) enum Texts {
    Plain(StringArray),
    Dictionary { keys: Int32Array, values: StringArray },
}

/// A column of bytes.
#[derive(Clone, Debug)]
pub(super) enum Binaries {
    Plain(BinaryArray),
    Dictionary { keys: Int32Array, values: BinaryArray },
}

impl Texts {
    /// None if the column is something else.
    pub(super) fn of(array: &ArrayRef) -> Option<Self> {
        match array.data_type() {
            DataType::Utf8 => array.as_string_opt().cloned().map(Self::Plain),
            DataType::Dictionary(..) => {
                let array = array.as_dictionary_opt::<Int32Type>()?;
                Some(Self::Dictionary { keys: array.keys().clone(), values: array.values().as_string_opt()?.clone() })
            }
            _ => None,
        }
    }

    /// None for a null.
    pub(super) fn get(&self, row: usize) -> Option<&str> {
        match self {
            Self::Plain(array) => (row < array.len() && array.is_valid(row)).then(|| array.value(row)),
            Self::Dictionary { keys, values } => {
                let key = key(keys, row)?;
                (key < values.len() && values.is_valid(key)).then(|| values.value(key))
            }
        }
    }

    /// The number of a row's value in the dictionary, that of a null is the number of values; none without a dictionary.
    #[inline]
    pub(super) fn code(&self, row: usize) -> Option<usize> {
        match self {
            Self::Plain(_) => None,
            Self::Dictionary { keys, values } => {
                Some(key(keys, row).filter(|key| *key < values.len()).unwrap_or(values.len()))
            }
        }
    }
}

impl Binaries {
    /// None if the column is something else.
    pub(super) fn of(array: &ArrayRef) -> Option<Self> {
        match array.data_type() {
            DataType::Binary => array.as_binary_opt().cloned().map(Self::Plain),
            DataType::Dictionary(..) => {
                let array = array.as_dictionary_opt::<Int32Type>()?;
                Some(Self::Dictionary { keys: array.keys().clone(), values: array.values().as_binary_opt()?.clone() })
            }
            _ => None,
        }
    }

    /// None for a null.
    pub(super) fn get(&self, row: usize) -> Option<&[u8]> {
        match self {
            Self::Plain(array) => (row < array.len() && array.is_valid(row)).then(|| array.value(row)),
            Self::Dictionary { keys, values } => {
                let key = key(keys, row)?;
                (key < values.len() && values.is_valid(key)).then(|| values.value(key))
            }
        }
    }
}

fn key(keys: &Int32Array, row: usize) -> Option<usize> {
    if row >= keys.len() || keys.is_null(row) {
        return None;
    }
    usize::try_from(keys.value(row)).ok()
}
