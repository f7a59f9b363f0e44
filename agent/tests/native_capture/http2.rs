//! HTTP/2 in clear text: frames told by the kernel programs, and what the decoder makes of them.
//!
//! With software that others wrote, where it is installed: nghttp2, curl, Node.js, gRPC for Python. What needs none of
//! it runs in the guests too.

use std::io::{IoSlice, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::thread;

use coati_agent::decode::Role;
use coati_agent::kernel::features::HookSet;

use crate::software::{Decoded, Running, has, run, start, wait};
use crate::watch::{Watch, connect, read_until};

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
const SETTINGS: &[u8] = b"\0\0\0\x04\0\0\0\0\0";
/// Ends a test's connection: PING.
const LAST: &[u8] = b"\0\0\x08\x06\0\0\0\0\0the last";
fn frame(kind: u8, flags: u8, stream: u8, payload: &[u8]) -> Vec<u8> {
    let [_, a, b, c] = (payload.len() as u32).to_be_bytes();
    [&[a, b, c, kind, flags, 0, 0, 0, stream], payload].concat()
}

/// `POST http /path` of one letter.
fn request(path: u8) -> Vec<u8> {
    vec![0x83, 0x86, 0x04, 2, b'/', path, 0x01, 1, b'x']
}

/// Frames that are cut in every way: several buffers, several frames in one call, a frame in many calls, a header in two.
#[test]
fn frames_are_told_without_their_data() {
    let Some(mut watch) = Watch::start("HTTP/2") else { return };
    let body = vec![7_u8; 200_000];
    let sent = body.clone();
    let port = connect(
        move |mut stream| {
            stream.write_all(SETTINGS).unwrap();
            read_until(&mut stream, b"the last");
            stream.write_all(&[frame(1, 4, 1, &[0x88]), frame(0, 1, 1, &body[..16_000])].concat()).unwrap();
            stream
                .write_all(&[frame(1, 4, 3, &[0x8d]), frame(0, 1, 3, b"none"), frame(3, 0, 5, &[0, 0, 0, 8])].concat())
                .unwrap();
            stream.write_all(LAST).unwrap();
        },
        |mut stream| {
            let first = frame(1, 4, 1, &request(b'a'));
            let buffers = [PREFACE, SETTINGS, &first[..4], &first[4..]].map(IoSlice::new);
            assert_eq!(stream.write_vectored(&buffers).unwrap(), PREFACE.len() + SETTINGS.len() + first.len());
            let long = [frame(0, 0, 1, &sent[..100_000]), frame(0, 1, 1, &sent[..100_000])].concat();
            long.chunks(30_011).for_each(|chunk| stream.write_all(chunk).unwrap());
            let others = [frame(1, 5, 3, &request(b'b')), frame(1, 5, 5, &request(b'c'))].concat();
            // Byte by byte.
            others.chunks(1).for_each(|byte| stream.write_all(byte).unwrap());
            stream.write_all(LAST).unwrap();
            read_until(&mut stream, b"the last");
        },
    );
    let decoded = wait(&mut watch, port, 3);
    for role in [Role::Client, Role::Server] {
        assert_eq!(
            decoded.lines(role),
            ["POST /a 200 200000→16000", "POST /b 404 0→4", "POST /c 0 0→18446744073709551615 stream_reset"]
        );
    }
    decoded.assert_paired();
    let sides = watch.now(port);
    let (client, server) = sides.only();
    for seen in [client, server] {
        let copied: usize = seen.data.iter().map(|(_, payload)| payload.len()).sum();
        assert!(copied < 600, "{copied} bytes of frames were copied, content of DATA frames among them");
    }
}

/// A connection that is older than the agent is joined at its next request.
#[test]
fn a_connection_from_before_is_joined() {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let address = listener.local_addr().unwrap();
    let server = thread::spawn(move || {
        let mut stream = listener.accept().unwrap().0;
        for _ in 0..3 {
            read_until(&mut stream, b"the last");
            stream.write_all(&[&frame(1, 5, 1, &[0x88]), LAST].concat()).unwrap();
        }
    });
    let mut stream = TcpStream::connect(address).unwrap();
    let mut ask = |bytes: &[u8]| {
        stream.write_all(&[bytes, LAST].concat()).unwrap();
        read_until(&mut stream, b"the last");
    };
    ask(&[PREFACE, SETTINGS].concat());
    let watch = Watch::start_with("HTTP/2 connections opened before the agent started", |_| {});
    // Many bytes: the first call must begin with a request and have sixteen of them.
    let begin = |stream: u8, path: u8| [frame(1, 5, stream, &request(path)), SETTINGS.to_vec()].concat();
    ask(&begin(1, b'a'));
    ask(&begin(1, b'b'));
    drop(stream);
    server.join().unwrap();
    let Some(mut watch) = watch else { return };
    let _ = watch.now(address.port());
    let decoded = Decoded::of(watch.records(), address.port());
    assert_eq!(decoded.lines(Role::Client), ["POST /a 200 0→0"]);
    if watch.hooks() == HookSet::Syscall {
        assert_eq!(decoded.lines(Role::Server), ["POST /a 200 0→0"]);
        decoded.assert_paired();
    }
}

const NGHTTPD: &str = "/usr/sbin/nghttpd";
const NGHTTPX: &str = "/usr/sbin/nghttpx";
const NGHTTP: &str = "/usr/bin/nghttp";
const H2LOAD: &str = "/usr/bin/h2load";
const CURL: &str = "/usr/bin/curl";
const NODE: &str = "/usr/bin/node";
const PYTHON: &str = "/usr/bin/python3";

/// A folder with two files, and a server for it.
fn nghttpd() -> (tempfile::TempDir, Running, u16) {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("small"), b"hello").unwrap();
    std::fs::write(folder.path().join("large"), vec![b'x'; 1_000_000]).unwrap();
    let htdocs = folder.path().to_str().unwrap().to_owned();
    let (server, port) = start(NGHTTPD, |port| vec!["--no-tls".into(), "-d".into(), htdocs.clone(), port.to_string()]);
    (folder, server, port)
}

