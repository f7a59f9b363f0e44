//! Which trace ids a block has: a filter that errs on one id in 65,536 that the block has not, and on none that it has.
//!
//! A binary fuse filter with fingerprints of 16 bits, about 18 bits an id. It is built by `xorf` and read here, so that the
//! file stays what `docs/format/block.md` says, whatever version of the library writes it.

use std::ops::Range;

use bytes::Bytes;
use xorf::{BinaryFuse16, DmaSerializable};

use super::{BlockError, FORMAT_VERSION};
use crate::live::TraceId;

const MAGIC: &[u8; 8] = b"COATIFLT";

/// Bytes before the fingerprints.
const HEADER_BYTES: usize = 40;

/// Where the checksum stands in the header; what it covers is all but itself.
const CHECKSUM_AT: usize = 36;

/// Largest filter that is believed: 64 million ids.
const MAX_FINGERPRINTS: usize = 1 << 26;

/// Trace ids of a block.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Filter {
    /// Ids that it was built from.
    count: u64,
    shape: FilterShape,
    /// Little-endian, as in the file: a filter that was read is the buffer that it was read into.
    fingerprints: Bytes,
}

/// Where in its file a filter has what it knows of an id: enough to ask it without having it in memory.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct FilterShape {
    seed: u64,
    segment_length: u32,
    segment_count_length: u32,
}

impl FilterShape {
    /// The parts of the file that tell whether the filter has an id.
    pub fn parts(&self, id: &TraceId) -> [Range<u64>; 3] {
        self.places(self.hash(id)).map(|place| {
            let start = HEADER_BYTES as u64 + u64::from(place) * 2;
            start..start + 2
        })
    }

    /// What [`Filter::contains`] would say, by these parts of the file.
    pub fn contains(&self, id: &TraceId, parts: &[Bytes]) -> bool {
        let fingerprint = fingerprint(self.hash(id));
        let read = |part: &Bytes| part.as_ref().try_into().ok().map(u16::from_le_bytes);
        parts.iter().try_fold(fingerprint, |rest, part| Some(rest ^ read(part)?)).is_none_or(|rest| rest == 0)
    }

    fn hash(&self, id: &TraceId) -> u64 {
        mix(key(id).wrapping_add(self.seed))
    }

    fn places(&self, hash: u64) -> [u32; 3] {
        let mask = self.segment_length.wrapping_sub(1);
        let first = ((u128::from(hash) * u128::from(self.segment_count_length)) >> 64) as u32;
        let second = first.wrapping_add(self.segment_length);
        let third = second.wrapping_add(self.segment_length);
        [first, second ^ ((hash >> 18) as u32 & mask), third ^ (hash as u32 & mask)]
    }
}

fn fingerprint(hash: u64) -> u16 {
    (hash ^ (hash >> 32)) as u16
}

impl Filter {
    /// The filter of these ids. An id may come more than once.
    pub fn of(ids: impl Iterator<Item = TraceId>) -> Self {
        let mut keys: Vec<u64> = ids.map(|id| key(&id)).collect();
        keys.sort_unstable();
        keys.dedup();
        let mut descriptor = [0; BinaryFuse16::DESCRIPTOR_LEN];
        // Building fails only if keys come twice; a filter without fingerprints says yes to everything.
        let Ok(built) = BinaryFuse16::try_from(keys.as_slice()) else { return Self::anything(keys.len()) };
        built.dma_copy_descriptor_to(&mut descriptor);
        let mut fields = Fields(&descriptor);
        let (Some(seed), Some(segment_length), Some(_mask), Some(segment_count_length)) =
            (fields.u64(), fields.u32(), fields.u32(), fields.u32())
        else {
            return Self::anything(keys.len());
        };
        // The library hands its fingerprints over as they lie in memory.
        let fingerprints = built.dma_fingerprints().as_chunks().0.iter().map(|pair| u16::from_ne_bytes(*pair));
        let fingerprints: Vec<u8> = fingerprints.flat_map(u16::to_le_bytes).collect();
        let fingerprints = fingerprints.into();
        let shape = FilterShape { seed, segment_length, segment_count_length };
        Self { count: keys.len() as u64, shape, fingerprints }
    }

