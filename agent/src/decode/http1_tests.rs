use proptest::prelude::*;
use rstest::rstest;

use super::*;

const REQUEST: &[u8] = b"POST /api/cart?user=7&x HTTP/1.1\r\nHost: shop.local:8080\r\nUser-Agent: curl/8.5\r\n\
    Content-Type: text/plain\r\ntraceparent: 00-1-2-01\r\nContent-Length: 12\r\n\r\n";
const RESPONSE: &[u8] = b"HTTP/1.1 404 Not Found\r\nContent-Type: text/html\r\nTransfer-Encoding: chunked\r\n\r\n";

fn request(bytes: &[u8]) -> RequestHead {
    RequestHead::parse(bytes).unwrap().unwrap()
}

fn response(bytes: &[u8]) -> ResponseHead {
    ResponseHead::parse(bytes).unwrap().unwrap()
}

/// A request with one more header line.
fn with(line: &str) -> RequestHead {
    request(format!("GET / HTTP/1.1\r\n{line}\r\n\r\n").as_bytes())
}

#[test]
fn a_request_in_full() {
    let head = request(REQUEST);
    assert_eq!(head.method, Method::Post);
    assert_eq!(head.method_text(), "POST");
    assert_eq!(head.path().unwrap(), "/api/cart");
    assert_eq!(head.query().unwrap(), "user=7&x");
    assert_eq!(head.scheme(), None);
    assert_eq!(head.version, Some(Version::Http11));
    assert_eq!(head.host().unwrap(), "shop.local:8080");
    assert_eq!(head.user_agent().unwrap(), "curl/8.5");
    assert_eq!(head.traceparent().unwrap(), "00-1-2-01");
    assert_eq!(head.tracestate(), "");
    assert_eq!(head.framing, Framing { content_length: Some(12), chunked: false, contradictory: false });
    assert!(!head.cut);
}

#[test]
fn a_response_in_full() {
    let head = response(RESPONSE);
    assert_eq!((head.status, head.version, head.cut), (404, Version::Http11, false));
    assert_eq!(head.framing, Framing { content_length: None, chunked: true, contradictory: false });
}

#[test]
fn a_head_is_complete_at_its_last_byte() {
    for end in 0..REQUEST.len() {
        assert!(RequestHead::parse(&REQUEST[..end]).unwrap().is_none(), "{end} bytes");
    }
    for end in 0..RESPONSE.len() {
        assert!(ResponseHead::parse(&RESPONSE[..end]).unwrap().is_none(), "{end} bytes");
    }
    assert_eq!(request(&[REQUEST, b"GET / HTTP"].concat()).size(), REQUEST.len());
    assert_eq!(response(&[RESPONSE, b"5\r\nhello"].concat()).size(), RESPONSE.len());
}

#[test]
fn a_request_may_be_cut_anywhere() {
    for end in 0..REQUEST.len() {
        let cut = &REQUEST[..end];
        let outcome = RequestHead::parse_cut(cut);
        if end <= "POST ".len() {
            assert_eq!(outcome.unwrap_err(), HeadError::Unreadable { len: end });
            continue;
        }
        let head = outcome.unwrap();
        assert!(head.cut);
        assert_eq!(head.method, Method::Post, "{end} bytes");
        let path = head.path().unwrap();
        assert!("/api/cart".starts_with(path), "{end} bytes: {path}");
        let lines = cut.split(|byte| *byte == b'\n').count() - 1;
        assert_eq!(head.version.is_some(), lines > 0, "{end} bytes");
        assert_eq!(head.host().is_some(), lines > 1, "{end} bytes");
        assert_eq!(head.user_agent().is_some(), lines > 2, "{end} bytes");
        assert_eq!(head.framing.content_length.is_some(), lines > 5, "{end} bytes");
    }
}

