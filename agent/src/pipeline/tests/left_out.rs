//! Processes, requests and attributes that the configuration leaves out.

use super::*;
use crate::span::{IgnoreMode, RouteConfig, Sampler, SamplerName, SamplingConfig};

#[test]
fn a_process_that_is_not_selected_makes_no_spans_and_is_left_alone() {
    let (client, server) = both_ends();
    let mut script = Script { drains: [Wire::merge(&[&client, &server])].into(), ..Script::default() };
    let rule = Rule { exe_path: Pattern::executable("curl"), ..Rule::default() };
    let (spans, telemetry) = run_script(&mut script, Selection { include: vec![], exclude: vec![rule] });
    assert_eq!(spans.iter().map(|span| span.process.tgid).collect::<Vec<_>>(), [100]);
    assert_eq!(script.skipped, [200]);
    assert_eq!(telemetry.spans.get(), 1);
}

/// One good and one failed request: how many spans, how many sampled out, dropped and ignored.
#[rstest]
#[case::nothing(SpanConfig::default(), [2, 0, 0, 0])]
#[case::only_errors(SpanConfig { sampling: off(true), ..SpanConfig::default() }, [1, 1, 0, 0])]
#[case::none(SpanConfig { sampling: off(false), ..SpanConfig::default() }, [0, 2, 0, 0])]
#[case::slow_ones(
    SpanConfig { sampling: SamplingConfig { keep_slower_than: Some(Duration::from_nanos(1)), ..off(false) }, ..SpanConfig::default() },
    [2, 0, 0, 0]
)]
#[case::limited(SpanConfig { max_per_second: Some(1), ..SpanConfig::default() }, [1, 0, 1, 0])]
#[case::ignored(
    SpanConfig { routes: RouteConfig { ignored_patterns: vec!["/bad".into()], ..RouteConfig::default() }, ..SpanConfig::default() },
    [1, 0, 0, 1]
)]
#[case::ignored_in_metrics_only(
    SpanConfig {
        routes: RouteConfig {
            ignored_patterns: vec!["/*".into()], ignore_mode: IgnoreMode::Metrics, ..RouteConfig::default()
        },
        ..SpanConfig::default()
    },
    [2, 0, 0, 0]
)]
fn what_is_left_out_is_counted(#[case] config: SpanConfig, #[case] expected: [u64; 4]) {
    let mut server = Wire::server(2);
    server.request(b"GET /good HTTP/1.1\r\n\r\n").response(b"HTTP/1.1 204 No Content\r\n\r\n");
    server.request(b"GET /bad HTTP/1.1\r\n\r\n").response(b"HTTP/1.1 500 No\r\ncontent-length: 0\r\n\r\n");
    let mut script = Script { drains: [vec![], server.records].into(), ..Script::default() };
    let reload = Reload { selection: Selection::default(), excludes_self_traced: true, spans: config };
    let (spans, telemetry) = run_reloaded(&mut script, Selection::default(), Some(reload));
    let dropped = telemetry.spans_dropped(DropCause::RateLimit).get();
    let ignored = telemetry.ignored_exchanges.get();
    assert_eq!([spans.len() as u64, telemetry.spans_sampled_out.get(), dropped, ignored], expected);
    assert_eq!((telemetry.exchanges.get(), telemetry.spans.get()), (2, expected[0]));
}

fn off(keep_errors: bool) -> SamplingConfig {
    let sampler = Sampler { name: SamplerName::AlwaysOff, ..Sampler::default() };
    SamplingConfig { sampler, keep_errors, keep_slower_than: None }
}

#[test]
fn attributes_can_be_left_out() {
    let (client, server) = both_ends();
    let mut script = Script { drains: [vec![], Wire::merge(&[&client, &server])].into(), ..Script::default() };
    let attributes = AttributeConfig { include: vec![Pattern::glob("http.*").unwrap()], exclude: vec![] };
    let reload = Reload {
        selection: Selection::default(),
        excludes_self_traced: true,
        spans: SpanConfig { attributes, ..SpanConfig::default() },
    };
    let (spans, _) = run_reloaded(&mut script, Selection::default(), Some(reload));
    assert_eq!(spans.len(), 2);
    for span in spans {
        assert!(span.span.attributes.iter().all(|attribute| attribute.key.starts_with("http.")), "{span:?}");
        assert!(!span.span.attributes.is_empty());
    }
}