    /// False if the block has no trace of this id; true if it has one, and by mistake for one other id in 65,536.
    pub fn contains(&self, id: &TraceId) -> bool {
        let hash = self.shape.hash(id);
        let fingerprint_at = |place: u32| {
            let (fingerprints, _) = self.fingerprints.as_chunks();
            fingerprints.get(place as usize).map(|pair| u16::from_le_bytes(*pair))
        };
        let mut places = self.shape.places(hash).into_iter();
        let found = places.try_fold(fingerprint(hash), |rest, place| Some(rest ^ fingerprint_at(place)?));
        found.is_none_or(|rest| rest == 0)
    }

    /// By which it can be asked in its file, where [`Self::encode`] was written.
    pub fn shape(&self) -> FilterShape {
        self.shape
    }

    /// Ids that it was built from.
    pub fn count(&self) -> u64 {
        self.count
    }

    /// Bytes that it takes in memory, and nearly so in its file.
    pub fn bytes(&self) -> usize {
        size_of::<Self>() + self.fingerprints.len()
    }

    /// The file; see `docs/format/block.md`.
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(HEADER_BYTES + self.fingerprints.len());
        bytes.extend_from_slice(MAGIC);
        bytes.extend_from_slice(&FORMAT_VERSION.to_le_bytes());
        bytes.extend_from_slice(&self.count.to_le_bytes());
        bytes.extend_from_slice(&self.shape.seed.to_le_bytes());
        bytes.extend_from_slice(&self.shape.segment_length.to_le_bytes());
        bytes.extend_from_slice(&self.shape.segment_count_length.to_le_bytes());
        let header = bytes.len();
        bytes.extend_from_slice(&[0; 4]);
        bytes.extend_from_slice(&self.fingerprints);
        let checksum = checksum(&bytes);
        if let Some(field) = bytes.get_mut(header..header + 4) {
            field.copy_from_slice(&checksum.to_le_bytes());
        }
        bytes
    }

    /// Reads the file; `path` names it in errors.
    pub fn decode(path: &str, bytes: &Bytes) -> Result<Self, BlockError> {
        let damaged = |what: &str| BlockError::damaged(path, what);
        let mut fields = Fields(bytes);
        let magic: Option<[u8; 8]> = fields.take();
        if magic.as_ref() != Some(MAGIC) {
            return Err(damaged("it does not begin as a filter does"));
        }
        let too_short = || damaged("it is shorter than its header");
        let version = fields.u32().ok_or_else(too_short)?;
        if version != FORMAT_VERSION {
            return Err(BlockError::Version { path: path.to_owned(), found: version.to_string() });
        }
        let count = fields.u64().ok_or_else(too_short)?;
        let seed = fields.u64().ok_or_else(too_short)?;
        let segment_length = fields.u32().ok_or_else(too_short)?;
        let segment_count_length = fields.u32().ok_or_else(too_short)?;
        let expected = fields.u32().ok_or_else(too_short)?;
        if checksum(bytes) != expected {
            return Err(damaged("its checksum is another"));
        }
        let (fingerprints, rest) = fields.0.as_chunks::<2>();
        let length = u64::from(segment_count_length) + 2 * u64::from(segment_length);
        if !rest.is_empty() || fingerprints.len() as u64 != length || fingerprints.len() > MAX_FINGERPRINTS {
            return Err(damaged("its length is not what its header says"));
        }
        let fingerprints = bytes.slice(HEADER_BYTES..);
        Ok(Self { count, shape: FilterShape { seed, segment_length, segment_count_length }, fingerprints })
    }

    fn anything(count: usize) -> Self {
        let shape = FilterShape { seed: 0, segment_length: 0, segment_count_length: 0 };
        Self { count: count as u64, shape, fingerprints: Bytes::new() }
    }
}

/// The 64 bits that stand for an id: the first half mixed, plus the second.
fn key(id: &TraceId) -> u64 {
    let mut fields = Fields(&id.0);
    mix(fields.u64().unwrap_or_default()).wrapping_add(fields.u64().unwrap_or_default())
}

