//! Requests that wait to be sent, one file each: `docs/format/remote-write-queue.md`.

use std::collections::VecDeque;
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;
use tracing::warn;

use super::{Encoding, ExportError, Format, otlp, remote_write};
use crate::config::{OtlpConfig, RemoteWriteConfig};
use crate::generator::Collected;
use crate::telemetry::{EndpointLabels, GeneratorMetrics, LossLabels};

const MAGIC: &[u8; 4] = b"CGRW";
const VERSION: u32 = 2;

/// A request that waits.
#[derive(Clone, Debug, PartialEq)]
pub struct Queued {
    /// Whose series they are.
    pub tenant: String,
    /// When they were collected, milliseconds since the epoch.
    pub time_ms: u64,
    /// How many samples there are.
    pub samples: u32,
    /// What the body is.
    pub format: Format,
    /// The request's body, compressed with snappy.
    pub body: Vec<u8>,
}

/// What waits for one server, in order. Bounded: the oldest is given up.
#[derive(Debug)]
pub struct Queue {
    folder: PathBuf,
    max_bytes: u64,
    encoding: Encoding,
    files: Mutex<Files>,
    pub(super) more: Notify,
    pub(super) metrics: GeneratorMetrics,
    pub(super) endpoint: EndpointLabels,
}

#[derive(Debug, Default)]
struct Files {
    /// Numbers and sizes.
    waiting: VecDeque<(u64, u64)>,
    bytes: u64,
    next: u64,
}

impl Queue {
    /// Opens the queue of a server of remote write in a folder of all queues; what waited before waits still.
    pub fn remote_write(
        folder: &Path,
        config: &RemoteWriteConfig,
        max_bytes: u64,
        metrics: GeneratorMetrics,
    ) -> Result<Self, ExportError> {
        let encoding = Encoding::RemoteWrite(remote_write::Encoding::new(config)?);
        Self::open(&folder.join(Self::remote_write_name(config)), encoding, &config.url, max_bytes, metrics)
    }

    /// The same of a server that takes OTLP.
    pub fn otlp(
        folder: &Path,
        config: &OtlpConfig,
        max_bytes: u64,
        metrics: GeneratorMetrics,
    ) -> Result<Self, ExportError> {
        let encoding = Encoding::Otlp(otlp::Encoding::new(config));
        Self::open(&folder.join(Self::otlp_name(config)), encoding, &config.endpoint, max_bytes, metrics)
    }

    fn open(
        folder: &Path,
        encoding: Encoding,
        url: &str,
        max_bytes: u64,
        metrics: GeneratorMetrics,
    ) -> Result<Self, ExportError> {
        crate::store::create_dir(folder).map_err(|source| file_error(folder, source))?;
        let mut files = Files::default();
        let mut found = Vec::new();
        for entry in fs::read_dir(folder).map_err(|source| file_error(folder, source))? {
            let entry = entry.map_err(|source| file_error(folder, source))?;
            let length = entry.metadata().map_err(|source| file_error(&entry.path(), source))?.len();
            match entry.file_name().to_str().and_then(|name| name.parse::<u64>().ok()) {
                Some(number) => found.push((number, length)),
                // What a crash left of one that was being written.
                None => fs::remove_file(entry.path()).map_err(|source| file_error(&entry.path(), source))?,
            }
        }
        found.sort_unstable();
        files.bytes = found.iter().map(|(_, length)| length).sum();
        files.next = found.last().map_or(1, |(number, _)| number + 1);
        files.waiting = found.into();
        let endpoint = EndpointLabels { url: shown_url(url) };
        metrics.queue_bytes.get_or_create(&endpoint).set(files.bytes as i64);
        let folder = folder.to_owned();
        Ok(Self { folder, max_bytes, encoding, files: Mutex::new(files), more: Notify::new(), metrics, endpoint })
    }

    /// Name of the folder of a server's queue.
    pub fn remote_write_name(config: &RemoteWriteConfig) -> String {
        format!("{:08x}", crc32c::crc32c(config.url.as_bytes()))
    }

