//! A block `beyla.ebpf` of Grafana Alloy, and the exporters that its spans go to.
//!
//! The block says what Beyla's YAML says, partly in other words: it is put into those of the YAML first.

mod exporter;

use serde_json::json;

use super::{
    Translation, beyla,
    river::{Block, Statement},
    tree::{Data, Node},
};
use crate::config::{ConfigError, value::Value as _};

/// Components between Beyla and an exporter that are followed.
const MAX_HOPS: usize = 16;

/// Translates a file.
pub(super) fn translate(statements: &[Statement], out: &mut Translation<'_>) -> Result<(), ConfigError> {
    let mut beylas = blocks(statements).filter(|block| block.name == "beyla.ebpf");
    let Some(block) = beylas.next() else {
        return Err(ConfigError::File {
            path: out.path.to_owned(),
            line: 1,
            key: String::new(),
            message: "expected a block `beyla.ebpf`".to_owned(),
        });
    };
    for other in beylas {
        out.warn("beyla.ebpf", other.line, "a second one is not used: this agent watches all of the node");
    }
    beyla::translate(&yaml(block), out);
    match block.body.iter().find_map(|statement| inner(statement, "output")) {
        Some(output) => follow(output, statements, out),
        None => out.warn("output", block.line, "missing: spans go to the default endpoint"),
    }
    receive(statements, out);
    Ok(())
}

fn blocks(statements: &[Statement]) -> impl Iterator<Item = &Block> {
    statements.iter().filter_map(|statement| match statement {
        Statement::Block(block) => Some(block),
        Statement::Attribute(..) => None,
    })
}

fn inner<'a>(statement: &'a Statement, name: &str) -> Option<&'a Block> {
    match statement {
        Statement::Block(block) if block.name == name => Some(block),
        _ => None,
    }
}

/// The block as Beyla's YAML would say it.
fn yaml(block: &Block) -> Node {
    let mut root = Vec::new();
    for statement in &block.body {
        match statement {
            Statement::Attribute(name, value) if name == "debug" => {
                if value.text() == Some("true") {
                    root.push((
                        "trace_printer".to_owned(),
                        Node { line: value.line, data: Data::Text("text".to_owned()) },
                    ));
                }
            }
            Statement::Attribute(name, value) => root.push((name.clone(), value.clone())),
            Statement::Block(inner) => match inner.name.as_str() {
                "output" => {}
                "attributes" => root.push(("attributes".to_owned(), attributes(inner))),
                "discovery" => root.push(("discovery".to_owned(), discovery(inner))),
                "filters" => root.push(("filter".to_owned(), filters(inner))),
                "traces" => root.push(("otel_traces_export".to_owned(), map(inner))),
                name => root.push((name.to_owned(), map(inner))),
            },
        }
    }
    Node { line: block.line, data: Data::Map(root) }
}

/// Attributes and blocks, each a key.
fn map(block: &Block) -> Node {
    let entry = |statement: &Statement| match statement {
        Statement::Attribute(name, value) => (name.clone(), value.clone()),
        Statement::Block(inner) => (inner.name.clone(), map(inner)),
    };
    Node { line: block.line, data: Data::Map(block.body.iter().map(entry).collect()) }
}

/// `select { attr = "http_*" include = … }` is `select: { http_*: { include: … } }`.
fn attributes(block: &Block) -> Node {
    let mut entries: Vec<(String, Node)> = Vec::new();
    let mut select = Vec::new();
    for (name, node) in map(block).map() {
        if name == "select" { select.push(named(node)) } else { entries.push((name.clone(), node.clone())) }
    }
    if let Some((_, first)) = select.first() {
        let line = first.line;
        entries.push(("select".to_owned(), Node { line, data: Data::Map(select) }));
    }
    Node { line: block.line, data: Data::Map(entries) }
}

/// `application { attr = "url.path" not_match = … }` is `application: { url.path: { not_match: … } }`.
fn filters(block: &Block) -> Node {
    let mut kinds: Vec<(String, Node)> = Vec::new();
    for (kind, node) in map(block).map() {
        let entry = named(node);
        match kinds.iter_mut().find(|(known, _)| known == kind) {
            Some((_, Node { data: Data::Map(entries), .. })) => entries.push(entry),
            _ => kinds.push((kind.clone(), Node { line: node.line, data: Data::Map(vec![entry]) })),
        }
    }
    Node { line: block.line, data: Data::Map(kinds) }
}

/// The value of `attr`, and the rest.
fn named(node: &Node) -> (String, Node) {
    let name = node.get("attr").and_then(Node::text).unwrap_or_default().to_owned();
    let rest = node.map().iter().filter(|(key, _)| key != "attr").cloned().collect();
    (name, Node { line: node.line, data: Data::Map(rest) })
}

