//! One trace: first the tree of calls, then times, then spans.

use coati_backend::live::TraceId;
use coati_common::wellknown::span as key;
use opentelemetry_proto::tonic::common::v1::KeyValue;
use opentelemetry_proto::tonic::trace::v1::span::{Event, Link, SpanKind};
use opentelemetry_proto::tonic::trace::v1::status::StatusCode;
use opentelemetry_proto::tonic::trace::v1::{Span, Status};

use super::numbers::Numbers;
use super::shop::{Instance, integer, text};

/// Half of the traces have fewer spans; with [`SPANS_SIGMA`] the mean is 17.5.
const SPANS_MEDIAN: f64 = 13.0;
const SPANS_SIGMA: f64 = 0.77;
const SPANS_MOST: f64 = 400.0;

/// Flags of a sampled span, and whether its parent is in another process (OTLP's `SpanFlags`).
const SAMPLED: u32 = 0x101;
const REMOTE_PARENT: u32 = 0x200;

/// What databases are asked: operation, table, statement.
const STATEMENTS: [(&str, &str, &str); 8] = [
    ("SELECT", "products", "SELECT id, name, price FROM products WHERE id = $1"),
    ("SELECT", "products", "SELECT id, name FROM products ORDER BY rank LIMIT 50"),
    ("SELECT", "stock", "SELECT amount FROM stock WHERE product = $1 AND warehouse = $2"),
    ("UPDATE", "stock", "UPDATE stock SET amount = amount - $2 WHERE product = $1"),
    ("INSERT", "orders", "INSERT INTO orders (account, total, currency) VALUES ($1, $2, $3) RETURNING id"),
    ("SELECT", "accounts", "SELECT id, mail, tier FROM accounts WHERE id = $1"),
    ("SELECT", "sessions", "SELECT data FROM sessions WHERE token = $1 AND expires > now()"),
    ("DELETE", "cart_items", "DELETE FROM cart_items WHERE cart = $1"),
];

#[derive(Clone, Copy, Debug)]
enum Role {
    /// Serves a call of the parent, or one from outside.
    Server,
    /// Calls an instance.
    Client(Instance),
    /// Asks a database.
    Database(usize),
}

/// A call before it is a span. Its parent stands before it in the list.
#[derive(Clone, Debug)]
struct Call {
    parent: Option<usize>,
    instance: Instance,
    role: Role,
    route: (&'static str, &'static str),
    path: String,
    body: u64,
    start_ns: u64,
    duration_ns: u64,
    /// Time that passes before each child, and after the last one.
    own_ns: u64,
    children: u64,
    failed: bool,
}

/// How many spans the next trace has.
pub(super) fn size(numbers: &mut Numbers) -> usize {
    numbers.log_normal(SPANS_MEDIAN, SPANS_SIGMA).clamp(1.0, SPANS_MOST).round() as usize
}

/// About `size` spans of one trace with the instances that send them, the root first. `previous` is a trace that it may
/// link to.
pub(super) fn trace(
    numbers: &mut Numbers,
    size: usize,
    start_ns: u64,
    previous: Option<TraceId>,
) -> Vec<(Instance, Span)> {
    let mut calls = tree(numbers, size);
    fail(numbers, &mut calls);
    set_times(numbers, &mut calls, start_ns);
    let trace_id = [numbers.next().to_be_bytes(), numbers.next().to_be_bytes()].concat();
    let ids: Vec<_> = calls.iter().map(|_| numbers.next().to_be_bytes().to_vec()).collect();
    let spans = calls.iter().enumerate().map(|(index, call)| {
        let id_of = |index| ids.get(index).cloned().unwrap_or_default();
        let remote = call.parent.and_then(|parent| calls.get(parent)).is_some_and(|p| p.instance != call.instance);
        let attributes = attributes(numbers, call, call.parent.and_then(|parent| calls.get(parent)));
        let span = Span {
            trace_id: trace_id.clone(),
            span_id: id_of(index),
            parent_span_id: call.parent.map(id_of).unwrap_or_default(),
            flags: SAMPLED | if remote { REMOTE_PARENT } else { 0 },
            name: name(call),
            kind: kind(call) as i32,
            start_time_unix_nano: call.start_ns,
            end_time_unix_nano: call.start_ns + call.duration_ns,
            attributes,
            events: events(call),
            links: links(numbers, call, previous),
            status: Some(status(call)),
            ..Span::default()
        };
        (call.instance, span)
    });
    spans.collect()
}

