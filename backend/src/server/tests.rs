//! Whole servers in this process: what survives a restart, and what keeps one from starting.

use std::fs;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;

use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::collector::trace::v1::trace_service_client::TraceServiceClient;
use opentelemetry_proto::tonic::common::v1::any_value::Value;
use opentelemetry_proto::tonic::common::v1::{AnyValue, KeyValue};
use opentelemetry_proto::tonic::trace::v1::{ResourceSpans, ScopeSpans, Span};
use rstest::rstest;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use super::*;
use crate::config::ByteSize;

fn config(dir: &Path) -> Config {
    let mut config = Config { data_dir: dir.to_owned(), ..Config::default() };
    let any_port = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
    (config.listen.api, config.listen.otlp_grpc, config.listen.otlp_http) = (any_port, any_port, any_port);
    config
}

fn request(trace: u8, value: &str) -> ExportTraceServiceRequest {
    let value = AnyValue { value: Some(Value::StringValue(value.to_owned())) };
    let span = Span {
        trace_id: vec![trace; 16],
        span_id: vec![trace; 8],
        name: format!("span {trace}"),
        start_time_unix_nano: now_ns(),
        end_time_unix_nano: now_ns(),
        attributes: vec![KeyValue { key: "a".to_owned(), value: Some(value), key_strindex: 0 }],
        ..Span::default()
    };
    let scope = ScopeSpans { spans: vec![span], ..ScopeSpans::default() };
    ExportTraceServiceRequest {
        resource_spans: vec![ResourceSpans { scope_spans: vec![scope], ..ResourceSpans::default() }],
    }
}

async fn send(server: &Server, requests: impl IntoIterator<Item = ExportTraceServiceRequest>) {
    let mut client = TraceServiceClient::connect(format!("http://{}", server.addresses().otlp_grpc)).await.unwrap();
    for request in requests {
        client.export(request).await.unwrap();
    }
}

/// Status line and body.
async fn get(address: SocketAddr, path: &str) -> (String, String) {
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.write_all(format!("GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    (head.lines().next().unwrap().to_owned(), body.to_owned())
}

async fn values_of_a(server: &Server) -> serde_json::Value {
    let (_, body) = get(server.addresses().api, "/api/search/tag/a/values").await;
    let mut answer: serde_json::Value = serde_json::from_str(&body).unwrap();
    answer["tagValues"].take()
}

async fn trace_status(server: &Server, trace: u8) -> String {
    get(server.addresses().api, &format!("/api/traces/{}", format!("{trace:02x}").repeat(16))).await.0
}

#[tokio::test]
async fn what_was_acknowledged_is_found_after_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(&config(dir.path())).await.unwrap();
    assert_eq!(get(server.addresses().api, "/ready").await.0, "HTTP/1.1 200 OK");
    send(&server, [request(1, "x"), request(2, "y")]).await;
    assert_eq!(trace_status(&server, 1).await, "HTTP/1.1 200 OK");
    assert_eq!(values_of_a(&server).await, serde_json::json!(["x", "y"]));
    server.stop().await;

    let server = Server::start(&config(dir.path())).await.unwrap();
    assert_eq!(trace_status(&server, 1).await, "HTTP/1.1 200 OK");
    assert_eq!(trace_status(&server, 3).await, "HTTP/1.1 404 Not Found");
    assert_eq!(values_of_a(&server).await, serde_json::json!(["x", "y"]));
    send(&server, [request(3, "z")]).await;
    assert_eq!(trace_status(&server, 3).await, "HTTP/1.1 200 OK");
    server.stop().await;
}

/// Waits until the catalog is whole.
async fn indexed(server: &Server) {
    while server.house.indexed.below() == 0 {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

#[rstest]
#[case::catalog_deleted(|dir: &Path| fs::remove_dir_all(dir.join("catalog")).unwrap())]
#[case::catalog_damaged(|dir: &Path| fs::write(dir.join("catalog/conf"), "noise").unwrap())]
#[tokio::test]
async fn a_lost_catalog_is_built_from_blocks_and_log(#[case] damage: impl Fn(&Path)) {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(&config(dir.path())).await.unwrap();
    send(&server, [request(1, "block")]).await;
    server.stop().await;
    let server = Server::start(&config(dir.path())).await.unwrap();
    send(&server, [request(2, "log")]).await;
    let killed = tempfile::tempdir().unwrap();
    copy(dir.path(), killed.path());
    server.stop().await;
    damage(killed.path());
    let server = Server::start(&config(killed.path())).await.unwrap();
    indexed(&server).await;
    assert_eq!(values_of_a(&server).await, serde_json::json!(["block", "log"]));
    server.stop().await;
}

#[tokio::test]
async fn a_lost_log_does_not_hide_new_tags_from_the_catalog_nor_new_requests_from_the_replay() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(&config(dir.path())).await.unwrap();
    send(&server, (1..=9).map(|trace| request(trace, "x"))).await;
    server.stop().await;
    fs::remove_dir_all(dir.path().join("wal")).unwrap();
    let server = Server::start(&config(dir.path())).await.unwrap();
    send(&server, [request(10, "new")]).await;
    let killed = tempfile::tempdir().unwrap();
    copy(dir.path(), killed.path());
    server.stop().await;
    let server = Server::start(&config(killed.path())).await.unwrap();
    // The copy of a catalog that was in use may have to be built anew.
    indexed(&server).await;
    assert_eq!(trace_status(&server, 10).await, "HTTP/1.1 200 OK");
    assert_eq!(values_of_a(&server).await, serde_json::json!(["new", "x"]));
    server.stop().await;
}

/// As a crash leaves the directory: what was acknowledged is on disk, the rest is gone.
fn copy(from: &Path, to: &Path) {
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            fs::create_dir_all(&target).unwrap();
            copy(&entry.path(), &target);
        } else {
            fs::copy(entry.path(), target).unwrap();
        }
    }
}

