//! HTTP/2, gRPC and what else is more than one request and one answer; headers of all.

use super::*;

fn http2(wire: &mut Wire, content_type: &str, path: &str, trailers: &[(&str, &str)]) {
    let frame = |kind: u8, flags: u8, payload: &[u8]| {
        let [_, a, b, c] = (payload.len() as u32).to_be_bytes();
        [&[a, b, c, kind, flags, 0, 0, 0, 1], payload].concat()
    };
    let block = |fields: &[(&str, &str)]| -> Vec<u8> {
        let part = |text: &str| [&[text.len() as u8], text.as_bytes()].concat();
        fields.iter().flat_map(|(name, value)| [vec![0], part(name), part(value)].concat()).collect()
    };
    let head = [
        (":method", "POST"),
        (":scheme", "http"),
        (":path", path),
        (":authority", "shop:50051"),
        ("content-type", content_type),
        ("user-agent", "grpc-c/9"),
    ];
    wire.request(
        &[b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec(), frame(1, 4, &block(&head)), frame(0, 1, b"12345")].concat(),
    );
    wire.response(&[frame(4, 0, b""), frame(1, 4, &block(&[(":status", "200")])), frame(0, 0, b"123")].concat());
    wire.response(&frame(1, 5, &block(trailers)));
}

#[test]
fn a_call_of_grpc() {
    let mut wire = Wire::server(7);
    http2(&mut wire, "application/grpc", "/shop.v1.Cart/Add", &[("grpc-status", "0")]);
    let span = span(&wire);
    assert_eq!((span.name.as_str(), span.kind(), &span.status), ("shop.v1.Cart/Add", SpanKind::Server, &None));
    let texts = ["rpc.system", "rpc.service", "rpc.method", "network.protocol.version", "server.address"];
    assert_eq!(texts.map(|key| text(&span, key).unwrap()), ["grpc", "shop.v1.Cart", "Add", "2", "shop"]);
    assert_eq!(attribute(&span, "rpc.grpc.status_code"), Some(&Value::IntValue(0)));
    assert_eq!(attribute(&span, "http.route"), None);
    assert_eq!(attribute(&span, "http.request.body.size"), Some(&Value::IntValue(5)));
}

#[rstest]
#[case::not_found_is_the_callers_error("5", None, Some("NOT_FOUND"))]
#[case::unavailable_is_an_error_of_both("14", Some("UNAVAILABLE"), Some("UNAVAILABLE"))]
#[case::no_such_status("99", None, Some("99"))]
#[case::success("0", None, None)]
fn statuses_of_grpc(#[case] status: &str, #[case] server: Option<&str>, #[case] client: Option<&str>) {
    for (mut wire, expected) in [(Wire::server(7), server), (Wire::client(7), client)] {
        http2(&mut wire, "application/grpc+proto", "/shop.v1.Cart/Add", &[("grpc-status", status)]);
        let span = span(&wire);
        assert_eq!(text(&span, "error.type"), expected);
        assert_eq!(span.status.map(|status| status.code()), expected.map(|_| StatusCode::Error));
    }
}

#[test]
fn http2_without_grpc() {
    let mut wire = Wire::client(7);
    http2(&mut wire, "text/plain", "/orders/17?a=b", &[("x", "y")]);
    let span = span(&wire);
    let texts = ["http.request.method", "url.full", "network.protocol.version"];
    assert_eq!(texts.map(|key| text(&span, key).unwrap()), ["POST", "http://shop:50051/orders/17?a=REDACTED", "2"]);
    assert_eq!(attribute(&span, "rpc.system"), None);
}

#[test]
fn a_websocket() {
    let mut wire = Wire::client(7);
    let switch = b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\n\r\n";
    wire.request(b"GET /chat HTTP/1.1\r\nHost: shop\r\n\r\n").response(switch);
    wire.request(b"\x81\x81\0\0\0\0x").response(b"\x81\x02hi").response(b"\x88\x02\x03\xe9").close();
    let span = span(&wire);
    let numbers = ["messages_sent", "messages_received", "bytes_sent", "bytes_received", "close_code"];
    let found = numbers.map(|name| attribute(&span, &format!("coati.websocket.{name}")).cloned());
    assert_eq!(found, [1, 1, 7, 8, 1001].map(|number| Some(Value::IntValue(number))));
}

#[test]
fn progress_is_an_event() {
    let mut wire = Wire::server(7);
    wire.request(b"GET /events HTTP/1.1\r\n\r\n").response(OK5);
    let mut decoder = Decoder::new(DecodeConfig::default());
    let mut exchanges = Vec::new();
    for record in wire.records {
        decoder.record(record, &mut |event| {
            if let Event::Ended(exchange) = event {
                exchanges.push(exchange.clone());
            }
        });
    }
    let mut exchange = exchanges.remove(0);
    exchange.progress.push(Progress { time_ns: 10_000 * MS, request_bytes: 1, response_bytes: 2, chunks: 3 });
    let process = process();
    let clock = Clock::new(0, EPOCH_NS);
    let span = made(&mut SpanBuilder::new(SpanConfig::default(), clock), &exchange, &process);
    let [event] = span.events.as_slice() else { panic!("{:?}", span.events) };
    assert_eq!((event.name.as_str(), event.time_unix_nano), ("progress", EPOCH_NS + 10_000 * MS));
    let keys: Vec<_> = event.attributes.iter().map(|it| it.key.as_str()).collect();
    assert_eq!(keys, ["coati.progress.request_bytes", "coati.progress.response_bytes", "coati.progress.chunks"]);
}

