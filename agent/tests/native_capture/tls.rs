//! TLS: what probes in the libraries of real software see, and what the decoder makes of it.
//!
//! nginx, curl and Python's sockets give OpenSSL a socket; Node.js and Python's asyncio give it memory; wget has `GnuTLS`.

use std::collections::BTreeSet;
use std::fs;
use std::io::Read;
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use coati_agent::capture::{Record, Source};
use coati_agent::decode::{DecodeConfig, Decoder, Event, Exchange, Role};
use coati_agent::discover::ProcTree;
use coati_agent::libraries::{Libraries, Wanted};
use coati_common::event::role;
use rustix::time::{ClockId, clock_gettime};

use crate::software::{Running, has, run};
use crate::watch::Watch;

/// How long software of others may take.
const PATIENCE: Duration = Duration::from_secs(30);

/// A capture that looks into TLS libraries.
struct Tls {
    watch: Watch,
    libraries: Libraries,
    decoder: Decoder,
    exchanges: Vec<Exchange>,
    /// A record that is waited for, and whether it has come.
    awaited: Option<fn(&Record) -> bool>,
    was_told: bool,
    folder: tempfile::TempDir,
}

fn monotonic_ns() -> u64 {
    let now = clock_gettime(ClockId::Monotonic);
    now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64
}

impl Tls {
    /// `None`, and a line that says so, where that is impossible.
    fn start(covers: &str) -> Option<Self> {
        let watch = Watch::start_with_tls(covers)?;
        let folder = tempfile::tempdir().unwrap();
        let file = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
        let names = ["-subj", "/CN=localhost", "-addext", "subjectAltName=IP:127.0.0.1"];
        let (key, certificate) = (file("key.pem"), file("certificate.pem"));
        let arguments =
            ["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2"];
        let files = ["-keyout", &key, "-out", &certificate];
        run("/usr/bin/openssl", &[&arguments[..], &files[..], &names[..]].concat());
        Some(Self {
            watch,
            libraries: Libraries::new(
                ProcTree::new("/proc"),
                Wanted { tls: true, cuda: false, go: true, loops: true, python: true },
            ),
            decoder: Decoder::new(DecodeConfig::default()),
            exchanges: Vec::new(),
            awaited: None,
            was_told: false,
            folder,
        })
    }

    fn path(&self, name: &str) -> String {
        self.folder.path().join(name).to_str().unwrap().to_owned()
    }

    /// Takes what was told, as the agent does.
    fn take(&mut self) {
        let mut records = Vec::new();
        self.watch.source().drain(Duration::from_millis(5), &mut records).unwrap();
        let exchanges = &mut self.exchanges;
        let mut emit = |event: Event<'_>| {
            if let Event::Ended(exchange) = event {
                exchanges.push(exchange.clone());
            }
        };
        for record in records {
            self.was_told |= self.awaited.is_some_and(|is_it| is_it(&record));
            match &record {
                Record::Exec(header, tgid, _) => self.libraries.started(*tgid, header.time_ns),
                Record::Tls(tls) => self.libraries.speaks(tls.tgid, tls.header.time_ns),
                Record::Exit(ended) => self.libraries.ended(ended.tgid, ended.header.time_ns),
                _ => {}
            }
            self.decoder.record(record, &mut emit);
        }
        self.decoder.tick(monotonic_ns(), &mut emit);
        self.libraries.tick(monotonic_ns(), self.watch.source(), &mut |_| true);
    }

    /// Looks at every process, as the agent does when it starts.
    fn look(&mut self) {
        self.libraries.look_at_all(monotonic_ns(), self.watch.source(), &mut |_| true);
    }

    /// Runs a program to its end, and takes what is told meanwhile.
    fn run(&mut self, program: &str, arguments: &[&str]) {
        self.complete(Command::new(program).args(arguments));
    }

    fn complete(&mut self, command: &mut Command) {
        let mut child = command.stdin(Stdio::null()).stdout(Stdio::null()).spawn().unwrap();
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(status) = child.try_wait().unwrap() {
                assert!(status.success(), "{command:?}: {status}");
                return;
            }
            assert!(Instant::now() < deadline, "{command:?} does not end");
            self.take();
        }
    }

    /// Waits for a record.
    fn wait_for(&mut self, is_it: fn(&Record) -> bool) {
        self.awaited = Some(is_it);
        let deadline = Instant::now() + PATIENCE;
        while !std::mem::take(&mut self.was_told) {
            assert!(Instant::now() < deadline, "not told");
            self.take();
        }
        self.awaited = None;
    }

    /// Waits until there are `count` exchanges of this role whose path begins with `path`.
    fn wait(&mut self, path: &str, role: Role, count: usize) -> Vec<Exchange> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            self.take();
            let is_wanted =
                |it: &&Exchange| it.origin.role == role && it.request.path().is_some_and(|it| it.starts_with(path));
            let found: Vec<_> = self.exchanges.iter().filter(is_wanted).cloned().collect();
            if found.len() >= count {
                assert_eq!(found.len(), count, "{:#?}", lines(&found));
                return found;
            }
            assert!(
                Instant::now() < deadline,
                "{role:?}: {count} wanted, found {:#?}; {:?} {:?}",
                lines(&found),
                self.watch.capture().health(),
                self.libraries.counters()
            );
        }
    }
}

