//! A start with flags, a configuration or a place that cannot be used: one line that names it, and nothing changed.

use super::*;

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
