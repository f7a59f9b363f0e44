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

/// What became of the value of a tag.
#[derive(Clone, Copy)]
pub(super) enum ValueNoted {
    Indexed,
    OverLimit,
    TooLong,
}

impl ValueNoted {
    pub(super) const fn is_indexed(self) -> bool {
        matches!(self, Self::Indexed)
    }
}

impl Known {
    pub(super) fn load(store: &dyn Catalog, hasher: &RandomState) -> Result<Self, CatalogError> {
        let mut known = Self::default();
        store.for_each(&mut |tenant, seen| {
            known.add(hasher, ALL, hasher.hash_one(tenant), &Tag::of(&seen));
        })?;
        Ok(known)
    }

    /// What becomes of a tag, unless it is new, or new at this time. `owner` is the hash of the tenant.
    pub(super) fn look(
        &mut self,
        hasher: &RandomState,
        limits: IndexLimits,
        owner: u64,
        tag: &Tag<'_>,
    ) -> Option<ValueNoted> {
        if tag.name.len() > INDEXED_BYTES {
            return Some(ValueNoted::TooLong);
        }
        let Some(name) = self.names.get_mut(&hasher.hash_one((owner, tag.scope, tag.name))) else {
            let names = self.scopes.get(&hasher.hash_one((owner, tag.scope)));
            return names.is_some_and(|names| *names >= limits.names).then_some(ValueNoted::OverLimit);
        };
        if !name.hours.contains(tag.hours) {
            return None;
        }
        let value = match tag.value {
            Some(value) if value.is_too_long() => return Some(ValueNoted::TooLong),
            Some(value) => value,
            None => return Some(ValueNoted::Indexed),
        };
        if name.over >= MANY_OVER {
            name.over += 1;
            if !name.over.is_multiple_of(LOOKED_AT) {
                return Some(ValueNoted::OverLimit);
            }
        }
        match self.values.get(&hasher.hash_one((owner, tag.scope, tag.name, value))) {
            Some(hours) => hours.contains(tag.hours).then_some(ValueNoted::Indexed),
            None if self.values.len() >= limits.all_values || name.values >= limits.values => {
                name.over += 1;
                Some(ValueNoted::OverLimit)
            }
            None => None,
        }
    }

    /// Knows a tag that [`Self::look`] found to be new from now on; also says whether it still was.
    pub(super) fn add(
        &mut self,
        hasher: &RandomState,
        limits: IndexLimits,
        owner: u64,
        tag: &Tag<'_>,
    ) -> (ValueNoted, bool) {
        let value = tag.value.filter(|value| !value.is_too_long());
        let mut is_new = false;
        let name = match self.names.entry(hasher.hash_one((owner, tag.scope, tag.name))) {
            Entry::Occupied(name) => {
                let name = name.into_mut();
                is_new |= widen(&mut name.hours, tag.hours);
                name
            }
            Entry::Vacant(vacant) => {
                let names = self.scopes.entry(hasher.hash_one((owner, tag.scope))).or_default();
                if *names >= limits.names {
                    return (ValueNoted::OverLimit, false);
                }
                *names += 1;
                is_new = true;
                vacant.insert(Name { hours: tag.hours, values: 0, over: 0 })
            }
        };
        let Some(value) = value else {
            let noted = if tag.value.is_some() { ValueNoted::TooLong } else { ValueNoted::Indexed };
            return (noted, is_new);
        };
        let is_full = self.values.len() >= limits.all_values || name.values >= limits.values;
        match self.values.entry(hasher.hash_one((owner, tag.scope, tag.name, value))) {
            Entry::Occupied(mut hours) => is_new |= widen(hours.get_mut(), tag.hours),
            Entry::Vacant(_) if is_full => {
                name.over += 1;
                return (ValueNoted::OverLimit, is_new);
            }
            Entry::Vacant(vacant) => {
                vacant.insert(tag.hours);
                name.values += 1;
                is_new = true;
            }
        }
        (ValueNoted::Indexed, is_new)
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

impl Borrowed<'_> {
    const fn is_too_long(self) -> bool {
        matches!(self, Self::String(text) if text.len() > INDEXED_BYTES)
    }
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