/// Blocks of one name are the items of a list.
fn discovery(block: &Block) -> Node {
    let mut entries: Vec<(String, Node)> = Vec::new();
    for statement in &block.body {
        match statement {
            Statement::Attribute(name, value) => entries.push((name.clone(), value.clone())),
            Statement::Block(inner) => {
                let rule = rule(inner);
                let known = entries.iter_mut().find(|(name, _)| *name == inner.name);
                if let Some((_, Node { data: Data::List(rules), .. })) = known {
                    rules.push(rule);
                } else {
                    let list = Node { line: rule.line, data: Data::List(vec![rule]) };
                    entries.push((inner.name.clone(), list));
                }
            }
        }
    }
    Node { line: block.line, data: Data::Map(entries) }
}

/// `kubernetes { pod_name = … }` is `k8s_pod_name: …`.
fn rule(block: &Block) -> Node {
    let mut entries = Vec::new();
    for (name, node) in map(block).map() {
        if name == "kubernetes" {
            entries.extend(node.map().iter().map(|(key, value)| (format!("k8s_{key}"), value.clone())));
        } else {
            entries.push((name.clone(), node.clone()));
        }
    }
    Node { line: block.line, data: Data::Map(entries) }
}

/// Goes from component to component, up to an exporter.
fn follow(output: &Block, statements: &[Statement], out: &mut Translation<'_>) {
    let mut wanted: Vec<(String, u64)> = targets(output);
    let (mut exporters, mut seen) = (Vec::new(), Vec::new());
    let mut hops = 0;
    while let Some((target, line)) = wanted.pop() {
        hops += 1;
        if hops > MAX_HOPS {
            out.warn("output.traces", line, "too many components: the others are not looked at");
            break;
        }
        if seen.contains(&target) {
            continue;
        }
        seen.push(target.clone());
        let is_it = |block: &&Block| {
            let label = block.label.as_deref().unwrap_or_default();
            target.strip_suffix(".input").unwrap_or(&target) == format!("{}.{label}", block.name)
        };
        let Some(block) = blocks(statements).find(is_it) else {
            out.warn(
                "output.traces",
                line,
                &format!("`{target}` is not in this file: set `export.endpoint` to where it sends"),
            );
            continue;
        };
        match block.name.as_str() {
            "otelcol.exporter.otlp" | "otelcol.exporter.otlphttp" => {
                exporters.push(exporter::read(block, &target, statements, out));
            }
            "otelcol.processor.batch" => batch(block, &target, out),
            name => {
                let instead = format!("`{name}` has no counterpart here: spans go on without it");
                out.warn(&target, block.line, &instead);
            }
        }
        wanted.extend(block.body.iter().filter_map(|statement| inner(statement, "output")).flat_map(targets));
    }
    exporter::put(&exporters, out);
}

/// Where it takes the spans of SDKs.
fn receive(statements: &[Statement], out: &mut Translation<'_>) {
    let mut listen = Vec::new();
    let mut line = None;
    for block in blocks(statements).filter(|block| block.name == "otelcol.receiver.otlp") {
        line = line.or(Some(block.line));
        let node = map(block);
        for (transport, port) in [("grpc", 4317), ("http", 4318)] {
            if let Some(transport) = node.get(transport) {
                let endpoint = transport.get("endpoint").and_then(Node::text);
                listen.push(endpoint.map_or_else(|| format!("0.0.0.0:{port}"), str::to_owned));
            }
        }
        let output = node.get("output");
        for other in ["metrics", "logs"] {
            if let Some(node) = output.and_then(|output| output.get(other)).filter(|node| !node.list().is_empty()) {
                let theirs = format!("otelcol.receiver.otlp.output.{other}");
                out.warn(&theirs, node.line, "not taken: the agent relays traces only");
            }
        }
    }
    if let Some(line) = line.filter(|_| !listen.is_empty()) {
        out.set("receive.listen", json!(listen), "otelcol.receiver.otlp", line);
    }
}

/// What `traces` of an output names.
fn targets(output: &Block) -> Vec<(String, u64)> {
    let traces = output.body.iter().find_map(|statement| match statement {
        Statement::Attribute(name, value) if name == "traces" => Some(value),
        _ => None,
    });
    let name = |node: &Node| match &node.data {
        Data::Expression(name) => Some((name.clone(), node.line)),
        _ => None,
    };
    // The first is looked at first.
    traces.map(|traces| traces.list().iter().rev().filter_map(name).collect()).unwrap_or_default()
}

fn batch(block: &Block, target: &str, out: &mut Translation<'_>) {
    for (key, node) in map(block).map() {
        let theirs = format!("{target}.{key}");
        match key.as_str() {
            "output" => {}
            "timeout" => match node.text().and_then(beyla::duration) {
                Some(delay) => out.set("export.batch_delay", json!(delay.to_text()), &theirs, node.line),
                None => out.set("export.batch_delay", node.json(), &theirs, node.line),
            },
            "send_batch_size" => out.set("export.batch_spans", node.json(), &theirs, node.line),
            "send_batch_max_size" => {
                out.warn(&theirs, node.line, "not needed: `export.batch_spans` is the most that is sent");
            }
            _ => out.warn(&theirs, node.line, "not supported"),
        }
    }
}
