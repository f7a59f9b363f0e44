//! A span in another trace, made of the bytes that it was sent as.

use coati_common::stitch::PROVISIONAL_MEMBER;

use super::wire::{Fields, Wire};
use super::{MessageWriter, SpanRef, field};

/// Bits of the flags that are the trace's; those above say whether the parent is remote.
const TRACE_FLAGS: u32 = 0xff;

impl SpanRef<'_> {
    /// Writes the span as one of trace `trace_id`, without the mark of provisional ids. If its parent is `outside`, it is a
    /// root from now on. All other fields, those that this program does not know too, stay as they are and where they are.
    pub fn rewrite(&self, trace_id: &[u8; 16], outside: Option<&[u8; 8]>, to: &mut MessageWriter) {
        let is_root = outside.is_some_and(|outside| self.parent_span_id == outside);
        let mut fields = Fields::of(self.as_bytes());
        let mut before = fields.rest();
        while let Some((number, value)) = fields.next() {
            let after = fields.rest();
            match (number, value) {
                (field::TRACE_ID, _) => to.bytes(field::TRACE_ID, trace_id),
                (field::TRACE_STATE, Wire::Bytes(_)) if is_marked(self.trace_state.as_str()) => {
                    to.text(field::TRACE_STATE, Some(&without_mark(self.trace_state.as_str())));
                }
                (field::PARENT_SPAN_ID, _) if is_root => {}
                (field::FLAGS, Wire::Fixed32(flags)) if is_root => {
                    if flags & TRACE_FLAGS != 0 {
                        to.fixed32(field::FLAGS, flags & TRACE_FLAGS);
                    }
                }
                _ => to.encoded(before.get(..before.len() - after.len()).unwrap_or_default()),
            }
            before = after;
        }
    }
}

fn is_marked(state: &str) -> bool {
    members(state).any(|member| member == PROVISIONAL_MEMBER)
}

fn without_mark(state: &str) -> String {
    members(state).filter(|member| *member != PROVISIONAL_MEMBER).collect::<Vec<_>>().join(",")
}

fn members(state: &str) -> impl Iterator<Item = &str> {
    state.split(',').map(str::trim)
}

#[cfg(test)]
mod tests {
    use opentelemetry_proto::tonic::common::v1::{AnyValue, KeyValue, any_value::Value};
    use opentelemetry_proto::tonic::trace::v1::{Span, Status};
    use proptest::prelude::*;
    use prost::Message;
    use rstest::rstest;

    use super::*;

    const CALLER: [u8; 8] = [7; 8];

    fn span() -> Span {
        let value = Some(AnyValue { value: Some(Value::StringValue("shop".to_owned())) });
        Span {
            trace_id: vec![1; 16],
            span_id: vec![2; 8],
            trace_state: "coati=p".to_owned(),
            parent_span_id: CALLER.to_vec(),
            name: "GET".to_owned(),
            kind: 2,
            start_time_unix_nano: 5,
            end_time_unix_nano: 9,
            attributes: vec![KeyValue { key: "a".to_owned(), value, key_strindex: 0 }],
            status: Some(Status { message: String::new(), code: 2 }),
            flags: 0x301,
            ..Span::default()
        }
    }

    fn rewritten(span: &[u8], outside: Option<[u8; 8]>) -> Vec<u8> {
        let mut writer = MessageWriter::default();
        SpanRef::parse(span).rewrite(&[9; 16], outside.as_ref(), &mut writer);
        writer.into_bytes()
    }

    #[test]
    fn only_trace_and_mark_change() {
        let expected = Span { trace_id: vec![9; 16], trace_state: String::new(), ..span() };
        assert_eq!(rewritten(&span().encode_to_vec(), None), expected.encode_to_vec());
        assert_eq!(rewritten(&span().encode_to_vec(), Some([8; 8])), expected.encode_to_vec());
    }

    #[test]
    fn without_its_parent_it_is_a_root_like_any_other() {
        let expected =
            Span { trace_id: vec![9; 16], trace_state: String::new(), parent_span_id: Vec::new(), flags: 1, ..span() };
        assert_eq!(rewritten(&span().encode_to_vec(), Some(CALLER)), expected.encode_to_vec());
    }

    #[rstest]
    #[case::none("", "")]
    #[case::others("a=1,b=2", "a=1,b=2")]
    #[case::first("coati=p,b=2", "b=2")]
    #[case::last("a=1, coati=p", "a=1")]
    #[case::in_between("a=1,coati=p,b=2", "a=1,b=2")]
    #[case::alike("xcoati=p,coati=px", "xcoati=p,coati=px")]
    fn other_members_of_the_state_stay(#[case] state: &str, #[case] expected: &str) {
        let marked = Span { trace_state: state.to_owned(), ..span() }.encode_to_vec();
        let found = rewritten(&marked, None);
        assert_eq!(SpanRef::parse(&found).trace_state.as_str(), expected);
    }

    #[test]
    fn fields_that_are_not_known_stay() {
        let mut bytes = span().encode_to_vec();
        let unknown = [0x82, 0x7d, 3, b'a', b'b', b'c'];
        bytes.extend(unknown);
        assert!(rewritten(&bytes, Some(CALLER)).ends_with(&unknown));
    }

    proptest! {
        #[test]
        fn any_bytes_are_taken(bytes: Vec<u8>) {
            let _ = rewritten(&bytes, Some(CALLER));
        }

        #[test]
        fn twice_is_once(outside: bool, state in "[a-c=,p]{0,8}(coati=p)?", parent in prop::collection::vec(any::<u8>(), 0..9)) {
            let outside = outside.then_some(CALLER);
            let sent = Span { trace_state: state, parent_span_id: parent, ..span() };
            let once = rewritten(&sent.encode_to_vec(), outside);
            prop_assert_eq!(rewritten(&once, outside), once);
        }
    }
}