fn tree(numbers: &mut Numbers, wanted: usize) -> Vec<Call> {
    let root = Instance::entry(numbers);
    let route = root.route(numbers);
    let mut calls = vec![call(numbers, None, root, Role::Server, route)];
    let mut servers = vec![0];
    while calls.len() < wanted {
        let at = numbers.one_of(&servers).copied().unwrap_or_default();
        let Some(Call { instance, route, .. }) = calls.get(at).cloned() else { break };
        if wanted - calls.len() == 1 || numbers.once_in(6) {
            let statement = numbers.below(STATEMENTS.len() as u64) as usize;
            calls.push(call(numbers, Some(at), instance, Role::Database(statement), route));
        } else {
            let callee = instance.callee(numbers);
            let route = callee.route(numbers);
            let client = call(numbers, Some(at), instance, Role::Client(callee), route);
            let (path, body) = (client.path.clone(), client.body);
            calls.push(client);
            let server = call(numbers, Some(calls.len() - 1), callee, Role::Server, route);
            servers.push(calls.len());
            calls.push(Call { path, body, ..server });
        }
    }
    calls
}

fn call(
    numbers: &mut Numbers,
    parent: Option<usize>,
    instance: Instance,
    role: Role,
    route: (&'static str, &'static str),
) -> Call {
    let path = route.1.replace("{id}", &numbers.popular(100_000).to_string());
    let body = numbers.log_normal(900.0, 1.4) as u64;
    Call {
        parent,
        instance,
        role,
        route,
        path,
        body,
        start_ns: 0,
        duration_ns: 0,
        own_ns: 0,
        children: 0,
        failed: false,
    }
}

/// Lets one call in a hundred fail; most callers fail with what they called.
fn fail(numbers: &mut Numbers, calls: &mut [Call]) {
    for index in (0..calls.len()).rev() {
        let Some(call) = calls.get_mut(index) else { continue };
        call.failed |= numbers.once_in(100);
        let (failed, parent) = (call.failed, call.parent);
        let handed_on = failed && numbers.below(10) < 7;
        if let Some(parent) = parent.and_then(|parent| calls.get_mut(parent)) {
            parent.failed |= handed_on;
            parent.children += 1;
        }
    }
}

/// A call takes as long as what it calls, one after the other, and time of its own.
fn set_times(numbers: &mut Numbers, calls: &mut [Call], start_ns: u64) {
    for index in (0..calls.len()).rev() {
        let Some(call) = calls.get_mut(index) else { continue };
        let median = match call.role {
            Role::Server => 1.5e6,
            Role::Client(_) => 0.3e6,
            Role::Database(_) => 0.8e6,
        };
        let own = numbers.log_normal(median, 0.9) as u64;
        call.own_ns = own / (call.children + 1);
        call.duration_ns += own;
        let (duration, parent) = (call.duration_ns, call.parent);
        if let Some(parent) = parent.and_then(|parent| calls.get_mut(parent)) {
            parent.duration_ns += duration;
        }
    }
    // Of each call, when its next child begins, and the time between two children.
    let mut next: Vec<(u64, u64)> = Vec::with_capacity(calls.len());
    for call in calls {
        call.start_ns = match call.parent.and_then(|parent| next.get_mut(parent)) {
            Some((begin, between)) => std::mem::replace(begin, *begin + call.duration_ns + *between),
            None => start_ns,
        };
        next.push((call.start_ns + call.own_ns, call.own_ns));
    }
}

fn name(call: &Call) -> String {
    match call.role {
        Role::Server | Role::Client(_) => format!("{} {}", call.route.0, call.route.1),
        Role::Database(statement) => {
            let (operation, table, _) = STATEMENTS.get(statement).copied().unwrap_or_default();
            format!("{operation} {table}")
        }
    }
}

fn kind(call: &Call) -> SpanKind {
    match call.role {
        Role::Server => SpanKind::Server,
        Role::Client(_) | Role::Database(_) => SpanKind::Client,
    }
}

fn status_code(call: &Call) -> u64 {
    match (call.failed, call.route.0) {
        (true, _) => [500, 503, 504].get(call.body as usize % 3).copied().unwrap_or(500),
        // Not found is no failure of the server.
        (false, "GET") if call.body.is_multiple_of(40) => 404,
        (false, "POST") => 201,
        (false, _) => 200,
    }
}

