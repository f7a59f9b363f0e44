//! One connection of a client: requests, one after the other, and their answers.

use std::collections::{BTreeMap, VecDeque};
use std::io::{self, BufRead, BufReader, Write};
use std::net::{Shutdown, TcpStream};
use std::sync::PoisonError;
use std::thread;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::{Change, Fault, Shared, State, Verb};

/// How long a watch lasts that does not say so itself.
const WATCH_LASTS: Duration = Duration::from_mins(5);

/// A request, taken apart.
struct Request {
    target: String,
    resource: String,
    namespace: Option<String>,
    name: Option<String>,
    query: BTreeMap<String, String>,
    token: Option<String>,
}

/// What is answered.
enum Answer {
    Whole(u16, Value),
    /// From this version on.
    Watch(u64),
    /// Of the objects that a page begins with.
    Garbage,
}

/// Answers until the client goes, or a fault ends the connection.
pub(super) fn serve(stream: &TcpStream, shared: &Shared) {
    // Whatever goes wrong here, the client sees its connection end.
    let _ = answer_all(stream, shared);
    let _ = stream.shutdown(Shutdown::Both);
}

fn answer_all(stream: &TcpStream, shared: &Shared) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let mut reader = BufReader::new(stream);
    while let Some(request) = read(&mut reader)? {
        let verb = request.verb();
        let (answer, fault) = {
            let mut state = shared.state();
            state.requests.push(request.target.clone());
            let fault = state.faults.get_mut(&(request.resource.clone(), verb)).and_then(VecDeque::pop_front);
            (state.answer(&request, verb, fault), fault)
        };
        if let Some(Fault::Slow(delay)) = fault {
            thread::sleep(delay);
        }
        let mut out = Limited { stream, left: if let Some(Fault::Cut(bytes)) = fault { bytes } else { usize::MAX } };
        match answer {
            Answer::Whole(status, body) => whole(&mut out, status, &body.to_string())?,
            Answer::Garbage => whole(&mut out, 200, "<html>proxy</html>")?,
            Answer::Watch(version) => watch(&mut out, shared, &request, version, fault)?,
        }
    }
    Ok(())
}

impl Request {
    fn verb(&self) -> Verb {
        if self.name.is_some() {
            Verb::Get
        } else if self.query.get("watch").is_some_and(|watch| watch == "true" || watch == "1") {
            Verb::Watch
        } else {
            Verb::List
        }
    }

    /// Whether the request is about the object.
    fn selects(&self, object: &Value) -> bool {
        let text = |path: &str| object.pointer(path).and_then(Value::as_str);
        let node = self.query.get("fieldSelector").and_then(|selector| selector.strip_prefix("spec.nodeName="));
        node.is_none_or(|node| text("/spec/nodeName") == Some(node))
            && self.namespace.as_deref().is_none_or(|namespace| text("/metadata/namespace") == Some(namespace))
    }

    fn number(&self, key: &str) -> Option<u64> {
        self.query.get(key)?.parse().ok()
    }

    fn kind(&self) -> &'static str {
        if self.resource == "pods" { "Pod" } else { "Service" }
    }
}

impl State {
    fn answer(&self, request: &Request, verb: Verb, fault: Option<Fault>) -> Answer {
        match fault {
            Some(Fault::Status(code)) => return status(code),
            Some(Fault::Garbage) => return Answer::Garbage,
            _ => {}
        }
        if self.token.is_some() && self.token != request.token {
            return status(401);
        }
        if self.forbidden.contains(&request.resource) {
            return status(403);
        }
        match verb {
            Verb::Get => {
                let key = (
                    request.resource.clone(),
                    request.namespace.clone().unwrap_or_default(),
                    request.name.clone().unwrap_or_default(),
                );
                self.objects.get(&key).map_or_else(|| status(404), |object| Answer::Whole(200, object.clone()))
            }
            Verb::List => self.list(request),
            Verb::Watch => match request.number("resourceVersion").unwrap_or_default() {
                0 => Answer::Watch(self.version),
                version if version < self.forgotten && fault != Some(Fault::GoneEvent) => status(410),
                version => Answer::Watch(version),
            },
        }
    }

