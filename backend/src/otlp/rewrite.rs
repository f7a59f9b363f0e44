//! A span in another trace, made of the bytes that it was sent as.

use coati_common::stitch::PROVISIONAL_MEMBER;
use opentelemetry_proto::tonic::trace::v1::SpanFlags;

use super::wire::{Fields, Wire};
use super::{MessageWriter, SpanRef, field};

/// Bits of the flags that are the trace's; those above say whether the parent is remote.
const TRACE_FLAGS: u32 = 0xff;

/// Bits of the flags that say that the parent is remote.
const PARENT_IS_REMOTE: u32 = SpanFlags::ContextHasIsRemoteMask as u32 | SpanFlags::ContextIsRemoteMask as u32;

/// What becomes of the span at the top of a provisional trace, which its caller on another node is above.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Top<'a> {
    /// It stays below its caller.
    Stays,
    /// What is below this caller is a root from now on: the caller is not known.
    Leaves(&'a [u8; 8]),
    /// It was made a root, and is below this caller again.
    Returns(&'a [u8; 8]),
}

impl SpanRef<'_> {
    /// Writes the span as one of trace `trace_id`, without the mark of provisional ids. All other fields, those that this
    /// program does not know too, stay as they are and where they are, but for parent and flags of one at the top.
    pub fn rewrite(&self, trace_id: &[u8; 16], top: Top<'_>, to: &mut MessageWriter) {
        let (leaves, caller) = match top {
            Top::Stays => (false, None),
            Top::Leaves(caller) => (self.parent_span_id == caller, None),
            Top::Returns(caller) => (false, Some(caller).filter(|_| self.is_root() && self.is_server())),
        };
        let is_top = leaves || caller.is_some();
        let mut fields = Fields::of(self.as_bytes());
        let mut before = fields.rest();
        while let Some((number, value)) = fields.next() {
            let after = fields.rest();
            match (number, value) {
                (field::TRACE_ID, _) => to.bytes(field::TRACE_ID, trace_id),
                (field::TRACE_STATE, Wire::Bytes(_)) if is_marked(self.trace_state.as_str()) => {
                    to.text(field::TRACE_STATE, Some(&without_mark(self.trace_state.as_str())));
                }
                (field::PARENT_SPAN_ID, _) if is_top => {}
                (field::FLAGS, Wire::Fixed32(flags)) if leaves => {
                    if flags & TRACE_FLAGS != 0 {
                        to.fixed32(field::FLAGS, flags & TRACE_FLAGS);
                    }
                }
                (field::FLAGS, Wire::Fixed32(_)) if caller.is_some() => {}
                _ => to.encoded(before.get(..before.len() - after.len()).unwrap_or_default()),
            }
            before = after;
        }
        if let Some(caller) = caller {
            to.bytes(field::PARENT_SPAN_ID, caller);
            to.fixed32(field::FLAGS, self.flags & TRACE_FLAGS | PARENT_IS_REMOTE);
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

    fn rewritten(span: &[u8], top: Top<'_>) -> Vec<u8> {
        let mut writer = MessageWriter::default();
        SpanRef::parse(span).rewrite(&[9; 16], top, &mut writer);
        writer.into_bytes()
    }

    fn root() -> Span {
        Span { trace_id: vec![9; 16], trace_state: String::new(), parent_span_id: Vec::new(), flags: 1, ..span() }
    }

    #[rstest]
    #[case(Top::Stays)]
    #[case::below_another(Top::Leaves(&[8; 8]))]
    #[case::not_a_root(Top::Returns(&CALLER))]
    fn only_trace_and_mark_change(#[case] top: Top<'_>) {
        let expected = Span { trace_id: vec![9; 16], trace_state: String::new(), ..span() };
        assert_eq!(rewritten(&span().encode_to_vec(), top), expected.encode_to_vec());
    }

    #[test]
    fn without_its_parent_it_is_a_root_like_any_other() {
        assert_eq!(rewritten(&span().encode_to_vec(), Top::Leaves(&CALLER)), root().encode_to_vec());
    }

    #[rstest]
    #[case::no_parent(root())]
    #[case::zeros_for_a_parent(Span { parent_span_id: vec![0; 8], ..root() })]
    #[case::no_flags(Span { flags: 0, ..root() })]
    fn it_returns_below_its_caller(#[case] sent: Span) {
        let found = Span::decode(rewritten(&sent.encode_to_vec(), Top::Returns(&CALLER)).as_slice()).unwrap();
        let expected = Span { parent_span_id: CALLER.to_vec(), flags: sent.flags | 0x300, ..sent };
        assert_eq!(found, expected);
    }

    #[test]
    fn only_a_server_returns() {
        let client = Span { kind: 3, ..root() }.encode_to_vec();
        assert_eq!(rewritten(&client, Top::Returns(&CALLER)), client);
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
        let found = rewritten(&marked, Top::Stays);
        assert_eq!(SpanRef::parse(&found).trace_state.as_str(), expected);
    }

    #[test]
    fn fields_that_are_not_known_stay() {
        let mut bytes = span().encode_to_vec();
        let unknown = [0x82, 0x7d, 3, b'a', b'b', b'c'];
        bytes.extend(unknown);
        assert!(rewritten(&bytes, Top::Leaves(&CALLER)).ends_with(&unknown));
    }

    proptest! {
        #[test]
        fn any_bytes_are_taken(bytes: Vec<u8>) {
            for top in [Top::Stays, Top::Leaves(&CALLER), Top::Returns(&CALLER)] {
                let _ = rewritten(&bytes, top);
            }
        }

        #[test]
        fn twice_is_once(
            top in prop::sample::select(vec![Top::Stays, Top::Leaves(&CALLER), Top::Returns(&CALLER)]),
            state in "[a-c=,p]{0,8}(coati=p)?",
            parent in prop::collection::vec(any::<u8>(), 0..9),
        ) {
            let sent = Span { trace_state: state, parent_span_id: parent, ..span() };
            let once = rewritten(&sent.encode_to_vec(), top);
            prop_assert_eq!(rewritten(&once, top), once);
        }

        #[test]
        fn what_left_returns(flags in 0_u32..0x100) {
            let sent = Span { trace_id: vec![9; 16], trace_state: String::new(), flags: flags | 0x300, ..span() };
            let left = rewritten(&sent.encode_to_vec(), Top::Leaves(&CALLER));
            prop_assert_eq!(Span::decode(rewritten(&left, Top::Returns(&CALLER)).as_slice()).unwrap(), sent);
        }
    }
}