    /// The same of a server that takes OTLP.
    pub fn otlp_name(config: &OtlpConfig) -> String {
        format!("otlp-{:08x}", crc32c::crc32c(config.endpoint.as_bytes()))
    }

    /// The server's URL, without user and password.
    pub fn url(&self) -> &str {
        &self.endpoint.url
    }

    /// Lets what was counted wait. On disk when this returns.
    pub fn push(&self, collected: &Collected) -> Result<(), ExportError> {
        let mut pushed = false;
        for tenant in collected.sampled() {
            for request in self.encoding.requests(collected, tenant) {
                let super::Request { samples, format, body } = request;
                let (tenant, time_ms) = (tenant.tenant.to_string(), collected.time_ms);
                self.push_request(&Queued { tenant, time_ms, samples, format, body })?;
                pushed = true;
            }
        }
        if pushed {
            let synced = File::open(&self.folder).and_then(|folder| folder.sync_all());
            synced.map_err(|source| file_error(&self.folder, source))?;
            self.more.notify_one();
        }
        Ok(())
    }

    pub(super) fn push_request(&self, queued: &Queued) -> Result<(), ExportError> {
        let bytes = queued.encode();
        let mut files = self.files();
        let length = bytes.len() as u64;
        while files.bytes + length > self.max_bytes && !files.waiting.is_empty() {
            self.give_up_oldest(&mut files);
        }
        let number = files.next;
        let (path, new) = (self.path(number), self.folder.join("new"));
        let written = File::create(&new).and_then(|mut file| {
            file.write_all(&bytes)?;
            file.sync_all()?;
            fs::rename(&new, &path)
        });
        written.map_err(|source| file_error(&path, source))?;
        files.next += 1;
        files.waiting.push_back((number, length));
        files.bytes += length;
        self.metrics.queue_bytes.get_or_create(&self.endpoint).set(files.bytes as i64);
        Ok(())
    }

    fn give_up_oldest(&self, files: &mut Files) {
        let Some((number, length)) = files.waiting.pop_front() else { return };
        let samples = self.read(number).map_or(1, |queued| queued.samples);
        self.lost("queue_full", samples);
        self.remove(number);
        files.bytes -= length;
    }

    /// The oldest, with its number; what is damaged or gone is given up. Fails if it cannot be read now.
    pub(super) fn oldest(&self) -> Result<Option<(u64, Queued)>, ExportError> {
        loop {
            let Some((number, _)) = self.files().waiting.front().copied() else { return Ok(None) };
            match self.read(number) {
                Ok(queued) => return Ok(Some((number, queued))),
                Err(error) if may_pass(&error) => return Err(error),
                Err(error) => {
                    warn!(url = self.url(), number, error = %crate::telemetry::chain(&error), "samples in the queue are lost");
                    self.lost("damaged", 1);
                    self.done(number);
                }
            }
        }
    }

    /// Takes the oldest out, if it is this one still.
    pub(super) fn done(&self, number: u64) {
        let mut files = self.files();
        if let Some((_, length)) = files.waiting.pop_front_if(|(oldest, _)| *oldest == number) {
            files.bytes -= length;
            self.remove(number);
            self.metrics.queue_bytes.get_or_create(&self.endpoint).set(files.bytes as i64);
        }
    }

    pub(super) fn lost(&self, reason: &str, samples: u32) {
        let labels = LossLabels { url: self.endpoint.url.clone(), reason: reason.to_owned() };
        self.metrics.lost_samples.get_or_create(&labels).inc_by(samples.into());
    }

    fn read(&self, number: u64) -> Result<Queued, ExportError> {
        let path = self.path(number);
        let bytes = fs::read(&path).map_err(|source| file_error(&path, source))?;
        decode_queued(&bytes)
    }

