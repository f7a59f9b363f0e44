//! A reader of BTF, the kernel's description of its own types: enough of it to find where a field lies, what an enum's
//! values are, and which parameters a function has.
//!
//! Layout: <https://docs.kernel.org/bpf/btf.html>. Only the byte order of this machine is read.

use std::collections::HashMap;

/// First two bytes of every BTF blob.
const MAGIC: u16 = 0xeb9f;
/// The only version there is.
const VERSION: u8 = 1;
/// Bytes of the fixed part of a type.
const TYPE_SIZE: usize = 12;
/// Bytes of a member of a struct or union.
const MEMBER_SIZE: usize = 12;
/// Bytes of a value of an enum, and of a parameter of a function: a name and a number each.
const PAIR_SIZE: usize = 8;
/// How deep anonymous members and chains of qualifiers are followed: real ones are below 10, loops only in bad input.
const MAX_DEPTH: u32 = 32;

const KIND_INT: u32 = 1;
const KIND_ARRAY: u32 = 3;
const KIND_STRUCT: u32 = 4;
const KIND_UNION: u32 = 5;
const KIND_ENUM: u32 = 6;
const KIND_TYPEDEF: u32 = 8;
const KIND_VOLATILE: u32 = 9;
const KIND_CONST: u32 = 10;
const KIND_RESTRICT: u32 = 11;
const KIND_FUNC: u32 = 12;
const KIND_FUNC_PROTO: u32 = 13;
const KIND_VAR: u32 = 14;
const KIND_DATASEC: u32 = 15;
const KIND_DECL_TAG: u32 = 17;
const KIND_TYPE_TAG: u32 = 18;
const KIND_ENUM64: u32 = 19;

/// Why type information cannot be used, or a field is not in it.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum BtfError {
    /// The bytes end too early.
    #[error("type information is cut: {what} at byte {at} does not fit into {len} bytes")]
    Cut {
        /// What was to be read.
        what: &'static str,
        /// Where.
        at: usize,
        /// How many bytes there are.
        len: usize,
    },
    /// The first bytes are not BTF's, or are another byte order's.
    #[error("not type information of this machine: it begins with {found:#06x}, not {MAGIC:#06x}")]
    Magic {
        /// The first two bytes.
        found: u16,
    },
    /// A version that is not known.
    #[error("type information of version {found}; only {VERSION} is known")]
    Version {
        /// The version.
        found: u8,
    },
    /// A type of a kind whose length is not known.
    #[error("type {id} is of kind {kind}, which is not known")]
    Kind {
        /// Number of the type.
        id: u32,
        /// The kind.
        kind: u32,
    },
    /// There is no such struct.
    #[error("the kernel has no `struct {name}`")]
    NoStruct {
        /// Name of the struct.
        name: String,
    },
    /// The struct has no such field.
    #[error("the kernel has no field `{field}` in `struct {name}`")]
    NoField {
        /// Name of the struct.
        name: String,
        /// The part of the path that was not found.
        field: String,
    },
}

/// Where a field lies.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Location {
    /// Distance from the start of the struct, in bits.
    pub bits: u32,
    /// The field is a bit field: it has no address.
    pub is_bit_field: bool,
}

impl Location {
    /// Distance from the start of the struct in bytes, if the field has an address.
    pub const fn bytes(self) -> Option<u32> {
        if self.is_bit_field || !self.bits.is_multiple_of(8) { None } else { Some(self.bits / 8) }
    }
}

/// Parsed type information.
#[derive(Debug)]
pub struct Btf<'a> {
    types: &'a [u8],
    strings: &'a [u8],
    /// Where each type begins in `types`; type 0 is `void` and lies nowhere.
    starts: Vec<usize>,
    /// Structs and unions by name, the first of each name.
    structs: HashMap<&'a [u8], u32>,
}

/// The fixed part of a type.
#[derive(Clone, Copy)]
struct Type {
    name: u32,
    kind: u32,
    /// Members, values or parameters.
    count: usize,
    /// Bits 24 to 31 of a member's offset are the size of a bit field.
    has_bit_fields: bool,
    /// Number of the type that this one refers to, where it refers to one.
    refers: u32,
    /// Where what follows the fixed part begins.
    rest: usize,
}