/// A connection that was joined: path and authority were sent before.
#[test]
fn what_is_unknown_is_left_out() {
    for mut wire in [Wire::server(7), Wire::client(7)] {
        wire.request(&[0, 0, 7, 1, 5, 0, 0, 0, 9, 0x82, 0x86, 0xbe, 0xbf, 0x0f, 0x01, 0x00]);
        wire.response(&[0, 0, 1, 1, 5, 0, 0, 0, 9, 0x88]);
        let span = span(&wire);
        assert_eq!((span.name.as_str(), text(&span, "coati.incomplete")), ("GET", Some("head")));
        let keys = ["url.path", "url.full", "http.route"];
        assert_eq!(keys.map(|key| attribute(&span, key)), [None; 3]);
        assert_eq!(attribute(&span, "http.response.status_code"), Some(&Value::IntValue(200)));
    }
}

/// The captured headers of the only span, `request.NAME=…` and `response.NAME=…`.
fn headers(wire: &Wire, request: &[&str], response: &[&str]) -> Vec<String> {
    let patterns = |texts: &[&str]| texts.iter().map(|text| crate::discover::Pattern::glob(text).unwrap()).collect();
    let headers = HeaderConfig { request: patterns(request), response: patterns(response), ..HeaderConfig::default() };
    let [span] = spans_with(SpanConfig { headers, ..SpanConfig::default() }, &wire.records).try_into().unwrap();
    let list = |attribute: &KeyValue| {
        let name = attribute.key.strip_prefix("http.").filter(|key| key.contains(".header."))?;
        let Some(Value::ArrayValue(list)) = &attribute.value.as_ref()?.value else { panic!("{attribute:?}") };
        let text = |value: &AnyValue| match &value.value {
            Some(Value::StringValue(text)) => text.clone(),
            other => panic!("{other:?}"),
        };
        Some(format!("{}={}", name.replace("header.", ""), list.values.iter().map(text).collect::<Vec<_>>().join("|")))
    };
    span.attributes.iter().filter_map(list).collect()
}

#[rstest]
#[case::nothing(&[], &[], &[])]
#[case::of_requests(&["x-*"], &[], &["request.x-id=7", "request.x-tag=a|b:c"])]
#[case::of_responses(&[], &["content-*", "set-cookie"], &["response.content-length=2", "response.set-cookie=REDACTED"])]
#[case::both(&["host"], &["x-cache"], &["request.host=shop", "response.x-cache=HIT"])]
fn headers_of_http1(#[case] request: &[&str], #[case] response: &[&str], #[case] expected: &[&str]) {
    let mut wire = Wire::server(7);
    wire.request(
        b"GET http://shop/a:b HTTP/1.1\r\nHost: shop\r\nX-Id: 7\r\nx-tag: a\r\nbad line\r\nx-tag:b:c \r\n\r\n",
    );
    wire.response(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nX-Cache: HIT\r\nSet-Cookie: a=b\r\n\r\nx-no: header");
    assert_eq!(headers(&wire, request, response), expected);
}

#[test]
fn headers_that_come_in_pieces() {
    let mut wire = Wire::server(7);
    wire.request(b"GET / HTTP/1.1\r\nx-a: 1\r\n").request(b"x-b: 2\r\n\r\n");
    wire.response(b"HTTP/1.1 200 OK\r\nx-c: 3\r\n").response(b"content-length: 0\r\nx-d: 4\r\n\r\n");
    let expected = ["request.x-a=1", "request.x-b=2", "response.x-c=3", "response.x-d=4"];
    assert_eq!(headers(&wire, &["x-*"], &["x-*"]), expected);
}

#[test]
fn headers_of_http2() {
    let field = |name: &str, value: &str| {
        [&[0, name.len() as u8], name.as_bytes(), &[value.len() as u8], value.as_bytes()].concat()
    };
    let frame = |block: Vec<u8>| [&[0, 0, block.len() as u8, 1, 5, 0, 0, 0, 1][..], &block].concat();
    let request = [vec![0x82, 0x86, 0x84], field("user-agent", "me"), field("x-id", "7"), field("x-bad", "a\nx-id:8")];
    let mut wire = Wire::server(7);
    wire.request(&[b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec(), vec![0, 0, 0, 4, 0, 0, 0, 0, 0]].concat());
    wire.request(&frame(request.concat()));
    wire.response(&frame([vec![0x88], field("x-cache", "HIT")].concat()));
    assert_eq!(
        headers(&wire, &["x-*", "user-agent"], &["x-*"]),
        ["request.user-agent=me", "request.x-id=7", "response.x-cache=HIT"]
    );
}
