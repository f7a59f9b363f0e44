//! `Content-Encoding`: taking a body apart without letting a small one fill the memory, and packing requests for the log.

use std::cell::RefCell;
use std::io::{self, Read};

use bytes::Bytes;
use flate2::read::MultiGzDecoder;
use zstd::bulk::Compressor;
use zstd::zstd_safe::{CParameter, compress_bound};

use super::ExportError;

/// How a body is compressed.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum ContentEncoding {
    Identity,
    Gzip,
    Zstd,
}

impl ContentEncoding {
    /// The one that the header names; `None` for one that is not supported.
    pub(super) fn parse(header: Option<&[u8]>) -> Option<Self> {
        let name = header.unwrap_or_default().trim_ascii().to_ascii_lowercase();
        match name.as_slice() {
            b"" | b"identity" => Some(Self::Identity),
            b"gzip" | b"x-gzip" => Some(Self::Gzip),
            b"zstd" => Some(Self::Zstd),
            _ => None,
        }
    }
}

/// Why a body cannot be decompressed.
#[derive(Debug, thiserror::Error)]
pub(super) enum DecompressError {
    /// It is not in the format that the header names.
    #[error("body cannot be decompressed: {0}")]
    Malformed(#[source] io::Error),
    /// There is no room for it now.
    #[error(transparent)]
    Refused(ExportError),
    /// It becomes too large.
    #[error("request larger than {limit} bytes when decompressed from {compressed} bytes")]
    TooLarge { compressed: usize, limit: usize },
}

/// Bytes that are decompressed between two looks at the limits.
const STEP: u64 = 256 << 10;

/// The body itself; never makes more than `limit` bytes, nor more than `grow` lets it, which is told its size before and
/// while it grows.
pub(super) fn decompress(
    body: Bytes,
    encoding: ContentEncoding,
    limit: usize,
    grow: &mut dyn FnMut(usize) -> Result<(), ExportError>,
) -> Result<Bytes, DecompressError> {
    let mut reader: Box<dyn Read + '_> = match encoding {
        ContentEncoding::Identity => return Ok(body),
        ContentEncoding::Gzip => Box::new(MultiGzDecoder::new(body.as_ref())),
        ContentEncoding::Zstd => {
            Box::new(zstd::stream::read::Decoder::with_buffer(body.as_ref()).map_err(DecompressError::Malformed)?)
        }
    };
    let mut raw = Vec::new();
    loop {
        let step = STEP.min((limit - raw.len()) as u64 + 1);
        grow(raw.len() + step as usize).map_err(DecompressError::Refused)?;
        let read = reader.by_ref().take(step).read_to_end(&mut raw).map_err(DecompressError::Malformed)?;
        if raw.len() > limit {
            return Err(DecompressError::TooLarge { compressed: body.len(), limit });
        }
        if (read as u64) < step {
            return Ok(raw.into());
        }
    }
}

/// Level -3 packs OTLP to about a fifth; level -1 makes it a fifteenth smaller, and takes more than half as much time again.
const LEVEL: i32 = -3;

/// What repeats in OTLP is long: to look for no less than 7 bytes, in a table of 2^14 places, takes a seventh less time than
/// what the level has (5 bytes, 2^13), and packs as small.
const SEARCH: [CParameter; 2] = [CParameter::MinMatch(7), CParameter::HashLog(14)];

/// A context is 1 MiB and more to set up, and what it writes to needs room for the worst: a thread keeps its own.
struct Packer {
    compressor: Compressor<'static>,
    packed: Vec<u8>,
}

thread_local! {
    static PACKER: RefCell<Option<Packer>> = const { RefCell::new(None) };
}

impl Packer {
    /// A larger request leaves no memory for the next one.
    const KEPT_BYTES: usize = 1 << 20;

    fn new() -> io::Result<Self> {
        let mut compressor = Compressor::new(LEVEL)?;
        SEARCH.into_iter().try_for_each(|parameter| compressor.set_parameter(parameter))?;
        Ok(Self { compressor, packed: Vec::new() })
    }

    fn pack(&mut self, raw: &[u8]) -> io::Result<Box<[u8]>> {
        self.packed.clear();
        self.packed.reserve(compress_bound(raw.len()));
        self.compressor.compress_to_buffer(raw, &mut self.packed)?;
        let packed = self.packed.as_slice().into();
        if self.packed.capacity() > Self::KEPT_BYTES {
            self.packed = Vec::new();
        }
        Ok(packed)
    }
}