impl Type {
    const fn is_composite(&self) -> bool {
        matches!(self.kind, KIND_STRUCT | KIND_UNION)
    }
}

impl<'a> Btf<'a> {
    /// Reads the header and finds every type.
    pub fn parse(bytes: &'a [u8]) -> Result<Self, BtfError> {
        let found = u16::from_ne_bytes(array(bytes, 0, "magic")?);
        if found != MAGIC {
            return Err(BtfError::Magic { found });
        }
        let [version, _flags] = array(bytes, 2, "version")?;
        if version != VERSION {
            return Err(BtfError::Version { found: version });
        }
        let header_len = word(bytes, 4, "length of the header")? as usize;
        let section = |at: usize, what: &'static str| -> Result<&'a [u8], BtfError> {
            let start = header_len.saturating_add(word(bytes, at, what)? as usize);
            let end = start.saturating_add(word(bytes, at + 4, what)? as usize);
            bytes.get(start..end).ok_or(BtfError::Cut { what, at: start, len: bytes.len() })
        };
        let mut btf = Self {
            types: section(8, "types")?,
            strings: section(16, "strings")?,
            starts: vec![0],
            structs: HashMap::new(),
        };
        btf.index()?;
        Ok(btf)
    }

    /// Finds where each type begins.
    fn index(&mut self) -> Result<(), BtfError> {
        let mut at = 0;
        while at < self.types.len() {
            let id = self.starts.len() as u32;
            let found = self.type_at(at)?;
            let rest = match found.kind {
                KIND_INT | KIND_VAR | KIND_DECL_TAG => 4,
                KIND_ARRAY => 12,
                KIND_STRUCT | KIND_UNION => MEMBER_SIZE * found.count,
                KIND_ENUM | KIND_FUNC_PROTO => PAIR_SIZE * found.count,
                KIND_DATASEC | KIND_ENUM64 => 12 * found.count,
                // Pointer, forward declaration, typedef, qualifiers, function, float, type tag.
                2 | 7..=12 | 16 | KIND_TYPE_TAG => 0,
                kind => return Err(BtfError::Kind { id, kind }),
            };
            let end = found.rest + rest;
            if end > self.types.len() {
                return Err(BtfError::Cut { what: "type", at, len: self.types.len() });
            }
            if found.is_composite() && found.name != 0 {
                self.structs.entry(self.string(found.name)?).or_insert(id);
            }
            self.starts.push(at);
            at = end;
        }
        Ok(())
    }

    /// Where the field that `path` names lies in `struct name` (or union): names of members, separated by dots. Members
    /// of anonymous structs and unions are found as in C. Pointers are not followed.
    pub fn field(&self, name: &str, path: &str) -> Result<Location, BtfError> {
        let mut id = *self.structs.get(name.as_bytes()).ok_or_else(|| BtfError::NoStruct { name: name.to_owned() })?;
        let mut location = Location { bits: 0, is_bit_field: false };
        for field in path.split('.') {
            let missing = || BtfError::NoField { name: name.to_owned(), field: field.to_owned() };
            let (found, type_id) = self.member(id, field.as_bytes(), 0)?.ok_or_else(missing)?;
            location.bits = location.bits.checked_add(found.bits).ok_or_else(missing)?;
            location.is_bit_field = found.is_bit_field;
            id = type_id;
        }
        Ok(location)
    }

    /// The number of `value` in `enum name`, if there is such a value.
    pub fn enumerator(&self, name: &str, value: &str) -> Option<u32> {
        let found = self.named(KIND_ENUM, name)?;
        let (_, number) = self.pairs(found).find(|&(name, _)| name == value.as_bytes())?;
        Some(number)
    }

    /// Which parameter of the function `name` is called `parameter`, from 0, if there is one.
    pub fn parameter(&self, name: &str, parameter: &str) -> Option<u32> {
        let prototype = self.type_at(*self.starts.get(self.named(KIND_FUNC, name)?.refers as usize)?).ok()?;
        if prototype.kind != KIND_FUNC_PROTO {
            return None;
        }
        let index = self.pairs(prototype).position(|(name, _)| name == parameter.as_bytes())?;
        u32::try_from(index).ok()
    }