    fn remove(&self, number: u64) {
        if let Err(error) = fs::remove_file(self.path(number)) {
            warn!(url = self.url(), number, %error, "a file of the queue stays: it is sent again after the next start");
        }
    }

    fn path(&self, number: u64) -> PathBuf {
        self.folder.join(format!("{number:020}"))
    }

    fn files(&self) -> MutexGuard<'_, Files> {
        self.files.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Queued {
    pub(super) fn encode(&self) -> Vec<u8> {
        let mut rest = Vec::with_capacity(self.body.len() + self.tenant.len() + 32);
        rest.extend((self.tenant.len() as u16).to_le_bytes());
        rest.extend(self.tenant.as_bytes());
        rest.extend(self.time_ms.to_le_bytes());
        rest.extend(self.samples.to_le_bytes());
        rest.push(match self.format {
            Format::RemoteWrite1 => 1,
            Format::RemoteWrite2 => 2,
            Format::Otlp => 3,
        });
        rest.extend(&self.body);
        let mut bytes = MAGIC.to_vec();
        bytes.extend(VERSION.to_le_bytes());
        bytes.extend(crc32c::crc32c(&rest).to_le_bytes());
        bytes.extend(rest);
        bytes
    }
}

/// Reads a file of the queue.
pub fn decode_queued(bytes: &[u8]) -> Result<Queued, ExportError> {
    read_queued(bytes).unwrap_or(Err(ExportError::Damaged("too short")))
}

fn read_queued(bytes: &[u8]) -> Option<Result<Queued, ExportError>> {
    let (magic, rest) = bytes.split_first_chunk::<4>()?;
    let (version, rest) = rest.split_first_chunk::<4>()?;
    let (checksum, rest) = rest.split_first_chunk::<4>()?;
    let version = u32::from_le_bytes(*version);
    if magic != MAGIC || !(1..=VERSION).contains(&version) {
        return Some(Err(ExportError::Damaged("no request of a version that is known")));
    }
    if crc32c::crc32c(rest) != u32::from_le_bytes(*checksum) {
        return Some(Err(ExportError::Damaged("wrong checksum")));
    }
    let (length, rest) = rest.split_first_chunk::<2>()?;
    let (tenant, rest) = rest.split_at_checked(u16::from_le_bytes(*length).into())?;
    let (time_ms, rest) = rest.split_first_chunk::<8>()?;
    let (samples, rest) = rest.split_first_chunk::<4>()?;
    let (format, body) = match (version, rest.split_first()) {
        (1, _) => (Format::RemoteWrite1, rest),
        (_, Some((1, body))) => (Format::RemoteWrite1, body),
        (_, Some((2, body))) => (Format::RemoteWrite2, body),
        (_, Some((3, body))) => (Format::Otlp, body),
        (_, Some(_)) => return Some(Err(ExportError::Damaged("a body of a kind that is not known"))),
        (_, None) => return None,
    };
    let Ok(tenant) = String::from_utf8(tenant.to_vec()) else {
        return Some(Err(ExportError::Damaged("the tenant is no text")));
    };
    Some(Ok(Queued {
        tenant,
        time_ms: u64::from_le_bytes(*time_ms),
        samples: u32::from_le_bytes(*samples),
        format,
        body: body.to_vec(),
    }))
}

/// Whether a request may be read another time.
fn may_pass(error: &ExportError) -> bool {
    matches!(error, ExportError::File { source, .. } if source.kind() != io::ErrorKind::NotFound)
}

fn file_error(path: &Path, source: io::Error) -> ExportError {
    ExportError::File { path: path.to_owned(), source }
}

/// A URL as it may be shown.
fn shown_url(url: &str) -> String {
    match url.split_once("://") {
        Some((scheme, rest)) => {
            let (host, path) =
                rest.split_once('/').map_or((rest, String::new()), |(host, path)| (host, format!("/{path}")));
            let host = host.rsplit_once('@').map_or(host, |(_, host)| host);
            format!("{scheme}://{host}{path}")
        }
        None => url.to_owned(),
    }
}
