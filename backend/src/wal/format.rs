//! Bytes of a segment: a header, then frames. `docs/format/wal.md` is the same in words.
//!
//! All numbers are little-endian. The header, written twice so that one damaged byte costs nothing:
//!
//! ```text
//!  0  magic           "COATIWAL"
//!  8  version         u16
//! 10  reserved        u16, 0
//! 12  salt            u32, random: checksums of this segment begin with it
//! 16  first sequence  u64
//! 24  created         u64, nanoseconds since the epoch
//! 32  checksum        u32, crc32c of the 32 bytes before
//! ```
//!
//! A frame:
//!
//! ```text
//!  0  marker          c0 a7 f8 1e: where to look for the next frame after damage
//!  4  length          u32, bytes of tenant and payload together
//!  8  checksum        u32, crc32c from the salt over bytes 4..8 and 12..end
//! 12  flags           u8, bit 0: the payload is compressed with zstd
//! 13  tenant length   u8
//! 14  reserved        u16, 0
//! 16  sequence        u64
//! 24  received        u64, nanoseconds since the epoch
//! 32  raw length      u32, bytes of the payload before compression
//! 36  tenant          UTF-8
//!     payload         an ExportTraceServiceRequest
//! ```

use std::sync::Arc;

use zstd::bulk::Decompressor;

use super::WalError;

/// The format that this program writes, and the only one that it reads.
pub const FORMAT_VERSION: u16 = 1;

/// Bytes of both copies of the header.
pub(super) const HEADER_BYTES: usize = 2 * HEADER_COPY_BYTES;

/// The first bytes of every frame.
pub(super) const MARKER: [u8; 4] = [0xc0, 0xa7, 0xf8, 0x1e];

/// Bytes of a frame besides tenant and payload.
pub(super) const FRAME_OVERHEAD: usize = 36;

/// Longest tenant name, bytes.
pub(super) const TENANT_BYTES: usize = u8::MAX as usize;

const HEADER_COPY_BYTES: usize = 36;
const MAGIC: &[u8; 8] = b"COATIWAL";
const FLAG_ZSTD: u8 = 1;

/// Largest payload before compression that is believed; checksums make a larger one a mistake of ours.
const RAW_BYTES: usize = 1 << 30;

/// What the start of a segment says.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) struct Header {
    pub(super) salt: u32,
    pub(super) first_sequence: u64,
    pub(super) created_ns: u64,
}

/// Why there is no header.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum HeaderDamage {
    /// The file is shorter than a header.
    Incomplete,
    /// Neither copy is sound.
    Checksum,
    /// A sound copy of another version.
    Version(u16),
}

impl Header {
    pub(super) fn encode(&self) -> Vec<u8> {
        let mut copy = Vec::with_capacity(HEADER_BYTES);
        copy.extend_from_slice(MAGIC);
        copy.extend_from_slice(&FORMAT_VERSION.to_le_bytes());
        copy.extend_from_slice(&[0; 2]);
        copy.extend_from_slice(&self.salt.to_le_bytes());
        copy.extend_from_slice(&self.first_sequence.to_le_bytes());
        copy.extend_from_slice(&self.created_ns.to_le_bytes());
        let checksum = crc32c::crc32c(&copy);
        copy.extend_from_slice(&checksum.to_le_bytes());
        copy.extend_from_within(..);
        copy
    }

    pub(super) fn decode(bytes: &[u8]) -> Result<Self, HeaderDamage> {
        let Some(copies) = bytes.get(..HEADER_BYTES) else { return Err(HeaderDamage::Incomplete) };
        let (first, second) = copies.split_at(HEADER_COPY_BYTES);
        match Self::decode_copy(first) {
            Err(HeaderDamage::Checksum | HeaderDamage::Incomplete) => Self::decode_copy(second),
            sound => sound,
        }
    }

    fn decode_copy(copy: &[u8]) -> Result<Self, HeaderDamage> {
        let mut fields = Fields(copy);
        let magic = fields.take::<8>().ok_or(HeaderDamage::Incomplete)?;
        let version = fields.take().map(u16::from_le_bytes).ok_or(HeaderDamage::Incomplete)?;
        let _reserved = fields.take::<2>().ok_or(HeaderDamage::Incomplete)?;
        let salt = fields.take().map(u32::from_le_bytes).ok_or(HeaderDamage::Incomplete)?;
        let first_sequence = fields.take().map(u64::from_le_bytes).ok_or(HeaderDamage::Incomplete)?;
        let created_ns = fields.take().map(u64::from_le_bytes).ok_or(HeaderDamage::Incomplete)?;
        let checksum = fields.take().map(u32::from_le_bytes).ok_or(HeaderDamage::Incomplete)?;
        let covered = copy.get(..HEADER_COPY_BYTES - 4).ok_or(HeaderDamage::Incomplete)?;
        if &magic != MAGIC || crc32c::crc32c(covered) != checksum {
            return Err(HeaderDamage::Checksum);
        }
        if version != FORMAT_VERSION {
            return Err(HeaderDamage::Version(version));
        }
        Ok(Self { salt, first_sequence, created_ns })
    }
}

