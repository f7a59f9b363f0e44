//! What an SDK did not say of its process.

use std::collections::HashSet;

use coati_common::wellknown::resource as names;
use opentelemetry_proto::tonic::{
    common::v1::{KeyValue, any_value::Value},
    resource::v1::Resource,
};

/// What names the place where telemetry comes from: if one of these is another than here, it comes from elsewhere.
const PLACES: [&str; 4] = [names::CONTAINER_ID, names::K8S_POD_UID, names::K8S_POD_NAME, names::K8S_NODE_NAME];

/// What SDKs have to call a service that nobody gave a name; `:` and the program's name may follow.
const UNKNOWN_SERVICE: &str = "unknown_service";

/// Adds what is missing. What the SDK said is never changed; a service without a name is one that it did not say.
///
/// Nothing is added to what has come from elsewhere, by way of the process that sent it: then it is false.
pub(super) fn add_missing(resource: &mut Resource, known: &[KeyValue]) -> bool {
    let said = |key: &str| resource.attributes.iter().find(|attribute| attribute.key == key).and_then(text);
    let is_elsewhere = PLACES.iter().any(|place| {
        let here = known.iter().find(|attribute| attribute.key == *place).and_then(text);
        matches!((said(place), here), (Some(there), Some(here)) if there != here)
    });
    if is_elsewhere {
        return false;
    }
    let is_nameless = said(names::SERVICE_NAME).is_some_and(|name| {
        name.strip_prefix(UNKNOWN_SERVICE).is_some_and(|rest| rest.is_empty() || rest.starts_with(':'))
    });
    if is_nameless && known.iter().any(|attribute| attribute.key == names::SERVICE_NAME) {
        resource.attributes.retain(|attribute| attribute.key != names::SERVICE_NAME);
    }
    let has: HashSet<&str> = resource.attributes.iter().map(|attribute| attribute.key.as_str()).collect();
    // Who made the telemetry is the SDK.
    let is_missing = |key: &str| !has.contains(key) && !key.starts_with("telemetry.");
    let missing: Vec<KeyValue> = known.iter().filter(|attribute| is_missing(&attribute.key)).cloned().collect();
    resource.attributes.extend(missing);
    true
}

fn text(attribute: &KeyValue) -> Option<&str> {
    match attribute.value.as_ref()?.value.as_ref()? {
        Value::StringValue(text) => Some(text),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use opentelemetry_proto::tonic::common::v1::AnyValue;
    use rstest::rstest;

    use super::*;

    fn attributes(pairs: &[(&str, &str)]) -> Vec<KeyValue> {
        let attribute = |(key, value): &(&str, &str)| KeyValue {
            key: (*key).to_owned(),
            value: Some(AnyValue { value: Some(Value::StringValue((*value).to_owned())) }),
            ..KeyValue::default()
        };
        pairs.iter().map(attribute).collect()
    }

    const KNOWN: &[(&str, &str)] = &[
        ("service.name", "web"),
        ("telemetry.sdk.name", "coati"),
        ("k8s.pod.name", "web-1"),
        ("process.executable.name", "python3"),
    ];

    #[rstest]
    #[case::nothing_said(
        &[],
        &[("service.name", "web"), ("k8s.pod.name", "web-1"), ("process.executable.name", "python3")]
    )]
    #[case::what_is_said_stays(
        &[("service.name", "shop"), ("process.executable.name", "")],
        &[("service.name", "shop"), ("process.executable.name", ""), ("k8s.pod.name", "web-1")]
    )]
    #[case::a_service_without_a_name(
        &[("telemetry.sdk.name", "opentelemetry"), ("service.name", "unknown_service:python3")],
        &[
            ("telemetry.sdk.name", "opentelemetry"), ("service.name", "web"), ("k8s.pod.name", "web-1"),
            ("process.executable.name", "python3")
        ]
    )]
    #[case::a_name_that_only_begins_so(
        &[("service.name", "unknown_services"), ("k8s.pod.name", "web-1")],
        &[("service.name", "unknown_services"), ("k8s.pod.name", "web-1"), ("process.executable.name", "python3")]
    )]
    #[case::from_another_pod(&[("k8s.pod.name", "db-1")], &[("k8s.pod.name", "db-1")])]
    fn what_is_missing_is_added(#[case] said: &[(&str, &str)], #[case] expected: &[(&str, &str)]) {
        let mut resource = Resource { attributes: attributes(said), ..Resource::default() };
        add_missing(&mut resource, &attributes(KNOWN));
        assert_eq!(resource.attributes, attributes(expected));
    }

    #[test]
    fn a_service_keeps_its_dull_name_if_there_is_no_better_one() {
        let mut resource =
            Resource { attributes: attributes(&[("service.name", "unknown_service")]), ..Resource::default() };
        add_missing(&mut resource, &attributes(&[("k8s.pod.name", "web-1")]));
        assert_eq!(resource.attributes, attributes(&[("service.name", "unknown_service"), ("k8s.pod.name", "web-1")]));
    }
}
