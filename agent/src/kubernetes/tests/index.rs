//! What is found, of whom, and for how long.

use std::{net::IpAddr, slice};

use rstest::rstest;
use serde_json::{Value, json};

use coati_tests::kubernetes::{pod, service, uid};

use crate::kubernetes::{
    Kubernetes,
    testing::{cluster, delete_pod, set_pod},
};

fn id(number: usize) -> String {
    format!("{number:064x}")
}

fn name(kubernetes: &Kubernetes, container: &str) -> Option<String> {
    Some(kubernetes.find(Some(container), None)?.pod.name.to_string())
}

fn peer(kubernetes: &Kubernetes, address: &str) -> Option<(String, String)> {
    let peer = kubernetes.peer(address.parse().unwrap())?;
    Some((peer.name.to_string(), peer.namespace.to_string()))
}

fn pair(name: &str, namespace: &str) -> (String, String) {
    (name.to_owned(), namespace.to_owned())
}

#[test]
fn containers_of_every_kind_are_found() {
    let mut pod = pod("shop", "cart", "node-1", &id(1), "10.42.0.7");
    let status = |name: &str, id: &str| json!([{"name": name, "containerID": format!("cri-o://{id}")}]);
    pod["status"]["initContainerStatuses"] = status("migrate", &id(2));
    pod["status"]["ephemeralContainerStatuses"] = status("debug", &id(3));
    let kubernetes = cluster(&[pod], &[]);
    for (number, container) in [(1, "main"), (2, "migrate"), (3, "debug")] {
        assert_eq!(kubernetes.find(Some(&id(number)), None).unwrap().container.as_deref(), Some(container));
    }
    assert!(kubernetes.find(Some(&id(4)), None).is_none());
    assert_eq!(kubernetes.shared.misses.get(), 1);
}

/// The kubelet tells of a container a second after it was started; its control group has the pod's uid at once.
#[test]
fn a_container_that_is_not_told_yet_is_found_by_its_pod() {
    let mut waiting = pod("shop", "cart", "node-1", &id(1), "10.42.0.7");
    waiting["status"]["containerStatuses"] = json!([{"name": "main", "state": {"waiting": {}}}]);
    let kubernetes = cluster(&[waiting.clone()], &[]);
    let uid = uid("shop", "cart");
    let found = kubernetes.find(Some(&id(1)), Some(&uid)).unwrap();
    assert_eq!(found.container.as_deref(), Some("main"), "it has no other");

    waiting["spec"]["containers"] = json!([{"name": "main"}, {"name": "proxy"}]);
    set_pod(&kubernetes, &waiting);
    let found = kubernetes.find(Some(&id(1)), Some(&uid)).unwrap();
    assert!(!found.is_complete());
    assert_eq!(&*found.pod.name, "cart");

    let generation = kubernetes.generation();
    waiting["status"]["containerStatuses"] =
        json!([{"name": "proxy", "containerID": format!("containerd://{}", id(1))}]);
    set_pod(&kubernetes, &waiting);
    assert!(kubernetes.generation() > generation);
    assert_eq!(kubernetes.find(Some(&id(1)), Some(&uid)).unwrap().container.as_deref(), Some("proxy"));
}

#[test]
fn a_static_pod_is_found_by_its_hash() {
    let mut pod = pod("kube-system", "etcd-node-1", "node-1", &id(1), "192.0.2.1");
    let hash = "0123456789abcdef0123456789abcdef";
    pod["metadata"]["annotations"] = json!({"kubernetes.io/config.hash": hash});
    assert!(cluster(&[pod], &[]).find(Some(&id(9)), Some(hash)).is_some());
}

#[test]
fn what_does_not_matter_changes_nothing() {
    let mut pod = pod("shop", "cart", "node-1", &id(1), "10.42.0.7");
    let kubernetes = cluster(&[pod.clone()], &[]);
    let generation = kubernetes.generation();
    pod["status"]["conditions"] = json!([]);
    set_pod(&kubernetes, &pod);
    assert_eq!(kubernetes.generation(), generation);
    pod["metadata"]["labels"] = json!({"app.kubernetes.io/name": "basket"});
    set_pod(&kubernetes, &pod);
    assert_ne!(kubernetes.generation(), generation);
    assert_eq!(kubernetes.find(Some(&id(1)), None).unwrap().service_name(), "basket");
}

#[test]
fn a_restarted_container_has_both_ids() {
    let mut pod = pod("shop", "cart", "node-1", &id(0), "10.42.0.7");
    let kubernetes = cluster(&[pod.clone()], &[]);
    for restart in 1..200 {
        pod["status"]["containerStatuses"][0]["containerID"] = json!(format!("containerd://{}", id(restart)));
        set_pod(&kubernetes, &pod);
    }
    assert_eq!(name(&kubernetes, &id(199)).as_deref(), Some("cart"));
    assert_eq!(name(&kubernetes, &id(198)).as_deref(), Some("cart"), "its last spans are not made yet");
    assert_eq!(name(&kubernetes, &id(0)), None, "nor is everything kept");
}

