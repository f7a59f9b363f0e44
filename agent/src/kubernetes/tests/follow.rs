//! The watch against a server that speaks the real protocol, and all that goes wrong with it.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use kube::{Api, Client, Config};
use rstest::rstest;
use serde_json::{Value, json};

use coati_tests::kubernetes::{ApiServer, Fault, Verb, pod, service};

use crate::kubernetes::{Kubernetes, connect, object, watch, watched};

/// How long the client waits for the rest of an answer.
const SILENCE: Duration = Duration::from_millis(1300);
const NODE: &str = "node-1";
const LIST_OF_PODS: &[&str] = &["/pods?", "resourceVersion=0", "resourceVersionMatch"];

/// Waits a moment after each error, always the same.
#[derive(Default)]
struct Soon;

impl Iterator for Soon {
    type Item = Duration;

    fn next(&mut self) -> Option<Duration> {
        Some(Duration::from_millis(5))
    }
}

impl kube::runtime::utils::Backoff for Soon {
    fn reset(&mut self) {}
}

/// A server, and what follows it.
struct Cluster {
    server: ApiServer,
    kubernetes: Kubernetes,
}

impl Cluster {
    fn new() -> Self {
        Self { server: ApiServer::start().unwrap(), kubernetes: Kubernetes::new(None) }
    }

    fn client(&self) -> Client {
        self.client_at(1000)
    }

    /// One that makes so many requests in a second.
    fn client_at(&self, requests: u64) -> Client {
        let mut config = Config::new(format!("http://{}", self.server.address).parse().unwrap());
        config.default_namespace = "coati".to_owned();
        connect::patient(config, SILENCE, requests).unwrap()
    }

    /// Begins to follow, in the background; watches last a second, pages of services have two of them.
    fn follow(&self) {
        self.follow_with(self.client());
    }

    fn follow_with(&self, client: Client) {
        let (pods, services) = watched(NODE);
        let (pods, services) = (pods.timeout(1), services.timeout(1).page_size(2));
        let shared = self.kubernetes.shared.clone();
        tokio::spawn(async move {
            tokio::join!(
                watch::follow(Api::<object::Pod>::all(client.clone()), pods, &shared, Soon),
                watch::follow(Api::<object::Service>::all(client), services, &shared, Soon),
            )
        });
    }

    fn set_pod(&self, number: usize) {
        self.server.set("pods", numbered(number));
    }

    fn set_service(&self, number: usize) {
        let address = format!("10.43.0.{number}");
        self.server.set("services", service("shop", &format!("service-{number}"), &address));
    }

    /// Pods by their containers.
    fn pods(&self) -> BTreeMap<usize, String> {
        let find = |number: usize| Some((number, self.kubernetes.find(Some(&id(number)), None)?.pod.name.to_string()));
        let alive = |number: &usize| self.kubernetes.peer([10, 42, 0, *number as u8].into()).is_some();
        (0..50).filter(alive).filter_map(find).collect()
    }

    fn services(&self) -> BTreeMap<usize, String> {
        let find =
            |number: usize| Some((number, self.kubernetes.peer([10, 43, 0, number as u8].into())?.name.to_string()));
        (0..50).filter_map(find).collect()
    }

