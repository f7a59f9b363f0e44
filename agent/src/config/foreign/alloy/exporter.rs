//! `otelcol.exporter.otlp` and `otelcol.exporter.otlphttp`, and the secrets and files that they point to.

use base64::{Engine as _, prelude::BASE64_STANDARD};
use serde_json::{Map, Value as Json, json};

use super::{
    super::{
        Translation, beyla,
        river::{Block, Statement},
        tree::{Data, Node},
    },
    blocks, map,
};
use crate::config::value::Value as _;

/// An exporter as an endpoint of ours.
pub(super) struct Exporter {
    /// The component's label.
    name: String,
    kind: &'static str,
    line: u64,
    /// Keys of an endpoint.
    settings: Map<String, Json>,
    /// Of each of them theirs, and its line.
    origins: Vec<(String, String, u64)>,
}

/// What is known while one is read.
struct Reader<'a, 't> {
    statements: &'a [Statement],
    out: &'a mut Translation<'t>,
    exporter: Exporter,
    /// No TLS is spoken.
    is_plain: bool,
}

/// Reads a component.
pub(super) fn read(block: &Block, target: &str, statements: &[Statement], out: &mut Translation<'_>) -> Exporter {
    let kind = if block.name.ends_with("http") { "otlphttp" } else { "otlp" };
    let exporter = Exporter {
        name: block.label.clone().unwrap_or_default(),
        kind,
        line: block.line,
        settings: Map::new(),
        origins: Vec::new(),
    };
    let mut reader = Reader { statements, out, exporter, is_plain: false };
    let protocol = if kind == "otlphttp" { "http/protobuf" } else { "grpc" };
    reader.set("protocol", json!(protocol), target, block.line);
    let node = map(block);
    // Where it sends says what the other keys mean.
    if let Some(client) = node.get("client") {
        reader.client(client, &format!("{target}.client"));
    }
    for (key, node) in node.map() {
        let theirs = format!("{target}.{key}");
        match key.as_str() {
            "client" => {}
            "timeout" => reader.time("timeout", node, &theirs),
            "traces_endpoint" => reader.set("endpoint", node.json(), &theirs, node.line),
            "sending_queue" => reader.queue(node, &theirs),
            "retry_on_failure" => {
                reader.out.warn(&theirs, node.line, "not needed: it is tried again as long as there is room");
            }
            "encoding" if node.text() == Some("proto") => {}
            _ => reader.out.warn(&theirs, node.line, "not supported"),
        }
    }
    reader.exporter
}

/// Sets `export` to one endpoint, or its `endpoints` to several.
pub(super) fn put(exporters: &[Exporter], out: &mut Translation<'_>) {
    if let [exporter] = exporters {
        for (key, theirs, line) in &exporter.origins {
            out.note(format!("export.{key}"), theirs.clone(), *line);
        }
        for (key, value) in &exporter.settings {
            out.set(&format!("export.{key}"), value.clone(), exporter.kind, exporter.line);
        }
        return;
    }
    let mut endpoints = Vec::new();
    for (place, exporter) in exporters.iter().enumerate() {
        for (key, theirs, line) in &exporter.origins {
            out.note(format!("export.endpoints[{place}].{key}"), theirs.clone(), *line);
        }
        let is_unique = exporters.iter().filter(|other| other.name == exporter.name).count() == 1;
        let name = if is_unique { exporter.name.clone() } else { format!("{}.{}", exporter.kind, exporter.name) };
        let mut settings = exporter.settings.clone();
        settings.insert("name".to_owned(), json!(name));
        endpoints.push(Json::Object(settings));
    }
    if let Some(first) = exporters.first() {
        out.set("export.endpoints", Json::Array(endpoints), first.kind, first.line);
    }
}