#[test]
fn nghttp2_and_curl_by_prior_knowledge() {
    let covers = "HTTP/2 of nghttp2 and curl";
    if !has(&[NGHTTPD, NGHTTP, CURL], covers) {
        return;
    }
    let Some(mut watch) = Watch::start(covers) else { return };
    let (_folder, _server, port) = nghttpd();
    let url = |path: &str| format!("http://127.0.0.1:{port}/{path}");
    run(NGHTTP, &["-n", &url("small"), &url("large"), &url("none")]);
    run(CURL, &["-sS", "--http2-prior-knowledge", "-o", "/dev/null", &url("small?a=b")]);
    let decoded = wait(&mut watch, port, 4);
    for role in [Role::Client, Role::Server] {
        let lines = decoded.lines(role);
        let [large, none, small, with_query] = lines.as_slice() else { panic!("{lines:#?}") };
        assert_eq!((large.as_str(), small.as_str()), ("GET /large 200 0→1000000", "GET /small 200 0→5"));
        assert_eq!(with_query, small);
        assert!(none.starts_with("GET /none 404 0→"), "{none}");
    }
    decoded.assert_paired();
    assert_eq!((decoded.counters.http2_gaps, decoded.counters.request_malformed), (0, 0));
}

/// A request by HTTP/1 that becomes the first stream, through a proxy that asks by HTTP/2.
#[test]
fn nghttpx_switches_to_http2() {
    let covers = "h2c by upgrade";
    if !has(&[NGHTTPD, NGHTTPX, NGHTTP, CURL], covers) {
        return;
    }
    let Some(mut watch) = Watch::start(covers) else { return };
    let (_folder, _server, behind) = nghttpd();
    let (_proxy, port) = start(NGHTTPX, |port| {
        let (front, back) = (format!("-f127.0.0.1,{port};no-tls"), format!("-b127.0.0.1,{behind};;proto=h2"));
        vec!["--conf=/dev/null".into(), "--log-level=ERROR".into(), "--workers=1".into(), front, back]
    });
    let url = |path: &str| format!("http://127.0.0.1:{port}/{path}");
    run(NGHTTP, &["-n", "-u", &url("small"), &url("large")]);
    run(CURL, &["-sS", "--http2", "-o", "/dev/null", &url("small")]);
    for port in [port, behind] {
        let decoded = wait(&mut watch, port, 3);
        for role in [Role::Client, Role::Server] {
            let lines = decoded.lines(role);
            assert_eq!(lines, ["GET /large 200 0→1000000", "GET /small 200 0→5", "GET /small 200 0→5"]);
        }
        decoded.assert_paired();
    }
}

/// Many streams at once: every request is there, at both ends, or what is missing is counted.
#[test]
fn h2load_is_seen_whole_or_counted() {
    let covers = "many streams of HTTP/2 at once";
    if !has(&[NGHTTPD, H2LOAD], covers) {
        return;
    }
    let Some(mut watch) = Watch::start(covers) else { return };
    let (_folder, _server, port) = nghttpd();
    let output =
        run(H2LOAD, &["-n", "400", "-c", "2", "-m", "20", "-p", "h2c", &format!("http://127.0.0.1:{port}/small")]);
    assert!(output.contains("400 succeeded"), "{output}");
    let decoded = wait(&mut watch, port, 400);
    println!("{:?}", decoded.counters);
    for role in [Role::Client, Role::Server] {
        let lines = decoded.lines(role);
        assert_eq!(lines.len(), 400);
        assert!(lines.iter().all(|line| line == "GET /small 200 0→5"), "{lines:#?}");
    }
    decoded.assert_paired();
}

