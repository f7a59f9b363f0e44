//! What columns write is what the Parquet library reads, and says of it.

use std::sync::Arc;

use arrow_array::builder::{Int64Builder, ListBuilder};
use arrow_array::types::{Float64Type, Int32Type, Int64Type, UInt32Type, UInt64Type};
use arrow_array::{
    Array, ArrayRef, ArrowPrimitiveType, BinaryArray, BooleanArray, FixedSizeBinaryArray, PrimitiveArray, RecordBatch,
};
use arrow_schema::{DataType, Field, Schema};
use bytes::Bytes;
use parquet::arrow::arrow_reader::{ArrowReaderOptions, ParquetRecordBatchReaderBuilder, RowSelection};
use parquet::arrow::{ArrowSchemaConverter, ArrowWriter};
use parquet::basic::Encoding;
use parquet::file::metadata::{PageIndexPolicy, ParquetMetaData};
use parquet::file::page_index::column_index::ColumnIndexMetaData;
use parquet::file::properties::{EnabledStatistics, WriterProperties};
use parquet::file::writer::SerializedFileWriter;
use proptest::collection::vec;
use proptest::option;
use proptest::prelude::*;

use super::values::Fixed;
use super::*;

/// Rows of a page and of a row group.
#[derive(Clone, Copy, Debug)]
struct Limits {
    page: usize,
    group: usize,
}

fn any_limits() -> impl Strategy<Value = Limits> {
    (1_usize..40, 1_usize..90).prop_map(|(page, group)| Limits { page, group })
}

/// A file of one column, filled by `push` with so many rows; that gets the row of the row group, and of the file.
fn written<V: Values + Default>(
    field: &Field,
    rows: usize,
    limits: Limits,
    mut push: impl FnMut(&mut Column<V>, usize, usize),
) -> Bytes {
    let schema = ArrowSchemaConverter::new().convert(&Schema::new(vec![field.clone()])).unwrap();
    let options = Options { is_compressed: rows.is_multiple_of(2), has_statistics: true };
    let mut column = Column::<V>::new(schema.column(0), options);
    let mut compressor = Compressor::new().unwrap();
    let mut file = SerializedFileWriter::new(Vec::new(), schema.root_schema_ptr(), Arc::default()).unwrap();
    for row in 0..rows {
        push(&mut column, row % limits.group, row);
        let done = row % limits.group + 1;
        if done.is_multiple_of(limits.page) || column.is_full() {
            column.end_page(done, &mut compressor).unwrap();
        }
        if done == limits.group || row + 1 == rows {
            let (bytes, closed) = column.end_chunk(done, &mut compressor).unwrap();
            let mut group = file.next_row_group().unwrap();
            group.append_column(&bytes, closed).unwrap();
            group.close().unwrap();
        }
    }
    file.into_inner().unwrap().into()
}

fn reader(bytes: &Bytes) -> ParquetRecordBatchReaderBuilder<Bytes> {
    let options = ArrowReaderOptions::new().with_page_index_policy(PageIndexPolicy::Required);
    ParquetRecordBatchReaderBuilder::try_new_with_options(bytes.clone(), options).unwrap()
}

fn metadata(bytes: &Bytes) -> Arc<ParquetMetaData> {
    Arc::clone(reader(bytes).metadata())
}

fn read(builder: ParquetRecordBatchReaderBuilder<Bytes>) -> Option<ArrayRef> {
    let batches: Vec<_> = builder.with_batch_size(1_000).build().unwrap().map(Result::unwrap).collect();
    let arrays: Vec<_> = batches.iter().map(|batch| batch.column(0).as_ref()).collect();
    (!arrays.is_empty()).then(|| arrow_select::concat::concat(&arrays).unwrap())
}

