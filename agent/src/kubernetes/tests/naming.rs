//! What processes are called after their pods.

use proptest::prelude::*;
use rstest::rstest;
use serde_json::{Map, Value, json};

use coati_tests::kubernetes::pod;

use crate::kubernetes::{Found, testing::cluster};

const ID: &str = "3f1a9c0e5b7d2468ace013579bdf02468ace13579bdf02468ace13579bdf0246";

fn found(pod: &Value) -> Found {
    cluster(std::slice::from_ref(pod), &[]).find(Some(ID), None).unwrap()
}

/// The attributes as they are sent: the first of each key.
fn attributes(found: &Found) -> Map<String, Value> {
    let mut attributes = Map::new();
    found.attributes(&mut |key, value| {
        attributes.entry(key).or_insert_with(|| value.into());
    });
    attributes
}

fn text(attributes: &Map<String, Value>, key: &str) -> Option<String> {
    attributes.get(key).and_then(Value::as_str).map(str::to_owned)
}

fn with(mut pod: Value, metadata: &Value) -> Value {
    for (key, value) in metadata.as_object().unwrap() {
        pod["metadata"][key] = value.clone();
    }
    pod
}

fn plain() -> Value {
    pod("shop", "cart-6d5f8c9b7-x2x4z", "node-1", ID, "10.42.0.7")
}

fn owned_by(kind: &str, name: &str) -> Value {
    json!({"ownerReferences": [
        {"apiVersion": "v1", "kind": "Other", "name": "no-controller", "uid": "1"},
        {"apiVersion": "apps/v1", "kind": kind, "name": name, "uid": "2", "controller": true},
    ]})
}

#[test]
fn a_pod_of_a_deployment_says_everything() {
    let pod = with(
        with(plain(), &owned_by("ReplicaSet", "cart-6d5f8c9b7")),
        &json!({
            "labels": {
                "pod-template-hash": "6d5f8c9b7", "app.kubernetes.io/version": "1.4.2", "app.kubernetes.io/part-of": "store",
                "app": "ignored",
            },
            "annotations": {
                "resource.opentelemetry.io/team": "checkout", "kubectl.kubernetes.io/last-applied-configuration": "{}",
                "resource.opentelemetry.io/": "no key", "resource.opentelemetry.io/empty": "",
            },
        }),
    );
    let found = found(&pod);
    assert_eq!(found.service_name(), "cart");
    assert!(found.is_complete());
    let expected = json!({
        "team": "checkout",
        "service.namespace": "store",
        "service.version": "1.4.2",
        "service.instance.id": "shop.cart-6d5f8c9b7-x2x4z.main",
        "k8s.cluster.name": "home",
        "k8s.namespace.name": "shop",
        "k8s.pod.name": "cart-6d5f8c9b7-x2x4z",
        "k8s.pod.uid": pod["metadata"]["uid"],
        "k8s.pod.start_time": "2026-11-28T08:59:56Z",
        "k8s.container.name": "main",
        "k8s.node.name": "node-1",
        "k8s.owner.name": "cart",
        "k8s.kind": "Deployment",
        "k8s.replicaset.name": "cart-6d5f8c9b7",
        "k8s.deployment.name": "cart",
    });
    assert_eq!(Value::Object(attributes(&found)), expected);
}

/// The precedence, one step less each time.
#[rstest]
#[case::annotation(&["annotation", "instance", "name", "owner"], "by-annotation")]
#[case::instance(&["instance", "name", "owner"], "by-instance")]
#[case::name(&["name", "owner"], "by-name")]
#[case::owner(&["owner"], "by-owner")]
#[case::pod_itself(&[], "cart-6d5f8c9b7-x2x4z")]
fn the_most_explicit_name_wins(#[case] given: &[&str], #[case] expected: &str) {
    let is_given = |what| given.contains(&what);
    let mut labels = json!({});
    let mut metadata = json!({});
    if is_given("annotation") {
        metadata["annotations"] = json!({"resource.opentelemetry.io/service.name": "by-annotation"});
    }
    if is_given("instance") {
        labels["app.kubernetes.io/instance"] = "by-instance".into();
    }
    if is_given("name") {
        labels["app.kubernetes.io/name"] = "by-name".into();
    }
    if is_given("owner") {
        metadata["ownerReferences"] = owned_by("StatefulSet", "by-owner")["ownerReferences"].clone();
    }
    metadata["labels"] = labels;
    assert_eq!(found(&with(plain(), &metadata)).service_name(), expected);
}

#[rstest]
#[case::namespace(json!({}), "shop")]
#[case::part_of(json!({"labels": {"app.kubernetes.io/part-of": "store"}}), "store")]
#[case::empty_label(json!({"labels": {"app.kubernetes.io/part-of": ""}}), "shop")]
#[case::annotation(
    json!({"labels": {"app.kubernetes.io/part-of": "store"}, "annotations": {"resource.opentelemetry.io/service.namespace": "a"}}),
    "a"
)]
fn the_namespace_of_a_service(#[case] metadata: Value, #[case] expected: &str) {
    assert_eq!(text(&attributes(&found(&with(plain(), &metadata))), "service.namespace").as_deref(), Some(expected));
}

