//! Which labels metrics have, and of which processes there are any.

use super::*;
use crate::{
    decode::Role,
    discover::Pattern,
    metrics::labels::{Http, OfSpan, Rpc},
};

fn patterns(texts: &[&str]) -> Vec<Pattern> {
    texts.iter().map(|text| Pattern::glob(text).unwrap()).collect()
}

fn rule(metrics: &str, include: Option<&[&str]>, exclude: &[&str]) -> LabelRule {
    let metrics = Pattern::glob(metrics).unwrap();
    LabelRule { metrics, include: include.map(patterns), exclude: patterns(exclude) }
}

fn page(settings: MetricsSettings, spans: &[FinishedSpan]) -> String {
    let metrics = RequestMetrics::new(settings);
    for span in spans {
        metrics.count_span(span, 1, true, None);
    }
    let mut page = String::new();
    metrics.write(Format::Prometheus, &mut page).unwrap();
    page
}

/// The labels of a metric of one request, without those of its service.
fn labels(rules: &[LabelRule], name: &str) -> String {
    let labels = LabelChoice::new(rules);
    let features = Features::default().with(Feature::ApplicationSpan);
    let attributes = [&GET[..], &[(key::CLIENT_ADDRESS, "10.0.0.9")]].concat();
    let page = page(
        MetricsSettings { features, labels, ..MetricsSettings::default() },
        &[span("shop", SpanKind::Server, 1, &attributes)],
    );
    let line = page.lines().find(|line| line.starts_with(&format!("{name}_count{{"))).unwrap();
    line.split_once("job=\"shop\",").map_or("", |(_, behind)| behind).split_once("} ").unwrap().0.to_owned()
}

const DURATION: &str = "http_server_request_duration_seconds";

#[rstest]
#[case::as_it_is(&[], "method scheme status route address port")]
#[case::of_others(&[rule("rpc_*", None, &["*"])], "method scheme status route address port")]
#[case::without(&[rule("http_server_request_duration", None, &["server_*", "url.scheme"])], "method status route")]
#[case::all(&[rule("http.server.*", Some(&["*"]), &[])], "method scheme status route address port path client")]
#[case::all_but(&[rule("*", Some(&["*"]), &["client.address"])], "method scheme status route address port path")]
#[case::some(&[rule(DURATION, Some(&["http_*"]), &["http_route"])], "method status")]
#[case::one_rule_behind_the_other(&[rule("*", Some(&["http_*"]), &[]), rule("http_*", None, &["http.route"])], "method status")]
fn labels_are_chosen(#[case] rules: &[LabelRule], #[case] expected: &str) {
    let names = [
        ("http_request_method", "method"),
        ("url_scheme", "scheme"),
        ("http_response_status_code", "status"),
        ("http_route", "route"),
        ("server_address", "address"),
        ("server_port", "port"),
        ("url_path", "path"),
        ("client_address", "client"),
    ];
    let found = labels(rules, DURATION);
    let found: Vec<_> =
        names.iter().filter(|(name, _)| found.contains(&format!("{name}="))).map(|(_, it)| *it).collect();
    assert_eq!(found.join(" "), expected);
}

#[test]
fn what_differs_only_in_what_is_left_out_is_counted_together() {
    let with = |code| [&GET[..2], &[(key::HTTP_RESPONSE_STATUS_CODE, code)]].concat();
    let spans = ["200", "404"].map(|code| span("shop", SpanKind::Server, 1, &with(code)));
    let labels = LabelChoice::new(&[rule("http_*", None, &["http_response_status_code"])]);
    let page = page(MetricsSettings { labels, ..MetricsSettings::default() }, &spans);
    let counts: Vec<_> = page.lines().filter(|line| line.starts_with(&format!("{DURATION}_count"))).collect();
    assert!(matches!(&counts[..], [one] if one.ends_with(" 2")), "{counts:?}");
}

/// What a kind is said to have is what its requests have, in that order.
#[test]
fn every_label_can_be_chosen() {
    fn names(labelled: &impl Labelled) -> Vec<&'static str> {
        let mut names = Vec::new();
        labelled.visit(&mut |name, _| names.push(name));
        names
    }
    let finished = span("shop", SpanKind::Server, 1, &GET);
    let request = read(&finished.span, &finished.span.attributes);
    let inferences = crate::inference::tests::counted();
    let inference = &inferences[0];
    let of_model = crate::inference::OfModel { inference, model: "m", error: None, tokens: None };
    let of_tokens = crate::inference::OfModel { tokens: Some((Role::Server, "input")), ..of_model };
    let of_model = crate::inference::OfModel { inference, model: "m", error: None, tokens: None };
    for kind in Kind::ALL {
        let found = match kind {
            Kind::HttpServer | Kind::HttpClient => names(&Http(&request)),
            Kind::RpcServer | Kind::RpcClient => names(&Rpc(&request)),
            Kind::Span | Kind::SpanOtel | Kind::SpanSizes => names(&OfSpan(&request)),
            Kind::Model | Kind::ModelPace => names(&of_model),
            Kind::ModelTokens => names(&of_tokens),
            // Without them an edge would be none.
            Kind::GraphClient | Kind::GraphServer | Kind::Graph => Vec::new(),
        };
        assert_eq!(found, kind.labels().iter().map(|label| label.name).collect::<Vec<_>>(), "{kind:?}");
    }
}

#[rstest]
#[case::as_all(Exports::default(), true, false)]
#[case::no_metrics(Exports { metrics: false, ..Exports::default() }, false, false)]
#[case::others(Exports { features: Some(Features::NONE.with(Feature::ApplicationSpan)), ..Exports::default() }, false, true)]
#[case::only_metrics(Exports { traces: false, ..Exports::default() }, true, false)]
fn a_rule_says_which_metrics_there_are(#[case] exports: Exports, #[case] application: bool, #[case] spans: bool) {
    let by_rules = exports.features.unwrap_or(Features::NONE);
    let finished = span("shop", SpanKind::Server, 1, &GET);
    let process = Process { exports, ..(*finished.process).clone() };
    let finished = FinishedSpan { process: Arc::new(process), ..finished };
    let page = page(MetricsSettings { by_rules, ..MetricsSettings::default() }, &[finished]);
    let has = |name: &str| page.lines().any(|line| line.starts_with(name));
    assert_eq!((has(DURATION), has("traces_spanmetrics_latency")), (application, spans), "{page}");
}

/// Another choice is another thing under the same name: nothing that was counted may mix with it.
#[test]
fn other_labels_begin_anew_and_other_features_do_not() {
    let metrics = RequestMetrics::new(MetricsSettings::default());
    let shown = || {
        metrics.count_span(&span("shop", SpanKind::Server, 1, &GET), 1, true, None);
        let mut page = String::new();
        metrics.write(Format::Prometheus, &mut page).unwrap();
        page.lines()
            .filter(|line| line.starts_with(&format!("{DURATION}_count")))
            .map(str::to_owned)
            .collect::<Vec<_>>()
    };
    assert!(shown()[0].ends_with(" 1"));
    let features = Features::default().with(Feature::ApplicationSpan);
    metrics.configure(MetricsSettings { features, ..MetricsSettings::default() });
    assert!(shown()[0].ends_with(" 2"));
    let labels = LabelChoice::new(&[rule("http_*", None, &["http_route"])]);
    metrics.configure(MetricsSettings { features, labels, ..MetricsSettings::default() });
    let found = shown();
    assert!(matches!(&found[..], [one] if one.ends_with(" 1") && !one.contains("http_route")), "{found:?}");
}
