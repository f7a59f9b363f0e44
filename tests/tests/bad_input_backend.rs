//! Guarantee: no input and no state of the disk crashes the backend or takes anything that it acknowledged.
//!
//! Each test stores a span, does something bad, and then finds that span, stores another, and finds that too.

mod otlp;

use std::fs;
use std::io::Write;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use coati_tests::backend::Backend;
use coati_tests::http::Answer;
use coati_tests::process::free_port;
use coati_tests::tools::{binaries, binary};
use flate2::Compression;
use flate2::write::GzEncoder;
use opentelemetry_proto::tonic::collector::trace::v1::trace_service_client::TraceServiceClient;
use opentelemetry_proto::tonic::trace::v1::Span;
use prost::Message;
use rstest::rstest;
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::otlp::hex;

/// Trace of the span that is stored first.
const KNOWN: u128 = 0xfeed;

/// More than any request may have.
const TOO_MUCH: usize = 64 << 20;

/// A backend with one span, and its folder.
fn start() -> Result<(TempDir, Backend)> {
    let folder = tempfile::tempdir()?;
    let backend = Backend::start(folder.path(), &[])?;
    store(&backend, KNOWN)?;
    Ok((folder, backend))
}

/// Stores one span in a trace of its own.
fn store(backend: &Backend, trace: u128) -> Result<()> {
    otlp::store(backend, &otlp::request("sound", vec![otlp::span(trace, 1, "sound")]))
}

/// Fails unless a trace has exactly one span.
fn find(backend: &Backend, trace: u128) -> Result<()> {
    let found = otlp::spans(backend, trace)?.len();
    ensure!(found == 1, "trace {trace:x} has {found} spans:\n{}", backend.process.output());
    Ok(())
}

/// The backend runs, has what it had, takes and gives more.
fn unharmed(backend: &mut Backend) -> Result<()> {
    ensure!(backend.process.is_running(), "it ended:\n{}", backend.process.output());
    ensure!(!backend.process.output().contains("panicked"), "it panicked:\n{}", backend.process.output());
    find(backend, KNOWN)?;
    store(backend, KNOWN + 1)?;
    find(backend, KNOWN + 1)
}

/// A client that gets one of these sends the same request again, for ever.
fn is_retryable(answer: &Answer) -> bool {
    matches!(answer.status, 429 | 502 | 503 | 504)
}

fn gzip(bytes: &[u8]) -> Result<Vec<u8>> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
    encoder.write_all(bytes)?;
    Ok(encoder.finish()?)
}

fn sound_request() -> Vec<u8> {
    otlp::request("other", vec![otlp::span(7, 7, "other")]).encode_to_vec()
}

#[rstest]
#[case::truncated_protobuf(&[("content-type", otlp::PROTOBUF)], cut(&sound_request()), &[400])]
#[case::random_bytes(&[("content-type", otlp::PROTOBUF)], noise(4096), &[400])]
#[case::truncated_json(&[("content-type", otlp::JSON)], b"{\"resourceSpans\":[{\"scopeSpans\":[{\"sp".to_vec(), &[400])]
#[case::json_of_another_shape(&[("content-type", otlp::JSON)], b"{\"resourceSpans\":{\"a\":[1]}}".to_vec(), &[400])]
#[case::deep_json(&[("content-type", otlp::JSON)], vec![b'['; 200_000], &[400])]
#[case::empty_json(&[("content-type", otlp::JSON)], Vec::new(), &[400])]
#[case::wrong_content_type(&[("content-type", "text/plain")], sound_request(), &[415])]
#[case::no_content_type(&[], sound_request(), &[400, 415])]
#[case::unknown_encoding(&[("content-type", otlp::PROTOBUF), ("content-encoding", "br")], sound_request(), &[400, 415])]
#[case::not_gzip(&[("content-type", otlp::PROTOBUF), ("content-encoding", "gzip")], sound_request(), &[400])]
#[case::truncated_gzip(&[("content-type", otlp::PROTOBUF), ("content-encoding", "gzip")], cut(&gzip(&noise(4096)).unwrap_or_default()), &[400])]
#[case::not_zstd(&[("content-type", otlp::PROTOBUF), ("content-encoding", "zstd")], sound_request(), &[400])]
#[case::gzip_bomb(&[("content-type", otlp::PROTOBUF), ("content-encoding", "gzip")], gzip(&vec![0; TOO_MUCH]).unwrap_or_default(), &[413])]
#[case::zstd_bomb(&[("content-type", otlp::PROTOBUF), ("content-encoding", "zstd")], zstd::encode_all(&*vec![0; TOO_MUCH], 1).unwrap_or_default(), &[413])]
fn a_bad_export_request_is_refused(
    #[case] headers: &[(&str, &str)],
    #[case] body: Vec<u8>,
    #[case] statuses: &[u16],
) -> Result<()> {
    let (_folder, mut backend) = start()?;
    let answer = otlp::send(&backend, headers, &body)?;
    ensure!(statuses.contains(&answer.status), "status {}: {}", answer.status, answer.text());
    ensure!(!is_retryable(&answer) && !answer.body.is_empty(), "no reason was given");
    ensure!(backend.count("{ name = \"other\" }")? == 0, "something of it was stored");
    unharmed(&mut backend)
}

