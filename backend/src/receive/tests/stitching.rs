//! What agents of two nodes saw of one request is one trace as soon as both were acknowledged.

use coati_common::stitch::provisional_trace_id;
use coati_common::wellknown::AGENT_SCOPE;
use opentelemetry_proto::tonic::trace::v1::span::SpanKind;

use super::*;

fn of_agent(span: Span) -> Vec<u8> {
    let mut request = request(vec![span]);
    let scope = InstrumentationScope { name: AGENT_SCOPE.to_owned(), ..InstrumentationScope::default() };
    request.resource_spans[0].scope_spans[0].scope = Some(scope);
    request.encode_to_vec()
}

#[rstest]
#[case::caller_first([0, 1])]
#[case::called_first([1, 0])]
#[tokio::test]
async fn a_call_between_nodes_is_one_trace(#[case] order: [usize; 2]) {
    let call = Span { kind: SpanKind::Client.into(), ..span(1, 7) };
    let caller: [u8; 8] = call.span_id.as_slice().try_into().unwrap();
    let called = Span {
        trace_id: provisional_trace_id(caller).to_vec(),
        parent_span_id: caller.to_vec(),
        kind: SpanKind::Server.into(),
        ..span(2, 8)
    };
    let requests = [of_agent(call.clone()), of_agent(called)];
    let stages = Stages::new();
    for place in order {
        let answer = stages.post(&[PROTOBUF], requests[place].clone()).await;
        assert_eq!(answer.status, StatusCode::OK);
    }
    let traces = stages.live.snapshot(SINGLE_TENANT);
    let [trace] = traces.as_slice() else { panic!("{traces:?}") };
    assert_eq!((trace.id.0.as_slice(), trace.spans.len()), (call.trace_id.as_slice(), 2));
}