    /// Waits until exactly these are known.
    async fn wait_for(&self, pods: &[usize], services: &[usize]) {
        let expected = |numbers: &[usize], kind: &str| -> BTreeMap<_, _> {
            numbers.iter().map(|number| (*number, format!("{kind}-{number}"))).collect()
        };
        let (pods, services) = (expected(pods, "pod"), expected(services, "service"));
        let until = Instant::now() + Duration::from_secs(20);
        while (self.pods(), self.services()) != (pods.clone(), services.clone()) {
            assert!(
                Instant::now() < until,
                "{:?} {:?}, not {pods:?} {services:?}: {:#?}",
                self.pods(),
                self.services(),
                self.server.requests()
            );
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    }

    /// Waits until so many requests have come whose target contains all of `parts`.
    async fn wait_for_requests(&self, count: usize, parts: &[&str]) {
        let until = Instant::now() + Duration::from_secs(20);
        while self.requests(parts) < count {
            assert!(Instant::now() < until, "{parts:?}: {:#?}", self.server.requests());
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    }

    fn restarts(&self, plural: &'static str) -> u64 {
        self.kubernetes.shared.counters(plural).restarts.get()
    }

    fn requests(&self, parts: &[&str]) -> usize {
        self.server.requests().iter().filter(|target| parts.iter().all(|part| target.contains(part))).count()
    }
}

fn id(number: usize) -> String {
    format!("{number:064x}")
}

fn numbered(number: usize) -> Value {
    pod("shop", &format!("pod-{number}"), NODE, &id(number), &format!("10.42.0.{number}"))
}

#[tokio::test]
async fn lists_then_follows() {
    let cluster = Cluster::new();
    for number in 1..=5 {
        cluster.set_pod(number);
        cluster.set_service(number);
    }
    cluster.server.set("pods", pod("shop", "elsewhere", "node-2", &id(40), "10.42.0.40"));
    cluster.follow();
    cluster.wait_for(&[1, 2, 3, 4, 5], &[1, 2, 3, 4, 5]).await;

    cluster.set_pod(6);
    cluster.server.delete("pods", "shop", "pod-1").unwrap();
    cluster.server.delete("services", "shop", "service-5").unwrap();
    cluster.server.set("pods", pod("shop", "elsewhere-too", "node-2", &id(41), "10.42.0.41"));
    cluster.wait_for(&[2, 3, 4, 5, 6], &[1, 2, 3, 4]).await;
    cluster.server.set("pods", {
        let mut pod = numbered(2);
        pod["metadata"]["labels"] = json!({"app.kubernetes.io/name": "renamed"});
        pod
    });
    let renamed = || cluster.kubernetes.find(Some(&id(2)), None).unwrap().service_name() == "renamed";
    while !renamed() {
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    assert_eq!((cluster.restarts("pods"), cluster.restarts("services")), (0, 0));
    // Only pods of the node were asked for, from memory; services came in pages of two.
    let of_node = cluster.requests(&["/api/v1/pods", "fieldSelector=spec.nodeName%3Dnode-1"]);
    assert_eq!(of_node, cluster.requests(&["/api/v1/pods"]));
    assert_eq!(cluster.requests(&["/api/v1/pods", "resourceVersion=0"]), 1);
    assert_eq!(cluster.requests(&["/api/v1/services", "limit=2"]), 3);
    assert_eq!(cluster.requests(&["/api/v1/services", "continue="]), 2);
}

#[tokio::test]
async fn listed_is_told_once_everything_is_there() {
    let cluster = Cluster::new();
    cluster.set_pod(1);
    cluster.server.spoil("pods", Verb::List, Fault::Slow(Duration::from_millis(100)));
    cluster.follow();
    cluster.kubernetes.listed(Duration::from_millis(1)).await;
    assert!(cluster.pods().is_empty(), "it does not wait for ever");
    cluster.kubernetes.listed(Duration::from_secs(20)).await;
    assert_eq!(cluster.pods().len(), 1);
}

/// A watch that ends well goes on from the last event, or from the last bookmark, and nothing is listed again.
#[rstest]
#[case::events(false)]
#[case::bookmarks(true)]
#[tokio::test]
async fn a_watch_that_ends_goes_on(#[case] has_bookmarks: bool) {
    let cluster = Cluster::new();
    cluster.set_pod(1);
    cluster.follow();
    cluster.wait_for(&[1], &[]).await;
    if has_bookmarks {
        // Nothing of the node changes, but the version grows, and then what has changed is forgotten.
        for number in 0..3 {
            cluster.server.set("pods", pod("shop", "elsewhere", "node-2", &id(number), "10.42.0.40"));
        }
        cluster.server.send_bookmarks(Duration::from_millis(20));
        tokio::time::sleep(Duration::from_millis(100)).await;
        cluster.server.forget();
    }
    let version = cluster.server.version();
    cluster.wait_for_requests(3, &["/pods?", "watch=true"]).await;
    cluster.set_pod(2);
    cluster.wait_for(&[1, 2], &[]).await;
    assert_eq!(cluster.requests(LIST_OF_PODS), 1);
    assert_eq!(cluster.restarts("pods"), 0);
    assert!(cluster.requests(&["/pods?", "watch=true", &format!("resourceVersion={version}")]) >= 1);
}

/// The server does not know any more what has changed: it says so in an event, or by its status. All is listed anew,
/// and what was deleted meanwhile is gone.
#[rstest]
#[case::event(true)]
#[case::status(false)]
#[tokio::test]
async fn a_version_that_is_gone_is_listed_anew(#[case] by_event: bool) {
    let cluster = Cluster::new();
    for number in 1..=3 {
        cluster.set_pod(number);
        cluster.set_service(number);
    }
    cluster.follow();
    cluster.wait_for(&[1, 2, 3], &[1, 2, 3]).await;
    if by_event {
        for resource in ["pods", "services"] {
            cluster.server.spoil(resource, Verb::Watch, Fault::GoneEvent);
        }
    }
    // What happens while nobody watches, and is forgotten.
    for resource in ["pods", "services"] {
        cluster.server.spoil(resource, Verb::Watch, Fault::Slow(Duration::from_millis(100)));
    }
    cluster.server.cut();
    tokio::time::sleep(Duration::from_millis(50)).await;
    cluster.server.delete("pods", "shop", "pod-2").unwrap();
    cluster.server.delete("services", "shop", "service-1").unwrap();
    cluster.set_pod(4);
    cluster.server.forget();
    cluster.wait_for(&[1, 3, 4], &[2, 3]).await;
    assert!(cluster.requests(LIST_OF_PODS) >= 2);
    assert!(cluster.restarts("pods") >= 1);
    // And it follows again.
    cluster.set_pod(5);
    cluster.wait_for(&[1, 3, 4, 5], &[2, 3]).await;
}

#[tokio::test]
async fn a_connection_that_breaks_in_the_middle_of_an_event_is_made_again() {
    let cluster = Cluster::new();
    cluster.set_pod(1);
    cluster.follow();
    cluster.wait_for(&[1], &[]).await;
    for number in 2..=4 {
        cluster.wait_for_requests(number - 1, &["/pods?", "watch=true"]).await;
        cluster.server.cut();
        cluster.set_pod(number);
        cluster.wait_for(&(1..=number).collect::<Vec<_>>(), &[]).await;
    }
    assert_eq!(cluster.requests(LIST_OF_PODS), 1, "nothing was listed again");
}

/// A proxy that lets watches begin and ends them at once is not asked as fast as it can answer.
#[tokio::test]
async fn watches_that_end_at_once_are_not_begun_at_once() {
    let cluster = Cluster::new();
    for _ in 0..1000 {
        cluster.server.spoil("pods", Verb::Watch, Fault::End);
    }
    cluster.follow_with(cluster.client_at(10));
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert!(cluster.server.requests().len() <= 10, "{:#?}", cluster.server.requests());
}

/// Whatever happens to the first answers, in the end everything is known.
#[rstest]
#[case::status_of_a_list(Verb::List, Fault::Status(500))]
#[case::too_many_requests(Verb::List, Fault::Status(429))]
#[case::gone_in_the_middle_of_pages(Verb::List, Fault::Status(410))]
#[case::list_cut_in_the_head(Verb::List, Fault::Cut(10))]
#[case::list_cut_in_the_body(Verb::List, Fault::Cut(400))]
#[case::list_that_is_no_json(Verb::List, Fault::Garbage)]
#[case::list_that_does_not_come(Verb::List, Fault::Slow(Duration::from_secs(2)))]
#[case::status_of_a_watch(Verb::Watch, Fault::Status(503))]
#[case::watch_cut_in_the_head(Verb::Watch, Fault::Cut(10))]
#[case::watch_that_does_not_come(Verb::Watch, Fault::Slow(Duration::from_secs(2)))]
#[case::watch_that_is_no_json(Verb::Watch, Fault::Garbage)]
#[case::watch_that_ends_at_once(Verb::Watch, Fault::End)]
#[tokio::test]
async fn a_bad_answer_is_asked_for_again(#[case] verb: Verb, #[case] fault: Fault) {
    let cluster = Cluster::new();
    for number in 1..=5 {
        cluster.set_pod(number);
        cluster.set_service(number);
    }
    for resource in ["pods", "services"] {
        for _ in 0..2 {
            cluster.server.spoil(resource, verb, fault);
        }
    }
    cluster.follow();
    cluster.wait_for(&[1, 2, 3, 4, 5], &[1, 2, 3, 4, 5]).await;
    cluster.set_pod(6);
    cluster.wait_for(&[1, 2, 3, 4, 5, 6], &[1, 2, 3, 4, 5]).await;
}

/// One of the two is not allowed, and later is.
#[tokio::test]
async fn services_that_may_not_be_read_do_not_keep_pods_back() {
    let cluster = Cluster::new();
    cluster.set_pod(1);
    cluster.set_service(1);
    cluster.server.allow("services", false);
    cluster.follow();
    cluster.wait_for(&[1], &[]).await;
    cluster.wait_for_requests(3, &["/services?"]).await;
    assert!(cluster.restarts("services") >= 2);
    assert_eq!(cluster.restarts("pods"), 0);
    cluster.server.allow("services", true);
    cluster.wait_for(&[1], &[1]).await;
}

/// In a pod, the host's name is the pod's, and the pod knows its node; on the node's own network it is the node's.
#[rstest]
#[case::in_a_pod("agent-x7", Fault::End, "node-7")]
#[case::on_the_nodes_network("Node-9", Fault::End, "node-9")]
#[case::after_an_error("agent-x7", Fault::Status(500), "node-7")]
#[tokio::test]
async fn the_agent_asks_where_it_is(#[case] host_name: &str, #[case] fault: Fault, #[case] expected: &str) {
    let cluster = Cluster::new();
    cluster.server.set("pods", pod("coati", "agent-x7", "node-7", &id(1), "10.42.0.1"));
    cluster.server.spoil("pods", Verb::Get, fault);
    assert_eq!(connect::node_name(&cluster.client(), host_name, Soon).await, expected);
}

/// 300 pods, as a real server sends them, managed fields and all. What they take is printed, for docs/kubernetes.md.
#[tokio::test]
async fn three_hundred_pods() {
    let cluster = Cluster::new();
    for number in 0..300 {
        let mut pod = pod("shop", &format!("pod-{number}"), NODE, &id(number), "10.42.0.7");
        pod["metadata"]["managedFields"] = json!(vec![json!({"fieldsV1": {"f:spec": "x".repeat(500)}}); 10]);
        pod["spec"]["containers"] =
            json!([{"name": "main", "env": vec![json!({"name": "A", "value": "x".repeat(50)}); 20]}]);
        cluster.server.set("pods", pod);
    }
    let resident = || procfs::process::Process::myself().unwrap().stat().unwrap().rss * 4;
    let before = resident();
    cluster.follow();
    cluster.kubernetes.listed(Duration::from_secs(20)).await;
    println!("300 pods: {} KiB more, with what their list needed once", resident() - before);
    assert_eq!(cluster.kubernetes.shared.index().pods(), 300);
    assert!(cluster.kubernetes.find(Some(&id(299)), None).is_some());
}
