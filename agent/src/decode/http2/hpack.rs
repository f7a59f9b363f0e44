//! Header blocks of HTTP/2 (HPACK, RFC 7541), for one who may not have read all of them.
//!
//! Fields refer to fields of earlier blocks by how many were added since. So who joins a connection half-way, or misses
//! a block, still knows which field is meant if that was added later; else the field is *unknown*, which is not an error.
//! It is never a wrong one: how large the sender's table is decides what it may refer to, not what a reference means.

use std::collections::VecDeque;

use bytes::Bytes;

use super::{huffman, static_table::STATIC};

/// Size of the table that both ends begin with, as the standard counts.
const DEFAULT_SIZE: usize = 4096;
/// Size that is kept at most, whatever the ends agree on.
const SIZE_LIMIT: usize = 64 * 1024;
/// What an entry counts beside its name and value.
const ENTRY_OVERHEAD: usize = 32;

/// Why bytes are no header block.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub enum HpackError {
    /// The block ends within a field.
    #[error("header block of {len} bytes ends within a field")]
    Cut {
        /// Bytes of the block.
        len: usize,
    },
    /// A number that no block needs.
    #[error("number at byte {at} of a header block is too large")]
    Number {
        /// Where it begins.
        at: usize,
    },
    /// There is no such entry.
    #[error("header block refers to entry {index}, the tables have {entries}")]
    Index {
        /// The entry.
        index: usize,
        /// How many there are.
        entries: usize,
    },
    /// Not a string of the Huffman code.
    #[error("Huffman code at byte {at} of a header block stands for nothing")]
    Huffman {
        /// Where it begins.
        at: usize,
    },
}

/// A header field, as far as it is known.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct HeaderField {
    /// Its name, in small letters.
    pub name: Option<Bytes>,
    /// Its value.
    pub value: Option<Bytes>,
}

impl HeaderField {
    /// What the standard counts; at least so much if a part is unknown.
    fn size(&self) -> usize {
        let len = |part: &Option<Bytes>| part.as_ref().map_or(0, Bytes::len);
        len(&self.name) + len(&self.value) + ENTRY_OVERHEAD
    }
}

/// Reads the header blocks of one direction of a connection.
#[derive(Clone, Debug)]
pub struct HeaderDecoder {
    /// Newest first.
    entries: VecDeque<HeaderField>,
    size: usize,
    max_size: usize,
    /// No block was missed and no entry given up that the other end has.
    is_whole: bool,
}

impl Default for HeaderDecoder {
    fn default() -> Self {
        Self::new()
    }
}

impl HeaderDecoder {
    /// For a direction of which all blocks will be seen.
    pub const fn new() -> Self {
        Self { entries: VecDeque::new(), size: 0, max_size: DEFAULT_SIZE, is_whole: true }
    }

    /// For a direction of which blocks were missed.
    pub const fn joined() -> Self {
        Self { entries: VecDeque::new(), size: 0, max_size: SIZE_LIMIT, is_whole: false }
    }

    /// Gives the fields of `block` in their order. After an error the decoder is one that has missed a block.
    pub fn decode(&mut self, block: &[u8], each: &mut dyn FnMut(HeaderField)) -> Result<(), HpackError> {
        let outcome = self.fields(&mut Reader { block, at: 0 }, each);
        if outcome.is_err() {
            *self = Self::joined();
        }
        outcome
    }

    fn fields(&mut self, reader: &mut Reader<'_>, each: &mut dyn FnMut(HeaderField)) -> Result<(), HpackError> {
        while let Some(first) = reader.peek() {
            match first {
                0x80.. => each(self.entry(reader.number(7)?)?),
                0x40.. => {
                    let field = self.literal(reader, 6)?;
                    self.insert(field.clone());
                    each(field);
                }
                0x20.. => {
                    let size = reader.number(5)?;
                    self.resize(size);
                }
                // Not to be indexed, or never.
                _ => each(self.literal(reader, 4)?),
            }
        }
        Ok(())
    }

    fn literal(&self, reader: &mut Reader<'_>, bits: u32) -> Result<HeaderField, HpackError> {
        let name = match reader.number(bits)? {
            0 => Some(reader.string()?),
            index => self.entry(index)?.name,
        };
        Ok(HeaderField { name, value: Some(reader.string()?) })
    }

    /// The entry at `index`, whose parts are unknown if it was added where nobody looked.
    fn entry(&self, index: usize) -> Result<HeaderField, HpackError> {
        let missing = HpackError::Index { index, entries: STATIC.len() + self.entries.len() };
        let place = index.checked_sub(1).ok_or(missing)?;
        if let Some((name, value)) = STATIC.get(place) {
            let [name, value] = [name, value].map(|part| Some(Bytes::from_static(part)));
            return Ok(HeaderField { name, value });
        }
        match self.entries.get(place - STATIC.len()) {
            Some(entry) => Ok(entry.clone()),
            None if self.is_whole => Err(missing),
            None => Ok(HeaderField::default()),
        }
    }

    fn insert(&mut self, field: HeaderField) {
        let size = field.size();
        self.evict(self.max_size.saturating_sub(size));
        // One that is larger than the table empties it, and that is all.
        if size <= self.max_size {
            self.size += size;
            self.entries.push_front(field);
        }
    }

    fn resize(&mut self, size: usize) {
        self.is_whole &= size <= SIZE_LIMIT;
        self.max_size = size.min(SIZE_LIMIT);
        self.evict(self.max_size);
    }

    fn evict(&mut self, limit: usize) {
        while self.size > limit
            && let Some(oldest) = self.entries.pop_back()
        {
            self.size = self.size.saturating_sub(oldest.size());
        }
    }
}

/// Reads a block from its front.
struct Reader<'a> {
    block: &'a [u8],
    at: usize,
}

impl<'a> Reader<'a> {
    fn peek(&self) -> Option<u8> {
        self.block.get(self.at).copied()
    }

    fn byte(&mut self) -> Result<u8, HpackError> {
        let byte = self.peek().ok_or(HpackError::Cut { len: self.block.len() })?;
        self.at += 1;
        Ok(byte)
    }

    /// A number that begins in the last `bits` of a byte (RFC 7541 §5.1).
    fn number(&mut self, bits: u32) -> Result<usize, HpackError> {
        let at = self.at;
        let most = (1_usize << bits) - 1;
        let mut number = usize::from(self.byte()?) & most;
        if number < most {
            return Ok(number);
        }
        // Four bytes more are 28 bits: no block is that long, and no table that large.
        for shift in [0, 7, 14, 21] {
            let byte = self.byte()?;
            number += usize::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                return Ok(number);
            }
        }
        Err(HpackError::Number { at })
    }

    /// A string (RFC 7541 §5.2).
    fn string(&mut self) -> Result<Bytes, HpackError> {
        let is_coded = self.peek().is_some_and(|first| first & 0x80 != 0);
        let len = self.number(7)?;
        let at = self.at;
        let cut = HpackError::Cut { len: self.block.len() };
        let end = at.checked_add(len).ok_or(cut)?;
        let bytes: &'a [u8] = self.block.get(at..end).ok_or(cut)?;
        self.at = end;
        if is_coded {
            huffman::decode(bytes).map(Bytes::from).ok_or(HpackError::Huffman { at })
        } else {
            Ok(Bytes::copy_from_slice(bytes))
        }
    }
}

#[cfg(test)]
#[path = "hpack_tests.rs"]
mod tests;