/// The last step of `MurmurHash3`.
const fn mix(mut bits: u64) -> u64 {
    bits = (bits ^ (bits >> 33)).wrapping_mul(0xff51_afd7_ed55_8ccd);
    bits = (bits ^ (bits >> 33)).wrapping_mul(0xc4ce_b9fe_1a85_ec53);
    bits ^ (bits >> 33)
}

/// Everything but the checksum itself.
fn checksum(bytes: &[u8]) -> u32 {
    let header = bytes.get(..CHECKSUM_AT).unwrap_or_default();
    let rest = bytes.get(CHECKSUM_AT + 4..).unwrap_or_default();
    crc32c::crc32c_append(crc32c::crc32c(header), rest)
}

/// Little-endian numbers that are read from the front.
struct Fields<'a>(&'a [u8]);

impl Fields<'_> {
    fn take<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (field, rest) = self.0.split_first_chunk()?;
        self.0 = rest;
        Some(*field)
    }

    fn u32(&mut self) -> Option<u32> {
        self.take().map(u32::from_le_bytes)
    }

    fn u64(&mut self) -> Option<u64> {
        self.take().map(u64::from_le_bytes)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn id(number: u128) -> TraceId {
        TraceId(number.wrapping_mul(0x9e37_79b9_7f4a_7c15_f39c_c060_5ced_c835).to_be_bytes())
    }

    #[test]
    fn what_is_not_there_is_rarely_found() {
        let filter = Filter::of((0..20_000).map(id));
        let encoded = filter.encode();
        assert!(encoded.len() < 20_000 * 5 / 2, "{} bytes", encoded.len());
        assert!((0..20_000).all(|number| filter.contains(&id(number))));
        let wrong = (20_000..220_000).filter(|number| filter.contains(&id(*number))).count();
        assert!(wrong < 20, "{wrong} of 200,000");
    }

    #[test]
    fn every_shorter_file_is_refused() {
        let encoded = Filter::of((0..100).map(id)).encode();
        assert!(Filter::decode("f", &encoded.clone().into()).is_ok());
        for length in 0..encoded.len() {
            let error = Filter::decode("f", &encoded[..length].to_vec().into()).unwrap_err().to_string();
            assert!(error.starts_with("f is damaged"), "{error}");
        }
    }

    #[test]
    fn another_version_is_refused() {
        let mut encoded = Filter::of((0..100).map(id)).encode();
        encoded[8] = 7;
        let error = Filter::decode("f", &encoded.into()).unwrap_err();
        insta::assert_snapshot!(error, @r#"f has block format "7", this program reads format 1"#);
    }

    proptest! {
        #[test]
        fn what_is_there_is_found(numbers in prop::collection::vec(any::<u128>(), 0..300)) {
            let ids = numbers.iter().map(|number| TraceId(number.to_be_bytes()));
            let filter = Filter::of(ids.clone());
            let decoded = Filter::decode("f", &filter.encode().into()).unwrap();
            prop_assert_eq!(&decoded, &filter);
            for id in ids {
                prop_assert!(decoded.contains(&id));
            }
        }

        #[test]
        fn the_file_says_the_same_as_the_filter(numbers in prop::collection::vec(0_u128..2_000, 1..300)) {
            let filter = Filter::of(numbers.iter().map(|number| id(*number)));
            let file = Bytes::from(filter.encode());
            let shape = filter.shape();
            for id in (0..2_000).map(id) {
                let parts = shape.parts(&id).map(|part| file.slice(part.start as usize..part.end as usize));
                prop_assert_eq!(shape.contains(&id, &parts), filter.contains(&id));
            }
        }

        #[test]
        fn a_changed_byte_is_noticed(at in 0_usize..400, change in 1_u8..) {
            let mut encoded = Filter::of((0..100).map(id)).encode();
            let at = at % encoded.len();
            encoded[at] ^= change;
            prop_assert!(Filter::decode("f", &encoded.into()).is_err());
        }

        #[test]
        fn other_bytes_are_refused(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            prop_assert!(Filter::decode("f", &bytes.into()).is_err());
        }
    }
}