/// The first half.
fn cut(bytes: &[u8]) -> Vec<u8> {
    bytes.get(..bytes.len() / 2).unwrap_or_default().to_vec()
}

/// Bytes without a pattern, the same every time.
fn noise(length: usize) -> Vec<u8> {
    let mut bytes = vec![0; length];
    fastrand::Rng::with_seed(1).fill(&mut bytes);
    bytes
}

/// A body that is too large is refused, before the client has sent it all or after; the client may see a reset.
#[test]
fn an_oversized_export_request_is_refused() -> Result<()> {
    let (_folder, mut backend) = start()?;
    match otlp::send(&backend, &[("content-type", otlp::PROTOBUF)], &vec![0; TOO_MUCH]) {
        Ok(answer) => ensure!(answer.status == 413, "status {}: {}", answer.status, answer.text()),
        Err(error) => println!("the backend closed the connection: {error:#}"),
    }
    unharmed(&mut backend)
}

#[test]
fn grpc_refuses_what_is_too_large_and_what_is_no_grpc() -> Result<()> {
    let (_folder, mut backend) = start()?;
    let mut span = otlp::span(7, 7, "other");
    span.attributes.push(otlp::text("large", &"x".repeat(TOO_MUCH)));
    let status = grpc(&backend, vec![span])?.context("64 MiB were accepted")?;
    ensure!(
        matches!(
            status,
            tonic::Code::OutOfRange
                | tonic::Code::ResourceExhausted
                | tonic::Code::InvalidArgument
                | tonic::Code::Unknown
                | tonic::Code::Internal
        ),
        "code {status:?}"
    );
    // HTTP/1.1 and noise on the gRPC port.
    for bytes in [b"GET / HTTP/1.1\r\nHost: x\r\n\r\n".to_vec(), noise(100_000)] {
        let mut stream = std::net::TcpStream::connect(backend.grpc)?;
        let _refused = stream.write_all(&bytes);
    }
    unharmed(&mut backend)
}

/// Exports spans over gRPC; the code of the error, none if they were acknowledged.
fn grpc(backend: &Backend, spans: Vec<Span>) -> Result<Option<tonic::Code>> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let mut client = TraceServiceClient::connect(format!("http://{}", backend.grpc)).await?;
        Ok(client.export(otlp::request("grpc", spans)).await.err().map(|status| status.code()))
    })
}

/// Noise, half requests and connections that say nothing, on every port.
#[test]
fn noise_on_every_port_harms_nothing() -> Result<()> {
    let (_folder, mut backend) = start()?;
    let mut silent = Vec::new();
    for address in [backend.api, backend.grpc, backend.otlp_http] {
        for bytes in [
            noise(10_000),
            b"POST /v1/traces HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\nabc".to_vec(),
            b"POST /v1/traces HTTP/1.1\r\nContent-Length: -1\r\n\r\n".to_vec(),
            b"POST /v1/traces HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n".to_vec(),
            b"GET / HTTP/9.9\r\n\r\n".to_vec(),
            b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec(),
            vec![b'a'; 1 << 20],
        ] {
            let mut stream = std::net::TcpStream::connect(address)?;
            let _refused = stream.write_all(&bytes);
            silent.push(stream);
        }
        silent.push(std::net::TcpStream::connect(address)?);
    }
    unharmed(&mut backend)
}