#[test]
fn a_response_may_be_cut_anywhere() {
    for end in 0..RESPONSE.len() {
        match ResponseHead::parse_cut(&RESPONSE[..end]) {
            Ok(head) => {
                assert!(end >= "HTTP/1.1 404".len(), "{end} bytes are no status");
                assert_eq!((head.status, head.cut), (404, true));
            }
            Err(_) => assert!(end < "HTTP/1.1 404".len(), "{end} bytes have the status"),
        }
    }
}

#[rstest]
#[case::origin("GET /a/b?c=d", Some("/a/b"), Some("c=d"), None, None)]
#[case::empty_query("GET /a?", Some("/a"), Some(""), None, None)]
#[case::two_question_marks("GET /a?b?c", Some("/a"), Some("b?c"), None, None)]
#[case::fragment("GET /a?b#c", Some("/a"), Some("b"), None, None)]
#[case::url_in_the_query("GET /go?to=http://x/", Some("/go"), Some("to=http://x/"), None, None)]
#[case::url_in_the_path("GET /http://x/", Some("/http://x/"), None, None, None)]
#[case::absolute("GET http://shop:80/a?b", Some("/a"), Some("b"), Some("http"), Some("shop:80"))]
#[case::absolute_without_path("GET HTTP://shop", Some("/"), None, Some("HTTP"), Some("shop"))]
#[case::absolute_query_without_path("GET http://shop?b", Some("/"), Some("b"), Some("http"), Some("shop"))]
#[case::authority("CONNECT shop:443", None, None, None, Some("shop:443"))]
#[case::asterisk("OPTIONS *", None, None, None, None)]
#[case::no_form("GET nonsense", Some("nonsense"), None, None, None)]
fn target_is_read(
    #[case] line: &str,
    #[case] path: Option<&str>,
    #[case] query: Option<&str>,
    #[case] scheme: Option<&str>,
    #[case] host: Option<&str>,
) {
    let head = request(format!("{line} HTTP/1.1\r\n\r\n").as_bytes());
    assert_eq!(head.path(), path);
    assert_eq!(head.query(), query);
    assert_eq!(head.scheme(), scheme);
    assert_eq!(head.host(), host);
}

#[test]
fn an_absolute_target_names_the_host() {
    let head = request(b"GET http://shop/ HTTP/1.1\r\nHost: proxy\r\n\r\n");
    assert_eq!(head.host().unwrap(), "shop");
}

#[rstest]
#[case::known("DELETE", Method::Delete)]
#[case::unknown("PROPFIND", Method::Other)]
#[case::lower_case_is_another("get", Method::Other)]
fn method_is_read(#[case] text: &str, #[case] expected: Method) {
    let head = request(format!("{text} / HTTP/1.1\r\n\r\n").as_bytes());
    assert_eq!((head.method, head.method_text()), (expected, text));
}

#[rstest]
#[case::line_feeds(b"GET /a HTTP/1.1\nHost: shop\n\n")]
#[case::several_spaces(b"GET   /a   HTTP/1.1\r\nHost: shop\r\n\r\n")]
#[case::no_space_behind_the_colon(b"GET /a HTTP/1.1\r\nHost:shop\r\n\r\n")]
#[case::spaces_around_the_value(b"GET /a HTTP/1.1\r\nHost: \t shop \t\r\n\r\n")]
#[case::other_case(b"GET /a HTTP/1.1\r\nhOST: shop\r\n\r\n")]
#[case::invalid_header(b"GET /a HTTP/1.1\r\nno colon\r\nb@d: x\r\nHost: shop\r\n\r\n")]
#[case::not_utf_8(b"GET /a HTTP/1.1\r\nX: \xff\xfe\r\nHost: shop\r\n\r\n")]
#[case::empty_line_before(b"\r\nGET /a HTTP/1.1\r\nHost: shop\r\n\r\n")]
#[case::two_hosts(b"GET /a HTTP/1.1\r\nHost: shop\r\nHost: other\r\n\r\n")]
fn lenient(#[case] bytes: &[u8]) {
    let head = request(bytes);
    assert_eq!((head.path().unwrap(), head.host().unwrap(), head.size()), ("/a", "shop", bytes.len()));
}

