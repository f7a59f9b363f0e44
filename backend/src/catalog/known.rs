//! What the tag index knows of the catalog: hashes of all its entries.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::hash::{BuildHasher, BuildHasherDefault, Hash, Hasher};

use foldhash::quality::RandomState;

use super::index::IndexLimits;
use super::{Catalog, CatalogError, Hours, Scope, Seen, TagValue};

/// Longest name and longest value that are indexed, bytes.
pub(super) const INDEXED_BYTES: usize = 1024;

/// Tags that were seen last, of which most seen next are.
const RECENT: usize = 1 << 13;

/// When so many values of a name were over its limit,
const MANY_OVER: u64 = 1_000;

/// of those that come then one in so many is looked at: most are as little known.
const LOOKED_AT: u64 = 16;

const ALL: IndexLimits = IndexLimits { names: u32::MAX, values: u32::MAX, all_values: usize::MAX };

/// By hashes of 64 bits, keyed anew at each start: two of a million entries share one in one of 37 million starts, and
/// then one value is missing in a completion list.
#[derive(Default)]
pub(super) struct Known {
    scopes: HashMap<u64, u32, Passed>,
    names: HashMap<u64, Name, Passed>,
    values: HashMap<u64, Hours, Passed>,
    pub(super) recent: Recent,
}

struct Name {
    hours: Hours,
    values: u32,
    /// Values that were over the limit.
    over: u64,
}

/// Hashes of tags that are in the index, each with its hour, as they were encoded: small enough for a processor's cache.
pub(super) struct Recent(Box<[u64]>);

impl Default for Recent {
    fn default() -> Self {
        Self(vec![0; RECENT].into())
    }
}

impl Recent {
    pub(super) fn place(&mut self, hash: u64) -> Option<&mut u64> {
        self.0.get_mut(hash as usize % RECENT)
    }
}

/// What became of a tag.
pub(super) struct Noted {
    /// The catalog must be told.
    pub(super) fresh: bool,
    pub(super) value: ValueNoted,
}

pub(super) enum ValueNoted {
    Indexed,
    OverLimit,
    TooLong,
}

impl ValueNoted {
    pub(super) const fn is_indexed(&self) -> bool {
        matches!(self, Self::Indexed)
    }
}

impl Known {
    pub(super) fn load(store: &dyn Catalog, hasher: &RandomState) -> Result<Self, CatalogError> {
        let mut known = Self::default();
        store.for_each(&mut |tenant, seen| {
            known.note(hasher, ALL, hasher.hash_one(tenant), &Tag::of(&seen));
        })?;
        Ok(known)
    }

    /// `owner` is the hash of the tenant.
    pub(super) fn note(&mut self, hasher: &RandomState, limits: IndexLimits, owner: u64, tag: &Tag<'_>) -> Noted {
        if tag.name.len() > INDEXED_BYTES {
            return Noted { fresh: false, value: ValueNoted::TooLong };
        }
        let too_long = matches!(tag.value, Some(Borrowed::String(text)) if text.len() > INDEXED_BYTES);
        let value = tag.value.filter(|_| !too_long);
        let mut fresh = false;
        let name = match self.names.entry(hasher.hash_one((owner, tag.scope, tag.name))) {
            Entry::Occupied(name) => {
                let name = name.into_mut();
                fresh |= widen(&mut name.hours, tag.hours);
                name
            }
            Entry::Vacant(vacant) => {
                let names = self.scopes.entry(hasher.hash_one((owner, tag.scope))).or_default();
                if *names >= limits.names {
                    return Noted { fresh: false, value: ValueNoted::OverLimit };
                }
                *names += 1;
                fresh = true;
                vacant.insert(Name { hours: tag.hours, values: 0, over: 0 })
            }
        };
        if too_long {
            return Noted { fresh, value: ValueNoted::TooLong };
        }
        if name.over >= MANY_OVER {
            name.over += 1;
            if !name.over.is_multiple_of(LOOKED_AT) {
                return Noted { fresh, value: ValueNoted::OverLimit };
            }
        }
        let full = self.values.len() >= limits.all_values || name.values >= limits.values;
        let Some(value) = value else { return Noted { fresh, value: ValueNoted::Indexed } };
        match self.values.entry(hasher.hash_one((owner, tag.scope, tag.name, value))) {
            Entry::Occupied(mut hours) => fresh |= widen(hours.get_mut(), tag.hours),
            Entry::Vacant(_) if full => {
                name.over += 1;
                return Noted { fresh, value: ValueNoted::OverLimit };
            }
            Entry::Vacant(vacant) => {
                vacant.insert(tag.hours);
                name.values += 1;
                fresh = true;
            }
        }
        Noted { fresh, value: ValueNoted::Indexed }
    }
}

/// True if `hours` has changed.
fn widen(hours: &mut Hours, by: Hours) -> bool {
    if hours.contains(by) {
        return false;
    }
    *hours = hours.union(by);
    true
}

/// A [`Seen`] that owns nothing.
#[derive(Clone, Copy)]
pub(super) struct Tag<'a> {
    pub(super) scope: Scope,
    pub(super) name: &'a str,
    pub(super) value: Option<Borrowed<'a>>,
    pub(super) hours: Hours,
}

#[derive(Clone, Copy, Hash)]
pub(super) enum Borrowed<'a> {
    String(&'a str),
    Int(i64),
    /// By its bits.
    Float(u64),
    Bool(bool),
}

impl<'a> Tag<'a> {
    pub(super) fn of(seen: &'a Seen) -> Self {
        let Seen { scope, name, value, hours } = seen;
        let value = value.as_ref().map(|value| match value {
            TagValue::String(text) => Borrowed::String(text),
            TagValue::Int(number) => Borrowed::Int(*number),
            TagValue::Float(number) => Borrowed::Float(number.to_bits()),
            TagValue::Bool(truth) => Borrowed::Bool(*truth),
        });
        Self { scope: *scope, name, value, hours: *hours }
    }

    pub(super) fn to_seen(self, with_value: bool) -> Seen {
        let value = self.value.filter(|_| with_value).map(|value| match value {
            Borrowed::String(text) => TagValue::String(text.to_owned()),
            Borrowed::Int(number) => TagValue::Int(number),
            Borrowed::Float(bits) => TagValue::Float(f64::from_bits(bits)),
            Borrowed::Bool(truth) => TagValue::Bool(truth),
        });
        Seen { scope: self.scope, name: self.name.to_owned(), value, hours: self.hours }
    }
}

/// For keys that are hashes already.
#[derive(Default)]
struct PassThrough(u64);

type Passed = BuildHasherDefault<PassThrough>;

impl Hasher for PassThrough {
    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.0 = self.0.rotate_left(8) ^ u64::from(*byte);
        }
    }

    fn write_u64(&mut self, hash: u64) {
        self.0 = hash;
    }

    fn finish(&self) -> u64 {
        self.0
    }
}
