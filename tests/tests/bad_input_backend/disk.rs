//! A disk that is full, and files that are not what was written.

use super::*;

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