/// One request in the log.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Frame<'a> {
    /// Its number; rises by one from frame to frame of a log.
    pub sequence: u64,
    /// When it was received, nanoseconds since the epoch.
    pub received_ns: u64,
    /// Whose it is; at most 255 bytes.
    pub tenant: &'a str,
    /// Bytes of the payload before compression.
    pub raw_len: u32,
    /// Whether the payload is compressed with zstd.
    pub compressed: bool,
    /// An encoded `ExportTraceServiceRequest`.
    pub payload: &'a [u8],
}

/// What is wrong with the bytes where a frame should be.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Damage {
    /// The file ends before the frame does.
    Incomplete,
    /// The first bytes are not those of a frame.
    Marker,
    /// A field has a value that is never written.
    Field,
    /// The checksum is another.
    Checksum,
}

impl<'a> Frame<'a> {
    /// Adds the frame to `out`. The tenant is cut at 255 bytes; the caller has checked it.
    pub(super) fn encode(&self, salt: u32, out: &mut Vec<u8>) {
        let tenant = self.tenant.as_bytes();
        let tenant = tenant.get(..TENANT_BYTES).unwrap_or(tenant);
        let start = out.len();
        out.extend_from_slice(&MARKER);
        out.extend_from_slice(&((tenant.len() + self.payload.len()) as u32).to_le_bytes());
        out.extend_from_slice(&[0; 4]);
        out.push(if self.compressed { FLAG_ZSTD } else { 0 });
        out.push(tenant.len() as u8);
        out.extend_from_slice(&[0; 2]);
        out.extend_from_slice(&self.sequence.to_le_bytes());
        out.extend_from_slice(&self.received_ns.to_le_bytes());
        out.extend_from_slice(&self.raw_len.to_le_bytes());
        out.extend_from_slice(tenant);
        out.extend_from_slice(self.payload);
        let checksum = out.get(start..).map_or(0, |frame| checksum(salt, frame));
        if let Some(field) = out.get_mut(start + 8..start + 12) {
            field.copy_from_slice(&checksum.to_le_bytes());
        }
    }

    /// The frame at the start of `bytes`, and its length.
    pub(super) fn decode(bytes: &'a [u8], salt: u32) -> Result<(Self, usize), Damage> {
        if !bytes.starts_with(&MARKER) {
            return Err(if MARKER.starts_with(bytes) { Damage::Incomplete } else { Damage::Marker });
        }
        let mut fields = Fields(bytes);
        let _marker = fields.take::<4>().ok_or(Damage::Incomplete)?;
        let length = fields.take().map(u32::from_le_bytes).ok_or(Damage::Incomplete)? as usize;
        let expected = fields.take().map(u32::from_le_bytes).ok_or(Damage::Incomplete)?;
        let [flags, tenant_len] = fields.take().ok_or(Damage::Incomplete)?;
        let reserved = fields.take::<2>().ok_or(Damage::Incomplete)?;
        let sequence = fields.take().map(u64::from_le_bytes).ok_or(Damage::Incomplete)?;
        let received_ns = fields.take().map(u64::from_le_bytes).ok_or(Damage::Incomplete)?;
        let raw_len = fields.take().map(u32::from_le_bytes).ok_or(Damage::Incomplete)?;
        if flags & !FLAG_ZSTD != 0 || reserved != [0; 2] || usize::from(tenant_len) > length {
            return Err(Damage::Field);
        }
        let frame = bytes.get(..FRAME_OVERHEAD + length).ok_or(Damage::Incomplete)?;
        if checksum(salt, frame) != expected {
            return Err(Damage::Checksum);
        }
        let content = frame.get(FRAME_OVERHEAD..).ok_or(Damage::Incomplete)?;
        let (tenant, payload) = content.split_at_checked(usize::from(tenant_len)).ok_or(Damage::Field)?;
        let tenant = std::str::from_utf8(tenant).map_err(|_| Damage::Field)?;
        let compressed = flags & FLAG_ZSTD != 0;
        Ok((Self { sequence, received_ns, tenant, raw_len, compressed, payload }, frame.len()))
    }
}

/// Takes requests out of frames. Keeps what that needs: to set it up takes longer than to unpack a small frame.
#[derive(Default)]
pub struct Unpacker {
    decompressor: Decompressor<'static>,
    raw: Vec<u8>,
}

impl Unpacker {
    /// The encoded request of a frame.
    pub fn request<'a>(&'a mut self, frame: &Frame<'a>) -> Result<&'a [u8], WalError> {
        if !frame.compressed {
            return Ok(frame.payload);
        }
        self.raw.clear();
        self.raw.reserve((frame.raw_len as usize).min(RAW_BYTES));
        self.decompressor
            .decompress_to_buffer(frame.payload, &mut self.raw)
            .map_err(|source| WalError::Decompress { sequence: frame.sequence, source: Arc::new(source) })?;
        Ok(&self.raw)
    }
}

/// Everything but the marker and the checksum itself.
fn checksum(salt: u32, frame: &[u8]) -> u32 {
    let length = frame.get(4..8).unwrap_or_default();
    let rest = frame.get(12..).unwrap_or_default();
    crc32c::crc32c_append(crc32c::crc32c_append(salt, length), rest)
}

/// Bytes that are read from the front.
struct Fields<'a>(&'a [u8]);

impl Fields<'_> {
    fn take<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (field, rest) = self.0.split_first_chunk()?;
        self.0 = rest;
        Some(*field)
    }
}