    /// A `continue` token is `VERSION.OBJECTS_BEFORE`.
    fn list(&self, request: &Request) -> Answer {
        let token = request.query.get("continue").and_then(|token| token.split_once('.'));
        let (version, skip) = match token {
            Some((version, skip)) => (version.parse().unwrap_or_default(), skip.parse().unwrap_or_default()),
            None => (self.version, 0),
        };
        if version < self.forgotten {
            return status(410);
        }
        let of_resource = self.objects.iter().filter(|((resource, ..), _)| *resource == request.resource);
        let all: Vec<_> = of_resource.map(|(_, object)| object).filter(|object| request.selects(object)).collect();
        // Version 0 is answered from memory, whole.
        let is_cached = request.query.get("resourceVersion").is_some_and(|version| version == "0");
        let limit = request.number("limit").filter(|_| !is_cached).map_or(usize::MAX, |limit| limit as usize);
        let items: Vec<_> = all.iter().skip(skip).take(limit).collect();
        let left = all.len().saturating_sub(skip + items.len());
        let mut metadata = json!({"resourceVersion": version.to_string()});
        if left > 0
            && let Some(metadata) = metadata.as_object_mut()
        {
            metadata.insert("continue".to_owned(), json!(format!("{version}.{}", skip + items.len())));
            metadata.insert("remainingItemCount".to_owned(), json!(left));
        }
        let kind = format!("{}List", request.kind());
        Answer::Whole(200, json!({"kind": kind, "apiVersion": "v1", "metadata": metadata, "items": items}))
    }
}

fn status(code: u16) -> Answer {
    let (reason, message) = match code {
        401 => ("Unauthorized", "Unauthorized"),
        403 => ("Forbidden", "pods is forbidden: User \"system:serviceaccount:coati:agent\" cannot list resource"),
        404 => ("NotFound", "not found"),
        410 => ("Expired", "too old resource version"),
        429 => ("TooManyRequests", "the server has received too many requests"),
        _ => ("InternalError", "etcdserver: leader changed"),
    };
    Answer::Whole(code, status_object(code, reason, message))
}

fn status_object(code: u16, reason: &str, message: &str) -> Value {
    json!({
        "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
        "message": message, "reason": reason, "code": code,
    })
}

