//! Smallest and largest values.

use parquet::data_type::FixedLenByteArray;
use parquet::file::statistics::{Statistics, ValueStatistics};

/// A value that is compared with others of its column.
#[derive(Clone, Debug, PartialEq, PartialOrd)]
pub(in crate::block) enum Bound {
    Int32(i32),
    Int64(i64),
    Unsigned64(u64),
    Double(f64),
    Id(Vec<u8>),
}

impl Bound {
    /// As Parquet has it.
    pub(super) fn bytes(&self) -> Vec<u8> {
        match self {
            Self::Int32(value) => value.to_le_bytes().to_vec(),
            Self::Int64(value) => value.to_le_bytes().to_vec(),
            Self::Unsigned64(value) => value.to_le_bytes().to_vec(),
            Self::Double(value) => value.to_le_bytes().to_vec(),
            Self::Id(value) => value.clone(),
        }
    }
}

/// Smallest and largest of some values; what is not a number is left out.
pub(super) fn least_and_most<T: Copy + PartialOrd>(values: impl Iterator<Item = T>) -> Option<(T, T)> {
    let mut values = values.filter(|value| value.partial_cmp(value).is_some());
    let first = values.next()?;
    Some(values.fold((first, first), |(least, most), value| {
        (if value < least { value } else { least }, if value > most { value } else { most })
    }))
}

/// Of the two zeros, those that bound both.
pub(super) fn around_zero((least, most): (Bound, Bound)) -> (Bound, Bound) {
    let or = |bound, zero| if bound == Bound::Double(0.0) { Bound::Double(zero) } else { bound };
    (or(least, -0.0), or(most, 0.0))
}

/// Statistics of a column chunk whose values lie between these.
pub(super) fn statistics(least: Bound, most: Bound, nulls: u64) -> Option<Statistics> {
    Some(match (least, most) {
        (Bound::Int32(least), Bound::Int32(most)) => of(least, most, nulls, true).into(),
        (Bound::Int64(least), Bound::Int64(most)) => of(least, most, nulls, true).into(),
        (Bound::Unsigned64(least), Bound::Unsigned64(most)) => of(least as i64, most as i64, nulls, false).into(),
        (Bound::Double(least), Bound::Double(most)) => of(least, most, nulls, true).into(),
        (Bound::Id(least), Bound::Id(most)) => {
            of(FixedLenByteArray::from(least), FixedLenByteArray::from(most), nulls, false).into()
        }
        _ => return None,
    })
}

/// Old readers may look at numbers with a sign only.
fn of<T>(least: T, most: T, nulls: u64, is_signed: bool) -> ValueStatistics<T> {
    ValueStatistics::new(Some(least), Some(most), None, Some(nulls), false).with_backwards_compatible_min_max(is_signed)
}
