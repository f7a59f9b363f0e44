//! Guarantee: behind TLS and credentials the backend lets in who has them, tells the others what is missing, and shows
//! nobody a secret. Asked by curl, and by Python's OpenTelemetry SDK.

use std::fs;
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Result, ensure};
use coati_tests::front::make_certificates;
use coati_tests::process::{Running, free_port};
use coati_tests::tools::{binaries, binary, system, tool, workspace};
use tempfile::TempDir;

const WRITER: &str = "writer-d41d8cd98f00b204";
const READER: &str = "reader-e9800998ecf8427e";
const PASSWORD: &str = "password-0cc175b9c0f1b6a8";

/// A backend with TLS and credentials on all of its listeners.
struct Secured {
    folder: TempDir,
    api: u16,
    grpc: u16,
    otlp_http: u16,
    process: Running,
}

impl Secured {
    fn start() -> Result<Self> {
        let folder = tempfile::tempdir()?;
        let [api, grpc, otlp_http] = [free_port()?, free_port()?, free_port()?];
        let at = folder.path().display();
        make_certificates(folder.path())?;
        fs::write(folder.path().join("writer"), WRITER)?;
        fs::write(folder.path().join("password"), PASSWORD)?;
        let tls = format!("{{cert_file: {at}/server.pem, key_file: {at}/server.key}}");
        let config = format!(
            "data_dir: {at}/data\n\
             listen: {{api: '127.0.0.1:{api}', otlp_grpc: '127.0.0.1:{grpc}', otlp_http: '127.0.0.1:{otlp_http}'}}\n\
             tls: {{api: {tls}, otlp_grpc: {tls}, otlp_http: {tls}}}\n\
             auth:\n  credentials:\n\
             \x20 - {{token_file: {at}/writer, listeners: [otlp_grpc, otlp_http]}}\n\
             \x20 - {{token_env: READER, listeners: [api]}}\n\
             \x20 - {{username: grafana, password_file: {at}/password, listeners: [api]}}\n"
        );
        let file = folder.path().join("backend.yaml");
        fs::write(&file, config)?;
        let mut command = Command::new(binary(&binaries(), "coati-backend")?);
        command.arg("--config").arg(file).env("READER", READER);
        let mut process = Running::start("coati-backend", folder.path(), &mut command)?;
        process.wait_for("listeners", Duration::from_secs(20), |log| {
            (log.matches("listening").count() == 3).then_some(())
        })?;
        Ok(Self { folder, api, grpc, otlp_http, process })
    }

    /// What curl says of a request to a port: the body, and behind it status, version of HTTP and challenge.
    fn curl(&self, arguments: &[&str], url: &str) -> Result<String> {
        let written = "\n%{http_code} HTTP/%{http_version} %header{www-authenticate}";
        let output = Command::new(system("curl")?)
            .args(["--silent", "--show-error", "--write-out", written, "--cacert"])
            .arg(self.folder.path().join("authority.pem"))
            .args(arguments)
            .arg(url)
            .stdin(Stdio::null())
            .output()?;
        Ok(String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).trim().to_owned())
    }

    fn asked(&self, arguments: &[&str], path: &str) -> Result<String> {
        self.curl(arguments, &format!("https://127.0.0.1:{}{path}", self.api))
    }

    /// Sends spans with Python's SDK; what it says about it.
    fn export(&self, protocol: &str, token: &str) -> Result<String> {
        let port = if protocol == "grpc" { self.grpc } else { self.otlp_http };
        let output = Command::new(tool("python/bin/python")?)
            .arg(workspace().join("tests/clients/sdk.py"))
            .args([protocol, &format!("https://localhost:{port}")])
            .env("OTEL_EXPORTER_OTLP_CERTIFICATE", self.folder.path().join("authority.pem"))
            .env("OTEL_EXPORTER_OTLP_HEADERS", format!("authorization=Bearer {token}"))
            .env("PYTHONDONTWRITEBYTECODE", "1")
            // They would win over the file above.
            .env_remove("REQUESTS_CA_BUNDLE")
            .env_remove("CURL_CA_BUNDLE")
            .stdin(Stdio::null())
            .output()?;
        Ok(String::from_utf8_lossy(&output.stderr).into_owned())
    }

    fn log_has(&mut self, text: &str) -> Result<()> {
        self.process.wait_for(text, Duration::from_secs(5), |log| log.contains(text).then_some(()))
    }
}

fn equal(found: &str, expected: &str) -> Result<()> {
    ensure!(found == expected, "found {found:?}, expected {expected:?}");
    Ok(())
}