/// Packs a request for the log; `None` if that does not make it smaller.
pub(super) fn pack(raw: &[u8]) -> Option<Box<[u8]>> {
    let packed = PACKER.with_borrow_mut(|packer| {
        if packer.is_none() {
            *packer = Packer::new().ok();
        }
        packer.as_mut()?.pack(raw).ok()
    });
    packed.filter(|packed| packed.len() < raw.len())
}

#[cfg(test)]
mod tests {
    use super::*;
    use flate2::Compression;
    use flate2::read::GzEncoder;
    use rstest::rstest;

    fn gzip(bytes: &[u8]) -> Vec<u8> {
        let mut packed = Vec::new();
        GzEncoder::new(bytes, Compression::default()).read_to_end(&mut packed).unwrap();
        packed
    }

    fn zstd(bytes: &[u8]) -> Vec<u8> {
        zstd::bulk::compress(bytes, 3).unwrap()
    }

    #[rstest]
    #[case::absent(None, Some(ContentEncoding::Identity))]
    #[case::identity(Some("identity"), Some(ContentEncoding::Identity))]
    #[case::gzip(Some(" GZIP"), Some(ContentEncoding::Gzip))]
    #[case::zstd(Some("zstd"), Some(ContentEncoding::Zstd))]
    #[case::brotli(Some("br"), None)]
    #[case::two(Some("gzip, gzip"), None)]
    fn names(#[case] header: Option<&str>, #[case] expected: Option<ContentEncoding>) {
        assert_eq!(ContentEncoding::parse(header.map(str::as_bytes)), expected);
    }

    #[rstest]
    #[case::gzip(ContentEncoding::Gzip, gzip)]
    #[case::zstd(ContentEncoding::Zstd, zstd)]
    fn a_bomb_stops_at_the_limit(#[case] encoding: ContentEncoding, #[case] compress: impl Fn(&[u8]) -> Vec<u8>) {
        let exact = decompress(compress(&[0; 1000]).into(), encoding, 1000, &mut |_| Ok(())).unwrap();
        assert_eq!(exact, vec![0; 1000]);
        let bomb = compress(&vec![0; 50 << 20]);
        assert!(bomb.len() < 100_000);
        let error = decompress(bomb.into(), encoding, 1000, &mut |_| Ok(())).unwrap_err();
        assert!(matches!(error, DecompressError::TooLarge { limit: 1000, .. }), "{error}");
    }

    #[rstest]
    #[case::gzip(ContentEncoding::Gzip, gzip)]
    #[case::zstd(ContentEncoding::Zstd, zstd)]
    fn every_prefix_is_refused(#[case] encoding: ContentEncoding, #[case] compress: impl Fn(&[u8]) -> Vec<u8>) {
        let packed = compress(b"some bytes, some bytes, some more bytes");
        for len in 0..packed.len() {
            let prefix = Bytes::copy_from_slice(&packed[..len]);
            let outcome = decompress(prefix, encoding, 1000, &mut |_| Ok(()));
            // Nothing at all is an empty zstd stream.
            assert!(outcome.is_err() || len == 0, "{len} bytes");
        }
    }

    #[test]
    fn it_stops_where_there_is_no_room() {
        let body = gzip(&vec![0; 5 << 20]);
        let mut told = 0;
        let mut grow = |bytes| {
            told = bytes;
            if bytes > 1 << 20 { Err(ExportError::Internal) } else { Ok(()) }
        };
        let error = decompress(body.into(), ContentEncoding::Gzip, 10 << 20, &mut grow).unwrap_err();
        assert!(matches!(error, DecompressError::Refused(_)), "{error}");
        assert_eq!(told, (1 << 20) + STEP as usize);
    }

    #[test]
    fn packing_only_when_it_helps() {
        let request = b"a request, a request, a request, a request, a request";
        let packed = pack(request).unwrap();
        assert_eq!(zstd::bulk::decompress(&packed, request.len()).unwrap(), request);
        assert_eq!(pack(b"x"), None);
    }

    #[test]
    fn a_large_request_leaves_no_memory_behind() {
        let large: Vec<u8> = (0..3_000_000_u32).flat_map(|number| (number / 9).to_le_bytes()).collect();
        for request in [&large[..], &large[..40_000], &large[..2_000_000]] {
            let packed = pack(request).unwrap();
            assert_eq!(zstd::bulk::decompress(&packed, request.len()).unwrap(), request);
            let kept = PACKER.with_borrow(|packer| packer.as_ref().unwrap().packed.capacity());
            assert!(kept <= Packer::KEPT_BYTES, "{kept} bytes");
        }
    }
}