fn attributes(numbers: &mut Numbers, call: &Call, parent: Option<&Call>) -> Vec<KeyValue> {
    let mut attributes = match call.role {
        Role::Database(statement) => return of_database(numbers, call, statement),
        Role::Server => of_server(numbers, call, parent),
        Role::Client(callee) => vec![
            text(key::HTTP_REQUEST_METHOD, call.route.0),
            text(key::URL_FULL, format!("http://{}.shop:8080{}", callee.service_name(), call.path)),
            text(key::NETWORK_PEER_ADDRESS, callee.address()),
            integer(key::NETWORK_PEER_PORT, 8080),
            text(key::SERVER_ADDRESS, format!("{}.shop", callee.service_name())),
            integer(key::SERVER_PORT, 8080),
            text(key::NETWORK_PROTOCOL_VERSION, "1.1"),
        ],
    };
    attributes.push(integer(key::HTTP_RESPONSE_STATUS_CODE, status_code(call)));
    attributes.push(integer(key::HTTP_RESPONSE_BODY_SIZE, call.body));
    if call.failed {
        attributes.push(text(key::ERROR_TYPE, status_code(call).to_string()));
    }
    attributes
}

fn of_server(numbers: &mut Numbers, call: &Call, parent: Option<&Call>) -> Vec<KeyValue> {
    // Inside, connections are kept and used again; from outside each visitor has one of its own.
    let (address, port) = if let Some(parent) = parent {
        (parent.instance.address(), parent.instance.port(numbers))
    } else {
        let visitor = numbers.popular(20_000);
        (format!("203.0.{}.{}", visitor / 250, visitor % 250), 1_024 + numbers.below(64_000))
    };
    vec![
        text(key::HTTP_REQUEST_METHOD, call.route.0),
        text(key::URL_PATH, call.path.as_str()),
        text(key::URL_SCHEME, "http"),
        text(key::HTTP_ROUTE, call.route.1),
        text(key::CLIENT_ADDRESS, address),
        integer(key::CLIENT_PORT, port),
        text(key::SERVER_ADDRESS, format!("{}.shop", call.instance.service_name())),
        integer(key::SERVER_PORT, 8080),
        text(key::NETWORK_PROTOCOL_VERSION, "1.1"),
    ]
}

fn of_database(numbers: &mut Numbers, call: &Call, statement: usize) -> Vec<KeyValue> {
    let (operation, table, statement) = STATEMENTS.get(statement).copied().unwrap_or_default();
    let mut attributes = vec![
        text("db.system.name", "postgresql"),
        text("db.namespace", "shop"),
        text("db.operation.name", operation),
        text("db.collection.name", table),
        text("db.query.text", statement),
        integer("db.response.returned_rows", numbers.popular(50)),
        text(key::SERVER_ADDRESS, "postgres.shop"),
        integer(key::SERVER_PORT, 5432),
        integer("thread.id", numbers.below(16)),
    ];
    if call.failed {
        attributes.push(text(key::ERROR_TYPE, "57014"));
    }
    attributes
}

/// What fails by itself tells why.
fn events(call: &Call) -> Vec<Event> {
    if !call.failed || call.children > 0 {
        return Vec::new();
    }
    let attributes = vec![
        text("exception.type", "TimeoutError"),
        text("exception.message", format!("no answer within {} ms", call.duration_ns / 1_000_000)),
        text(
            "exception.stacktrace",
            "at handle (server.js:120:11)\n  at next (router.js:44:7)\n  at run (main.js:9:3)",
        ),
    ];
    let time_unix_nano = call.start_ns + call.duration_ns / 2;
    vec![Event { time_unix_nano, name: "exception".to_owned(), attributes, ..Event::default() }]
}

/// One root in fifty goes on with what an earlier trace began.
fn links(numbers: &mut Numbers, call: &Call, previous: Option<TraceId>) -> Vec<Link> {
    let Some(previous) = previous.filter(|_| call.parent.is_none() && numbers.once_in(50)) else { return Vec::new() };
    let attributes = vec![text("messaging.operation.type", "process")];
    let span_id = numbers.next().to_be_bytes().to_vec();
    vec![Link { trace_id: previous.0.to_vec(), span_id, attributes, flags: SAMPLED, ..Link::default() }]
}

fn status(call: &Call) -> Status {
    let code = if call.failed { StatusCode::Error } else { StatusCode::Unset };
    Status { code: code.into(), message: String::new() }
}