/// Queries that are wrong get a text that says why, with a status that says whose fault it is.
#[rstest]
#[case::syntax("/api/search?q=%7B%20name%20%3D", "line 1")]
#[case::not_traceql("/api/search?q=%ff%fe", "")]
#[case::deep("/api/search?q=DEEP", "")]
#[case::limit("/api/search?q=%7B%7D&limit=0", "limit")]
#[case::limit_too_large("/api/search?q=%7B%7D&limit=300000", "limit")]
#[case::times("/api/search?q=%7B%7D&start=5&end=4", "start")]
#[case::not_a_time("/api/search?q=%7B%7D&start=monday&end=4", "")]
#[case::tags_and_q("/api/search?q=%7B%7D&tags=a%3Db", "tags and q")]
#[case::trace_id("/api/v2/traces/xyz", "hex")]
#[case::long_trace_id("/api/v2/traces/00000000000000000000000000000000001", "128 bits")]
#[case::scope("/api/v2/search/tags?scope=bogus", "invalid scope")]
#[case::tag_name("/api/v2/search/tag/nope%20nope/values", "tagName")]
fn a_bad_query_is_refused(#[case] path: &str, #[case] says: &str) -> Result<()> {
    let (_folder, mut backend) = start()?;
    let path = path.replace("DEEP", &"(".repeat(20_000));
    let answer = backend.get(&path)?;
    ensure!(answer.status == 400, "status {}: {}", answer.status, answer.text());
    ensure!(!answer.body.is_empty() && answer.text().contains(says), "{:?} does not say {says:?}", answer.text());
    unharmed(&mut backend)
}

/// Spans with ids that cannot be are counted and explained; the others of the same request are stored.
#[rstest]
#[case::no_trace_id(|span: &mut Span| span.trace_id.clear())]
#[case::zero_trace_id(|span: &mut Span| span.trace_id = vec![0; 16])]
#[case::short_trace_id(|span: &mut Span| span.trace_id.truncate(8))]
#[case::long_trace_id(|span: &mut Span| span.trace_id.push(1))]
#[case::no_span_id(|span: &mut Span| span.span_id.clear())]
#[case::zero_span_id(|span: &mut Span| span.span_id = vec![0; 8])]
#[case::short_span_id(|span: &mut Span| span.span_id.truncate(3))]
#[case::long_span_id(|span: &mut Span| span.span_id.push(1))]
#[case::short_parent_id(|span: &mut Span| span.parent_span_id = vec![1; 3])]
fn an_invalid_id_rejects_only_its_span(#[case] spoil: fn(&mut Span)) -> Result<()> {
    let (_folder, mut backend) = start()?;
    let spans = |trace: u128| {
        let mut spans: Vec<_> = (1..=5).map(|id| otlp::span(trace, id, "mixed")).collect();
        spans.iter_mut().skip(1).step_by(2).for_each(spoil);
        spans
    };

    let answer = otlp::send_request(&backend, &otlp::request("mixed", spans(0xa)))?;
    ensure!(answer.status == 200, "status {}: {}", answer.status, answer.text());
    let (rejected, reason) = otlp::rejection(&answer)?.context("no partial_success")?;
    ensure!(rejected == 2 && reason.contains("id"), "{rejected} rejected: {reason:?}");
    ensure!(otlp::spans(&backend, 0xa)?.len() == 3, "{} of 3 sound spans", otlp::spans(&backend, 0xa)?.len());

    let answer = otlp::send(&backend, &[("content-type", otlp::JSON)], &otlp_json(&spans(0xb)))?;
    ensure!(answer.status == 200, "JSON: status {}: {}", answer.status, answer.text());
    let partial = answer.json()?.get("partialSuccess").cloned().unwrap_or_default();
    let rejected = partial.get("rejectedSpans").cloned().unwrap_or_default();
    ensure!(rejected == "2" || rejected == 2, "JSON: {partial}");
    ensure!(partial.get("errorMessage").and_then(Value::as_str).is_some_and(|text| text.contains("id")), "{partial}");
    ensure!(otlp::spans(&backend, 0xb)?.len() == 3, "JSON: {} of 3 sound spans", otlp::spans(&backend, 0xb)?.len());
    ensure!(metric(&backend, "tempo_discarded_spans_total")? >= 4.0, "discarded spans are not counted");
    unharmed(&mut backend)
}