/// Read as a whole, and the last third of every ten rows by the page index.
fn assert_read(bytes: &Bytes, expected: &ArrayRef) {
    let rows = expected.len();
    assert_eq!(&read(reader(bytes)).unwrap(), expected);
    let ranges: Vec<_> =
        (0..rows.div_ceil(10)).map(|ten| (ten * 10 + 7).min(rows)..(ten * 10 + 10).min(rows)).collect();
    let parts: Vec<_> = ranges.iter().map(|range| expected.slice(range.start, range.len())).collect();
    let parts: Vec<_> = parts.iter().map(AsRef::as_ref).collect();
    let selected = arrow_select::concat::concat(&parts).unwrap();
    let selection = RowSelection::from_consecutive_ranges(ranges.into_iter().filter(|range| !range.is_empty()), rows);
    match read(reader(bytes).with_row_selection(selection)) {
        Some(found) => assert_eq!(&found, &selected),
        None => assert_eq!(selected.len(), 0),
    }
}

/// What the library's own writer says of the same values, in pages and row groups as long.
fn assert_same_bounds(bytes: &Bytes, field: &Field, array: &ArrayRef, limits: Limits) {
    let schema = Arc::new(Schema::new(vec![field.clone()]));
    let properties = WriterProperties::builder()
        .set_statistics_enabled(EnabledStatistics::Page)
        .set_data_page_row_count_limit(limits.page)
        .set_write_batch_size(limits.page)
        .set_max_row_group_row_count(Some(limits.group))
        .build();
    let mut writer = ArrowWriter::try_new(Vec::new(), Arc::clone(&schema), Some(properties)).unwrap();
    // A page at a time: the library ends pages after calls only.
    for group in (0..array.len()).step_by(limits.group) {
        let end = array.len().min(group + limits.group);
        for page in (group..end).step_by(limits.page) {
            let part = array.slice(page, limits.page.min(end - page));
            writer.write(&RecordBatch::try_new(Arc::clone(&schema), vec![part]).unwrap()).unwrap();
        }
    }
    let expected = metadata(&writer.into_inner().unwrap().into());
    let found = metadata(bytes);
    assert_eq!(found.num_row_groups(), expected.num_row_groups());
    for group in 0..found.num_row_groups() {
        let statistics = |of: &ParquetMetaData| {
            let statistics = of.row_group(group).column(0).statistics()?;
            let bounds = (statistics.min_bytes_opt()?.to_vec(), statistics.max_bytes_opt()?.to_vec());
            Some((bounds, statistics.null_count_opt(), statistics.is_min_max_backwards_compatible()))
        };
        assert_eq!(statistics(&found), statistics(&expected));
        let pages = |of: &ParquetMetaData| page_bounds(&of.column_index().unwrap()[group][0]);
        assert_eq!(pages(&found), pages(&expected));
        let rows = |of: &ParquetMetaData| {
            let pages = of.offset_index().unwrap()[group][0].page_locations().clone();
            pages.iter().map(|page| page.first_row_index).collect::<Vec<_>>()
        };
        assert_eq!(rows(&found), rows(&expected));
        let encodings = |of: &ParquetMetaData| of.row_group(group).column(0).encodings().any(|e| e == Encoding::RLE);
        assert_eq!(encodings(&found), encodings(&expected));
    }
}

/// Of each page whether it is empty, nulls, smallest and largest value.
fn page_bounds(index: &ColumnIndexMetaData) -> Option<String> {
    let order = index.get_boundary_order();
    macro_rules! bounds {
        ($index:expr) => {{
            let index = $index;
            let page = |page| (index.min_value(page), index.max_value(page), index.null_count(page));
            let pages: Vec<_> = (0..index.num_pages() as usize).map(page).collect();
            Some(format!("{pages:?} {order:?}"))
        }};
    }
    match index {
        ColumnIndexMetaData::INT32(index) => bounds!(index),
        ColumnIndexMetaData::INT64(index) => bounds!(index),
        ColumnIndexMetaData::DOUBLE(index) => bounds!(index),
        ColumnIndexMetaData::FIXED_LEN_BYTE_ARRAY(index) => bounds!(index),
        _ => None,
    }
}

