//! Bytes of the queue on disk. `docs/format/export-queue.md` is the same in words.
//!
//! All numbers are little-endian. A segment begins with a header:
//!
//! ```text
//!  0  magic           "COATIEXQ"
//!  8  version         u16
//! 10  reserved        u16, 0
//! 12  salt            u32, random: checksums of this segment's frames begin with it
//! 16  created         u64, nanoseconds since the epoch
//! 24  checksum        u32, crc32c of the 24 bytes before
//! ```
//!
//! Frames follow without gaps:
//!
//! ```text
//!  0  marker          e7 0f c0 a7: where to look for the next frame after damage
//!  4  length          u32, bytes of the payload
//!  8  checksum        u32, crc32c from the salt over bytes 4..8 and 12..end
//! 12  flags           u8, bit 0: the payload is compressed with zstd
//! 13  reserved        3 bytes, 0
//! 16  sequence        u64, rises from frame to frame
//! 24  queued          u64, nanoseconds since the epoch
//! 32  spans           u32
//! 36  raw length      u32, bytes of the payload before compression
//! 40  payload         an ExportTraceServiceRequest
//! ```
//!
//! The file `cursor`, written in place, says what has been sent:
//!
//! ```text
//!  0  magic           "COATICUR"
//!  8  version         u16
//! 10  reserved        u16, 0
//! 12  sequence        u64, of the next frame to send: all below it were
//! 20  checksum        u32, crc32c of the 20 bytes before
//! ```

use std::ops::Range;

use prost::bytes::Bytes;

use crate::export::Encoded;

/// The format that this program writes, and the only one that it reads.
pub(crate) const FORMAT_VERSION: u16 = 1;
/// Bytes of a segment's header.
pub(super) const HEADER_BYTES: usize = 28;
/// Bytes of a frame before its payload.
pub(super) const FRAME_HEAD_BYTES: usize = 40;
/// Bytes of the cursor.
pub(super) const CURSOR_BYTES: usize = 24;

const SEGMENT_MAGIC: [u8; 8] = *b"COATIEXQ";
const CURSOR_MAGIC: [u8; 8] = *b"COATICUR";
const MARKER: [u8; 4] = [0xe7, 0x0f, 0xc0, 0xa7];
const FLAG_ZSTD: u8 = 1;

/// Largest request that is believed; a length beyond it is damage.
const RAW_BYTES: usize = 256 << 20;

/// What is wrong with some bytes.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Damage {
    /// They end too early.
    Incomplete,
    /// They are not what they should be.
    Unsound,
    /// A sound header of another version.
    Version(u16),
}

/// What the start of a segment says.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) struct Header {
    pub(super) salt: u32,
    pub(super) created_ns: u64,
}

impl Header {
    pub(super) fn encode(self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(HEADER_BYTES);
        bytes.extend_from_slice(&SEGMENT_MAGIC);
        bytes.extend_from_slice(&FORMAT_VERSION.to_le_bytes());
        bytes.extend_from_slice(&[0; 2]);
        bytes.extend_from_slice(&self.salt.to_le_bytes());
        bytes.extend_from_slice(&self.created_ns.to_le_bytes());
        seal(bytes)
    }

    pub(super) fn decode(bytes: &[u8]) -> Result<Self, Damage> {
        let mut fields = sealed(bytes, SEGMENT_MAGIC, HEADER_BYTES)?;
        let salt = fields.take().map(u32::from_le_bytes)?;
        let created_ns = fields.take().map(u64::from_le_bytes)?;
        Ok(Self { salt, created_ns })
    }
}

/// The number that the cursor holds, as bytes.
pub(super) fn encode_cursor(sequence: u64) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(CURSOR_BYTES);
    bytes.extend_from_slice(&CURSOR_MAGIC);
    bytes.extend_from_slice(&FORMAT_VERSION.to_le_bytes());
    bytes.extend_from_slice(&[0; 2]);
    bytes.extend_from_slice(&sequence.to_le_bytes());
    seal(bytes)
}