/// `METHOD path status`, sorted.
fn lines(exchanges: &[Exchange]) -> Vec<String> {
    let line = |it: &Exchange| {
        let status = it.response.as_ref().map_or(0, |head| head.status);
        let failure = it.failure.map(|failure| format!(" {}", failure.as_str())).unwrap_or_default();
        format!("{} {} {status}{failure}", it.request.method_text(), it.request.path().unwrap_or("?"))
    };
    let mut lines: Vec<_> = exchanges.iter().map(line).collect();
    lines.sort();
    lines
}

fn free_port() -> u16 {
    TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap().local_addr().unwrap().port()
}

/// Starts a server and waits until it listens.
fn serve(port: u16, command: &mut Command) -> Running {
    let server =
        Running::new(command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::inherit()).spawn().unwrap());
    let deadline = Instant::now() + PATIENCE;
    while TcpStream::connect((Ipv4Addr::LOCALHOST, port)).is_err() {
        assert!(Instant::now() < deadline, "{command:?} does not listen");
        thread::sleep(Duration::from_millis(20));
    }
    server
}

fn nginx(tls: &Tls, port: u16) -> Running {
    let configuration = format!(
        "daemon off; master_process off; pid {0}/pid; error_log stderr error;\n\
         events {{ }}\n\
         http {{ access_log off; keepalive_requests 10000; client_body_temp_path {0}/b; proxy_temp_path {0}/p; \
         fastcgi_temp_path {0}/f; uwsgi_temp_path {0}/u; scgi_temp_path {0}/s;\n\
         server {{ listen 127.0.0.1:{port} ssl http2; ssl_certificate {0}/certificate.pem; \
         ssl_certificate_key {0}/key.pem; location / {{ return 200 hello; }} location /nginx/missing {{ return 404; }} }} }}\n",
        tls.folder.path().display()
    );
    fs::write(tls.path("nginx.conf"), configuration).unwrap();
    serve(port, Command::new("/usr/sbin/nginx").args(["-c", &tls.path("nginx.conf")]))
}

/// The spans of both ends are of the same exchanges.
fn assert_paired(client: &[Exchange], server: &[Exchange]) {
    let keys = |exchanges: &[Exchange]| {
        let key = |it: &Exchange| {
            let key = it.origin.key.unwrap_or_else(|| panic!("no positions: {:?} {:?}", it.origin, it.request.path()));
            (key, it.request.path().map(str::to_owned))
        };
        exchanges.iter().map(key).collect::<BTreeSet<_>>()
    };
    assert_eq!(keys(client), keys(server));
    assert_eq!(keys(client).len(), client.len());
}

/// Both ends give OpenSSL a socket: every request is seen at both, and they find each other.
#[test]
fn openssl_on_sockets() {
    if !has(&["/usr/sbin/nginx", "/usr/bin/curl", "/usr/bin/openssl"], "TLS of nginx and curl") {
        return;
    }
    let Some(mut tls) = Tls::start("TLS of nginx and curl") else { return };
    let port = free_port();
    let _server = nginx(&tls, port);
    tls.look();
    assert!(tls.libraries.counters().tls.files > 0, "{:?}", tls.libraries.counters());
    let url = format!("https://127.0.0.1:{port}/nginx");
    let arguments = ["-sk", "--http1.1", "--max-time", "20", "-o", "/dev/null"];
    tls.run("/usr/bin/curl", &[&arguments[..], &[&format!("{url}/one?a=b"), "-d", "body"]].concat());
    tls.run("/usr/bin/curl", &[&arguments[..], &[&format!("{url}/missing")]].concat());
    tls.run("/usr/bin/curl", &[&arguments[..], &[&format!("{url}/many/[1-1000]")]].concat());

    let client = tls.wait("/nginx/", Role::Client, 1002);
    let server = tls.wait("/nginx/", Role::Server, 1002);
    for exchanges in [&client, &server] {
        let lines = lines(exchanges);
        assert_eq!(lines[1000..], ["GET /nginx/missing 404", "POST /nginx/one 200"]);
        assert_eq!(lines[..1000].iter().filter(|line| line.ends_with(" 200")).count(), 1000);
        for exchange in exchanges {
            let origin = exchange.origin;
            assert!(origin.is_tls && origin.has_addresses() && exchange.failure.is_none(), "{exchange:#?}");
            let server = if origin.role == Role::Server { origin.local } else { origin.remote };
            assert_eq!(server, (Ipv4Addr::LOCALHOST, port).into());
            let first_ns = exchange.response_first_ns.unwrap();
            assert!(origin.begin_ns < first_ns && first_ns <= exchange.end_ns, "{exchange:#?}");
        }
    }
    assert_paired(&client, &server);

    // HTTP/2: the same, stream by stream.
    let arguments = ["-sk", "--http2", "--max-time", "20", "-o", "/dev/null"];
    tls.run("/usr/bin/curl", &[&arguments[..], &[&format!("{url}2/[1-20]")]].concat());
    let client = tls.wait("/nginx2/", Role::Client, 20);
    let server = tls.wait("/nginx2/", Role::Server, 20);
    assert!(client.iter().chain(&server).all(|it| it.request.scheme() == Some("https") && it.origin.is_tls));
    assert_paired(&client, &server);
}

