//! Columns by name: whether they are there and of what type, and what a row has in them.

use arrow_array::cast::AsArray;
use arrow_array::types::{ArrowPrimitiveType, ByteArrayType, Int32Type};
use arrow_array::{Array, ArrayRef, FixedSizeBinaryArray, GenericByteArray, ListArray, PrimitiveArray, StructArray};
use arrow_schema::DataType;

use super::Wrong;

/// Columns of a record batch or of a struct, by name.
#[derive(Clone, Copy)]
pub(super) struct Fields<'a> {
    pub(super) names: &'a arrow_schema::Fields,
    pub(super) arrays: &'a [ArrayRef],
}

impl<'a> Fields<'a> {
    fn array(&self, name: &str) -> Result<&'a ArrayRef, Wrong> {
        let found = self.names.iter().position(|field| field.name() == name);
        found.and_then(|index| self.arrays.get(index)).ok_or_else(|| format!("column {name} is missing"))
    }

    pub(super) fn typed<T: 'static>(&self, name: &str) -> Result<&'a T, Wrong> {
        let array = self.array(name)?;
        array.as_any().downcast_ref().ok_or_else(|| format!("column {name} is of type {}", array.data_type()))
    }

    pub(super) fn primitive<T: ArrowPrimitiveType>(&self, name: &str) -> Result<&'a PrimitiveArray<T>, Wrong> {
        self.typed(name)
    }

    pub(super) fn ids(&self, name: &str, length: i32) -> Result<&'a FixedSizeBinaryArray, Wrong> {
        let array: &FixedSizeBinaryArray = self.typed(name)?;
        if array.value_length() == length { Ok(array) } else { Err(format!("column {name} has other lengths")) }
    }

    pub(super) fn values<T: ByteArrayType<Offset = i32>>(&self, name: &str) -> Result<Values<'a, T>, Wrong> {
        let array = self.array(name)?;
        let plain = |array: &'a ArrayRef| array.as_any().downcast_ref::<GenericByteArray<T>>();
        let found = match array.data_type() {
            DataType::Dictionary(..) => array.as_dictionary_opt::<Int32Type>().and_then(|dictionary| {
                Some(Values { keys: Some(dictionary.keys()), values: plain(dictionary.values())? })
            }),
            _ => plain(array).map(|values| Values { keys: None, values }),
        };
        found.ok_or_else(|| format!("column {name} is of type {}", array.data_type()))
    }

    pub(super) fn lists<T>(&self, name: &str, elements: fn(Self) -> Result<T, Wrong>) -> Result<Lists<'a, T>, Wrong> {
        let lists: &ListArray = self.typed(name)?;
        let Some(structs) = lists.values().as_any().downcast_ref::<StructArray>() else {
            return Err(format!("column {name} is of type {}", lists.data_type()));
        };
        let elements = elements(Fields { names: structs.fields(), arrays: structs.columns() })?;
        Ok(Lists { rows: lists, length: structs.len(), elements })
    }
}

/// Texts or bytes, in a dictionary or not.
pub(super) struct Values<'a, T: ByteArrayType> {
    keys: Option<&'a PrimitiveArray<Int32Type>>,
    values: &'a GenericByteArray<T>,
}

impl<'a, T: ByteArrayType> Values<'a, T> {
    pub(super) fn get(&self, row: usize) -> Result<Option<&'a T::Native>, Wrong> {
        let index = match self.keys {
            None => row,
            Some(keys) if keys.is_null(row) => return Ok(None),
            Some(keys) => keys.value(row) as usize,
        };
        if index >= self.values.len() {
            return Err("a value is not in its dictionary".to_owned());
        }
        Ok(self.values.is_valid(index).then(|| self.values.value(index)))
    }
}

/// A list in each row.
pub(super) struct Lists<'a, T> {
    rows: &'a ListArray,
    /// Elements of all lists together.
    length: usize,
    pub(super) elements: T,
}

impl<T> Lists<'_, T> {
    /// Where the elements of a row are.
    pub(super) fn of(&self, row: usize) -> Result<std::ops::Range<usize>, Wrong> {
        let offset =
            |index: usize| self.rows.value_offsets().get(index).and_then(|offset| usize::try_from(*offset).ok());
        match (offset(row), offset(row + 1)) {
            (Some(start), Some(end)) if start <= end && end <= self.length => Ok(start..end),
            _ => Err("a list has no end".to_owned()),
        }
    }
}

pub(super) fn optional<T: ArrowPrimitiveType>(values: &PrimitiveArray<T>, row: usize) -> Option<T::Native> {
    values.is_valid(row).then(|| values.value(row))
}
