//! Of whom there are no spans: their SDK sends them, or only metrics are wanted.

use super::*;

/// Process 200 exports spans, is answered so, and calls `shop` with a header and without; `shop` may take spans too.
fn self_traced(exports: &str, status: &str, is_carrier: bool) -> Vec<Vec<Record>> {
    let mut exporter = Wire::client(9);
    let export =
        format!("POST {exports} HTTP/1.1\r\nuser-agent: OTel-OTLP-Exporter-Python/1\r\ncontent-length: 2\r\n\r\nab");
    exporter.wait(MS).request(export.as_bytes());
    exporter.response(format!("HTTP/1.1 {status}\r\ncontent-length: 0\r\n\r\n").as_bytes());
    let mut records = exporter.records;
    if is_carrier {
        let mut taken = Wire::server(10);
        taken.tgid = 200;
        taken.wait(MS).request(export.as_bytes());
        taken.response(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n");
        records.extend(taken.records);
    }
    let (mut client, mut server) = (Wire::client(1), Wire::server(2));
    for (place, header) in
        ["traceparent: 00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01\r\n", ""].iter().enumerate()
    {
        let start = (place as u64 + 1) * 20 * MS;
        client.time_ns = start;
        server.time_ns = start + MS / 2;
        let request = format!("GET /cart/7 HTTP/1.1\r\nhost: shop\r\n{header}\r\n");
        client.request(request.as_bytes());
        server.request(request.as_bytes());
        server.response(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok");
        client.wait(2 * MS).response(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok");
    }
    vec![records, Wire::merge(&[&client, &server])]
}

#[rstest]
#[case::its_spans_are_its_own(("/v1/traces", "200 OK", false), true, 2)]
#[case::with_a_prefix(("/otlp/v1/traces", "202 Accepted", false), true, 2)]
#[case::refused(("/v1/traces", "503 Service Unavailable", false), true, 4)]
#[case::metrics_only(("/v1/metrics", "200 OK", false), true, 4)]
#[case::of_others(("/v1/traces", "200 OK", true), true, 4)]
#[case::switched_off(("/v1/traces", "200 OK", false), false, 4)]
fn who_traces_itself_is_not_traced_twice(
    #[case] (exports, status, is_carrier): (&str, &str, bool),
    #[case] is_on: bool,
    #[case] expected: usize,
) {
    let drains = [vec![vec![]], self_traced(exports, status, is_carrier)].concat();
    let mut script = Script { drains: drains.into(), ..Script::default() };
    let reload = Reload { selection: Selection::default(), excludes_self_traced: is_on, spans: SpanConfig::default() };
    let (spans, telemetry) = run_reloaded(&mut script, Selection::default(), Some(reload));
    assert_eq!(spans.len(), expected, "{spans:?}");
    assert_eq!(telemetry.exchanges.get(), if is_carrier { 6 } else { 5 });
    let of_shop: Vec<_> = spans.iter().filter(|span| span.process.tgid == 100).collect();
    let [with_header, without] = &of_shop[..] else { panic!("{spans:?}") };
    // What the SDK put into the request is its parent, whoever is left out.
    let number = |id: &[u8]| id.iter().fold(0, |number: u128, byte| number << 8 | u128::from(*byte));
    let (trace, parent) = (number(&with_header.span.trace_id), number(&with_header.span.parent_span_id));
    assert_eq!(trace, 0x0af7_6519_16cd_43dd_8448_eb21_1c80_319c);
    let parents: Vec<_> = spans.iter().map(|span| &span.span.span_id).collect();
    match expected {
        2 => {
            assert_eq!(parent, 0xb7ad_6b71_6920_3331);
            // Not below a span that nobody sees: its caller may be on another node, and else it becomes a root there.
            assert!(without.span.trace_state.starts_with("coati=p"), "{without:?}");
        }
        _ => assert!(parents.contains(&&without.span.parent_span_id), "{spans:?}"),
    }
}

#[test]
fn of_whom_only_metrics_are_wanted_there_are_no_spans() {
    let (client, server) = both_ends();
    let rule = |executable: &str, traces: bool, metrics: bool| Rule {
        exe_path: Some(Pattern::executable(executable).unwrap()),
        treatment: Treatment { exports: Exports { traces, metrics, features: None }, ..Treatment::default() },
        ..Rule::default()
    };
    let include = vec![rule("curl", false, true), rule("shop", true, false)];
    let mut script = Script { drains: [Wire::merge(&[&client, &server])].into(), ..Script::default() };
    let (spans, telemetry) = run_script(&mut script, Selection { include, exclude: vec![] });
    let [span] = &spans[..] else { panic!("{spans:?}") };
    assert_eq!(span.process.tgid, 100);
    assert!(span.span.trace_state.starts_with("coati=p"), "not below a span that nobody sees: {span:?}");
    let mut page = String::new();
    telemetry.requests.write(crate::metrics::Format::Prometheus, &mut page).unwrap();
    let counted = |name: &str| page.lines().any(|line| line.starts_with(name));
    assert!(
        counted("http_client_request_duration_seconds") && !counted("http_server_request_duration_seconds"),
        "{page}"
    );
}

#[test]
fn another_program_in_the_process_may_be_traced() {
    let [exports, requests] = &self_traced("/v1/traces", "200 OK", false)[..] else { panic!() };
    let executed = Record::Exec(Header { time_ns: 10 * MS, ..Header::default() }, 200, b"/usr/bin/curl".to_vec());
    let drains = [exports.clone(), vec![executed], requests.clone()];
    let mut script = Script { drains: drains.into(), ..Script::default() };
    assert_eq!(run_script(&mut script, Selection::default()).0.len(), 4);
}

#[test]
fn requests_that_export_telemetry_make_no_spans() {
    let mut server = Wire::server(2);
    server.request(b"POST /v1/traces HTTP/1.1\r\nuser-agent: OTel OTLP Exporter Rust/1\r\ncontent-length: 2\r\n\r\nab");
    server.response(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok");
    let mut script = Script { drains: [server.records].into(), ..Script::default() };
    let (spans, telemetry) = run_script(&mut script, Selection::default());
    assert_eq!(spans.len(), 0);
    assert_eq!((telemetry.exchanges.get(), telemetry.ignored_exchanges.get()), (1, 1));
}