/// OTLP's JSON: ids in hexadecimal.
fn otlp_json(spans: &[Span]) -> Vec<u8> {
    let spans: Vec<_> = spans
        .iter()
        .map(|span| {
            json!({
                "traceId": hex(&span.trace_id),
                "spanId": hex(&span.span_id),
                "parentSpanId": hex(&span.parent_span_id),
                "name": span.name,
                "kind": span.kind,
                "startTimeUnixNano": span.start_time_unix_nano.to_string(),
                "endTimeUnixNano": span.end_time_unix_nano.to_string(),
            })
        })
        .collect();
    json!({ "resourceSpans": [{ "resource": {}, "scopeSpans": [{ "scope": {}, "spans": spans }] }] })
        .to_string()
        .into_bytes()
}

/// Sum of the samples of a metric of the backend.
fn metric(backend: &Backend, name: &str) -> Result<f64> {
    Ok(coati_tests::agent::sum(&backend.get("/metrics")?.text(), name, &[]))
}

/// Runs a backend that should not start; its status and what it printed.
fn run(arguments: &[&str]) -> Result<Output> {
    let child = Command::new(binary(&binaries(), "coati-backend")?)
        .args(arguments)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()?;
    // Were it to start after all, the end of this process's pipes would not end it.
    let id = child.id();
    let watchdog = thread::spawn(move || child.wait_with_output());
    let begin = Instant::now();
    while !watchdog.is_finished() {
        if begin.elapsed() > Duration::from_secs(10) {
            if let Some(pid) = rustix::process::Pid::from_raw(id.cast_signed()) {
                rustix::process::kill_process(pid, rustix::process::Signal::KILL)?;
            }
            bail!("it still runs after 10 s: {arguments:?}");
        }
        thread::sleep(Duration::from_millis(5));
    }
    watchdog.join().map_err(|_| anyhow::anyhow!("the waiting thread panicked"))?.context("no output")
}

/// Ended with `code` after one line that contains every one of `says`.
fn refuses(output: &Output, code: i32, says: &[&str]) -> Result<()> {
    let text = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    ensure!(output.status.code() == Some(code), "{} instead of exit code {code}:\n{text}", output.status);
    let lines: Vec<_> = text.lines().filter(|line| !line.is_empty() && !line.contains("INFO")).collect();
    ensure!(lines.len() == 1, "not one line:\n{text}");
    for word in says {
        ensure!(text.contains(word), "does not say {word:?}: {text}");
    }
    Ok(())
}

#[rstest]
#[case::unknown_flag(&["--bogus"], &["--bogus"])]
#[case::not_an_address(&["--api-listen", "nowhere"], &["--api-listen", "nowhere"])]
#[case::not_a_duration(&["--retention", "soon"], &["--retention", "soon"])]
#[case::not_a_size(&["--max-bytes", "many"], &["--max-bytes", "many"])]
#[case::no_value(&["--data-dir"], &["--data-dir"])]
#[case::stray_word(&["stray"], &["stray"])]
#[case::no_such_file(&["--config", "/nonexistent/coati.yaml"], &["/nonexistent/coati.yaml"])]
#[case::tempo_spelling(&["-config.file=/nonexistent/coati.yaml"], &["/nonexistent/coati.yaml"])]
fn a_wrong_flag_is_named_in_one_line(#[case] arguments: &[&str], #[case] says: &[&str]) -> Result<()> {
    let folder = tempfile::tempdir()?;
    let data = folder.path().join("data").to_string_lossy().into_owned();
    let arguments: Vec<_> = if arguments.contains(&"--data-dir") {
        arguments.to_vec()
    } else {
        [arguments, &["--data-dir", &data]].concat()
    };
    refuses(&run(&arguments)?, 2, says)
}

