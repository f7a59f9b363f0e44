//! Child processes that never outlive the test that started them.

use std::fs::{File, Permissions};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::ops::Range;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicU16, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

/// How long a program may take to end after SIGTERM before it is killed.
const GRACE: Duration = Duration::from_secs(6);

/// Ports for servers: below what Linux gives to outgoing connections, which begins at 32768.
const PORTS: Range<u16> = 15_000..32_000;

/// A running program; ended by its id when dropped, also when the test failed.
#[derive(Debug)]
pub struct Running {
    child: Child,
    name: String,
    log: PathBuf,
}

impl Running {
    /// Starts `command`; both of its outputs go to `<folder>/<name>.log`.
    pub fn start(name: &str, folder: &Path, command: &mut Command) -> Result<Self> {
        let log = folder.join(format!("{name}.log"));
        let file = File::options().create(true).append(true).open(&log).with_context(|| log.display().to_string())?;
        let child = command
            .stdin(Stdio::null())
            .stdout(file.try_clone()?)
            .stderr(file)
            .spawn()
            .with_context(|| format!("cannot start {name}: {command:?}"))?;
        Ok(Self { child, name: name.to_owned(), log })
    }

    /// Process id.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// What the program has printed so far.
    pub fn output(&self) -> String {
        let bytes = std::fs::read(&self.log).unwrap_or_default();
        String::from_utf8_lossy(&bytes).into_owned()
    }

    /// Whether it still runs.
    pub fn is_running(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }

    /// Waits until `ready` gives something; fails when the program ends or the time is over.
    pub fn wait_for<T>(&mut self, what: &str, limit: Duration, mut ready: impl FnMut(&str) -> Option<T>) -> Result<T> {
        let begin = Instant::now();
        loop {
            if let Some(found) = ready(&self.output()) {
                return Ok(found);
            }
            if let Some(status) = self.child.try_wait()? {
                bail!("{} ended ({status}) before {what}:\n{}", self.name, self.output());
            }
            if begin.elapsed() > limit {
                bail!("{}: no {what} within {limit:?}:\n{}", self.name, self.output());
            }
            thread::sleep(Duration::from_millis(5));
        }
    }

    /// Waits until something listens on `address`.
    pub fn wait_for_port(&mut self, address: SocketAddr, limit: Duration) -> Result<()> {
        self.wait_for(&format!("listener on {address}"), limit, |_| {
            TcpStream::connect_timeout(&address, Duration::from_millis(200)).ok().map(drop)
        })
    }

    /// SIGKILL, and waits for the end.
    pub fn kill(&mut self) -> Result<ExitStatus> {
        self.child.kill().with_context(|| format!("cannot kill {}", self.name))?;
        Ok(self.child.wait()?)
    }

    /// SIGTERM, and waits for the end; a program that takes longer than the grace is killed, which its status tells.
    pub fn stop(&mut self) -> Result<ExitStatus> {
        if let Some(status) = self.child.try_wait()? {
            return Ok(status);
        }
        if let Some(pid) = Pid::from_raw(self.child.id().cast_signed()) {
            kill_process(pid, Signal::TERM).with_context(|| format!("cannot end {}", self.name))?;
        }
        self.wait(GRACE)
    }

    /// Waits for the end; kills after `limit`.
    pub fn wait(&mut self, limit: Duration) -> Result<ExitStatus> {
        let begin = Instant::now();
        while begin.elapsed() < limit {
            if let Some(status) = self.child.try_wait()? {
                return Ok(status);
            }
            thread::sleep(Duration::from_millis(5));
        }
        self.child.kill()?;
        self.child.wait()?;
        Ok(ExitStatus::from_raw(9))
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if self.stop().is_err() {
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }
}

/// A new folder that is removed when dropped; servers that run as another user may enter it.
pub fn folder() -> Result<TempDir> {
    Ok(tempfile::Builder::new().permissions(Permissions::from_mode(0o755)).tempdir()?)
}

/// A port of 127.0.0.1 that nobody uses now, and that no outgoing connection will take.
///
/// A port from the kernel's ephemeral range could be given to a client before its server binds it; a client that
/// tries to reach a server that is down can even end up connected to itself.
pub fn free_port() -> Result<u16> {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    let first = std::process::id().wrapping_mul(101) as u16;
    for _ in 0..PORTS.len() {
        let number = first.wrapping_add(NEXT.fetch_add(1, Ordering::Relaxed));
        let port = PORTS.start + number % PORTS.len() as u16;
        if TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok() {
            return Ok(port);
        }
    }
    bail!("no free port on 127.0.0.1 in {PORTS:?}")
}
