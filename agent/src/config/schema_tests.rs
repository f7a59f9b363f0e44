//! The schema says what the reader takes: a small validator, which knows no more keywords than the schema has.

use std::collections::BTreeSet;

use serde_json::Value as Json;

use super::*;

pub(super) fn schema() -> Json {
    serde_json::from_str(&crate::config::schema()).unwrap()
}

/// Paths of all keys that have no other name, `section.list[].key`.
pub(super) fn keys(schema: &Json) -> BTreeSet<String> {
    fn walk(schema: &Json, path: &str, keys: &mut BTreeSet<String>) {
        for (key, schema) in schema["properties"].as_object().into_iter().flatten() {
            let is_alias = ["include", "exclude", "default_exclude", "max_path_segment_cardinality"]
                .contains(&key.as_str())
                && path != "spans.attributes";
            let path = if path.is_empty() { key.clone() } else { format!("{path}.{key}") };
            if !is_alias {
                walk(schema, &path, keys);
                walk(&schema["items"], &format!("{path}[]"), keys);
                for one_of in ["anyOf", "oneOf"] {
                    schema[one_of].as_array().into_iter().flatten().for_each(|schema| walk(schema, &path, keys));
                }
                keys.insert(path);
            }
        }
    }
    let mut all = BTreeSet::new();
    walk(schema, "", &mut all);
    all
}

/// The keys of rules and of endpoints are shown once, and of `auth` only one can be set.
pub(super) fn is_shown_elsewhere(path: &str) -> bool {
    let rules = ["services[]", "exclude_services[]", "exclude_instrument[]", "default_exclude_instrument[]"];
    path.starts_with("export.endpoints[].")
        || path.starts_with("export.auth.bearer")
        || rules.iter().any(|list| path.contains(&format!("discovery.{list}.")))
}

/// What is wrong with a value, if anything.
fn validate(schema: &Json, value: &Json, path: &str) -> Result<(), String> {
    let wrong = |what: &str| Err(format!("{path}: {what}: {value}"));
    for (keyword, rule) in schema.as_object().unwrap() {
        match keyword.as_str() {
            "type" => {
                let kind = match value {
                    Json::Null => "null",
                    Json::Bool(_) => "boolean",
                    Json::Number(number) if number.is_u64() => "integer",
                    Json::Number(_) => "number",
                    Json::String(_) => "string",
                    Json::Array(_) => "array",
                    Json::Object(_) => "object",
                };
                let kinds = rule.as_array().cloned().unwrap_or_else(|| vec![rule.clone()]);
                if !kinds.iter().any(|it| it == kind || it == "number" && kind == "integer") {
                    return wrong(&format!("not {rule}"));
                }
            }
            "enum" if !rule.as_array().unwrap().contains(value) => return wrong("not one of these"),
            "const" if rule != value => return wrong("not this"),
            "minimum" if value.as_f64() < rule.as_f64() => return wrong("too small"),
            "maximum" if value.as_f64() > rule.as_f64() => return wrong("too large"),
            "pattern" => {
                let regex = regex::Regex::new(rule.as_str().unwrap()).unwrap();
                if value.as_str().is_some_and(|text| !regex.is_match(text)) {
                    return wrong("does not match");
                }
            }
            "properties" => {
                for (key, value) in value.as_object().into_iter().flatten() {
                    match rule.get(key) {
                        Some(schema) => validate(schema, value, &format!("{path}.{key}"))?,
                        None if schema["additionalProperties"] == false => return wrong(&format!("no key {key}")),
                        None => {}
                    }
                }
            }
            "additionalProperties" if rule.is_object() => {
                for (key, value) in value.as_object().into_iter().flatten() {
                    validate(rule, value, &format!("{path}.{key}"))?;
                }
            }
            "items" => {
                for (place, value) in value.as_array().into_iter().flatten().enumerate() {
                    validate(rule, value, &format!("{path}[{place}]"))?;
                }
            }
            "anyOf" | "oneOf" => {
                let all = rule.as_array().unwrap();
                if !all.iter().any(|schema| validate(schema, value, path).is_ok()) {
                    return wrong("none of several");
                }
            }
            "required" => {
                for key in rule.as_array().unwrap() {
                    if value.is_object() && value.get(key.as_str().unwrap()).is_none() {
                        return wrong(&format!("without {key}"));
                    }
                }
            }
            // What holds, and what says nothing of the value.
            "enum"
            | "const"
            | "minimum"
            | "maximum"
            | "additionalProperties"
            | "$schema"
            | "$comment"
            | "title"
            | "description"
            | "default"
            | "format" => {}
            other => panic!("the validator does not know `{other}`"),
        }
    }
    Ok(())
}

fn check(yaml: &str) -> Result<(), String> {
    let value: Json = serde_saphyr::from_str(yaml).unwrap();
    validate(&schema(), &value, "")
}

#[test]
fn the_example_file_is_valid() {
    assert_eq!(schema()["$schema"], "https://json-schema.org/draft/2020-12/schema");
    assert_eq!(check(EXAMPLE), Ok(()));
    assert_eq!(check(&example_with_everything()), Ok(()));
    assert_eq!(check(&Config::default().to_yaml()), Ok(()));
}

#[test]
fn every_section_and_key_is_described() {
    let keys = keys(&schema());
    assert!(keys.len() > 80, "{keys:?}");
    for key in ["export.endpoint", "discovery.services[].k8s_pod_labels", "spans.sampling.keep_slower_than"] {
        assert!(keys.contains(key), "{key} in {keys:?}");
    }
}

#[rstest]
#[case::unknown_key("expotr: {}")]
#[case::unknown_key_in_a_section("spans: {sampling: {rate: 1}}")]
#[case::unknown_key_of_a_rule("discovery: {services: [{exe: a}]}")]
#[case::unknown_name("log_level: loud")]
#[case::no_unit("export: {timeout: '10'}")]
#[case::too_large("spans: {sampling: {ratio: 2}}")]
#[case::too_small("spans: {max_per_second: 0}")]
#[case::wrong_type("routes: {patterns: {a: b}}")]
fn what_the_reader_refuses_is_not_valid(#[case] yaml: &str) {
    assert!(of_file(yaml).is_err());
    assert!(check(yaml).is_err());
}