/// Live traces and blocks.
fn held(server: &Server) -> (usize, usize) {
    (server.house.live.stats().traces, server.house.blocks.snapshot().len())
}

#[tokio::test]
async fn a_stop_leaves_blocks_and_nothing_to_replay() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(&config(dir.path())).await.unwrap();
    send(&server, (1..=9).map(|trace| request(trace, "x"))).await;
    assert_eq!(held(&server), (9, 0));
    server.stop().await;
    let server = Server::start(&config(dir.path())).await.unwrap();
    assert_eq!(held(&server), (0, 1));
    assert_eq!(server.house.blocks.checkpoint(), 10);
    assert_eq!(trace_status(&server, 9).await, "HTTP/1.1 200 OK");
    server.stop().await;
}

#[tokio::test]
async fn what_a_kill_leaves_in_the_log_is_found_although_memory_is_smaller() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(&config(dir.path())).await.unwrap();
    send(&server, (1..=200).map(|trace| request(trace, &format!("{trace:03}")))).await;
    let killed = tempfile::tempdir().unwrap();
    copy(dir.path(), killed.path());
    server.stop().await;

    let mut small = config(killed.path());
    small.live.max_bytes = ByteSize(20_000);
    let server = Server::start(&small).await.unwrap();
    assert!(held(&server).1 > 0, "blocks were cut on the way");
    for trace in [1, 77, 200] {
        assert_eq!(trace_status(&server, trace).await, "HTTP/1.1 200 OK", "{trace}");
    }
    indexed(&server).await;
    assert_eq!(values_of_a(&server).await.as_array().unwrap().len(), 200);
    server.stop().await;
}

/// Traces go to blocks while the server runs, and are found at every moment.
#[tokio::test]
async fn traces_leave_memory_for_blocks_and_the_log_is_released() {
    let dir = tempfile::tempdir().unwrap();
    let mut config = config(dir.path());
    (config.cut.idle, config.cut.max_wait) = (Duration::from_millis(1), Duration::from_millis(1));
    let server = Server::start(&config).await.unwrap();
    send(&server, [request(1, "x")]).await;
    while held(&server) != (0, 1) {
        assert_eq!(trace_status(&server, 1).await, "HTTP/1.1 200 OK");
    }
    assert_eq!(trace_status(&server, 1).await, "HTTP/1.1 200 OK");
    assert_eq!(server.house.blocks.checkpoint(), 2);
    server.stop().await;
}

async fn refused(config: &Config) -> String {
    let error = Server::start(config).await.err().unwrap();
    chain(&error)
}

#[tokio::test]
async fn a_port_in_use_is_named_with_its_flag() {
    let dir = tempfile::tempdir().unwrap();
    let taken = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let mut config = config(dir.path());
    config.listen.otlp_http = taken.local_addr().unwrap();
    let expected = format!(
        "cannot listen on {} (--otlp-http-listen): Address already in use (os error 98)",
        config.listen.otlp_http
    );
    assert_eq!(refused(&config).await, expected);
}

#[tokio::test]
async fn a_data_directory_in_use_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(&config(dir.path())).await.unwrap();
    let expected =
        format!("the data directory {} (--data-dir) is in use by another coati-backend", dir.path().display());
    assert_eq!(refused(&config(dir.path())).await, expected);
    server.stop().await;
}

#[tokio::test]
async fn a_data_directory_that_cannot_be_made_is_refused() {
    let error = refused(&config(Path::new("/proc/coati"))).await;
    assert!(error.starts_with("cannot use the data directory /proc/coati (--data-dir): "), "{error}");
}
