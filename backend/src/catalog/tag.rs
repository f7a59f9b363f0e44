//! Tags: where an attribute sits, what values it takes, when it was seen.

use std::cmp::Ordering;
use std::fmt;

/// Where an attribute sits.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub enum Scope {
    /// On a span event.
    Event,
    /// On the instrumentation scope.
    Instrumentation,
    /// Not an attribute but a field: `name`, `statusMessage`, `rootName`, `rootServiceName`, `event:name`,
    /// `instrumentation:name`, `instrumentation:version`. Values are strings.
    Intrinsic,
    /// On a span link.
    Link,
    /// On the resource.
    Resource,
    /// On the span.
    Span,
}

impl Scope {
    /// Every scope.
    pub const ALL: [Self; 6] =
        [Self::Event, Self::Instrumentation, Self::Intrinsic, Self::Link, Self::Resource, Self::Span];

    /// Its name in TraceQL and in Tempo's API.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Event => "event",
            Self::Instrumentation => "instrumentation",
            Self::Intrinsic => "intrinsic",
            Self::Link => "link",
            Self::Resource => "resource",
            Self::Span => "span",
        }
    }
}

/// One value of a tag. Ordered by type, then by value; floats by [`f64::total_cmp`].
#[derive(Clone, Debug)]
pub enum TagValue {
    /// `stringValue`.
    String(String),
    /// `intValue`.
    Int(i64),
    /// `doubleValue`.
    Float(f64),
    /// `boolValue`.
    Bool(bool),
}

impl TagValue {
    /// Its type as Tempo's API names it: `string`, `int`, `float`, `bool`.
    pub const fn type_name(&self) -> &'static str {
        match self {
            Self::String(_) => "string",
            Self::Int(_) => "int",
            Self::Float(_) => "float",
            Self::Bool(_) => "bool",
        }
    }

    const fn rank(&self) -> u8 {
        match self {
            Self::String(_) => 0,
            Self::Int(_) => 1,
            Self::Float(_) => 2,
            Self::Bool(_) => 3,
        }
    }
}

impl fmt::Display for TagValue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::String(text) => f.write_str(text),
            Self::Int(number) => number.fmt(f),
            Self::Float(number) => number.fmt(f),
            Self::Bool(truth) => truth.fmt(f),
        }
    }
}

impl Ord for TagValue {
    fn cmp(&self, other: &Self) -> Ordering {
        match (self, other) {
            (Self::String(a), Self::String(b)) => a.cmp(b),
            (Self::Int(a), Self::Int(b)) => a.cmp(b),
            (Self::Float(a), Self::Float(b)) => a.total_cmp(b),
            (Self::Bool(a), Self::Bool(b)) => a.cmp(b),
            _ => self.rank().cmp(&other.rank()),
        }
    }
}

impl PartialOrd for TagValue {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Eq for TagValue {}

impl PartialEq for TagValue {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

/// A range of hours since the epoch, both ends included.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Hours {
    /// First hour.
    pub first: u32,
    /// Last hour.
    pub last: u32,
}

impl Hours {
    /// The hours that touch the times from `start` to `end`, seconds since the epoch.
    pub fn from_seconds(start: u64, end: u64) -> Self {
        Self { first: hour(start), last: hour(end) }
    }

    /// The hour of a time, nanoseconds since the epoch.
    pub fn of_nanos(time_ns: u64) -> Self {
        let hour = hour(time_ns / 1_000_000_000);
        Self { first: hour, last: hour }
    }

    /// The smallest range that holds both.
    #[must_use]
    pub fn union(self, other: Self) -> Self {
        Self { first: self.first.min(other.first), last: self.last.max(other.last) }
    }

    /// True if an hour is in both.
    pub const fn intersects(self, other: Self) -> bool {
        self.first <= other.last && other.first <= self.last
    }

    /// True if every hour of `other` is in this one.
    pub const fn contains(self, other: Self) -> bool {
        self.first <= other.first && other.last <= self.last
    }
}

fn hour(seconds: u64) -> u32 {
    u32::try_from(seconds / 3600).unwrap_or(u32::MAX)
}

/// A tag that was seen: with a value, or, when the value is not indexed, just its name.
#[derive(Clone, Debug, PartialEq)]
pub struct Seen {
    /// Where.
    pub scope: Scope,
    /// Name of the attribute.
    pub name: String,
    /// Its value. An array gives one entry for each of its elements.
    pub value: Option<TagValue>,
    /// When.
    pub hours: Hours,
}