#[test]
fn annotations_win_over_what_was_found_out() {
    let annotations = json!({"annotations": {
        "resource.opentelemetry.io/service.instance.id": "7", "resource.opentelemetry.io/service.version": "2",
        "resource.opentelemetry.io/k8s.pod.name": "other",
    }, "labels": {"app.kubernetes.io/version": "1"}});
    let attributes = attributes(&found(&with(plain(), &annotations)));
    for (key, expected) in [("service.instance.id", "7"), ("service.version", "2"), ("k8s.pod.name", "other")] {
        assert_eq!(text(&attributes, key).as_deref(), Some(expected), "{key}");
    }
}

/// `creationTimestamp` of the pod is 2026-11-28T08:59:55Z, minute 29,930,939 of Unix time.
#[rstest]
#[case::deployment("ReplicaSet", "cart-6d5f8c9b7", json!({"pod-template-hash": "6d5f8c9b7"}), "Deployment", "cart")]
#[case::replica_set("ReplicaSet", "cart-v2", json!({}), "ReplicaSet", "cart-v2")]
#[case::replica_set_with_another_hash("ReplicaSet", "cart-v2", json!({"pod-template-hash": "x"}), "ReplicaSet", "cart-v2")]
#[case::rollout("ReplicaSet", "cart-abc", json!({"rollouts-pod-template-hash": "abc"}), "Rollout", "cart")]
#[case::stateful_set("StatefulSet", "db", json!({}), "StatefulSet", "db")]
#[case::daemon_set("DaemonSet", "dns", json!({}), "DaemonSet", "dns")]
#[case::job("Job", "migrate", json!({}), "Job", "migrate")]
#[case::job_called_after_a_day("Job", "migrate-20261128", json!({}), "Job", "migrate-20261128")]
#[case::cron_job("Job", "backup-29930939", json!({}), "CronJob", "backup")]
#[case::cron_job_tried_again("Job", "backup-29930000", json!({}), "CronJob", "backup")]
#[case::cron_job_in_seconds("Job", "backup-1785229140", json!({}), "Job", "backup-1785229140")]
#[case::old_cron_job("Job", "backup-1795856340", json!({}), "CronJob", "backup")]
#[case::number_only("Job", "-29930939", json!({}), "Job", "-29930939")]
#[case::huge_number("Job", "a-99999999999999999999", json!({}), "Job", "a-99999999999999999999")]
#[case::somebody_elses("Database", "pg", json!({}), "Database", "pg")]
#[case::static_pod("Node", "node-1", json!({}), "Pod", "cart-6d5f8c9b7-x2x4z")]
fn owners_up_to_the_topmost(
    #[case] kind: &str,
    #[case] name: &str,
    #[case] labels: Value,
    #[case] expected_kind: &str,
    #[case] expected: &str,
) {
    let found = found(&with(with(plain(), &owned_by(kind, name)), &json!({"labels": labels})));
    let attributes = attributes(&found);
    assert_eq!(text(&attributes, "k8s.kind").as_deref(), Some(expected_kind));
    assert_eq!(text(&attributes, "k8s.owner.name").as_deref(), Some(expected));
    assert_eq!(found.service_name(), expected);
}

#[test]
fn a_static_pod_is_called_without_its_node() {
    let pod = with(pod("kube-system", "etcd-node-1", "node-1", ID, "192.0.2.1"), &owned_by("Node", "node-1"));
    assert_eq!(found(&pod).service_name(), "etcd");
}

/// Whatever a pod says, it has a name, an instance and a namespace.
fn metadata() -> impl Strategy<Value = Value> {
    let key = prop_oneof![
        Just("app.kubernetes.io/name".to_owned()),
        Just("app.kubernetes.io/instance".to_owned()),
        Just("pod-template-hash".to_owned()),
        Just("resource.opentelemetry.io/service.name".to_owned()),
        Just("kubernetes.io/config.hash".to_owned()),
        ".{0,20}",
    ];
    let map = || proptest::collection::btree_map(key.clone(), ".{0,20}", 0..6);
    let kind = prop_oneof![Just("ReplicaSet"), Just("Job"), Just("Node"), Just("X")];
    (map(), map(), kind, "[a-z0-9-]{0,30}").prop_map(|(labels, annotations, kind, owner)| {
        json!({"labels": labels, "annotations": annotations, "ownerReferences": owned_by(kind, &owner)["ownerReferences"]})
    })
}

proptest! {
    #[test]
    fn any_pod_has_an_identity(metadata in metadata()) {
        let found = found(&with(plain(), &metadata));
        let attributes = attributes(&found);
        prop_assert!(!text(&attributes, "service.namespace").unwrap_or_default().is_empty());
        prop_assert!(!text(&attributes, "service.instance.id").unwrap_or_default().is_empty());
        prop_assert!(attributes.values().all(Value::is_string));
    }
}
