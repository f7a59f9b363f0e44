//! One direction of a connection: from frames to header blocks, bodies and ends of streams.

use super::{
    frames::{Call, Found, FrameHeader, FrameReader, flag, kind},
    head::Fields,
    hpack::{HeaderDecoder, HpackError},
};

/// Bytes of a header block that are put together.
const BLOCK_LIMIT: usize = 64 * 1024;

/// A header block that is whole.
#[derive(Debug)]
pub(super) struct Block {
    /// Of the frame that it began with.
    pub(super) header: FrameHeader,
    pub(super) fields: Result<Fields, HpackError>,
    /// Nothing more of this direction comes on its stream.
    pub(super) is_end: bool,
}

/// What moves.
#[derive(Debug)]
pub(super) enum Item {
    Block(Box<Block>),
    /// Bytes of a body, and whether they are the last of their frame, and of the body.
    Data {
        stream: u32,
        bytes: u64,
        is_last: bool,
        is_end: bool,
    },
    /// The stream is given up.
    Reset {
        stream: u32,
    },
    /// Streams above this one are.
    GoAway {
        last: u32,
    },
    /// Frames were missed.
    Gap,
}

/// A header block of which more will come.
#[derive(Debug)]
struct Pending {
    header: FrameHeader,
    bytes: Vec<u8>,
}

/// Follows one direction.
#[derive(Debug)]
pub(super) struct Flow {
    reader: FrameReader,
    rest: Rest,
}

/// What a frame needs.
#[derive(Debug)]
struct Rest {
    decoder: HeaderDecoder,
    pending: Option<Pending>,
}

impl Flow {
    /// From the client's preface on.
    pub(super) fn preface() -> Self {
        Self { reader: FrameReader::preface(), ..Self::new() }
    }

    /// From its first frame on.
    pub(super) const fn new() -> Self {
        Self { reader: FrameReader::new(), rest: Rest { decoder: HeaderDecoder::new(), pending: None } }
    }

    /// From somewhere in between on.
    pub(super) fn joined() -> Self {
        Self { reader: FrameReader::new(), rest: Rest { decoder: HeaderDecoder::joined(), pending: None } }
    }

    /// From its first byte on, which is byte `start` of the connection.
    pub(super) fn at_frame(start: u64) -> Self {
        Self { reader: FrameReader::at_frame(start), ..Self::new() }
    }

    /// The kernel counts the bytes of the direction from 0 again.
    pub(super) const fn recount(&mut self) {
        self.reader.recount();
    }

    /// Takes the bytes of a call; gives how many of the direction were missed.
    pub(super) fn take(&mut self, call: &Call<'_>, each: &mut dyn FnMut(Item)) -> u64 {
        let Self { reader, rest } = self;
        reader.take(call, &mut |found| rest.found(found, each))
    }
}

impl Rest {
    fn found(&mut self, found: Found<'_>, each: &mut dyn FnMut(Item)) {
        match found {
            Found::Data(header, bytes, is_last) => {
                let is_end = is_last && header.has(flag::END_STREAM);
                each(Item::Data { stream: header.stream, bytes, is_last, is_end });
            }
            Found::Frame(header, payload) => self.frame(header, payload, each),
            Found::Gap => {
                self.lose();
                each(Item::Gap);
            }
        }
    }

    fn frame(&mut self, header: FrameHeader, payload: &[u8], each: &mut dyn FnMut(Item)) {
        // Nothing may come between the parts of a block.
        if self.pending.is_some() && header.kind != kind::CONTINUATION {
            self.lose();
            each(Item::Gap);
        }
        match header.kind {
            kind::HEADERS | kind::PUSH_PROMISE | kind::CONTINUATION => self.part(header, payload, each),
            kind::RST_STREAM => each(Item::Reset { stream: header.stream }),
            kind::GOAWAY => {
                if let Some(last) = payload.first_chunk() {
                    each(Item::GoAway { last: u32::from_be_bytes(*last) & 0x7fff_ffff });
                }
            }
            // Settings among them: the size that a table may have is said in the blocks as well.
            _ => {}
        }
    }

    /// A part of a header block.
    fn part(&mut self, header: FrameHeader, payload: &[u8], each: &mut dyn FnMut(Item)) {
        let is_whole = header.length as usize == payload.len();
        let (Some(part), true) = (header.block(payload), is_whole) else {
            self.lose();
            return each(Item::Gap);
        };
        let pending = match self.pending.take() {
            Some(Pending { header: first, mut bytes }) if first.stream == header.stream => {
                bytes.extend_from_slice(part);
                Pending { header: first, bytes }
            }
            None if header.kind != kind::CONTINUATION => Pending { header, bytes: part.to_vec() },
            // Its first part was missed.
            _ => {
                self.lose();
                return each(Item::Gap);
            }
        };
        if pending.bytes.len() > BLOCK_LIMIT {
            self.lose();
            return each(Item::Gap);
        }
        if !header.has(flag::END_HEADERS) {
            self.pending = Some(pending);
            return;
        }
        let Pending { header, bytes } = pending;
        let mut fields = Fields::default();
        let outcome = self.decoder.decode(&bytes, &mut |field| fields.add(field));
        // What a server would push is no exchange; its fields are only of use for later blocks.
        if header.kind == kind::HEADERS {
            let is_end = header.has(flag::END_STREAM);
            each(Item::Block(Box::new(Block { header, fields: outcome.map(|()| fields), is_end })));
        }
    }

    fn lose(&mut self) {
        self.pending = None;
        self.decoder = HeaderDecoder::joined();
    }
}