#[rstest]
#[case::unknown_key("data_dir: x\nretentoin: 7d\n", &["FILE:2", "retentoin"])]
#[case::unknown_key_in_a_section("log_level: info\nlive:\n  bytes: 1MiB\n", &["FILE:3", "live", "bytes"])]
#[case::bad_value("\n\nretention:\n  age: soon\n", &["FILE:4", "retention.age", "soon"])]
#[case::wrong_type("retention: [1, 2]\n", &["FILE:1", "retention"])]
#[case::not_yaml("log_level: info\n  - [unclosed\n", &["FILE:"])]
#[case::twice("log_level: info\nlog_level: warn\n", &["FILE:2", "log_level"])]
#[case::bad_address("listen:\n  api: nowhere\n", &["FILE:2", "listen.api", "nowhere"])]
#[case::bad_filter_key(
    "metrics_generator: {processor: {span_metrics: {filter_policies: [{exclude: {match_type: regex, attributes: [{key: service, value: x}]}}]}}}\n",
    &["FILE:", "metrics_generator.processor.span_metrics.filter_policies[0]", "`resource.…`", "`service`"]
)]
#[case::bad_filter_value(
    "metrics_generator: {processor: {span_metrics: {filter_policies: [{include: {match_type: regex, attributes: [{key: name, value: 'a('}]}}]}}}\n",
    &["FILE:", "filter_policies[0]", "regular expression", "a("]
)]
#[case::bad_url("metrics_generator: {storage: {remote_write: [{url: prometheus}]}}\n", &["FILE:", "remote_write[0]", "url", "expected a URL"])]
#[case::no_certificate(
    "metrics_generator: {storage: {remote_write: [{url: 'http://a/'}, {url: 'https://b/', tls_config: {ca_file: /nonexistent.pem}}]}}\n",
    &["FILE:", "remote_write[1]", "tls_config.ca_file", "/nonexistent.pem"]
)]
fn a_wrong_configuration_is_named_by_file_line_and_key(#[case] content: &str, #[case] says: &[&str]) -> Result<()> {
    let folder = tempfile::tempdir()?;
    let file = folder.path().join("backend.yaml").to_string_lossy().into_owned();
    fs::write(&file, content)?;
    let data = folder.path().join("data").to_string_lossy().into_owned();
    let output = run(&["--config", &file, "--data-dir", &data])?;
    let says: Vec<_> = says.iter().map(|word| word.replace("FILE", &file)).collect();
    refuses(&output, 2, &says.iter().map(String::as_str).collect::<Vec<_>>())
}

/// Arguments for a backend that would not be in anybody's way if it started.
fn arguments(data: &Path, api: &str) -> Result<Vec<String>> {
    let mut arguments = vec!["--data-dir".to_owned(), data.to_string_lossy().into_owned()];
    arguments.extend(["--api-listen".to_owned(), api.to_owned()]);
    for flag in ["--otlp-grpc-listen", "--otlp-http-listen"] {
        arguments.extend([flag.to_owned(), format!("127.0.0.1:{}", free_port()?)]);
    }
    Ok(arguments)
}

fn refuses_to_start(arguments: &[String], says: &[&str]) -> Result<()> {
    refuses(&run(&arguments.iter().map(String::as_str).collect::<Vec<_>>())?, 1, says)
}

#[test]
fn a_port_in_use_is_named() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let taken = TcpListener::bind(("127.0.0.1", free_port()?))?;
    let address = taken.local_addr()?.to_string();
    refuses_to_start(&arguments(&folder.path().join("data"), &address)?, &[&address])
}

#[test]
fn a_file_in_place_of_the_data_directory_is_named() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let data = folder.path().join("data");
    fs::write(&data, "mine")?;
    let api = format!("127.0.0.1:{}", free_port()?);
    refuses_to_start(&arguments(&data, &api)?, &[&data.to_string_lossy()])?;
    ensure!(fs::read_to_string(&data)? == "mine", "the file was changed");
    Ok(())
}

