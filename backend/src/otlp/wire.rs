//! The encoding of protobuf (<https://protobuf.dev/programming-guides/encoding/>), as far as OTLP has it.

/// The fields of a message in their order. It ends early where the message is malformed; [`Self::is_whole`] tells.
#[derive(Clone, Debug)]
pub(super) struct Fields<'a> {
    rest: &'a [u8],
}

/// The value of a field.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Wire<'a> {
    Varint(u64),
    Fixed64(u64),
    Fixed32(u32),
    /// A text, bytes, or a message.
    Bytes(&'a [u8]),
}

const VARINT: u8 = 0;
const FIXED64: u8 = 1;
const BYTES: u8 = 2;
const FIXED32: u8 = 5;

/// What a field begins with: its number and the type of its value.
pub(super) const fn key_of(number: u32, wire: &Wire<'_>) -> u32 {
    let wire_type = match wire {
        Wire::Varint(_) => VARINT,
        Wire::Fixed64(_) => FIXED64,
        Wire::Bytes(_) => BYTES,
        Wire::Fixed32(_) => FIXED32,
    };
    number << 3 | wire_type as u32
}

impl<'a> Fields<'a> {
    pub(super) const fn of(message: &'a [u8]) -> Self {
        Self { rest: message }
    }

    /// The next field, if it is text, bytes or a message of this number and shorter than 128 bytes, as nearly all are; what
    /// [`Self::next`] gives then, for less.
    #[inline]
    pub(super) fn short(&mut self, number: u32) -> Option<&'a [u8]> {
        let [first, length, rest @ ..] = self.rest else { return None };
        if *first != key_of(number, &Wire::Bytes(&[])) as u8 || *length >= 0x80 {
            return None;
        }
        let (bytes, rest) = rest.split_at_checked(usize::from(*length))?;
        self.rest = rest;
        Some(bytes)
    }

    /// After the last field: whether the message ends there.
    pub(super) const fn is_whole(&self) -> bool {
        self.rest.is_empty()
    }

    /// What has not been read yet.
    pub(super) const fn rest(&self) -> &'a [u8] {
        self.rest
    }

    /// The next field; none at the end, and, without moving on, where the bytes are none.
    #[expect(
        clippy::inline_always,
        reason = "most of the work on a request is here, and each caller wants few numbers"
    )]
    #[inline(always)]
    fn field(&mut self) -> Option<(u32, Wire<'a>)> {
        let mut rest = self.rest;
        let key = varint(&mut rest)?;
        let value = match key as u8 & 7 {
            BYTES => {
                let (bytes, after) = rest_of(varint(&mut rest)?, rest)?;
                rest = after;
                Wire::Bytes(bytes)
            }
            VARINT => Wire::Varint(varint(&mut rest)?),
            FIXED64 => Wire::Fixed64(u64::from_le_bytes(fixed(&mut rest)?)),
            FIXED32 => Wire::Fixed32(u32::from_le_bytes(fixed(&mut rest)?)),
            // Groups, which nobody writes any more.
            _ => return None,
        };
        if !(8..=u64::from(u32::MAX)).contains(&key) {
            return None;
        }
        self.rest = rest;
        Some((key as u32 >> 3, value))
    }
}

impl<'a> Iterator for Fields<'a> {
    type Item = (u32, Wire<'a>);

    #[inline]
    fn next(&mut self) -> Option<Self::Item> {
        self.field()
    }
}

#[inline]
fn rest_of(length: u64, rest: &[u8]) -> Option<(&[u8], &[u8])> {
    rest.split_at_checked(usize::try_from(length).ok()?)
}

#[expect(clippy::inline_always, reason = "as above: almost every number is one byte")]
#[inline(always)]
fn varint(bytes: &mut &[u8]) -> Option<u64> {
    let (first, rest) = bytes.split_first()?;
    if *first < 0x80 {
        *bytes = rest;
        return Some(u64::from(*first));
    }
    long_varint(bytes)
}

#[cold]
fn long_varint(bytes: &mut &[u8]) -> Option<u64> {
    let mut value = 0;
    for (index, byte) in bytes.iter().enumerate().take(10) {
        value |= u64::from(byte & 0x7f) << (7 * index);
        if *byte < 0x80 {
            // Of a tenth byte one bit has room.
            let fits = index < 9 || *byte < 2;
            *bytes = bytes.get(index + 1..)?;
            return fits.then_some(value);
        }
    }
    None
}

#[inline]
fn fixed<const N: usize>(bytes: &mut &[u8]) -> Option<[u8; N]> {
    let (value, rest) = bytes.split_first_chunk()?;
    *bytes = rest;
    Some(*value)
}