/// A server and its client in Python: `kind` is what gives OpenSSL its bytes.
const PYTHON: &str = r#"
import asyncio, http.client, http.server, ssl, sys, threading, urllib.request
kind, folder, port = sys.argv[1], sys.argv[2], int(sys.argv[3])
context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
context.load_cert_chain(folder + "/certificate.pem", folder + "/key.pem")
trust = ssl.create_default_context(cafile=folder + "/certificate.pem")

class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    def do_GET(self):
        if "slow" in self.path:
            threading.Event().wait(20)
        self.send_response(200)
        self.send_header("Content-Length", "5")
        self.end_headers()
        self.wfile.write(b"hello")
    def log_message(self, *_):
        pass

async def serve(reader, writer):
    while True:
        head = await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello")
        await writer.drain()

async def ask():
    reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=trust)
    for number in range(20):
        writer.write(b"GET /%s/%d HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n" % (kind.encode(), number))
        await reader.readuntil(b"hello")
    writer.close()

async def main():
    async with await asyncio.start_server(serve, "127.0.0.1", port, ssl=context) as server:
        await server.serve_forever()

match kind:
    case "sockets":
        server = http.server.ThreadingHTTPServer(("127.0.0.1", port), Handler)
        server.socket = context.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
        server.serve_forever()
    case "asyncio":
        asyncio.run(main())
    case "ask-sockets":
        client = http.client.HTTPSConnection("127.0.0.1", port, context=trust)
        for number in range(20):
            client.request("GET", f"/sockets/{number}")
            assert client.getresponse().read() == b"hello"
    case "ask-asyncio":
        kind = "asyncio"
        asyncio.run(ask())
"#;

fn python(tls: &Tls, kind: &str, port: u16) -> Command {
    let script = tls.path("script.py");
    fs::write(&script, PYTHON).unwrap();
    let mut command = Command::new("/usr/bin/python3");
    command.args([&script, kind, tls.folder.path().to_str().unwrap(), &port.to_string()]);
    command
}

/// Both ends gave OpenSSL memory. Which socket is below is known after a few calls, and from then on it is right; where in
/// the streams a request begins, only who receives it knows.
fn assert_found_late(client: &[Exchange], server: &[Exchange], port: u16) {
    for exchanges in [client, server] {
        let found: Vec<_> = exchanges.iter().skip_while(|it| !it.origin.has_addresses()).collect();
        assert!(found.len() + 3 >= exchanges.len() && exchanges.len() > 3, "{} of {}", found.len(), exchanges.len());
        for Exchange { origin, .. } in found {
            let server = if origin.role == Role::Server { origin.local } else { origin.remote };
            assert_eq!(server, (Ipv4Addr::LOCALHOST, port).into());
            assert_eq!(origin.key.is_some(), origin.role == Role::Server);
        }
    }
}

/// The client is killed in the middle of its request: that ends.
fn assert_killed(tls: &mut Tls, port: u16) {
    let url = format!("https://127.0.0.1:{port}/slow/1");
    let mut client = Command::new("/usr/bin/curl").args(["-sk", &url]).spawn().unwrap();
    tls.wait_for(|record| match record {
        Record::Begin(begin, head) => begin.role == role::CLIENT && head.starts_with(b"GET /slow/"),
        _ => false,
    });
    client.kill().unwrap();
    client.wait().unwrap();
    assert_eq!(lines(&tls.wait("/slow/", Role::Client, 1)), ["GET /slow/1 0 connection_closed"]);
}