/// The number that these bytes of a cursor hold.
pub(super) fn decode_cursor(bytes: &[u8]) -> Result<u64, Damage> {
    sealed(bytes, CURSOR_MAGIC, CURSOR_BYTES)?.take().map(u64::from_le_bytes)
}

fn seal(mut bytes: Vec<u8>) -> Vec<u8> {
    let checksum = crc32c::crc32c(&bytes);
    bytes.extend_from_slice(&checksum.to_le_bytes());
    bytes
}

/// The fields behind magic and version, once these and the checksum at the end are right.
fn sealed(bytes: &[u8], magic: [u8; 8], length: usize) -> Result<Fields<'_>, Damage> {
    let bytes = bytes.get(..length).ok_or(Damage::Incomplete)?;
    let (covered, checksum) = bytes.split_last_chunk().ok_or(Damage::Incomplete)?;
    if !covered.starts_with(&magic) || crc32c::crc32c(covered) != u32::from_le_bytes(*checksum) {
        return Err(Damage::Unsound);
    }
    let mut fields = Fields(covered);
    let _magic = fields.take::<8>()?;
    let version = fields.take().map(u16::from_le_bytes)?;
    let _reserved = fields.take::<2>()?;
    if version == FORMAT_VERSION { Ok(fields) } else { Err(Damage::Version(version)) }
}

/// What a frame says before its payload.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) struct FrameHead {
    /// Bytes of the payload.
    pub(super) length: usize,
    pub(super) sequence: u64,
    pub(super) queued_ns: u64,
    pub(super) spans: u32,
    compressed: bool,
    raw_len: usize,
    checksum: u32,
}

impl FrameHead {
    pub(super) fn decode(bytes: &[u8]) -> Result<Self, Damage> {
        if !bytes.starts_with(&MARKER) {
            return Err(if MARKER.starts_with(bytes) { Damage::Incomplete } else { Damage::Unsound });
        }
        let mut fields = Fields(bytes);
        let _marker = fields.take::<4>()?;
        let length = fields.take().map(u32::from_le_bytes)? as usize;
        let checksum = fields.take().map(u32::from_le_bytes)?;
        let [flags, reserved @ ..] = fields.take::<4>()?;
        let sequence = fields.take().map(u64::from_le_bytes)?;
        let queued_ns = fields.take().map(u64::from_le_bytes)?;
        let spans = fields.take().map(u32::from_le_bytes)?;
        let raw_len = fields.take().map(u32::from_le_bytes)? as usize;
        if flags & !FLAG_ZSTD != 0 || reserved != [0; 3] || length > RAW_BYTES || raw_len > RAW_BYTES {
            return Err(Damage::Unsound);
        }
        Ok(Self { length, sequence, queued_ns, spans, compressed: flags & FLAG_ZSTD != 0, raw_len, checksum })
    }

    /// Bytes of the whole frame.
    pub(super) fn frame_len(&self) -> usize {
        FRAME_HEAD_BYTES + self.length
    }

    /// Whether the checksum of the whole `frame` is right.
    fn is_sound(&self, frame: &[u8], salt: u32) -> bool {
        checksum(salt, frame) == self.checksum
    }

    /// The request in `frame`, which is whole.
    pub(super) fn request(&self, frame: &[u8], salt: u32) -> Result<Encoded, Damage> {
        let payload = frame.get(FRAME_HEAD_BYTES..self.frame_len()).ok_or(Damage::Incomplete)?;
        if !self.is_sound(frame, salt) {
            return Err(Damage::Unsound);
        }
        let body = if self.compressed {
            zstd::bulk::decompress(payload, self.raw_len).map_err(|_| Damage::Unsound)?
        } else {
            payload.to_vec()
        };
        Ok(Encoded { sequence: self.sequence, spans: u64::from(self.spans), body: Bytes::from(body) })
    }
}

