//! A message in a file of its own: a magic, a version, a checksum, and the message, compressed by zstd.

use std::io;

use prost::Message;

/// Largest message that is read, bytes when decompressed.
const MAX_BYTES: usize = 1 << 30;

const COMPRESSION: i32 = 1;

/// What tells the files of one kind from all others.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Seal {
    /// The first bytes.
    pub(crate) magic: [u8; 4],
    /// The only version that is known.
    pub(crate) version: u32,
}

/// A file is not what it should be.
#[derive(Debug, thiserror::Error)]
pub enum SealError {
    /// It is not what its checksum says, or none of these files.
    #[error("damaged")]
    Damaged,
    /// A later version of this program wrote it.
    #[error("version {0} is not known")]
    Version(u32),
    /// What is in it cannot be decompressed.
    #[error("cannot be decompressed")]
    Decompress(#[source] io::Error),
    /// What is in it is another message.
    #[error("cannot be decoded")]
    Decode(#[source] prost::DecodeError),
}

impl Seal {
    /// The bytes of a file.
    pub(crate) fn encode(self, message: &impl Message) -> io::Result<Vec<u8>> {
        let body = zstd::bulk::compress(&message.encode_to_vec(), COMPRESSION)?;
        let mut bytes = self.magic.to_vec();
        bytes.extend(self.version.to_le_bytes());
        bytes.extend(crc32c::crc32c(&body).to_le_bytes());
        bytes.extend(body);
        Ok(bytes)
    }

    /// What is in the bytes of a file.
    pub(crate) fn decode<M: Message + Default>(self, bytes: &[u8]) -> Result<M, SealError> {
        let (magic, rest) = bytes.split_first_chunk::<4>().ok_or(SealError::Damaged)?;
        let (version, rest) = rest.split_first_chunk().ok_or(SealError::Damaged)?;
        let (checksum, body) = rest.split_first_chunk().ok_or(SealError::Damaged)?;
        if *magic != self.magic {
            return Err(SealError::Damaged);
        }
        let version = u32::from_le_bytes(*version);
        if version != self.version {
            return Err(SealError::Version(version));
        }
        if crc32c::crc32c(body) != u32::from_le_bytes(*checksum) {
            return Err(SealError::Damaged);
        }
        let size = zstd::zstd_safe::get_frame_content_size(body).ok().flatten().unwrap_or(u64::MAX);
        let size = usize::try_from(size).unwrap_or(usize::MAX);
        if size > MAX_BYTES {
            return Err(SealError::Damaged);
        }
        let message = zstd::bulk::decompress(body, size).map_err(SealError::Decompress)?;
        M::decode(message.as_slice()).map_err(SealError::Decode)
    }
}
