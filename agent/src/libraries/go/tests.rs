use std::io::Write;

use proptest::prelude::*;
use rstest::rstest;

use super::*;
use crate::discover::elf::program;

/// `cmp rsp, [r14+16]; jbe +1; nop; ret; call runtime.morestack; jmp -…`
const SMALL: &[u8] = &[0x49, 0x3b, 0x66, 0x10, 0x76, 0x02, 0x90, 0xc3, 0xe8, 0, 0, 0, 0, 0xeb, 0xf1];
/// The same with `lea r12, [rsp-0x80]; cmp r12, [r14+16]`, a far jump and two returns.
const LARGE: &[u8] = &[
    0x4c, 0x8d, 0x64, 0x24, 0x80, 0x4d, 0x3b, 0x66, 0x10, 0x0f, 0x86, 0x04, 0, 0, 0, 0x90, 0xc3, 0x90, 0xc3, 0xe8, 0,
    0, 0, 0,
];

#[rstest]
#[case::small(SMALL, Some((6, vec![7])))]
#[case::large(LARGE, Some((15, vec![16, 18])))]
#[case::without_a_check(&[0x90, 0xc3], None)]
#[case::another_comparison(&[0x49, 0x3b, 0x66, 0x18, 0x76, 0x01, 0xc3], None)]
#[case::does_not_return(&[0x49, 0x3b, 0x66, 0x10, 0x76, 0x00, 0xeb, 0xfe], None)]
#[case::padding_behind(&[0x49, 0x3b, 0x66, 0x10, 0x76, 0x00, 0xc3, 0xcc, 0xcc], Some((6, vec![6])))]
#[case::a_byte_that_looks_like_a_return(&[0x49, 0x3b, 0x66, 0x10, 0x76, 0x00, 0xb8, 0xc3, 0, 0, 0, 0xc3], Some((6, vec![11])))]
#[case::returns_as_c_does(&[0x49, 0x3b, 0x66, 0x10, 0x76, 0x00, 0xc2, 0x08, 0x00], None)]
#[case::no_code(&[0x49, 0x3b, 0x66, 0x10, 0x76, 0x00, 0xc3, 0x06], None)]
#[case::nothing(&[], None)]
fn places_are_found(#[case] code: &[u8], #[case] expected: Option<(u64, Vec<u64>)>) {
    assert_eq!(Places::of(code).map(|places| (places.entry, places.returns)), expected);
}

/// The places of a program of Go 1.26 with these functions.
fn points_of(functions: &[(&str, &[u8])]) -> Result<Vec<(GoCall, u64)>, Unusable> {
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(&program(functions)).unwrap();
    let functions = Functions::of(&file).unwrap();
    let call = |point: ProbePoint| match point.call {
        crate::ebpf::LibraryCall::Go(call) => (call, point.offset - 0x1000),
        other => panic!("{other:?}"),
    };
    let everything = Habits { speaks_tls: true, asks: true, is_crowded: true };
    let Probes { points, runtime } = probes(&file, &functions, everything)?;
    assert_eq!(runtime, Some(Runtime::Go(Layout { number: 152, creator: 280 })));
    Ok(points.into_iter().map(call).collect())
}

const READ: &str = "crypto/tls.(*Conn).Read";
const WRITE: &str = "crypto/tls.(*Conn).Write";

/// Returns first: a call that is seen to begin is seen to return.
#[test]
fn a_program_is_probed() {
    let close = "crypto/tls.(*Conn).Close";
    assert_eq!(
        points_of(&[("main.main", SMALL), (WRITE, LARGE), (READ, SMALL), (close, SMALL)]).unwrap(),
        [
            (GoCall::TlsWasRead, 39 + 7),
            (GoCall::TlsRead, 39 + 6),
            (GoCall::TlsWritten, 15 + 16),
            (GoCall::TlsWritten, 15 + 18),
            (GoCall::TlsWrite, 15 + 15),
            (GoCall::TlsClose, 54 + 6),
        ]
    );
}

/// Of HTTP/1 one of the two tells nothing; of HTTP/2 the outer function calls the inner one.
#[test]
fn who_asks_is_probed_where_it_tells_something() {
    let calls = |names: &[&str]| {
        let functions: Vec<_> = names.iter().map(|name| (*name, SMALL)).collect();
        points_of(&functions).map(|points| points.into_iter().map(|(call, _)| call).collect::<Vec<_>>())
    };
    let (ask, send) = ("net/http.(*persistConn).roundTrip", "net/http.persistConnWriter.Write");
    assert_eq!(calls(&[ask, send]), Ok(vec![GoCall::RoundTrip, GoCall::RoundTripWrite]));
    assert_eq!(calls(&[ask]), Err(Unusable::NoFunctions));
    let (inner, outer) = ("net/http.(*http2ClientConn).roundTrip", "net/http.(*http2ClientConn).RoundTrip");
    assert_eq!(calls(&[inner, outer]), Ok(vec![GoCall::Ask]));
    assert_eq!(calls(&[outer]), Ok(vec![GoCall::Ask]));
    assert_eq!(calls(&["net/http/internal/http2.(*serverConn).runHandler"]), Ok(vec![GoCall::HandleInternal]));
}

#[rstest]
#[case(17, None)]
#[case(20, Some((152, 0)))]
#[case(24, Some((160, 280)))]
#[case(27, Some((152, 280)))]
#[case::not_known_yet(28, None)]
fn fields_of_goroutines_are_known_by_version(#[case] minor: u32, #[case] expected: Option<(u32, u32)>) {
    assert_eq!(layout(minor).map(|layout| (layout.number, layout.creator)), expected);
}

#[rstest]
#[case::no_tls(&[("main.main", SMALL)])]
#[case::one_direction(&[("main.main", SMALL), (READ, SMALL)])]
#[case::not_understood(&[(READ, SMALL), (WRITE, b"\x06\x06")])]
fn a_program_is_not_probed(#[case] functions: &[(&str, &[u8])]) {
    assert_eq!(points_of(functions), Err(Unusable::NoFunctions));
}

proptest! {
    #[test]
    fn takes_any_code(code in prop::collection::vec(any::<u8>(), 0..200)) {
        if let Some(places) = Places::of(&[SMALL, &code].concat()) {
            prop_assert_eq!(places.entry, 6);
            prop_assert!(places.returns.iter().all(|at| *at < (SMALL.len() + code.len()) as u64));
        }
    }
}