/// The frame of a request that was queued at this time, still without its checksum.
pub(super) fn encode_frame(request: &Encoded, queued_ns: u64) -> Vec<u8> {
    let Encoded { sequence, spans, body } = request;
    // Spans repeat each other: the fastest level saves nearly all that there is to save.
    let compressed = zstd::bulk::compress(body, 1).ok().filter(|compressed| compressed.len() < body.len());
    let payload = compressed.as_deref().unwrap_or(body);
    let mut frame = Vec::with_capacity(FRAME_HEAD_BYTES + payload.len());
    frame.extend_from_slice(&MARKER);
    frame.extend_from_slice(&(payload.len() as u32).to_le_bytes());
    frame.extend_from_slice(&[0; 4]);
    frame.extend_from_slice(&[if compressed.is_some() { FLAG_ZSTD } else { 0 }, 0, 0, 0]);
    frame.extend_from_slice(&sequence.to_le_bytes());
    frame.extend_from_slice(&queued_ns.to_le_bytes());
    frame.extend_from_slice(&u32::try_from(*spans).unwrap_or(u32::MAX).to_le_bytes());
    frame.extend_from_slice(&(body.len() as u32).to_le_bytes());
    frame.extend_from_slice(payload);
    frame
}

/// Gives a frame the checksum that it has in the segment with this salt.
pub(super) fn seal_frame(frame: &mut [u8], salt: u32) {
    let checksum = checksum(salt, frame);
    if let Some(field) = frame.get_mut(8..12) {
        field.copy_from_slice(&checksum.to_le_bytes());
    }
}

/// Everything but the marker and the checksum itself.
fn checksum(salt: u32, frame: &[u8]) -> u32 {
    let length = frame.get(4..8).unwrap_or_default();
    let rest = frame.get(12..).unwrap_or_default();
    crc32c::crc32c_append(crc32c::crc32c_append(salt, length), rest)
}

/// What is found in a segment behind its header.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) enum Piece {
    /// A sound frame.
    Frame(FrameHead),
    /// Bytes that are none: up to the next sound one, or to the end. True if they may be the start of one whose rest was
    /// never written.
    Damaged(Range<usize>, bool),
}

/// The pieces of a segment's bytes from `offset` on.
///
/// After damage the reader looks for the next marker behind which a sound frame begins: the length of a damaged frame is
/// not trusted. The salt keeps bytes of a span from passing for a frame.
pub(super) fn scan(bytes: &[u8], offset: usize, salt: u32) -> impl Iterator<Item = Piece> {
    let mut at = offset;
    std::iter::from_fn(move || {
        let rest = bytes.get(at..).filter(|rest| !rest.is_empty())?;
        match sound(rest, salt) {
            Ok(head) => {
                at += head.frame_len();
                Some(Piece::Frame(head))
            }
            Err(damage) => {
                let start = at;
                at = next_sound(bytes, at + 1, salt);
                Some(Piece::Damaged(start..at, damage == Damage::Incomplete && at == bytes.len()))
            }
        }
    })
}

fn sound(bytes: &[u8], salt: u32) -> Result<FrameHead, Damage> {
    let head = FrameHead::decode(bytes)?;
    let frame = bytes.get(..head.frame_len()).ok_or(Damage::Incomplete)?;
    if head.is_sound(frame, salt) { Ok(head) } else { Err(Damage::Unsound) }
}

/// Where the next sound frame begins, or the end.
fn next_sound(bytes: &[u8], from: usize, salt: u32) -> usize {
    let mut from = from;
    while let Some(rest) = bytes.get(from..) {
        let Some(found) = rest.windows(MARKER.len()).position(|window| window == MARKER) else { break };
        if bytes.get(from + found..).is_some_and(|rest| sound(rest, salt).is_ok()) {
            return from + found;
        }
        from += found + 1;
    }
    bytes.len()
}

/// Bytes that are read from the front.
struct Fields<'a>(&'a [u8]);

impl Fields<'_> {
    fn take<const N: usize>(&mut self) -> Result<[u8; N], Damage> {
        let (field, rest) = self.0.split_first_chunk().ok_or(Damage::Incomplete)?;
        self.0 = rest;
        Ok(*field)
    }
}
