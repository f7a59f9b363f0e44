use rstest::rstest;

use super::*;

fn nginx() -> Subject {
    Subject {
        tgid: 42,
        executable_path: "/usr/sbin/nginx".into(),
        arguments: "-g daemon off;".into(),
        language: "generic",
        container_id: Some("ab".into()),
        container_name: None,
        pod_uid: None,
    }
}

fn pod() -> PodFacts {
    let map = |pairs: &[(&str, &str)]| pairs.iter().map(|(key, value)| ((*key).into(), (*value).into())).collect();
    PodFacts {
        attributes: map(&[("k8s.namespace.name", "shop"), ("k8s.pod.name", "web-5d4f"), ("k8s.owner.name", "web")]),
        labels: map(&[("app", "web"), ("tier", "front")]),
        annotations: map(&[("team", "east")]),
    }
}

fn rule(exe_path: Option<&str>, ports: Option<&str>) -> Rule {
    Rule {
        exe_path: exe_path.map(|pattern| Pattern::executable(pattern).unwrap()),
        open_ports: ports.map(|ports| Ports::parse(ports).unwrap()),
        ..Rule::default()
    }
}

fn glob(text: &str) -> Pattern {
    Pattern::glob(text).unwrap()
}

fn of_pod(key: &'static str, pattern: &str) -> Rule {
    Rule { metadata: vec![(key, glob(pattern))], ..Rule::default() }
}

fn labelled(pairs: &[(&str, &str)]) -> Rule {
    Rule { labels: pairs.iter().map(|(key, pattern)| ((*key).into(), glob(pattern))).collect(), ..Rule::default() }
}

fn exporting(traces: bool, metrics: bool) -> Rule {
    let exports = Exports { traces, metrics, features: None };
    Rule { treatment: Treatment { exports, ..Treatment::default() }, ..rule(Some("nginx"), None) }
}

#[rstest]
#[case::no_rules(vec![], vec![], true)]
#[case::included_by_name(vec![rule(Some("nginx"), None)], vec![], true)]
#[case::included_by_path(vec![rule(Some("/usr/*/nginx"), None)], vec![], true)]
#[case::included_by_port(vec![rule(None, Some("80"))], vec![], true)]
#[case::included_by_range(vec![rule(None, Some("1,70-90"))], vec![], true)]
#[case::both_conditions(vec![rule(Some("nginx"), Some("80"))], vec![], true)]
#[case::one_of_two_rules(vec![rule(Some("x"), None), rule(Some("nginx"), None)], vec![], true)]
#[case::other_name(vec![rule(Some("ngin"), None)], vec![], false)]
#[case::other_port(vec![rule(None, Some("8080"))], vec![], false)]
#[case::one_condition_fails(vec![rule(Some("nginx"), Some("8080"))], vec![], false)]
#[case::excluded(vec![], vec![rule(Some("*ngin*"), None)], false)]
#[case::exclusion_wins(vec![rule(None, Some("80"))], vec![rule(Some("nginx"), None)], false)]
#[case::excluded_another(vec![], vec![rule(Some("apache2"), None)], true)]
#[case::empty_rule_matches_nothing(vec![], vec![Rule::default()], true)]
#[case::only_empty_rules(vec![Rule::default()], vec![], false)]
#[case::arguments(vec![Rule { cmd_args: Some(glob("*daemon off*")), ..Rule::default() }], vec![], true)]
#[case::other_arguments(vec![Rule { cmd_args: Some(glob("daemon")), ..Rule::default() }], vec![], false)]
#[case::language(vec![Rule { languages: Some(glob("{go,generic}")), ..Rule::default() }], vec![], true)]
#[case::other_language(vec![Rule { languages: Some(glob("go")), ..Rule::default() }], vec![], false)]
#[case::process_id(vec![Rule { target_pids: Pids::parse("7,42"), ..Rule::default() }], vec![], true)]
#[case::other_process_id(vec![Rule { target_pids: Pids::parse("7"), ..Rule::default() }], vec![], false)]
#[case::in_a_container(vec![Rule { containers_only: true, ..Rule::default() }], vec![], true)]
#[case::namespace(vec![of_pod("k8s.namespace.name", "{shop,stock}")], vec![], true)]
#[case::other_namespace(vec![of_pod("k8s.namespace.name", "stock")], vec![], false)]
#[case::unknown_is_no_match(vec![of_pod("k8s.job.name", "*")], vec![], false)]
#[case::labels(vec![labelled(&[("app", "w*"), ("tier", "front")])], vec![], true)]
#[case::one_label_differs(vec![labelled(&[("app", "w*"), ("tier", "back")])], vec![], false)]
#[case::missing_label(vec![labelled(&[("zone", "*")])], vec![], false)]
#[case::excluded_by_namespace(vec![], vec![of_pod("k8s.namespace.name", "sh*")], false)]
#[case::metrics_only(vec![exporting(false, true)], vec![], true)]
#[case::neither(vec![exporting(false, false)], vec![], false)]
fn selects(#[case] include: Vec<Rule>, #[case] exclude: Vec<Rule>, #[case] expected: bool) {
    let selection = Selection { include, exclude };
    assert_eq!(selection.treatment(&nginx(), || vec![80, 443], pod).is_some(), expected);
}