#[test]
fn a_deleted_pod_is_found_for_a_while_but_not_by_its_address() {
    let first = pod("shop", "cart", "node-1", &id(0), "10.42.0.7");
    let kubernetes = cluster(slice::from_ref(&first), &[]);
    delete_pod(&kubernetes, &first);
    assert_eq!(name(&kubernetes, &id(0)).as_deref(), Some("cart"));
    assert_eq!(peer(&kubernetes, "10.42.0.7"), None);
    assert_eq!(kubernetes.shared.index().pods(), 0);
    for number in 1..=128 {
        let other = pod("shop", &format!("cart-{number}"), "node-1", &id(number), "10.42.0.7");
        set_pod(&kubernetes, &other);
        delete_pod(&kubernetes, &other);
    }
    assert_eq!(name(&kubernetes, &id(0)), None);
    assert_eq!(name(&kubernetes, &id(128)).as_deref(), Some("cart-128"));
}

#[test]
fn a_pod_that_comes_back_is_whole_again() {
    let pod = pod("shop", "cart", "node-1", &id(0), "10.42.0.7");
    let kubernetes = cluster(slice::from_ref(&pod), &[]);
    delete_pod(&kubernetes, &pod);
    set_pod(&kubernetes, &pod);
    assert_eq!(peer(&kubernetes, "10.42.0.7"), Some(pair("cart", "shop")));
    assert_eq!(kubernetes.shared.index().pods(), 1);
}

#[test]
fn addresses_of_services_and_pods_are_peers() {
    let mut dual = service("store", "db", "10.43.0.9");
    dual["spec"]["clusterIPs"] = json!(["10.43.0.9", "fd00::9"]);
    let mut headless = service("store", "headless", "None");
    headless["spec"]["clusterIPs"] = json!(["None"]);
    let kubernetes = cluster(&[pod("shop", "cart", "node-1", &id(1), "10.42.0.7")], &[dual, headless]);
    assert_eq!(peer(&kubernetes, "10.42.0.7"), Some(pair("cart", "shop")));
    assert_eq!(peer(&kubernetes, "::ffff:10.42.0.7"), Some(pair("cart", "shop")));
    assert_eq!(peer(&kubernetes, "10.43.0.9"), Some(pair("db", "store")));
    assert_eq!(peer(&kubernetes, "fd00::9"), Some(pair("db", "store")));
    assert_eq!(peer(&kubernetes, "10.42.0.8"), None);
    assert_eq!(kubernetes.shared.index().services(), 1);
}

/// The address of such a pod is somebody else's too.
#[rstest]
#[case::on_the_nodes_network(json!({"hostNetwork": true, "containers": [{"name": "main"}]}), "Running")]
#[case::succeeded(json!({"containers": [{"name": "main"}]}), "Succeeded")]
#[case::failed(json!({"containers": [{"name": "main"}]}), "Failed")]
fn an_address_that_is_not_the_pods_alone_is_no_peer(#[case] spec: Value, #[case] phase: &str) {
    let mut pod = pod("shop", "cart", "node-1", &id(1), "192.0.2.1");
    pod["spec"] = spec;
    pod["status"]["phase"] = phase.into();
    let kubernetes = cluster(&[pod], &[]);
    assert_eq!(peer(&kubernetes, "192.0.2.1"), None);
    assert!(name(&kubernetes, &id(1)).is_some());
}

/// Deletions may come after the address has been given to the next pod.
#[test]
fn the_newest_owner_of_an_address_keeps_it() {
    let (old, new) =
        (pod("shop", "old", "node-1", &id(1), "10.42.0.7"), pod("shop", "new", "node-1", &id(2), "10.42.0.7"));
    let kubernetes = cluster(&[old.clone(), new], &[]);
    delete_pod(&kubernetes, &old);
    assert_eq!(peer(&kubernetes, "10.42.0.7"), Some(pair("new", "shop")));
}

#[test]
fn a_service_with_another_address_has_no_longer_the_old_one() {
    let kubernetes = cluster(&[], &[service("store", "db", "10.43.0.9"), service("store", "db", "10.43.0.10")]);
    assert_eq!(peer(&kubernetes, "10.43.0.9"), None);
    assert_eq!(peer(&kubernetes, "10.43.0.10"), Some(pair("db", "store")));
}

/// The sizes are bounded, whatever the server says there is.
#[test]
fn memory_is_bounded() {
    let kubernetes = cluster(&[], &[]);
    for number in 0..5000 {
        set_pod(&kubernetes, &json!({"metadata": {"name": "a", "namespace": "b", "uid": number.to_string()}}));
    }
    assert_eq!(kubernetes.shared.index().pods(), 4096);
}

#[rstest]
#[case::nothing(json!({}))]
#[case::nulls(json!({"metadata": null, "spec": null, "status": null}))]
#[case::no_uid(json!({"metadata": {"name": "a", "namespace": "b"}}))]
#[case::null_lists(json!({
    "metadata": {"name": "a", "namespace": "b", "uid": "c", "labels": null, "ownerReferences": null},
    "spec": {"containers": null, "hostNetwork": null}, "status": {"podIPs": null, "containerStatuses": [{"name": null}]}
}))]
#[case::odd_addresses(json!({
    "metadata": {"name": "a", "namespace": "b", "uid": "c"},
    "status": {"podIP": "", "podIPs": [{"ip": "10.0.0"}, {}], "containerStatuses": [{"containerID": "no-scheme"}, {"containerID": ""}]}
}))]
fn a_pod_that_lacks_something_is_taken_as_far_as_it_goes(#[case] pod: Value) {
    let kubernetes = cluster(slice::from_ref(&pod), slice::from_ref(&pod));
    assert_eq!(kubernetes.peer(IpAddr::from([10, 0, 0, 1])), None);
}
