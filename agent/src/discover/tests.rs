use std::collections::HashSet;

use opentelemetry_proto::tonic::common::v1::any_value::Value;
use proptest::prelude::*;
use rstest::rstest;

use coati_tests::kubernetes::{pod, uid};

use super::{proc_tree::tests::FakeTree, *};
use crate::kubernetes::testing::{cluster, delete_pod, set_pod};

const SECOND: u64 = 1_000_000_000;

fn processes(fake: &FakeTree) -> Processes {
    Processes::new(fake.tree(), Selection::default())
}

fn attribute(process: &Process, key: &str) -> Option<String> {
    let attribute = process.resource.attributes.iter().find(|attribute| attribute.key == key)?;
    match attribute.value.as_ref()?.value.as_ref()? {
        Value::StringValue(text) => Some(text.clone()),
        Value::IntValue(number) => Some(number.to_string()),
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_resource_tells_who_and_where() {
    let fake = FakeTree::new();
    fake.add(42, "/usr/bin/python3.11", &["python3", "/srv/orders/app.py", "--password", "secret"], &["SECRET=hidden"]);
    let process = processes(&fake).get(42, 0);
    let attributes: Vec<_> =
        process.resource.attributes.iter().map(|pair| (pair.key.as_str(), attribute(&process, &pair.key))).collect();
    let version = env!("CARGO_PKG_VERSION");
    let container = "ab".repeat(32);
    let expected = [
        ("service.name", "orders"),
        ("telemetry.sdk.language", "python"),
        ("telemetry.sdk.name", "coati"),
        ("telemetry.sdk.version", version),
        ("service.instance.id", "node-1:42"),
        ("host.name", "node-1"),
        ("host.id", "0123456789abcdef0123456789abcdef"),
        ("os.type", "linux"),
        ("process.pid", "42"),
        ("process.executable.name", "python3.11"),
        ("process.executable.path", "/usr/bin/python3.11"),
        ("process.command", "python3"),
        ("container.id", &container),
    ];
    assert_eq!(attributes, expected.map(|(key, value)| (key, Some(value.to_owned()))));
}

#[test]
fn a_title_gives_no_more_than_its_first_word() {
    let fake = FakeTree::new();
    fake.add(42, "/usr/bin/python3.11", &["[worker: orders --password secret"], &[]);
    let process = processes(&fake).get(42, 0);
    assert_eq!(attribute(&process, "process.command").as_deref(), Some("[worker:"));
    assert_eq!(process.service_name, "worker");
    assert!(!format!("{:?}", process.resource).contains("secret"), "{process:?}");
}

#[test]
fn a_container_of_docker_has_its_name() {
    let fake = FakeTree::new();
    fake.add(42, "/usr/sbin/nginx", &["nginx"], &[]);
    fake.add(43, "/usr/sbin/nginx", &["nginx"], &["OTEL_SERVICE_NAME=declared"]);
    fake.add(44, "/usr/sbin/nginx", &["nginx"], &[]);
    fake.set_group(44, "/system.slice/nginx.service");
    let folder = fake.directory.path().join("1/root/var/lib/docker/containers").join("ab".repeat(32));
    std::fs::create_dir_all(&folder).unwrap();
    let file = r#"{"Name": "/shop-front-1", "Config": {"Image": "nginx:1.27", "Labels":
        {"com.docker.compose.project": "shop", "com.docker.compose.service": "front"}}}"#;
    std::fs::write(folder.join("config.v2.json"), file).unwrap();

    let rule = Rule { metadata: vec![("container.name", Pattern::glob("shop-*").unwrap())], ..Rule::default() };
    let selection = Selection { include: vec![rule], ..Selection::default() };
    let mut processes = Processes::new(fake.tree(), selection);
    let process = processes.get(42, 0);
    for (key, expected) in [
        ("service.name", "front"),
        ("service.namespace", "shop"),
        ("container.name", "shop-front-1"),
        ("container.image.name", "nginx:1.27"),
    ] {
        assert_eq!(attribute(&process, key).as_deref(), Some(expected), "{key}");
    }
    assert_eq!(processes.get(43, 0).service_name, "declared");
    let selected = [42, 43, 44].map(|tgid| processes.is_selected(tgid, 0));
    assert_eq!(selected, [true, true, false]);
}