/// Sends what changes, until the time of the watch is over.
fn watch(out: &mut Limited<'_>, shared: &Shared, request: &Request, from: u64, fault: Option<Fault>) -> io::Result<()> {
    // A proxy in front of the server must not wait for more.
    let head = "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\nx-accel-buffering: no\r\n\
                transfer-encoding: chunked\r\n\r\n";
    out.write_all(head.as_bytes())?;
    if fault == Some(Fault::GoneEvent) {
        line(out, "ERROR", &status_object(410, "Expired", "too old resource version"))?;
        return out.write_all(b"0\r\n\r\n");
    }
    let lasts = request.number("timeoutSeconds").map_or(WATCH_LASTS, Duration::from_secs);
    let end = Instant::now() + if fault == Some(Fault::End) { Duration::ZERO } else { lasts };
    let mut state = shared.state();
    state.watches += 1;
    let number = state.watches;
    let mut sent = from;
    let mut told = Instant::now();
    loop {
        let news: Vec<Change> = state
            .events
            .iter()
            .filter(|event| {
                event.version > sent && event.resource == request.resource && request.selects(&event.object)
            })
            .cloned()
            .collect();
        let (version, bookmarks, cut) = (state.version, state.bookmarks, state.cut >= number || state.is_dropped);
        drop(state);
        for change in news {
            line(out, change.kind, &with_type(change.object, request.kind()))?;
        }
        sent = sent.max(version);
        if cut {
            // In the middle of a line, and of a chunk.
            out.write_all(b"40\r\n{\"type\":\"MODI")?;
            return Err(io::ErrorKind::ConnectionAborted.into());
        }
        let now = Instant::now();
        if now >= end {
            return out.write_all(b"0\r\n\r\n");
        }
        if bookmarks.is_some_and(|every| now - told >= every) {
            told = now;
            // As a real server writes them: the objects that it encodes have no `omitempty` here.
            let mut bookmark = json!({
                "kind": request.kind(), "apiVersion": "v1",
                "metadata": {"resourceVersion": version.to_string(), "creationTimestamp": null},
                "spec": {}, "status": {},
            });
            if request.resource == "pods" {
                bookmark.as_object_mut().map(|it| it.insert("spec".to_owned(), json!({"containers": null})));
            }
            line(out, "BOOKMARK", &bookmark)?;
        }
        let wait = bookmarks.unwrap_or(WATCH_LASTS).min(end - now);
        state = shared.state();
        if state.version == version && state.cut < number && !state.is_dropped {
            state = shared.changed.wait_timeout(state, wait).unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}

/// Objects have their type in a watch, and not in a list.
fn with_type(mut object: Value, kind: &str) -> Value {
    if let Some(object) = object.as_object_mut() {
        object.insert("kind".to_owned(), json!(kind));
        object.insert("apiVersion".to_owned(), json!("v1"));
    }
    object
}

/// An event in two chunks: lines and chunks have nothing to do with each other.
fn line(out: &mut Limited<'_>, kind: &str, object: &Value) -> io::Result<()> {
    let text = format!("{{\"type\":\"{kind}\",\"object\":{object}}}\n");
    let (first, second) = text.as_bytes().split_at(text.len() / 2);
    for part in [first, second] {
        out.write_all(format!("{:x}\r\n", part.len()).as_bytes())?;
        out.write_all(part)?;
        out.write_all(b"\r\n")?;
    }
    Ok(())
}

fn whole(out: &mut Limited<'_>, status: u16, body: &str) -> io::Result<()> {
    let length = body.len();
    let head = format!("HTTP/1.1 {status} X\r\ncontent-type: application/json\r\ncontent-length: {length}\r\n\r\n");
    out.write_all(head.as_bytes())?;
    out.write_all(body.as_bytes())
}

/// A stream that breaks after so many bytes.
struct Limited<'a> {
    stream: &'a TcpStream,
    left: usize,
}

impl Write for Limited<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.left == 0 && !bytes.is_empty() {
            return Err(io::ErrorKind::ConnectionAborted.into());
        }
        let written = self.stream.write(bytes.get(..self.left.min(bytes.len())).unwrap_or_default())?;
        self.left -= written;
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.stream.flush()
    }
}

/// The next request, `None` at the end of the connection.
fn read(reader: &mut impl BufRead) -> io::Result<Option<Request>> {
    let mut line = String::new();
    if reader.read_line(&mut line)? == 0 {
        return Ok(None);
    }
    let target = line.split(' ').nth(1).unwrap_or_default().to_owned();
    let mut token = None;
    loop {
        let mut header = String::new();
        reader.read_line(&mut header)?;
        let header = header.trim();
        if header.is_empty() {
            break;
        }
        if let Some((name, value)) = header.split_once(": ")
            && name.eq_ignore_ascii_case("authorization")
        {
            token = value.strip_prefix("Bearer ").map(str::to_owned);
        }
    }
    let (path, query) = target.split_once('?').unwrap_or((&target, ""));
    let query = query.split('&').filter_map(|pair| pair.split_once('=')).map(|(key, value)| {
        // The only escapes in what is asked here.
        (key.to_owned(), value.replace("%3D", "=").replace("%2C", ","))
    });
    let mut parts = path.strip_prefix("/api/v1/").unwrap_or_default().split('/');
    let mut resource = parts.next().unwrap_or_default();
    let mut namespace = None;
    if resource == "namespaces" {
        namespace = parts.next().map(str::to_owned);
        resource = parts.next().unwrap_or_default();
    }
    Ok(Some(Request {
        resource: resource.to_owned(),
        namespace,
        name: parts.next().map(str::to_owned),
        query: query.collect(),
        token,
        target: target.clone(),
    }))
}
