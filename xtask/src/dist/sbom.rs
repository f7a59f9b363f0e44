//! The parts of a program, as `CycloneDX` lists them: the crates that are compiled into it, from cargo's own resolution.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context, Result};
use coati_tests::tools::workspace;
use serde_json::{Value, json};

use crate::commands::{cargo, output};

/// What cargo says of a workspace.
pub(super) fn metadata(manifest: &str) -> Result<Value> {
    let target = format!("{}-unknown-linux-gnu", std::env::consts::ARCH);
    let mut command = cargo();
    command.args(["metadata", "--format-version", "1", "--locked", "--filter-platform", &target, "--manifest-path"]);
    let text =
        output(command.arg(workspace().join(manifest))).with_context(|| format!("cargo metadata of {manifest}"))?;
    serde_json::from_str(&text).with_context(|| manifest.to_owned())
}

/// The document of a program: of the first workspace what the package `name` needs, of the others what their first member
/// needs; and packages of Debian that are in the image.
pub(super) fn document(
    name: &str,
    version: &str,
    created: &str,
    workspaces: &[Value],
    debian: &BTreeMap<String, String>,
) -> Result<Value> {
    let (mut components, mut dependencies, mut roots) = (BTreeMap::new(), BTreeMap::new(), Vec::new());
    for (place, metadata) in workspaces.iter().enumerate() {
        let root = if place == 0 { package(metadata, name)? } else { first_member(metadata)? };
        roots.push(reference(find(metadata, root)?));
        for id in needed(metadata, root)? {
            let package = find(metadata, &id)?;
            let needs = normal_dependencies(metadata, &id)?;
            let needs = needs.iter().map(|id| Ok(reference(find(metadata, id)?))).collect::<Result<BTreeSet<_>>>()?;
            dependencies.entry(reference(package)).or_insert_with(BTreeSet::new).extend(needs);
            components.insert(reference(package), component(package));
        }
    }
    for (package, version) in debian {
        let purl = format!("pkg:deb/debian/{package}@{version}");
        let part = json!({"type": "library", "bom-ref": purl, "name": package, "version": version, "purl": purl});
        components.insert(purl, part);
    }
    let root = roots.first().cloned().context("no workspace")?;
    components.remove(&root);
    let more = components.keys().filter(|part| part.starts_with("pkg:deb") || roots.contains(part)).cloned();
    dependencies.entry(root.clone()).or_default().extend(more.collect::<Vec<_>>());
    let dependencies = dependencies.into_iter().map(|(part, needs)| json!({"ref": part, "dependsOn": needs}));
    Ok(json!({
        "bomFormat": "CycloneDX", "specVersion": "1.5", "version": 1,
        "metadata": {"timestamp": created, "component": {"type": "application", "bom-ref": root, "name": name,
            "version": version, "purl": root, "licenses": [{"expression": "Apache-2.0"}]}},
        "components": components.into_values().collect::<Vec<_>>(),
        "dependencies": dependencies.collect::<Vec<_>>(),
    }))
}

fn list<'a>(of: &'a Value, pointer: &str) -> &'a [Value] {
    of.pointer(pointer).and_then(Value::as_array).map_or(&[], Vec::as_slice)
}

fn text<'a>(of: &'a Value, key: &str) -> &'a str {
    of.get(key).and_then(Value::as_str).unwrap_or_default()
}

fn find<'a>(metadata: &'a Value, id: &str) -> Result<&'a Value> {
    let mut packages = list(metadata, "/packages").iter();
    packages.find(|package| text(package, "id") == id).with_context(|| format!("no package {id}"))
}

/// The id of a package by its name.
fn package<'a>(metadata: &'a Value, name: &str) -> Result<&'a str> {
    let mut packages = list(metadata, "/packages").iter();
    let package = packages.find(|package| text(package, "name") == name);
    package.map(|package| text(package, "id")).with_context(|| format!("no package {name}"))
}

fn first_member(metadata: &Value) -> Result<&str> {
    list(metadata, "/workspace_members").first().and_then(Value::as_str).context("an empty workspace")
}