#[rstest]
#[case::service_name_first(&["OTEL_SERVICE_NAME=a", "OTEL_RESOURCE_ATTRIBUTES=service.name=b"], "a")]
#[case::resource_attributes(&["OTEL_RESOURCE_ATTRIBUTES=service.name=b"], "b")]
#[case::neither(&["HOME=/root"], "nginx")]
#[case::empty_ones(&["OTEL_SERVICE_NAME=", "OTEL_RESOURCE_ATTRIBUTES=service.name="], "nginx")]
fn the_environment_names_the_service(#[case] environment: &[&str], #[case] expected: &str) {
    let fake = FakeTree::new();
    fake.add(42, "/usr/sbin/nginx", &["nginx"], environment);
    let process = processes(&fake).get(42, 0);
    assert_eq!(process.service_name, expected);
    assert_eq!(attribute(&process, "service.name").as_deref(), Some(expected));
    assert_eq!(process.resource.attributes.iter().filter(|pair| pair.key == "service.name").count(), 1);
}

#[test]
fn declared_attributes_win_except_over_the_maker_of_the_telemetry() {
    let fake = FakeTree::new();
    let declared = "OTEL_RESOURCE_ATTRIBUTES=service.namespace=shop,service.instance.id=7,telemetry.sdk.name=other";
    fake.add(42, "/usr/sbin/nginx", &["nginx"], &[declared]);
    let process = processes(&fake).get(42, 0);
    assert_eq!(attribute(&process, "service.namespace").as_deref(), Some("shop"));
    assert_eq!(attribute(&process, "service.instance.id").as_deref(), Some("7"));
    assert_eq!(attribute(&process, "telemetry.sdk.name").as_deref(), Some("coati"));
}

#[test]
fn a_process_is_read_once() {
    let fake = FakeTree::new();
    fake.add(42, "/usr/sbin/nginx", &["nginx"], &[]);
    let mut processes = processes(&fake);
    let first = processes.get(42, 0);
    fake.remove(42);
    assert!(Arc::ptr_eq(&first, &processes.get(42, SECOND)));
}

#[test]
fn another_program_in_the_same_process_is_read_again() {
    let fake = FakeTree::new();
    fake.add(42, "/bin/sh", &["sh"], &[]);
    let mut processes = processes(&fake);
    assert_eq!(processes.get(42, 0).service_name, "sh");
    fake.remove(42);
    fake.add(42, "/usr/sbin/nginx", &["nginx"], &[]);
    processes.executed(42, "/usr/sbin/nginx");
    assert_eq!(processes.get(42, 0).service_name, "nginx");
}

#[rstest]
#[case::with_its_exec_record(Some("/usr/bin/curl"), "curl")]
#[case::without(None, "unknown")]
fn a_process_that_is_gone_has_the_name_of_its_exec_record(#[case] path: Option<&str>, #[case] expected: &str) {
    let mut processes = processes(&FakeTree::new());
    if let Some(path) = path {
        processes.executed(42, path);
    }
    let process = processes.get(42, 0);
    assert_eq!(process.service_name, expected);
    assert_eq!(attribute(&process, "service.instance.id").as_deref(), Some("node-1:42"));
}

#[test]
fn an_ended_process_is_kept_for_its_last_spans() {
    let fake = FakeTree::new();
    fake.add(42, "/usr/bin/curl", &["curl"], &[]);
    let mut processes = processes(&fake);
    processes.get(42, SECOND);
    fake.remove(42);
    processes.ended(42, SECOND);
    processes.forget_ended(5 * SECOND);
    assert_eq!(processes.get(42, 5 * SECOND).service_name, "curl");
    processes.forget_ended(12 * SECOND);
    assert_eq!(processes.get(42, 12 * SECOND).service_name, "unknown");
}

#[test]
fn an_ended_process_that_nobody_asked_for_is_forgotten() {
    let mut processes = processes(&FakeTree::new());
    processes.executed(42, "/bin/true");
    assert_eq!(processes.len(), 1);
    processes.ended(42, 0);
    assert!(processes.is_empty());
}

#[test]
fn a_lost_exit_record_is_noticed() {
    let fake = FakeTree::new();
    fake.add(42, "/usr/bin/curl", &["curl"], &[]);
    fake.add(43, "/usr/sbin/nginx", &["nginx"], &[]);
    let mut processes = processes(&fake);
    processes.get(42, 0);
    processes.get(43, 0);
    fake.remove(42);
    processes.forget_ended(61 * SECOND);
    processes.forget_ended(72 * SECOND);
    assert_eq!(processes.len(), 1);
}

#[test]
fn rules_select_processes() {
    let fake = FakeTree::new();
    fake.add(42, "/usr/sbin/nginx", &["nginx"], &[]);
    fake.add(43, "/usr/bin/curl", &["curl"], &[]);
    let exclude = vec![Rule { exe_path: Pattern::executable("curl"), ..Rule::default() }];
    let mut processes = Processes::new(fake.tree(), Selection { include: vec![], exclude });
    assert!(processes.is_selected(42, 0));
    assert!(!processes.is_selected(43, 0));
    assert!(!processes.may_be_selected_later());
}