fn field(of: DataType, is_nullable: bool) -> Field {
    Field::new("column", of, is_nullable)
}

/// Optional numbers in these values.
fn assert_optional<A, V>(numbers: &[Option<A::Native>], limits: Limits)
where
    A: ArrowPrimitiveType,
    V: for<'a> Values<Item<'a> = A::Native> + Default,
{
    let field = field(A::DATA_TYPE, true);
    let bytes = written::<V>(&field, numbers.len(), limits, |column, row, at| {
        if let Some(number) = numbers[at] {
            column.set(row, number);
        }
    });
    let expected: ArrayRef = Arc::new(numbers.iter().copied().collect::<PrimitiveArray<A>>());
    assert_read(&bytes, &expected);
    assert_same_bounds(&bytes, &field, &expected, limits);
}

fn assert_required<A, V>(numbers: &[A::Native], limits: Limits)
where
    A: ArrowPrimitiveType,
    V: for<'a> Values<Item<'a> = A::Native> + Default,
{
    let field = field(A::DATA_TYPE, false);
    let bytes = written::<V>(&field, numbers.len(), limits, |column, _, at| column.push(numbers[at]));
    let expected: ArrayRef = Arc::new(PrimitiveArray::<A>::from_iter_values(numbers.iter().copied()));
    assert_read(&bytes, &expected);
    assert_same_bounds(&bytes, &field, &expected, limits);
}

/// In every encoding that they can have.
fn assert_numbers<A>(numbers: &[Option<A::Native>], limits: Limits)
where
    A: ArrowPrimitiveType,
    A::Native: Fixed,
{
    assert_optional::<A, Dictionary<Numbers<A::Native>>>(numbers, limits);
    assert_optional::<A, Split<A::Native>>(numbers, limits);
    assert_optional::<A, Plain<A::Native>>(numbers, limits);
    let present: Vec<_> = numbers.iter().copied().flatten().collect();
    if !present.is_empty() {
        assert_required::<A, Dictionary<Numbers<A::Native>>>(&present, limits);
        assert_required::<A, Split<A::Native>>(&present, limits);
        assert_required::<A, Plain<A::Native>>(&present, limits);
    }
}

fn assert_bytes(values: &[Option<Vec<u8>>], limits: Limits) -> Bytes {
    let field = field(DataType::Binary, true);
    let bytes = written::<Dictionary<Texts>>(&field, values.len(), limits, |column, row, at| {
        if let Some(value) = &values[at] {
            column.set(row, value);
        }
    });
    let expected: ArrayRef = Arc::new(values.iter().map(Option::as_ref).collect::<BinaryArray>());
    assert_read(&bytes, &expected);
    // As a dictionary, which is how blocks are read.
    let of = DataType::Dictionary(Box::new(DataType::Int32), Box::new(DataType::Binary));
    let schema = Arc::new(Schema::new(vec![Field::new("column", of, true)]));
    let options = ArrowReaderOptions::new().with_schema(schema);
    let builder = ParquetRecordBatchReaderBuilder::try_new_with_options(bytes.clone(), options).unwrap();
    let mut at = 0;
    for batch in builder.with_batch_size(1_000).build().unwrap() {
        let batch = batch.unwrap();
        let array = batch.column(0).as_any().downcast_ref::<arrow_array::DictionaryArray<Int32Type>>().unwrap();
        let array = array.downcast_dict::<BinaryArray>().unwrap();
        for found in array {
            assert_eq!(found, values[at].as_deref());
            at += 1;
        }
    }
    assert_eq!(at, values.len());
    bytes
}