fn node<'a>(metadata: &'a Value, id: &str) -> Result<&'a Value> {
    let mut nodes = list(metadata, "/resolve/nodes").iter();
    nodes.find(|node| text(node, "id") == id).with_context(|| format!("{id} is not resolved"))
}

/// Ids of what a package needs to run: not of what builds or tests it.
fn normal_dependencies(metadata: &Value, id: &str) -> Result<Vec<String>> {
    let is_normal = |dependency: &&Value| {
        // A normal dependency has no kind.
        list(dependency, "/dep_kinds").iter().any(|kind| kind.get("kind").is_none_or(Value::is_null))
    };
    let dependencies = list(node(metadata, id)?, "/deps").iter().filter(is_normal);
    Ok(dependencies.map(|dependency| text(dependency, "pkg").to_owned()).collect())
}

/// Ids of all that a package needs, itself included.
fn needed(metadata: &Value, root: &str) -> Result<BTreeSet<String>> {
    let (mut found, mut open) = (BTreeSet::new(), vec![root.to_owned()]);
    while let Some(id) = open.pop() {
        if found.insert(id.clone()) {
            open.extend(normal_dependencies(metadata, &id)?);
        }
    }
    Ok(found)
}

fn reference(package: &Value) -> String {
    format!("pkg:cargo/{}@{}", text(package, "name"), text(package, "version"))
}

fn component(package: &Value) -> Value {
    let purl = reference(package);
    // `A/B` is how old crates write `A OR B`.
    let license = text(package, "license").replace('/', " OR ");
    json!({"type": "library", "bom-ref": purl, "name": text(package, "name"), "version": text(package, "version"),
        "purl": purl, "licenses": if license.is_empty() { json!([]) } else { json!([{"expression": license}]) }})
}

#[cfg(test)]
mod tests {
    use super::*;

    fn metadata() -> Value {
        let package = |name: &str| json!({"id": name, "name": name, "version": "1.0.0", "license": "MIT/Apache-2.0"});
        let depends = |on: &str, kind: Value| json!({"pkg": on, "dep_kinds": [{"kind": kind}]});
        let packages = ["program", "library", "deep", "tester", "builder", "kernel"].map(package);
        json!({
            "packages": packages,
            "workspace_members": ["kernel"],
            "resolve": {"nodes": [
                {"id": "program", "deps": [depends("library", Value::Null), depends("tester", json!("dev")),
                    depends("builder", json!("build"))]},
                {"id": "library", "deps": [depends("deep", Value::Null)]},
                {"id": "deep", "deps": []}, {"id": "tester", "deps": []}, {"id": "builder", "deps": []},
                {"id": "kernel", "deps": []},
            ]},
        })
    }

    #[test]
    fn parts_are_what_runs() {
        let debian = BTreeMap::from([("libc6".to_owned(), "2.36".to_owned())]);
        let document =
            document("program", "1.0.0", "2026-11-28T00:00:00Z", &[metadata(), metadata()], &debian).unwrap();
        let names: Vec<_> = list(&document, "/components").iter().map(|part| text(part, "purl")).collect();
        let expected =
            ["pkg:cargo/deep@1.0.0", "pkg:cargo/kernel@1.0.0", "pkg:cargo/library@1.0.0", "pkg:deb/debian/libc6@2.36"];
        assert_eq!(names, expected);
        assert_eq!(document.pointer("/components/0/licenses/0/expression"), Some(&json!("MIT OR Apache-2.0")));
        let of_program =
            list(&document, "/dependencies").iter().find(|it| text(it, "ref") == "pkg:cargo/program@1.0.0");
        let expected = json!(["pkg:cargo/kernel@1.0.0", "pkg:cargo/library@1.0.0", "pkg:deb/debian/libc6@2.36"]);
        assert_eq!(of_program.unwrap()["dependsOn"], expected);
        assert_eq!(document["metadata"]["component"]["name"], "program");
    }

    #[test]
    fn a_package_that_is_not_there_is_an_error() {
        assert!(document("other", "1", "", &[metadata()], &BTreeMap::new()).is_err());
        assert!(document("program", "1", "", &[], &BTreeMap::new()).is_err());
    }
}