#[test]
fn a_process_that_begins_to_listen_is_selected() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let include = vec![Rule { open_ports: Ports::parse(&port.to_string()), ..Rule::default() }];
    let mut processes = Processes::new(ProcTree::new("/proc"), Selection { include, exclude: vec![] });
    drop(listener);
    let me = std::process::id();
    assert!(!processes.is_selected(me, 0));
    let _listener = std::net::TcpListener::bind(("127.0.0.1", port)).unwrap();
    assert!(!processes.is_selected(me, SECOND), "asked again too soon");
    assert!(processes.is_selected(me, 6 * SECOND));
}

#[test]
fn the_number_of_processes_is_bounded() {
    let mut processes = processes(&FakeTree::new());
    for tgid in 1..10_000 {
        processes.executed(tgid, "/bin/true");
    }
    assert_eq!(processes.len(), MAX_PROCESSES);
    assert_eq!(processes.get(20_000, 0).service_name, "unknown");
    assert_eq!(processes.len(), MAX_PROCESSES);
}

#[rstest]
#[case::interpreter("/usr/bin/python3.11", &["python3", "-c", "x"], "orders")]
#[case::everybodys_name("/usr/local/bin/server", &["server"], "orders")]
#[case::script("/usr/bin/python3.11", &["python3", "/srv/billing.py"], "billing")]
#[case::program("/usr/sbin/nginx", &["nginx"], "nginx")]
fn the_systemd_service_names_what_says_nothing_itself(
    #[case] executable: &str,
    #[case] command: &[&str],
    #[case] expected: &str,
) {
    let fake = FakeTree::new();
    fake.add(42, executable, command, &[]);
    fake.set_group(42, "/system.slice/orders.service");
    assert_eq!(processes(&fake).get(42, 0).service_name, expected);
}

const CONTAINER: &str = "3f1a9c0e5b7d2468ace013579bdf02468ace13579bdf02468ace13579bdf0246";

/// A process 42 in a container of the pod `shop/cart`.
fn in_pod(environment: &[&str]) -> (FakeTree, serde_json::Value) {
    let fake = FakeTree::new();
    fake.add(42, "/usr/bin/python3.11", &["python3", "/srv/app.py"], environment);
    let uid = uid("shop", "cart");
    fake.set_group(42, &format!("/kubepods/burstable/pod{uid}/{CONTAINER}"));
    (fake, pod("shop", "cart", "node-1", CONTAINER, "10.42.0.7"))
}

#[test]
fn a_process_in_a_pod_is_named_after_it() {
    let (fake, pod) = in_pod(&[]);
    let kubernetes = cluster(&[pod], &[]);
    let process = processes(&fake).in_pods(Some(kubernetes)).get(42, 0);
    assert_eq!(process.service_name, "cart");
    for (key, expected) in [
        ("service.name", "cart"),
        ("service.namespace", "shop"),
        ("service.instance.id", "shop.cart.main"),
        ("k8s.pod.name", "cart"),
        ("k8s.container.name", "main"),
        ("k8s.cluster.name", "home"),
        ("container.id", CONTAINER),
        ("process.pid", "42"),
        ("host.name", "node-1"),
    ] {
        assert_eq!(attribute(&process, key).as_deref(), Some(expected), "{key}");
    }
    let keys: HashSet<_> = process.resource.attributes.iter().map(|pair| &pair.key).collect();
    assert_eq!(keys.len(), process.resource.attributes.len(), "every key once");
}

#[test]
fn the_environment_wins_over_the_pod() {
    let declared = "OTEL_RESOURCE_ATTRIBUTES=service.namespace=mine,k8s.pod.name=other,service.instance.id=7";
    let (fake, pod) = in_pod(&["OTEL_SERVICE_NAME=declared", declared]);
    let process = processes(&fake).in_pods(Some(cluster(&[pod], &[]))).get(42, 0);
    assert_eq!(process.service_name, "declared");
    for (key, expected) in [("service.namespace", "mine"), ("k8s.pod.name", "other"), ("service.instance.id", "7")] {
        assert_eq!(attribute(&process, key).as_deref(), Some(expected), "{key}");
    }
    assert_eq!(attribute(&process, "k8s.namespace.name").as_deref(), Some("shop"));
}