/// Numbers that repeat, or do not.
fn any_rows<T>(few: Vec<T>, any: impl Strategy<Value = T> + 'static) -> BoxedStrategy<Vec<Option<T>>>
where
    T: std::fmt::Debug + Clone + 'static,
{
    let any = any.boxed();
    let few = prop::sample::select(few).boxed();
    let value = prop_oneof![Just(few.clone()), Just(prop_oneof![9 => few, 1 => any.clone()].boxed()), Just(any)];
    // Runs of the same, as columns of blocks have them.
    let run = move |value: BoxedStrategy<T>| {
        (option::weighted(0.7, value), prop_oneof![3 => Just(1_usize), 1 => 1_usize..60])
    };
    value
        .prop_flat_map(move |value| vec(run(value), 1..60))
        .prop_map(|runs| runs.into_iter().flat_map(|(value, times)| std::iter::repeat_n(value, times)).collect())
        .boxed()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(if cfg!(debug_assertions) { 64 } else { 1_000 }))]

    #[test]
    fn signed_numbers_are_read(rows in any_rows(vec![0, 1, -1], any::<i32>()), limits in any_limits()) {
        assert_numbers::<Int32Type>(&rows, limits);
    }

    #[test]
    fn long_numbers_are_read(rows in any_rows(vec![0, 200, i64::MIN, i64::MAX], any::<i64>()), limits in any_limits()) {
        assert_numbers::<Int64Type>(&rows, limits);
    }

    #[test]
    fn long_unsigned_numbers_are_read(rows in any_rows(vec![0, 7, u64::MAX], any::<u64>()), limits in any_limits()) {
        assert_numbers::<UInt64Type>(&rows, limits);
    }

    #[test]
    fn unsigned_numbers_are_read(rows in any_rows(vec![0, 7, u32::MAX], any::<u32>()), limits in any_limits()) {
        let field = field(DataType::UInt32, true);
        let bytes = written::<Dictionary<Numbers<u32>>>(&field, rows.len(), limits, |column, row, at| {
            if let Some(number) = rows[at] {
                column.set(row, number);
            }
        });
        assert_read(&bytes, &(Arc::new(PrimitiveArray::<UInt32Type>::from(rows)) as ArrayRef));
    }

    #[test]
    fn doubles_are_read(
        rows in any_rows(vec![0.0, -0.0, 1.5, f64::NAN], any::<u64>().prop_map(f64::from_bits)),
        limits in any_limits(),
    ) {
        assert_optional::<Float64Type, Split<f64>>(&rows, limits);
        let present: Vec<_> = rows.into_iter().flatten().collect();
        if !present.is_empty() {
            assert_required::<Float64Type, Split<f64>>(&present, limits);
        }
    }

    #[test]
    fn truths_are_read(rows in any_rows(vec![false, true], any::<bool>()), limits in any_limits()) {
        let bytes = written::<Bools>(&field(DataType::Boolean, true), rows.len(), limits, |column, row, at| {
            if let Some(truth) = rows[at] {
                column.set(row, truth);
            }
        });
        assert_read(&bytes, &(Arc::new(BooleanArray::from(rows)) as ArrayRef));
    }

    #[test]
    fn texts_are_read(
        rows in any_rows(vec![vec![], b"GET".to_vec(), vec![7; 300]], vec(any::<u8>(), 0..40)),
        limits in any_limits(),
    ) {
        assert_bytes(&rows, limits);
    }

    #[test]
    fn ids_are_read(rows in vec(any::<[u8; 16]>(), 1..200), limits in any_limits()) {
        let field = field(DataType::FixedSizeBinary(16), false);
        let bytes = written::<Ids<16>>(&field, rows.len(), limits, |column, _, at| column.push(rows[at]));
        let expected: ArrayRef = Arc::new(FixedSizeBinaryArray::try_from_iter(rows.iter()).unwrap());
        assert_read(&bytes, &expected);
        assert_same_bounds(&bytes, &field, &expected, limits);
    }

    #[test]
    fn lists_of_lists_are_read(
        rows in vec(prop_oneof![2 => Just(vec![]), 1 => vec(vec(option::of(0_i64..50), 0..5), 1..5)], 1..150),
        limits in any_limits(),
    ) {
        let list = |of: DataType, is_nullable| DataType::List(Arc::new(Field::new("element", of, is_nullable)));
        let inner = Arc::new(Field::new("element", DataType::Int64, true));
        let field = field(list(list(DataType::Int64, true), false), false);
        let bytes = written::<Dictionary<Numbers<i64>>>(&field, rows.len(), limits, |column, row, at| {
            for (outer, numbers) in rows[at].iter().enumerate() {
                let begin = u32::from(outer > 0);
                if numbers.is_empty() {
                    column.element(row, begin, 1, None);
                }
                for (place, number) in numbers.iter().enumerate() {
                    let repetition = if place > 0 { 2 } else { begin };
                    column.element(row, repetition, 2 + u32::from(number.is_some()), *number);
                }
            }
        });
        let builder = ListBuilder::new(Int64Builder::new()).with_field(Arc::clone(&inner));
        let mut expected =
            ListBuilder::new(builder).with_field(Field::new("element", DataType::List(inner), false));
        for row in &rows {
            for numbers in row {
                expected.values().append_value(numbers.iter().copied());
            }
            expected.append(true);
        }
        assert_read(&bytes, &(Arc::new(expected.finish()) as ArrayRef));
    }
}