#[test]
fn a_target_need_not_be_utf_8() {
    let head = request(b"GET /caf\xe9?q=\xff HTTP/1.1\r\nHost: shop\r\n\r\n");
    assert_eq!(head.path().unwrap(), "/caf_");
    assert_eq!(head.query().unwrap(), "q=_");
    assert_eq!(head.host().unwrap(), "shop");
    assert_eq!(request("GET /café HTTP/1.1\r\n\r\n".as_bytes()).path().unwrap(), "/café");
}

#[rstest]
#[case::many(100, true)]
#[case::as_many_as_fit(511, true)]
#[case::too_many(600, false)]
fn many_headers(#[case] count: usize, #[case] expected: bool) {
    let bytes = ["GET /a HTTP/1.1\r\n", &"a:b\r\n".repeat(count), "Host: shop\r\n\r\n"].concat();
    let head = RequestHead::parse(bytes.as_bytes());
    assert_eq!(head.is_ok_and(|head| head.unwrap().host().unwrap() == "shop"), expected);
}

#[rstest]
#[case::binary(b"GET \x00\x01 HTTP/1.1\r\n\r\n")]
#[case::no_version(b"GET /a\r\n\r\n")]
#[case::other_version(b"GET /a HTTP/2.0\r\n\r\n")]
#[case::other_protocol(b"GET key\r\n")]
#[case::tls(b"\x16\x03\x01\x02\x00\x01\x00\x01")]
fn malformed_request(#[case] bytes: &[u8]) {
    let error = RequestHead::parse(bytes).unwrap_err();
    assert!(matches!(error, HeadError::Malformed { len, .. } if len == bytes.len()), "{error:?}");
    assert_eq!(error.to_string(), format!("malformed HTTP head of {} bytes", bytes.len()));
}

#[rstest]
#[case::other_protocol(b"SSH-2.0-OpenSSH_9.2\r\n")]
#[case::other_version(b"HTTP/2.0 200 OK\r\n\r\n")]
#[case::status_too_long(b"HTTP/1.1 2000 OK\r\n\r\n")]
#[case::status_no_number(b"HTTP/1.1 2x0 OK\r\n\r\n")]
fn malformed_response(#[case] bytes: &[u8]) {
    assert!(matches!(ResponseHead::parse(bytes), Err(HeadError::Malformed { .. })));
}

#[rstest]
#[case::no_reason("HTTP/1.1 200\r\n\r\n", 200, false)]
#[case::empty_reason("HTTP/1.1 200 \r\n\r\n", 200, false)]
#[case::unknown_code("HTTP/1.1 999 What\r\n\r\n", 999, false)]
#[case::old("HTTP/1.0 200 OK\r\n\r\n", 200, false)]
#[case::interim("HTTP/1.1 103 Early Hints\r\n\r\n", 103, true)]
#[case::switching_is_final("HTTP/1.1 101 Switching Protocols\r\n\r\n", 101, false)]
fn status_is_read(#[case] text: &str, #[case] status: u16, #[case] is_interim: bool) {
    let head = response(text.as_bytes());
    assert_eq!((head.status, head.is_interim()), (status, is_interim));
}

#[rstest]
#[case::none("X: y", None, false, false)]
#[case::length("Content-Length: 5", Some(5), false, false)]
#[case::zero("content-length:0", Some(0), false, false)]
#[case::repeated("Content-Length: 5\r\nContent-Length: 5", Some(5), false, false)]
#[case::listed("Content-Length: 5, 5", Some(5), false, false)]
#[case::different("Content-Length: 5\r\nContent-Length: 6", Some(5), false, true)]
#[case::signed("Content-Length: +5", None, false, true)]
#[case::negative("Content-Length: -5", None, false, true)]
#[case::too_large("Content-Length: 99999999999999999999", None, false, true)]
#[case::empty("Content-Length:", None, false, true)]
#[case::chunked("Transfer-Encoding: chunked", None, true, false)]
#[case::chunked_last("Transfer-Encoding: gzip, Chunked", None, true, false)]
#[case::not_chunked("Transfer-Encoding: gzip", None, false, true)]
#[case::both("Content-Length: 5\r\nTransfer-Encoding: chunked", Some(5), true, false)]
fn framing_is_read(
    #[case] line: &str,
    #[case] content_length: Option<u64>,
    #[case] chunked: bool,
    #[case] contradictory: bool,
) {
    assert_eq!(with(line).framing, Framing { content_length, chunked, contradictory });
}