/// A pod that was started a moment ago, or while the API server was away.
#[test]
fn a_pod_that_becomes_known_later_names_its_processes_then() {
    let (fake, pod) = in_pod(&[]);
    let kubernetes = cluster(&[], &[]);
    let mut processes = processes(&fake).in_pods(Some(kubernetes.clone()));
    let before = processes.get(42, 0);
    assert_eq!(before.service_name, "app");
    assert!(Arc::ptr_eq(&before, &processes.get(42, 5 * SECOND)), "nothing has become known");

    let mut not_told = pod.clone();
    not_told["status"]["containerStatuses"] = serde_json::json!([]);
    not_told["spec"]["containers"] = serde_json::json!([{"name": "main"}, {"name": "proxy"}]);
    set_pod(&kubernetes, &not_told);
    assert_eq!(processes.get(42, 6 * SECOND).service_name, "cart");
    assert_eq!(attribute(&processes.get(42, 6 * SECOND), "k8s.container.name"), None);

    set_pod(&kubernetes, &pod);
    let too_soon = processes.get(42, 6 * SECOND + 1);
    assert_eq!(attribute(&too_soon, "k8s.container.name"), None, "asked again too soon");
    let after = processes.get(42, 8 * SECOND);
    assert_eq!(attribute(&after, "k8s.container.name").as_deref(), Some("main"));

    // Now all is known, and the end of the pod changes nothing for its last spans.
    delete_pod(&kubernetes, &pod);
    fake.remove(42);
    assert!(Arc::ptr_eq(&after, &processes.get(42, 20 * SECOND)));
}

#[test]
fn a_container_of_no_pod_keeps_its_own_name() {
    let (fake, _) = in_pod(&[]);
    let kubernetes = cluster(&[], &[]);
    let mut processes = processes(&fake).in_pods(Some(kubernetes.clone()));
    let before = processes.get(42, 0);
    for number in 1..5 {
        set_pod(&kubernetes, &pod("shop", &number.to_string(), "node-1", &number.to_string(), "10.42.0.1"));
        assert!(Arc::ptr_eq(&before, &processes.get(42, number * 10 * SECOND)), "asked again, and the same");
    }
}

proptest! {
    #[test]
    fn any_order_of_events_gives_a_process(events in proptest::collection::vec((0_u32..4, 0_u32..6, 0_u64..100), 0..60)) {
        let mut processes = processes(&FakeTree::new());
        for (event, tgid, second) in events {
            match event {
                0 => processes.executed(tgid, "/bin/x"),
                1 => processes.ended(tgid, second * SECOND),
                2 => processes.forget_ended(second * SECOND),
                _ => prop_assert_eq!(processes.get(tgid, second * SECOND).tgid, tgid),
            }
        }
    }
}

#[test]
fn a_rule_names_what_it_selects_and_says_how_it_is_sampled() {
    let fake = FakeTree::new();
    fake.add(42, "/usr/bin/python3.11", &["python3", "-m", "http.server", "8000"], &["OTEL_SERVICE_NAME=other"]);
    let sampler = Some(Sampler { name: crate::span::SamplerName::AlwaysOff, ..Sampler::default() });
    let rule = Rule {
        cmd_args: Pattern::glob("*http.server 8000"),
        languages: Pattern::glob("python"),
        containers_only: true,
        treatment: Treatment {
            name: Some("files".into()),
            namespace: Some("home".into()),
            sampler,
            ..Treatment::default()
        },
        ..Rule::default()
    };
    let mut processes = Processes::new(fake.tree(), Selection { include: vec![rule], exclude: vec![] });
    assert!(processes.is_selected(42, 0));
    let process = processes.get(42, 0);
    assert_eq!((process.service_name.as_str(), process.sampler), ("files", sampler));
    assert_eq!(attribute(&process, "service.name").as_deref(), Some("files"));
    assert_eq!(attribute(&process, "service.namespace").as_deref(), Some("home"));
}

#[test]
fn other_rules_count_from_then_on() {
    let fake = FakeTree::new();
    fake.add(42, "/usr/bin/curl", &["curl"], &[]);
    fake.add(43, "/usr/bin/wget", &["wget"], &[]);
    let only = |name: &str| Selection {
        include: vec![Rule { exe_path: Pattern::executable(name), ..Rule::default() }],
        exclude: vec![],
    };
    let mut processes = Processes::new(fake.tree(), only("curl"));
    assert_eq!([42, 43].map(|tgid| processes.is_selected(tgid, 0)), [true, false]);
    processes.ended(42, 1);
    fake.remove(42);
    processes.set_selection(only("wget"));
    assert_eq!([42, 43].map(|tgid| processes.is_selected(tgid, 2)), [true, true], "what has ended stays what it was");
}
