//! What a span has that a query can name: attributes and intrinsics, with their spellings.

/// Something that a span has.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub enum Field {
    /// A key that its sender chose.
    Attribute(Attribute),
    /// A property of every span.
    Intrinsic(Intrinsic),
}

/// `resource.service.name`.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub struct Attribute {
    /// `parent.…`: of the parent span.
    pub parent: bool,
    /// Where to look.
    pub scope: Scope,
    /// Key.
    pub name: String,
}

/// Where an attribute is looked for.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
#[expect(missing_docs, reason = "named as the scopes are")]
pub enum Scope {
    /// `.name`: span, then resource, event, link, instrumentation.
    Any,
    Resource,
    Span,
    Event,
    Link,
    Instrumentation,
}

impl Scope {
    /// All that have a name, in the order in which an unscoped attribute is looked for.
    pub const NAMED: [Self; 5] = [Self::Span, Self::Resource, Self::Event, Self::Link, Self::Instrumentation];

    /// As in `resource.`; empty for [`Scope::Any`].
    pub fn name(self) -> &'static str {
        match self {
            Self::Any => "",
            Self::Resource => "resource",
            Self::Span => "span",
            Self::Event => "event",
            Self::Link => "link",
            Self::Instrumentation => "instrumentation",
        }
    }
}

/// What every span has.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
#[expect(missing_docs, reason = "named as the intrinsics are")]
pub enum Intrinsic {
    Duration,
    Name,
    Status,
    StatusMessage,
    Kind,
    Parent,
    ChildCount,
    SpanId,
    ParentId,
    NestedSetLeft,
    NestedSetRight,
    NestedSetParent,
    TraceId,
    TraceDuration,
    RootName,
    RootService,
    EventName,
    EventTimeSinceStart,
    LinkTraceId,
    LinkSpanId,
    InstrumentationName,
    InstrumentationVersion,
}

/// What comes before the colon of `span:name`.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
#[expect(missing_docs, reason = "named as the scopes are")]
pub enum IntrinsicScope {
    Trace,
    Span,
    Event,
    Link,
    Instrumentation,
}

impl IntrinsicScope {
    /// All of them.
    pub const ALL: [Self; 5] = [Self::Trace, Self::Span, Self::Event, Self::Link, Self::Instrumentation];

    /// As in `trace:`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Trace => "trace",
            Self::Span => "span",
            Self::Event => "event",
            Self::Link => "link",
            Self::Instrumentation => "instrumentation",
        }
    }
}

impl Intrinsic {
    /// All of them.
    pub const ALL: [Self; 22] = [
        Self::Duration,
        Self::Name,
        Self::Status,
        Self::StatusMessage,
        Self::Kind,
        Self::Parent,
        Self::ChildCount,
        Self::SpanId,
        Self::ParentId,
        Self::NestedSetLeft,
        Self::NestedSetRight,
        Self::NestedSetParent,
        Self::TraceId,
        Self::TraceDuration,
        Self::RootName,
        Self::RootService,
        Self::EventName,
        Self::EventTimeSinceStart,
        Self::LinkTraceId,
        Self::LinkSpanId,
        Self::InstrumentationName,
        Self::InstrumentationVersion,
    ];

    /// The spelling without a scope, if there is one.
    pub fn plain_name(self) -> Option<&'static str> {
        match self {
            Self::Duration => Some("duration"),
            Self::Name => Some("name"),
            Self::Status => Some("status"),
            Self::StatusMessage => Some("statusMessage"),
            Self::Kind => Some("kind"),
            Self::Parent => Some("parent"),
            Self::ChildCount => Some("childCount"),
            Self::NestedSetLeft => Some("nestedSetLeft"),
            Self::NestedSetRight => Some("nestedSetRight"),
            Self::NestedSetParent => Some("nestedSetParent"),
            Self::TraceDuration => Some("traceDuration"),
            Self::RootName => Some("rootName"),
            Self::RootService => Some("rootServiceName"),
            _ => None,
        }
    }

    /// The spelling with a scope, if there is one.
    pub fn scoped_name(self) -> Option<(IntrinsicScope, &'static str)> {
        Some(match self {
            Self::Duration => (IntrinsicScope::Span, "duration"),
            Self::Name => (IntrinsicScope::Span, "name"),
            Self::Status => (IntrinsicScope::Span, "status"),
            Self::StatusMessage => (IntrinsicScope::Span, "statusMessage"),
            Self::Kind => (IntrinsicScope::Span, "kind"),
            Self::ChildCount => (IntrinsicScope::Span, "childCount"),
            Self::SpanId => (IntrinsicScope::Span, "id"),
            Self::ParentId => (IntrinsicScope::Span, "parentID"),
            Self::TraceId => (IntrinsicScope::Trace, "id"),
            Self::TraceDuration => (IntrinsicScope::Trace, "duration"),
            Self::RootName => (IntrinsicScope::Trace, "rootName"),
            Self::RootService => (IntrinsicScope::Trace, "rootService"),
            Self::EventName => (IntrinsicScope::Event, "name"),
            Self::EventTimeSinceStart => (IntrinsicScope::Event, "timeSinceStart"),
            Self::LinkTraceId => (IntrinsicScope::Link, "traceID"),
            Self::LinkSpanId => (IntrinsicScope::Link, "spanID"),
            Self::InstrumentationName => (IntrinsicScope::Instrumentation, "name"),
            Self::InstrumentationVersion => (IntrinsicScope::Instrumentation, "version"),
            Self::Parent | Self::NestedSetLeft | Self::NestedSetRight | Self::NestedSetParent => return None,
        })
    }
}
