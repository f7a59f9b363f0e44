//! Reading a segment from front to back, past damage.

use std::ops::Range;

use super::format::{Damage, Frame, MARKER};

/// What is found in a segment.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Piece<'a> {
    /// A sound frame, and where it begins.
    Frame(usize, Frame<'a>),
    /// Bytes that are no sound frame: up to the next sound one, or to the end of the file.
    Damaged(Range<usize>, Damage),
}

/// The pieces of a segment's bytes from `offset` on; `salt` is that of its header.
///
/// After damage the reader looks for the next marker behind which a sound frame begins. The length of a damaged frame
/// is not trusted. A marker inside a request's own bytes is no danger: a sender does not know the salt, so no bytes
/// of his pass for a frame.
pub fn scan(bytes: &[u8], offset: usize, salt: u32) -> Scan<'_> {
    Scan { bytes, offset, salt }
}

/// Iterator of [`scan`].
#[derive(Clone, Debug)]
pub struct Scan<'a> {
    bytes: &'a [u8],
    offset: usize,
    salt: u32,
}

impl<'a> Scan<'a> {
    fn decode(&self, offset: usize) -> Result<(Frame<'a>, usize), Damage> {
        Frame::decode(self.bytes.get(offset..).unwrap_or_default(), self.salt)
    }

    /// Where the next sound frame begins, or the end.
    fn resync(&self) -> usize {
        let mut from = self.offset + 1;
        while let Some(rest) = self.bytes.get(from..) {
            let Some(found) = rest.windows(MARKER.len()).position(|window| window == MARKER) else { break };
            if self.decode(from + found).is_ok() {
                return from + found;
            }
            from += found + 1;
        }
        self.bytes.len()
    }
}

impl<'a> Iterator for Scan<'a> {
    type Item = Piece<'a>;

    fn next(&mut self) -> Option<Piece<'a>> {
        if self.offset >= self.bytes.len() {
            return None;
        }
        let start = self.offset;
        match self.decode(start) {
            Ok((frame, len)) => {
                self.offset += len;
                Some(Piece::Frame(start, frame))
            }
            Err(damage) => {
                self.offset = self.resync();
                Some(Piece::Damaged(start..self.offset, damage))
            }
        }
    }
}