#[test]
fn a_data_directory_in_use_is_named() -> Result<()> {
    let (_folder, mut backend) = start()?;
    let api = format!("127.0.0.1:{}", free_port()?);
    refuses_to_start(&arguments(&backend.data(), &api)?, &[&backend.data().to_string_lossy()])?;
    unharmed(&mut backend)
}

/// A small file system of memory; unmounted when dropped.
struct SmallDisk(PathBuf);

impl SmallDisk {
    fn mount(folder: PathBuf, size: &str) -> Result<Self> {
        fs::create_dir_all(&folder)?;
        let mut mount = Command::new("mount");
        mount.args(["-t", "tmpfs", "-o", &format!("size={size}"), "tmpfs"]).arg(&folder);
        let output = mount.output().context("mount")?;
        ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        Ok(Self(folder))
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("--lazy").arg(&self.0).status();
    }
}

#[test]
fn a_full_disk_refuses_writes_answers_queries_and_recovers() -> Result<()> {
    if !rustix::process::geteuid().is_root() {
        println!("NOT COVERED: only root can mount a small file system");
        return Ok(());
    }
    let folder = tempfile::tempdir()?;
    // Declared before the backend, so dropped after it.
    let disk = SmallDisk::mount(folder.path().join("data"), "48m")?;
    let mut backend = Backend::start(folder.path(), &[])?;
    store(&backend, KNOWN)?;
    let filler = disk.0.join("filler");
    fill(&filler)?;

    // The log may still have some room of its own: what it takes, it keeps.
    let request = |trace: u128| {
        let mut span = otlp::span(trace, 1, "large");
        span.attributes.push(otlp::attribute(
            "noise",
            opentelemetry_proto::tonic::common::v1::any_value::Value::BytesValue(noise(100_000)),
        ));
        otlp::request("large", vec![span])
    };
    let mut stored = Vec::new();
    let refusal = loop {
        let trace = 0x1000 + stored.len() as u128;
        let answer = otlp::send_request(&backend, &request(trace))?;
        if answer.status != 200 {
            break answer;
        }
        stored.push(trace);
        ensure!(stored.len() < 2000, "200 MB were acknowledged on a full disk");
    };
    ensure!(is_retryable(&refusal), "status {}: {}", refusal.status, refusal.text());
    let code = grpc(&backend, vec![otlp::span(2, 2, "grpc"); 400])?;
    if let Some(code) = code {
        ensure!(matches!(code, tonic::Code::Unavailable | tonic::Code::ResourceExhausted), "gRPC: {code:?}");
    }
    ensure!(backend.process.is_running(), "it ended:\n{}", backend.process.output());
    find(&backend, KNOWN)?;
    stored.iter().try_for_each(|&trace| find(&backend, trace))?;
    ensure!(backend.count("{ name = \"sound\" }")? == 1, "search does not answer");
    ensure!(backend.get("/api/search/tags")?.status == 200, "tags do not answer");

    // It recovers by itself.
    fs::remove_file(&filler)?;
    let begin = Instant::now();
    while otlp::send_request(&backend, &request(0xffff))?.status != 200 {
        ensure!(begin.elapsed() < Duration::from_secs(10), "still refused:\n{}", backend.process.output());
        thread::sleep(Duration::from_millis(50));
    }
    stored.push(0xffff);
    unharmed(&mut backend)?;
    backend.process.kill()?;
    backend.restart()?;
    stored.iter().try_for_each(|&trace| find(&backend, trace))?;
    find(&backend, KNOWN)?;
    find(&backend, KNOWN + 1)
}

/// Writes until nothing more fits.
fn fill(path: &Path) -> Result<()> {
    let mut file = fs::File::create(path)?;
    for size in [1 << 20, 4096] {
        while file.write_all(&vec![0; size]).is_ok() {}
    }
    Ok(())
}

/// Segments of the log, oldest first.
fn segments(data: &Path) -> Result<Vec<PathBuf>> {
    let entries = fs::read_dir(data.join("wal"))?.collect::<Result<Vec<_>, _>>()?;
    let mut paths: Vec<_> = entries.into_iter().map(|entry| entry.path()).collect();
    paths.retain(|path| path.extension().is_some_and(|extension| extension == "wal"));
    paths.sort();
    ensure!(!paths.is_empty(), "no segment in {}", data.display());
    Ok(paths)
}