#[test]
fn a_process_outside_containers_is_not_in_one() {
    let selection = Selection { include: vec![Rule { containers_only: true, ..Rule::default() }], exclude: vec![] };
    let subject = Subject { container_id: None, ..nginx() };
    assert_eq!(selection.treatment(&subject, Vec::new, PodFacts::default), None);
}

#[test]
fn annotations_are_conditions() {
    let annotations = [("team".to_owned(), glob("e*"))].into();
    let selection = Selection { include: vec![Rule { annotations, ..Rule::default() }], exclude: vec![] };
    assert!(selection.may_change());
    assert!(selection.treatment(&nginx(), Vec::new, pod).is_some());
    assert!(selection.treatment(&nginx(), Vec::new, PodFacts::default).is_none());
}

#[test]
fn the_first_rule_that_matches_says_what_is_done() {
    let named = |rule: Rule, name: &str| Rule {
        treatment: Treatment { name: Some(name.to_owned()), ..Treatment::default() },
        ..rule
    };
    let include = vec![
        named(rule(Some("apache2"), None), "a"),
        named(rule(None, Some("80")), "b"),
        named(rule(Some("nginx"), None), "c"),
    ];
    let treatment = Selection { include, exclude: vec![] }.treatment(&nginx(), || vec![80], pod).unwrap();
    assert_eq!(treatment.name.as_deref(), Some("b"));
}

#[test]
fn what_costs_is_looked_up_only_if_a_rule_needs_it() {
    let selection = Selection { include: vec![rule(Some("nginx"), None)], exclude: vec![] };
    assert!(!selection.may_change());
    assert!(selection.treatment(&nginx(), || panic!("looked up"), || panic!("looked up")).is_some());
    let selection = Selection { include: vec![rule(Some("apache2"), Some("80"))], exclude: vec![] };
    assert!(selection.may_change());
    assert!(selection.treatment(&nginx(), || panic!("looked up"), || panic!("looked up")).is_none());
}

#[rstest]
#[case::one("80")]
#[case::several("80,443,8000-8999")]
fn ports_are_written_as_they_are_read(#[case] text: &str) {
    assert_eq!(Ports::parse(text).unwrap().text(), text);
}

#[rstest]
#[case::empty("")]
#[case::word("http")]
#[case::too_large("65536")]
#[case::reversed("90-80")]
#[case::open_range("80-")]
#[case::empty_item("80,,81")]
fn refuses_malformed_ports(#[case] text: &str) {
    assert_eq!(Ports::parse(text), None);
}

#[rstest]
#[case("1,42", Some("1,42"))]
#[case("0", None)]
#[case("", None)]
#[case("a", None)]
fn process_ids(#[case] text: &str, #[case] expected: Option<&str>) {
    assert_eq!(Pids::parse(text).map(|pids| pids.text()).as_deref(), expected);
}