const BLOCK: Limits = Limits { page: 8_192, group: 131_072 };

/// Whether the only column chunk has a dictionary, the encodings of its data pages, and how many there are.
fn pages(bytes: &Bytes) -> (bool, Vec<Encoding>, usize) {
    let metadata = metadata(bytes);
    let chunk = metadata.row_group(0).column(0);
    let encodings = chunk.page_encoding_stats_mask().unwrap().encodings().collect();
    let pages = metadata.offset_index().unwrap()[0][0].page_locations().len();
    (chunk.dictionary_page_offset().is_some(), encodings, pages)
}

#[test]
fn texts_that_repeat_have_a_dictionary() {
    let rows: Vec<_> = (0..20_000_u32).map(|row| Some((row % 6_000).to_be_bytes().to_vec())).collect();
    assert_eq!(pages(&assert_bytes(&rows, BLOCK)), (true, vec![Encoding::RLE_DICTIONARY], 3));
}

#[test]
fn texts_that_differ_have_none() {
    let rows: Vec<_> = (0..20_000_u32).map(|row| Some(row.to_be_bytes().to_vec())).collect();
    assert_eq!(pages(&assert_bytes(&rows, BLOCK)), (false, vec![Encoding::PLAIN], 3));
}

#[test]
fn a_dictionary_that_is_too_large_is_given_up() {
    // Each twice, so that the first page has one; 512 KiB are full after about 5,000 of them.
    let rows: Vec<_> = (0..30_000_u32).map(|row| Some([&(row / 2).to_be_bytes()[..], &[7; 100]].concat())).collect();
    let (has_dictionary, encodings, pages) = pages(&assert_bytes(&rows, BLOCK));
    assert!(has_dictionary && pages > 4, "{pages}");
    assert_eq!(encodings, [Encoding::PLAIN, Encoding::RLE_DICTIONARY]);
}

#[test]
fn long_texts_end_pages_early() {
    let rows: Vec<_> = (0..100_u8).map(|row| Some([vec![row; 70_000], vec![7; 30_000]].concat())).collect();
    let bytes = assert_bytes(&rows, BLOCK);
    let metadata = metadata(&bytes);
    let pages = metadata.offset_index().unwrap()[0][0].page_locations().len();
    assert!((9..=20).contains(&pages), "{pages}");
}

#[test]
fn nothing_at_all_has_an_empty_dictionary() {
    let rows = vec![None; 20_000];
    let bytes = assert_bytes(&rows, BLOCK);
    assert_eq!(pages(&bytes), (true, vec![Encoding::RLE_DICTIONARY], 3));
    let metadata = metadata(&bytes);
    assert!(metadata.row_group(0).column(0).compressed_size() < 250);
}