/// Stores 40 traces, kills, spoils the newest segment, starts; gives how many of the 40 are missing.
fn after_damage(backend: &mut Backend, spoil: impl FnOnce(&mut Vec<u8>)) -> Result<u32> {
    (1..=40).try_for_each(|trace| store(backend, trace))?;
    backend.process.kill()?;
    let segment = segments(&backend.data())?.pop().context("no segment")?;
    let mut bytes = fs::read(&segment)?;
    spoil(&mut bytes);
    fs::write(&segment, bytes)?;
    backend.restart()?;
    let found = (1..=40).map(|trace| otlp::spans(backend, trace)).collect::<Result<Vec<_>>>()?;
    Ok(found.iter().map(|spans| u32::from(spans.is_empty())).sum())
}

#[test]
fn a_torn_end_of_the_log_is_cut_and_counted() -> Result<()> {
    let (_folder, mut backend) = start()?;
    // What a crash leaves of a write: the first half of a frame, here of the one before.
    let missing = after_damage(&mut backend, |bytes| bytes.extend_from_within(bytes.len() - 100..bytes.len() - 30))?;
    ensure!(missing == 0, "{missing} of 40 acknowledged spans are lost");
    let cut = metric(&backend, "coati_backend_wal_truncated_bytes_total")?;
    ensure!((cut - 70.0).abs() < 0.5, "{cut} bytes are counted as cut");
    unharmed(&mut backend)
}

/// One flipped byte costs at most the one request that it is in, and is reported; its bytes are kept aside.
#[rstest]
fn a_flipped_byte_is_set_aside_and_counted(#[values(80, 2_000, 4_321, 5_000)] offset: usize) -> Result<()> {
    let (_folder, mut backend) = start()?;
    let missing = after_damage(&mut backend, |bytes| bytes.get_mut(offset).into_iter().for_each(|byte| *byte ^= 0x10))?;
    // The first frame holds the span that `start` stored.
    let known = otlp::spans(&backend, KNOWN)?.len() as u32;
    ensure!(missing + 1 - known == 1, "{missing} of 40 spans and {} others are lost by one byte", 1 - known);
    ensure!(metric(&backend, "coati_backend_wal_damaged_ranges_total")? >= 1.0, "the damage is not counted");
    ensure!(fs::read_dir(backend.data().join("wal/quarantine"))?.count() >= 1, "nothing was set aside");
    store(&backend, 0xabc)?;
    find(&backend, 0xabc)
}

/// The header is there twice.
#[test]
fn a_flipped_byte_in_a_header_costs_nothing() -> Result<()> {
    let (_folder, mut backend) = start()?;
    let missing = after_damage(&mut backend, |bytes| bytes.get_mut(13).into_iter().for_each(|byte| *byte ^= 1))?;
    ensure!(missing == 0, "{missing} of 40 spans are lost");
    unharmed(&mut backend)
}

/// The tag index is never the only copy of anything.
#[test]
fn a_ruined_catalog_is_built_anew() -> Result<()> {
    let (_folder, mut backend) = start()?;
    (1..=40).try_for_each(|trace| store(&backend, trace))?;
    backend.stop()?;
    let mut ruined = 0;
    for entry in fs::read_dir(backend.data())? {
        let path = entry?.path();
        if path.file_name().is_some_and(|name| name == "catalog") {
            for file in fs::read_dir(&path)? {
                let file = file?.path();
                if file.is_file() {
                    fs::write(&file, noise(5000))?;
                    ruined += 1;
                }
            }
        }
    }
    ensure!(ruined > 0, "no file of the catalog in {}", backend.data().display());
    backend.restart()?;
    (1..=40).try_for_each(|trace| find(&backend, trace))?;
    let values = backend.get("/api/v2/search/tag/resource.service.name/values")?.text();
    ensure!(values.contains("sound"), "{values}");
    unharmed(&mut backend)
}
