//! Writing messages field by field, for what is put together from columns.

use super::wire::{Wire, key_of};

/// A message that grows. Fields that have protobuf's default value are for the caller to leave out.
#[derive(Debug, Default)]
pub struct MessageWriter {
    bytes: Vec<u8>,
}

impl MessageWriter {
    /// An empty message with room for so many bytes.
    pub fn with_capacity(bytes: usize) -> Self {
        Self { bytes: Vec::with_capacity(bytes) }
    }

    /// Bytes that were written.
    pub const fn len(&self) -> usize {
        self.bytes.len()
    }

    /// Whether nothing was written.
    pub const fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    /// What was written.
    pub fn into_bytes(self) -> Vec<u8> {
        self.bytes
    }

    /// Fields as they were encoded elsewhere.
    pub fn encoded(&mut self, fields: &[u8]) {
        self.bytes.extend_from_slice(fields);
    }

    /// A text, bytes or an encoded message.
    pub fn bytes(&mut self, number: u32, value: &[u8]) {
        self.key(number, &Wire::Bytes(value));
        self.varint_of(value.len() as u64);
        self.bytes.extend_from_slice(value);
    }

    /// A whole number or a truth value; negative ones as their 64 bits.
    pub fn varint(&mut self, number: u32, value: u64) {
        self.key(number, &Wire::Varint(value));
        self.varint_of(value);
    }

    /// A text, unless it is empty or none.
    pub fn text(&mut self, number: u32, value: Option<&str>) {
        if let Some(text) = value.filter(|text| !text.is_empty()) {
            self.bytes(number, text.as_bytes());
        }
    }

    /// A signed number, unless it is 0.
    pub fn number(&mut self, number: u32, value: i32) {
        if value != 0 {
            self.varint(number, i64::from(value) as u64);
        }
    }

    /// A count, unless it is none.
    pub fn count(&mut self, number: u32, value: Option<u32>) {
        if let Some(count) = value {
            self.varint(number, count.into());
        }
    }

    /// 64 bits.
    pub fn fixed64(&mut self, number: u32, value: u64) {
        self.key(number, &Wire::Fixed64(value));
        self.bytes.extend_from_slice(&value.to_le_bytes());
    }

    /// 32 bits.
    pub fn fixed32(&mut self, number: u32, value: u32) {
        self.key(number, &Wire::Fixed32(value));
        self.bytes.extend_from_slice(&value.to_le_bytes());
    }

    /// A number of a packed field, whose message this is.
    pub fn element(&mut self, value: u64) {
        self.varint_of(value);
    }

    /// A message, which `fill` writes.
    pub fn message<E>(&mut self, number: u32, fill: impl FnOnce(&mut Self) -> Result<(), E>) -> Result<(), E> {
        self.key(number, &Wire::Bytes(&[]));
        // Most are shorter than 128 bytes, whose length takes one.
        let place = self.bytes.len();
        self.bytes.push(0);
        fill(self)?;
        let len = self.bytes.len() - place - 1;
        if let (true, Some(first)) = (len < 0x80, self.bytes.get_mut(place)) {
            *first = len as u8;
            return Ok(());
        }
        let end = self.bytes.len();
        self.varint_of(len as u64);
        let length = self.bytes.split_off(end);
        self.bytes.splice(place..=place, length);
        Ok(())
    }

    fn key(&mut self, number: u32, wire: &Wire<'_>) {
        self.varint_of(u64::from(key_of(number, wire)));
    }

    fn varint_of(&mut self, mut value: u64) {
        while value >= 0x80 {
            self.bytes.push(value as u8 | 0x80);
            value >>= 7;
        }
        self.bytes.push(value as u8);
    }
}
