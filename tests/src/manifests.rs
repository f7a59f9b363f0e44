//! The Kubernetes manifests, rendered as `kubectl apply -k` sees them.

use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use crate::tools::{system, tool, workspace};

/// A program that renders: the one of `cargo xtask setup`, else the system's.
pub fn kubectl() -> Result<PathBuf> {
    tool("kubectl/kubectl").or_else(|_| system("kubectl"))
}

/// Folder of an overlay, or of `base`.
pub fn folder(name: &str) -> PathBuf {
    workspace().join("deploy/kubernetes").join(name)
}

/// What `kubectl kustomize` makes of a folder, as text.
pub fn render(name: &str) -> Result<String> {
    let output = Command::new(kubectl()?).arg("kustomize").arg(folder(name)).output()?;
    ensure!(output.status.success(), "{name} cannot be rendered: {}", String::from_utf8_lossy(&output.stderr));
    Ok(String::from_utf8(output.stdout)?)
}

/// The objects in a rendered text.
pub fn objects(text: &str) -> Result<Vec<Value>> {
    text.split("\n---\n").map(|part| serde_saphyr::from_str(part).with_context(|| part.to_owned())).collect()
}

/// The only object of a kind with a name.
pub fn object<'a>(objects: &'a [Value], kind: &str, name: &str) -> Result<&'a Value> {
    let is_it = |object: &&Value| text(object, "/kind") == kind && text(object, "/metadata/name").starts_with(name);
    let mut found = objects.iter().filter(is_it);
    let object = found.next().with_context(|| format!("no {kind} {name}"))?;
    ensure!(found.next().is_none(), "several {kind} {name}");
    Ok(object)
}

/// A text in an object; empty if there is none.
pub fn text<'a>(object: &'a Value, pointer: &str) -> &'a str {
    object.pointer(pointer).and_then(Value::as_str).unwrap_or_default()
}

/// A list in an object; empty if there is none.
pub fn list<'a>(object: &'a Value, pointer: &str) -> &'a [Value] {
    object.pointer(pointer).and_then(Value::as_array).map_or(&[], Vec::as_slice)
}
