//! Columns of a Parquet file: values become pages, compressed as soon as they are full. The file around them is written by
//! the Parquet library.

mod bounds;
mod chunk;
mod column;
mod dictionary;
mod runs;
mod slots;
#[cfg(test)]
mod tests;
mod values;

pub(super) use chunk::{Compressor, Options};
pub(super) use column::{Column, Leaf};
pub(super) use dictionary::Dictionary;
pub(super) use values::{Bools, Ids, Numbers, Plain, Split, Texts, Values};