    /// Whether there is a function `name` that a program can be attached to.
    pub fn has_function(&self, name: &str) -> bool {
        self.named(KIND_FUNC, name).is_some()
    }

    /// The first type of a kind with a name. Walks over all types: for what is asked a few times.
    fn named(&self, kind: u32, name: &str) -> Option<Type> {
        let is_it = |found: &Type| found.kind == kind && self.string(found.name) == Ok(name.as_bytes());
        self.starts.iter().skip(1).filter_map(|&start| self.type_at(start).ok()).find(is_it)
    }

    /// The values of an enum or the parameters of a function: names, and numbers or types.
    fn pairs(&self, found: Type) -> impl Iterator<Item = (&'a [u8], u32)> + '_ {
        (0..found.count).map_while(move |index| {
            let at = found.rest + index * PAIR_SIZE;
            let name = self.string(word(self.types, at, "name").ok()?).ok()?;
            Some((name, word(self.types, at + 4, "number").ok()?))
        })
    }

    /// The member `field` of type `id`, and the member's type.
    fn member(&self, id: u32, field: &[u8], depth: u32) -> Result<Option<(Location, u32)>, BtfError> {
        let Some(composite) = self.composite(id)? else { return Ok(None) };
        if depth == MAX_DEPTH {
            return Ok(None);
        }
        for index in 0..composite.count {
            let at = composite.rest + index * MEMBER_SIZE;
            let name = word(self.types, at, "name of a member")?;
            let type_id = word(self.types, at + 4, "type of a member")?;
            let offset = word(self.types, at + 8, "offset of a member")?;
            let location = if composite.has_bit_fields {
                Location { bits: offset & 0x00ff_ffff, is_bit_field: offset >> 24 != 0 }
            } else {
                Location { bits: offset, is_bit_field: false }
            };
            let name = self.string(name)?;
            if name == field && !name.is_empty() {
                return Ok(Some((location, type_id)));
            }
            if name.is_empty()
                && let Some((inner, type_id)) = self.member(type_id, field, depth + 1)?
                && let Some(bits) = location.bits.checked_add(inner.bits)
            {
                return Ok(Some((Location { bits, ..inner }, type_id)));
            }
        }
        Ok(None)
    }

    /// The struct or union that `id` is, behind its names and qualifiers.
    fn composite(&self, mut id: u32) -> Result<Option<Type>, BtfError> {
        for _ in 0..MAX_DEPTH {
            let Some(&start) = self.starts.get(id as usize).filter(|_| id != 0) else { return Ok(None) };
            let found = self.type_at(start)?;
            match found.kind {
                KIND_STRUCT | KIND_UNION => return Ok(Some(found)),
                KIND_TYPEDEF | KIND_VOLATILE | KIND_CONST | KIND_RESTRICT | KIND_TYPE_TAG => id = found.refers,
                _ => return Ok(None),
            }
        }
        Ok(None)
    }

    fn type_at(&self, at: usize) -> Result<Type, BtfError> {
        let info = word(self.types, at + 4, "type")?;
        Ok(Type {
            name: word(self.types, at, "type")?,
            kind: info >> 24 & 0x1f,
            count: (info & 0xffff) as usize,
            has_bit_fields: info >> 31 != 0,
            refers: word(self.types, at + 8, "type")?,
            rest: at + TYPE_SIZE,
        })
    }

    /// The string that begins at `at` and ends with a zero.
    fn string(&self, at: u32) -> Result<&'a [u8], BtfError> {
        let cut = || BtfError::Cut { what: "name", at: at as usize, len: self.strings.len() };
        let tail = self.strings.get(at as usize..).ok_or_else(cut)?;
        let end = tail.iter().position(|&byte| byte == 0).ok_or_else(cut)?;
        tail.get(..end).ok_or_else(cut)
    }
}

fn array<const N: usize>(bytes: &[u8], at: usize, what: &'static str) -> Result<[u8; N], BtfError> {
    bytes.get(at..).and_then(|tail| tail.first_chunk()).copied().ok_or(BtfError::Cut { what, at, len: bytes.len() })
}

fn word(bytes: &[u8], at: usize, what: &'static str) -> Result<u32, BtfError> {
    array(bytes, at, what).map(u32::from_ne_bytes)
}

#[cfg(test)]
mod tests;
