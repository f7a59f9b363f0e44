//! The JSON Schema of the file: it is derived from the types that read it.

use std::{borrow::Cow, marker::PhantomData};

use schemars::{JsonSchema, Schema, SchemaGenerator, generate::SchemaSettings};
use serde_json::{Map, Value as Json, json};

use super::{Config, value::Value};

/// Other names of keys, by the section that they are in.
const ALIASES: [(&str, &str, &str); 4] = [
    ("/properties/discovery", "include", "instrument"),
    ("/properties/discovery", "exclude", "exclude_instrument"),
    ("/properties/discovery", "default_exclude", "default_exclude_instrument"),
    ("/properties/routes", "max_path_segment_cardinality", "max_words"),
];

/// The schema (draft 2020-12), as text.
pub fn schema() -> String {
    let settings = SchemaSettings::draft2020_12().with(|settings| settings.inline_subschemas = true);
    let mut schema = settings.into_generator().into_root_schema_for::<Config>().to_value();
    for (section, alias, key) in ALIASES {
        if let Some(properties) = schema.pointer_mut(&format!("{section}/properties")).and_then(Json::as_object_mut)
            && let Some(of_key) = properties.get(key).cloned()
        {
            properties.insert(alias.to_owned(), of_key);
        }
    }
    nullable(&mut schema);
    if let Some(root) = schema.as_object_mut() {
        root.insert("title".to_owned(), json!("coati-agent"));
    }
    format!("{schema:#}\n")
}

/// A section of which nothing but the comments is left is as good as none.
fn nullable(schema: &mut Json) {
    let Some(object) = schema.as_object_mut() else { return };
    if matches!(object.get("type").and_then(Json::as_str), Some("object" | "array")) {
        let kind = object.remove("type");
        object.insert("type".to_owned(), json!([kind, "null"]));
    }
    for key in ["properties", "$defs"] {
        let children = object.get_mut(key).and_then(Json::as_object_mut).into_iter().flat_map(Map::values_mut);
        children.for_each(nullable);
    }
}

/// Stands for a [`Value`] in the schema.
pub(super) struct Of<T>(PhantomData<T>);

impl<T: Value> JsonSchema for Of<T> {
    fn inline_schema() -> bool {
        true
    }

    fn schema_name() -> Cow<'static, str> {
        std::any::type_name::<T>().into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        let mut schema: Map<String, Json> = T::schema().as_object().cloned().unwrap_or_default();
        schema.insert("$comment".to_owned(), json!(format!("expected {}", T::EXPECTED)));
        schema.into()
    }
}

/// Stands for a [`Value`] that is a list of scalars, which may be written as one.
pub(super) struct OneOrMany<T>(PhantomData<T>);

impl<T: Value> JsonSchema for OneOrMany<T> {
    fn inline_schema() -> bool {
        true
    }

    fn schema_name() -> Cow<'static, str> {
        std::any::type_name::<T>().into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        let schema = json!({
            "type": ["string", "number", "array"],
            "items": { "type": ["string", "number"] },
            "$comment": format!("expected {}", T::EXPECTED),
        });
        schema.as_object().cloned().unwrap_or_default().into()
    }
}