#[rstest]
#[case::one("tracestate: a=1", "a=1")]
#[case::several("tracestate: a=1\r\nTraceState: b=2,c=3", "a=1,b=2,c=3")]
#[case::empty_among_them("tracestate: a=1\r\ntracestate:\r\ntracestate: b=2", "a=1,b=2")]
fn tracestate_is_read(#[case] lines: &str, #[case] expected: &str) {
    assert_eq!(with(lines).tracestate(), expected);
}

#[test]
fn several_traceparents_are_none() {
    assert_eq!(with("traceparent: 00-1-2-01\r\ntraceparent: 00-1-2-01").traceparent(), None);
}

/// What any bytes must stand.
fn take_any(bytes: &[u8]) {
    for head in [RequestHead::parse(bytes), RequestHead::parse_cut(bytes).map(Some)].into_iter().flatten().flatten() {
        let _texts = (head.method_text(), head.path(), head.query(), head.scheme(), head.host());
        let _others = (head.user_agent(), head.traceparent(), head.tracestate());
        assert!(head.cut || head.size() <= bytes.len());
    }
    for head in [ResponseHead::parse(bytes), ResponseHead::parse_cut(bytes).map(Some)].into_iter().flatten().flatten() {
        assert!(head.status < 1000);
        assert!(head.cut || head.size() <= bytes.len());
    }
}

proptest! {
    #[test]
    fn any_bytes_are_taken(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
        take_any(&bytes);
    }

    #[test]
    fn nearly_valid_bytes_are_taken(
        mut bytes in proptest::sample::select(vec![REQUEST, RESPONSE]).prop_map(<[u8]>::to_vec),
        changes in proptest::collection::vec((any::<proptest::sample::Index>(), any::<u8>()), 0..5),
        end: proptest::sample::Index,
    ) {
        for (at, byte) in changes {
            let len = bytes.len();
            bytes[at.index(len)] = byte;
        }
        bytes.truncate(end.index(bytes.len() + 1));
        take_any(&bytes);
    }

    #[test]
    fn what_is_written_is_read(
        method in "[A-Z]{1,10}",
        path in "/[a-z0-9/._~%-]{0,40}",
        query in proptest::option::of("[a-z0-9=&]{0,40}"),
        host in "[a-z0-9.-]{1,20}(:[0-9]{1,5})?",
        agent in "[!-~]([ -~]{0,40}[!-~])?",
        length: u64,
        others in proptest::collection::vec("X-[A-Za-z0-9]{1,10}: [!-~]{0,20}\r\n", 0..80),
    ) {
        prop_assume!(method != "CONNECT");
        let target = query.as_ref().map_or(path.clone(), |query| format!("{path}?{query}"));
        let text = format!(
            "{method} {target} HTTP/1.0\r\nHost: {host}\r\n{}User-Agent: {agent}\r\nContent-Length: {length}\r\n\r\n",
            others.concat(),
        );
        let head = request(text.as_bytes());
        prop_assert_eq!(head.method_text(), &method);
        prop_assert_eq!(head.path().unwrap(), &path);
        prop_assert_eq!(head.query().map(str::to_owned), query);
        prop_assert_eq!(head.host().unwrap(), &host);
        prop_assert_eq!(head.user_agent().unwrap(), &agent);
        prop_assert_eq!(head.framing.content_length, Some(length));
        prop_assert_eq!((head.version, head.size()), (Some(Version::Http10), text.len()));
    }
}
