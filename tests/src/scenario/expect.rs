//! Whether an answer is the expected one.

use serde_json::Value;

/// Where `found` is not what `expected` says. Of an object only the named keys are looked at; a list has as many elements
/// and in this order. An object with a key that begins with `$` says something else:
///
/// - `{$set: […]}`: a list with these elements, in any order;
/// - `{$has: […]}`: a list that has these elements among others;
/// - `{$about: 1.5, within: 0.1}`: a number, or a text that is one;
/// - `{$absent: true}`: not there.
pub(super) fn differences(place: &str, expected: &Value, found: &Value, into: &mut Vec<String>) {
    match expected {
        Value::Object(fields) => {
            if let Some(list) = fields.get("$set").and_then(Value::as_array) {
                let count = found.as_array().map_or(0, Vec::len);
                if count != list.len() {
                    into.push(format!("{place}: {count} elements, expected {}", list.len()));
                }
                has_all(place, list, found, into);
            } else if let Some(list) = fields.get("$has").and_then(Value::as_array) {
                has_all(place, list, found, into);
            } else if let Some(about) = fields.get("$about").and_then(Value::as_f64) {
                let within = fields.get("within").and_then(Value::as_f64).unwrap_or_default();
                let number = found.as_f64().or_else(|| found.as_str()?.parse().ok());
                if number.is_none_or(|number| (number - about).abs() > within) {
                    into.push(format!("{place}: {found}, expected {about} ± {within}"));
                }
            } else if fields.contains_key("$absent") {
                if !found.is_null() {
                    into.push(format!("{place}: {found}, expected nothing"));
                }
            } else {
                for (name, expected) in fields {
                    let found = found.get(name).unwrap_or(&Value::Null);
                    differences(&format!("{place}.{name}"), expected, found, into);
                }
            }
        }
        Value::Array(list) => {
            let elements = found.as_array().map_or(&[][..], Vec::as_slice);
            if !found.is_array() || elements.len() != list.len() {
                into.push(format!("{place}: {} elements, expected {}: {found}", elements.len(), list.len()));
            }
            for (index, (expected, found)) in list.iter().zip(elements).enumerate() {
                differences(&format!("{place}[{index}]"), expected, found, into);
            }
        }
        expected if expected == found => {}
        // 1 and 1.0 are the same in JSON.
        Value::Number(number) if found.as_f64().is_some_and(|found| number.as_f64() == Some(found)) => {}
        expected => into.push(format!("{place}: {found}, expected {expected}")),
    }
}

/// Every expected element is another one of those that were found.
fn has_all(place: &str, expected: &[Value], found: &Value, into: &mut Vec<String>) {
    let mut left: Vec<&Value> = found.as_array().into_iter().flatten().collect();
    for expected in expected {
        let is_it = |found: &&Value| {
            let mut wrong = Vec::new();
            differences("", expected, found, &mut wrong);
            wrong.is_empty()
        };
        match left.iter().position(is_it) {
            Some(index) => _ = left.swap_remove(index),
            None => into.push(format!("{place}: nothing in it is {expected}")),
        }
    }
}

#[cfg(test)]
mod tests {
    use rstest::rstest;
    use serde_json::json;

    use super::*;

    #[rstest]
    #[case::same(json!({ "a": 1 }), json!({ "a": 1 }), true)]
    #[case::more_keys(json!({ "a": 1 }), json!({ "a": 1, "b": 2 }), true)]
    #[case::fewer_keys(json!({ "a": 1 }), json!({}), false)]
    #[case::other_value(json!({ "a": 1 }), json!({ "a": 2 }), false)]
    #[case::same_number(json!({ "a": 1 }), json!({ "a": 1.0 }), true)]
    #[case::other_type(json!({ "a": 1 }), json!({ "a": "1" }), false)]
    #[case::no_object(json!({ "a": 1 }), json!([1]), false)]
    #[case::list(json!([1, 2]), json!([1, 2]), true)]
    #[case::longer_list(json!([1, 2]), json!([1, 2, 3]), false)]
    #[case::shorter_list(json!([1, 2]), json!([1]), false)]
    #[case::other_order(json!([1, 2]), json!([2, 1]), false)]
    #[case::empty_list_is_not_nothing(json!([]), json!(null), false)]
    #[case::set(json!({ "$set": [1, 2] }), json!([2, 1]), true)]
    #[case::longer_set(json!({ "$set": [1, 2] }), json!([2, 1, 1]), false)]
    #[case::set_with_doubles(json!({ "$set": [1, 1] }), json!([1, 2]), false)]
    #[case::has(json!({ "$has": [{ "k": 1 }] }), json!([{ "k": 2 }, { "k": 1, "v": 3 }]), true)]
    #[case::has_not(json!({ "$has": [{ "k": 1 }] }), json!([{ "k": 2 }]), false)]
    #[case::about(json!({ "$about": 1.5, "within": 0.1 }), json!(1.55), true)]
    #[case::about_text(json!({ "$about": 1.5, "within": 0.1 }), json!("1.55"), true)]
    #[case::not_about(json!({ "$about": 1.5, "within": 0.1 }), json!(1.7), false)]
    #[case::about_nothing(json!({ "$about": 0, "within": 0.1 }), json!(null), false)]
    #[case::absent(json!({ "a": { "$absent": true } }), json!({}), true)]
    #[case::present(json!({ "a": { "$absent": true } }), json!({ "a": 0 }), false)]
    fn compares(#[case] expected: Value, #[case] found: Value, #[case] fits: bool) {
        let mut wrong = Vec::new();
        differences("", &expected, &found, &mut wrong);
        assert_eq!(wrong.is_empty(), fits, "{wrong:?}");
    }
}