impl<'a> Reader<'a, '_> {
    /// Sets a key of the endpoint, `section.key`.
    fn set(&mut self, ours: &str, value: Json, theirs: &str, line: u64) {
        self.exporter.origins.push((ours.to_owned(), theirs.to_owned(), line));
        let settings = &mut self.exporter.settings;
        match ours.split_once('.') {
            None => {
                settings.insert(ours.to_owned(), value);
            }
            Some((section, key)) => {
                let section = settings.entry(section).or_insert_with(|| json!({}));
                if let Some(section) = section.as_object_mut() {
                    section.insert(key.to_owned(), value);
                }
            }
        }
    }

    fn time(&mut self, ours: &str, node: &Node, theirs: &str) {
        let value = node.text().and_then(beyla::duration).map_or_else(|| node.json(), |time| json!(time.to_text()));
        self.set(ours, value, theirs, node.line);
    }

    fn client(&mut self, client: &Node, target: &str) {
        let tls = client.get("tls");
        let is_insecure = tls.is_some_and(|tls| tls.get("insecure").and_then(Node::text) == Some("true"));
        if let Some(node) = client.get("endpoint") {
            let text = node.text().unwrap_or_default();
            let url = match (self.exporter.kind == "otlphttp" || text.contains("://"), is_insecure) {
                (true, _) => text.to_owned(),
                (false, true) => format!("http://{text}"),
                (false, false) => format!("https://{text}"),
            };
            self.is_plain = url.starts_with("http://");
            self.set("endpoint", json!(url), &format!("{target}.endpoint"), node.line);
        }
        for (key, node) in client.map() {
            let theirs = format!("{target}.{key}");
            match key.as_str() {
                "endpoint" => {}
                "compression" => {
                    let compression = if node.text() == Some("gzip") { "gzip" } else { "none" };
                    self.set("compression", json!(compression), &theirs, node.line);
                    if !matches!(node.text(), Some("gzip" | "none")) {
                        self.out.warn(&theirs, node.line, "not supported: `gzip` or `none`");
                    }
                }
                "headers" => {
                    for (name, node) in node.map() {
                        self.header(name, node, &format!("{theirs}.{name}"));
                    }
                }
                "tls" => self.tls(node, &theirs),
                "auth" => self.auth(node, &theirs),
                "timeout" => self.time("timeout", node, &theirs),
                "balancer_name" | "keepalive" | "read_buffer_size" | "write_buffer_size" | "wait_for_ready" => {
                    self.out.warn(&theirs, node.line, "not needed");
                }
                _ => self.out.warn(&theirs, node.line, "not supported"),
            }
        }
    }

    fn tls(&mut self, tls: &Node, target: &str) {
        for (key, node) in tls.map() {
            let theirs = format!("{target}.{key}");
            match key.as_str() {
                "insecure" => {}
                _ if self.is_plain => self.out.warn(&theirs, node.line, "not used: the endpoint is one without TLS"),
                "ca_file" | "cert_file" | "key_file" | "server_name" | "insecure_skip_verify" => {
                    self.set(&format!("tls.{key}"), node.json(), &theirs, node.line);
                }
                "ca_pem" | "cert_pem" | "key_pem" => {
                    let instead =
                        format!("not supported: write it to a file and set `tls.{}`", key.replace("pem", "file"));
                    self.out.warn(&theirs, node.line, &instead);
                }
                "reload_interval" => self.out.warn(&theirs, node.line, "not needed: files are read when they change"),
                "include_system_ca_certs_pool" => {
                    let instead =
                        "not supported: without `tls.ca_file` the system's authorities are trusted, with it only those";
                    self.out.warn(&theirs, node.line, instead);
                }
                _ => self.out.warn(&theirs, node.line, "not supported: TLS 1.2 or 1.3, with the library's own choice"),
            }
        }
    }

    /// Requests may wait on disk where Alloy's would.
    fn queue(&mut self, queue: &Node, target: &str) {
        for (key, node) in queue.map() {
            let theirs = format!("{target}.{key}");
            let directory = match key.as_str() {
                "storage" => self.component(node, "handler").and_then(|storage| map(storage).get("directory").cloned()),
                _ => None,
            };
            match directory {
                Some(directory) => {
                    self.out.set("export.queue.directory", directory.json(), &theirs, directory.line);
                }
                None => self.out.warn(&theirs, node.line, "not used: see `export.queue` and `export.queue_spans`"),
            }
        }
    }

    fn header(&mut self, name: &str, node: &Node, theirs: &str) {
        match node.text() {
            Some(text) => self.set(&format!("headers.{name}"), json!(text), theirs, node.line),
            None => self.out.warn(theirs, node.line, "not translated, as its value is not in this file: set `headers`"),
        }
    }

    /// Passwords and tokens: files stay files, what is in this file becomes a header.
    fn auth(&mut self, node: &Node, theirs: &str) {
        let Some(block) = self.component(node, "handler") else {
            self.out.warn(theirs, node.line, "not translated, as it is not in this file: set `auth` or `headers`");
            return;
        };
        let own = map(block);
        match block.name.as_str() {
            "otelcol.auth.basic" => self.basic(own.get("client_auth").unwrap_or(&own), theirs, block.line),
            "otelcol.auth.bearer" => self.bearer(&own, theirs, block.line),
            "otelcol.auth.headers" => {
                let headers = block.body.iter().filter_map(|statement| super::inner(statement, "header")).map(map);
                for header in headers {
                    let name = header.get("key").and_then(Node::text).unwrap_or_default().to_owned();
                    match header.get("value") {
                        Some(value) => self.header(&name, value, theirs),
                        None => self.out.warn(theirs, header.line, "not supported: only headers with a `value`"),
                    }
                }
            }
            name => {
                let instead = format!("`{name}` is not supported: set `auth` or `headers`");
                self.out.warn(theirs, node.line, &instead);
            }
        }
    }

    fn basic(&mut self, auth: &Node, theirs: &str, line: u64) {
        let username = auth.get("username").and_then(Node::text);
        let password = auth.get("password");
        match (username, password.and_then(Node::text), password.and_then(|password| self.file(password))) {
            (Some(username), Some(password), _) => {
                let value = format!("Basic {}", BASE64_STANDARD.encode(format!("{username}:{password}")));
                self.set("headers.authorization", json!(value), theirs, line);
            }
            (Some(username), None, Some(file)) => {
                let basic = json!({ "username": username, "password_file": file });
                self.set("auth.basic", basic, theirs, line);
            }
            _ => self.out.warn(theirs, line, "not translated, as its name or password is not in this file: set `auth`"),
        }
    }

    fn bearer(&mut self, auth: &Node, theirs: &str, line: u64) {
        let text = |key, default| auth.get(key).and_then(Node::text).unwrap_or(default).to_owned();
        let (scheme, header) = (text("scheme", "Bearer"), text("header", "authorization").to_ascii_lowercase());
        let token = auth.get("token");
        match (token.and_then(Node::text), token.and_then(|token| self.file(token))) {
            (Some(token), _) => {
                self.set(&format!("headers.{header}"), json!(format!("{scheme} {token}").trim_start()), theirs, line);
            }
            (None, Some(file)) if scheme == "Bearer" && header == "authorization" => {
                self.set("auth.bearer", json!({ "token_file": file }), theirs, line);
            }
            _ => self.out.warn(theirs, line, "not translated, as its token is not in this file: set `auth`"),
        }
    }

    /// The component that `x.y.label.field` is about.
    fn component(&self, node: &Node, field: &str) -> Option<&'a Block> {
        let Data::Expression(text) = &node.data else { return None };
        let name = text.strip_suffix(field)?.strip_suffix('.')?;
        let statements: &'a [Statement] = self.statements;
        blocks(statements)
            .find(|block| name == format!("{}.{}", block.name, block.label.as_deref().unwrap_or_default()))
    }

    /// The file whose content a value is.
    fn file(&self, node: &Node) -> Option<String> {
        let block = self.component(node, "content").filter(|block| block.name == "local.file")?;
        map(block).get("filename").and_then(Node::text).map(str::to_owned)
    }
}