#[test]
fn who_has_credentials_comes_in_and_nobody_sees_them() -> Result<()> {
    let mut backend = Secured::start()?;
    let reader = format!("authorization: Bearer {READER}");
    let grafana = format!("grafana:{PASSWORD}");
    // Tempo's API: both versions of HTTP, both kinds of credentials, and neither.
    equal(&backend.asked(&["--http1.1", "--header", &reader], "/api/echo")?, "echo\n200 HTTP/1.1")?;
    equal(&backend.asked(&["--http2", "--user", &grafana], "/api/echo")?, "echo\n200 HTTP/2")?;
    equal(&backend.asked(&[], "/healthz")?, "ok\n200 HTTP/2")?;
    equal(&backend.asked(&[], "/ready")?, "ready\n200 HTTP/2")?;
    let refused = backend.asked(&[], "/api/search")?;
    ensure!(refused.starts_with("credentials are needed\n401 HTTP/2 ") && refused.contains("Basic realm"), "{refused}");
    let refused = backend.asked(&["--user", "grafana:wrong"], "/metrics")?;
    ensure!(refused.starts_with("these credentials are not known\n401 "), "{refused}");
    // gRPC on the same port: trailers come as headers, since there is no message.
    let streamed = ["--http2", "--include", "--data-binary", "@-", "--header", "content-type: application/grpc"];
    let tags = backend.asked(&streamed, "/tempopb.StreamingQuerier/SearchTags")?;
    ensure!(tags.contains("grpc-status: 16"), "{tags}");
    let export = [&streamed[..], &["--header", &reader]].concat();
    let method = "opentelemetry.proto.collector.trace.v1.TraceService/Export";
    let export = backend.curl(&export, &format!("https://127.0.0.1:{}/{method}", backend.grpc))?;
    ensure!(export.contains("grpc-status: 16"), "the reader's token is not for spans: {export}");

    for protocol in ["grpc", "http/protobuf"] {
        let said = backend.export(protocol, WRITER)?;
        ensure!(!said.contains("Failed"), "{protocol}: {said}");
        let query = format!("q={{resource.service.name=\"python-{protocol}\"}}");
        let found = backend.asked(&["--get", "--data-urlencode", &query, "--header", &reader], "/api/search")?;
        ensure!(found.contains("traceID"), "{protocol}: {found}");
        let said = backend.export(protocol, "wrong")?.to_lowercase();
        ensure!(said.contains("unauth") || said.contains("401"), "{protocol}: {said}");
    }

    // What the log says of who comes wrongly.
    let plain = backend.curl(&[], &format!("http://127.0.0.1:{}/ready", backend.api))?;
    equal(&plain, "this port speaks TLS: use https\n400 HTTP/1.1")?;
    backend.log_has("the client speaks without TLS, this listener with TLS only")?;
    let untrusting = ["--cacert", "/etc/ssl/certs/ca-certificates.crt"];
    let distrusted = backend.asked(&untrusting, "/ready")?;
    ensure!(distrusted.contains("certificate"), "{distrusted}");
    backend.log_has("the client does not trust this listener's certificate")?;
    backend.log_has("these credentials are not known")?;

    // A renewed certificate: who trusts only the new authority comes in.
    make_certificates(backend.folder.path())?;
    backend.log_has("certificates were read again")?;
    equal(&backend.asked(&[], "/ready")?, "ready\n200 HTTP/2")?;
    // A token that is taken back.
    fs::write(backend.folder.path().join("password"), "another")?;
    backend.log_has("credentials were read again")?;
    let refused = backend.asked(&["--user", &grafana], "/api/echo")?;
    ensure!(refused.starts_with("these credentials are not known\n401 "), "{refused}");

    for path in ["/metrics", "/status", "/status/config", "/status/services"] {
        let page = backend.asked(&["--header", &reader], path)?;
        shows_no_secret(path, &page)?;
    }
    shows_no_secret("the log", &backend.process.output())?;
    ensure!(backend.process.stop()?.success(), "it did not end well:\n{}", backend.process.output());
    Ok(())
}

fn shows_no_secret(place: &str, text: &str) -> Result<()> {
    for secret in [WRITER, READER, PASSWORD] {
        ensure!(!text.contains(secret), "{place} shows {secret}: {text}");
    }
    Ok(())
}

#[test]
fn what_cannot_be_used_is_named_at_the_start() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let refused = |config: &str, expected: &str| -> Result<()> {
        let file = folder.path().join("backend.yaml");
        fs::write(&file, config)?;
        let output = Command::new(binary(&binaries(), "coati-backend")?).arg("--config").arg(&file).output()?;
        let said = String::from_utf8_lossy(&output.stderr).replace(&file.display().to_string(), "FILE");
        ensure!(output.status.code() == Some(2), "{said}");
        equal(said.trim(), &format!("coati-backend: FILE: {expected}"))
    };
    refused(
        "auth: {credentials: [{token_file: /no/such/token}]}\n",
        "cannot read /no/such/token: No such file or directory (os error 2)",
    )?;
    refused("tls: {api: {cert_file: /no/such/cert}}\n", "tls.api: expected both `cert_file` and `key_file`")
}