#[test]
fn openssl_of_python() {
    if !has(&["/usr/bin/python3", "/usr/bin/curl", "/usr/bin/openssl"], "TLS of Python") {
        return;
    }
    let Some(mut tls) = Tls::start("TLS of Python") else { return };
    for kind in ["sockets", "asyncio"] {
        let port = free_port();
        let _server = serve(port, &mut python(&tls, kind, port));
        tls.look();
        let mut client = python(&tls, &format!("ask-{kind}"), port);
        tls.complete(&mut client);
        let path = format!("/{kind}/");
        let client = tls.wait(&path, Role::Client, 20);
        let server = tls.wait(&path, Role::Server, 20);
        if kind == "sockets" {
            assert_paired(&client, &server);
            assert_killed(&mut tls, port);
        } else {
            assert_found_late(&client, &server, port);
        }
    }
}

/// An HTTPS server in Node.js, whose executable has OpenSSL in it; asked by curl, which gives OpenSSL sockets.
#[test]
fn openssl_in_an_executable() {
    const SCRIPT: &str = "
        const fs = require('fs'), [folder, port] = process.argv.slice(2);
        const files = { key: fs.readFileSync(folder + '/key.pem'), cert: fs.readFileSync(folder + '/certificate.pem') };
        require('https').createServer(files, (request, response) => {
            response.writeHead(request.url.endsWith('/5') ? 500 : 200);
            response.end('hello');
        }).listen(port, '127.0.0.1');";
    if !has(&["/usr/bin/node", "/usr/sbin/nginx", "/usr/bin/curl", "/usr/bin/openssl"], "TLS of Node.js") {
        return;
    }
    let Some(mut tls) = Tls::start("TLS of Node.js") else { return };
    let port = free_port();
    let script = tls.path("server.js");
    fs::write(&script, SCRIPT).unwrap();
    let folder = tls.path("");
    let _server = serve(port, Command::new("/usr/bin/node").args([&script, &folder, &port.to_string()]));
    // It has curl's library mapped, which curl alone might use before it is found.
    let _holder = nginx(&tls, free_port());
    tls.look();
    let url = format!("https://127.0.0.1:{port}/node/[1-10]");
    tls.run("/usr/bin/curl", &["-sk", "--max-time", "20", "-o", "/dev/null", &url]);
    let server = tls.wait("/node/", Role::Server, 10);
    let statuses: Vec<_> = lines(&server).into_iter().filter(|line| line.ends_with(" 500")).collect();
    assert_eq!(statuses, ["GET /node/5 500"]);
    let placed: Vec<_> = server.iter().filter(|it| it.origin.has_addresses()).collect();
    assert!(placed.len() >= 8, "{}", placed.len());
    // Where the server's end knows where the request began, it is where the client's end says.
    let mut client = tls.wait("/node/", Role::Client, 10);
    let paths: Vec<_> = server.iter().filter(|it| it.origin.key.is_some()).map(|it| it.request.path()).collect();
    assert!(paths.len() >= 8, "{paths:?}");
    client.retain(|it| paths.contains(&it.request.path()));
    let server: Vec<_> = server.iter().filter(|it| it.origin.key.is_some()).cloned().collect();
    assert_paired(&client, &server);
}

/// wget has `GnuTLS`.
#[test]
fn gnutls() {
    if !has(&["/usr/sbin/nginx", "/usr/bin/wget", "/usr/bin/openssl", "/usr/bin/python3"], "TLS of wget") {
        return;
    }
    let Some(mut tls) = Tls::start("TLS of wget") else { return };
    let port = free_port();
    let _server = nginx(&tls, port);
    // Something that runs when the agent starts has the library mapped; wget alone may be over before it is found.
    let script = "import ctypes, time; ctypes.CDLL('libgnutls.so.30'); print('ready', flush=True); time.sleep(60)";
    let mut holder = Command::new("/usr/bin/python3");
    let mut holder = holder.args(["-c", script]).stdout(Stdio::piped()).spawn().unwrap();
    let mut ready = [0; 5];
    // Held, or its next word would be its end.
    let mut stdout = holder.stdout.take().unwrap();
    stdout.read_exact(&mut ready).unwrap();
    let _holder = Running::new(holder);
    tls.look();
    let urls: Vec<_> = (0..5).map(|number| format!("https://127.0.0.1:{port}/nginx/{number}")).collect();
    let arguments = ["-q", "--no-check-certificate", "-O", "/dev/null"];
    tls.run("/usr/bin/wget", &arguments.into_iter().chain(urls.iter().map(String::as_str)).collect::<Vec<_>>());
    let client = tls.wait("/nginx/", Role::Client, 5);
    let server = tls.wait("/nginx/", Role::Server, 5);
    assert_eq!(lines(&client), lines(&server));
    assert_paired(&client, &server);
}