/// Answers with 70,001 bytes in two parts.
const NODE_SERVER: &str = "
        require('http2').createServer((request, response) => {
            request.resume();
            request.on('end', () => { response.writeHead(201); response.write('a'.repeat(70000)); response.end('b'); });
        }).listen(Number(process.argv[1]), '127.0.0.1');";

/// Asks for three paths at once.
const NODE_CLIENT: &str = "
        const session = require('http2').connect('http://127.0.0.1:' + process.argv[1]);
        let open = 3;
        for (const path of ['/one', '/two', '/three']) {
            const request = session.request({ ':method': 'POST', ':path': path });
            request.on('end', () => { if (--open === 0) session.close(); });
            request.resume();
            request.end('body of ' + path);
        }";

/// Two methods, one of which can fail, and another one streams.
const GRPC_SERVER: &str = "
import grpc, sys
from concurrent import futures
def one(request, context):
    if request == b'bad':
        context.abort(grpc.StatusCode.NOT_FOUND, 'nothing there')
    return request * 2
def many(request, context):
    for _ in range(5):
        yield request
class Handler(grpc.GenericRpcHandler):
    def service(self, details):
        if details.method == '/shop.v1.Cart/Watch':
            return grpc.unary_stream_rpc_method_handler(many)
        if details.method == '/shop.v1.Cart/Get':
            return grpc.unary_unary_rpc_method_handler(one)
server = grpc.server(futures.ThreadPoolExecutor(4), handlers=[Handler()])
server.add_insecure_port('127.0.0.1:' + sys.argv[1])
server.start()
server.wait_for_termination()
";

/// Calls all of them, and one that there is not.
const GRPC_CLIENT: &str = "
import grpc, sys
with grpc.insecure_channel('127.0.0.1:' + sys.argv[1]) as channel:
    get, watch = channel.unary_unary('/shop.v1.Cart/Get'), channel.unary_stream('/shop.v1.Cart/Watch')
    for _ in range(20):
        assert get(b'x' * 100) == b'x' * 200
    try:
        get(b'bad')
    except grpc.RpcError as error:
        assert error.code() == grpc.StatusCode.NOT_FOUND
    assert len(list(watch(b'y'))) == 5
    try:
        channel.unary_unary('/shop.v1.Cart/Missing')(b'')
    except grpc.RpcError as error:
        assert error.code() == grpc.StatusCode.UNIMPLEMENTED
";

#[test]
fn node_speaks_to_itself() {
    let covers = "HTTP/2 of Node.js";
    if !has(&[NODE], covers) {
        return;
    }
    let Some(mut watch) = Watch::start(covers) else { return };
    let (_server, port) = start(NODE, |port| vec!["-e".into(), NODE_SERVER.into(), port.to_string()]);
    run(NODE, &["-e", NODE_CLIENT, &port.to_string()]);
    let decoded = wait(&mut watch, port, 3);
    for role in [Role::Client, Role::Server] {
        let expected = ["POST /one 201 12→70001", "POST /three 201 14→70001", "POST /two 201 12→70001"];
        assert_eq!(decoded.lines(role), expected);
    }
    decoded.assert_paired();
}

/// Calls of all four kinds by way of gRPC's own library; a status that is no success among them.
#[test]
fn grpc_for_python() {
    let covers = "gRPC's own library";
    if !has(&[PYTHON, "/usr/lib/python3/dist-packages/grpc"], covers) {
        return;
    }
    let Some(mut watch) = Watch::start(covers) else { return };
    let (_server, port) = start(PYTHON, |port| vec!["-c".into(), GRPC_SERVER.into(), port.to_string()]);
    run(PYTHON, &["-c", GRPC_CLIENT, &port.to_string()]);
    let decoded = wait(&mut watch, port, 23);
    for role in [Role::Client, Role::Server] {
        let lines = decoded.lines(role);
        let get = "POST /shop.v1.Cart/Get 200 105→205 grpc Some(0)";
        assert_eq!(lines.iter().filter(|line| *line == get).count(), 20, "{lines:#?}");
        for expected in [
            "POST /shop.v1.Cart/Get 200 8→0 grpc Some(5)",
            "POST /shop.v1.Cart/Missing 200 5→0 grpc Some(12)",
            "POST /shop.v1.Cart/Watch 200 6→30 grpc Some(0)",
        ] {
            assert!(lines.iter().any(|line| line == expected), "{lines:#?}");
        }
    }
    decoded.assert_paired();
    assert_eq!(decoded.counters.http2_gaps, 0);
}
