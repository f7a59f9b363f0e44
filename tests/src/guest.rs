//! Virtual machines that boot other kernels, with a program of ours as their payload.
//!
//! `cargo xtask setup` puts Debian's kernels into `target/tools/kernels` and installs QEMU. No disk and no network: an
//! initramfs with the program, the libraries that it needs and busybox, and a serial console that tells the result.

use std::fs;
use std::io::Read;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

use crate::tools::tools;

const QEMU: &str = "/usr/bin/qemu-system-x86_64";
const BUSYBOX: &str = "/bin/busybox";

/// How the guest's processors run. Always interpreted, so that it runs, and runs the same, on machines without
/// virtualisation; by one thread, because one processor may patch code that another is about to run, which QEMU's several
/// threads get wrong.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Processors {
    /// Two, in the host's time.
    Two,
    /// One, whose time is the number of its instructions: a nanosecond each, whatever the host does meanwhile.
    Counted,
}

/// The kernel's image, if there is all that a guest takes.
pub fn kernel(version: &str) -> Result<PathBuf> {
    let folder = tools().join("kernels").join(version).join("boot");
    for program in [QEMU, BUSYBOX] {
        ensure!(Path::new(program).exists(), "no {program}");
    }
    let entries = fs::read_dir(&folder).with_context(|| folder.display().to_string())?;
    let mut files = entries.flatten().map(|entry| entry.path());
    files
        .find(|path| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("vmlinuz")))
        .with_context(|| format!("no kernel in {}", folder.display()))
}

/// Runs a guest with these files until it has powered off; what its console shows.
pub fn run(image: &Path, files: Files, processors: Processors, patience: Duration) -> Result<String> {
    let folder = tempfile::tempdir()?;
    let archive = folder.path().join("initramfs");
    fs::write(&archive, files.finish())?;
    let mut qemu = Command::new(QEMU);
    qemu.args(["-accel", "tcg,thread=single", "-cpu", "max", "-m", "1024", "-display", "none", "-nodefaults"]);
    // On a busy machine the timer is late, which the kernel would take for a broken one.
    qemu.args(["-no-reboot", "-serial", "stdio", "-append", "console=ttyS0 panic=-1 quiet no_timer_check"]);
    qemu.args(match processors {
        Processors::Two => &["-smp", "2"][..],
        Processors::Counted => &["-smp", "1", "-icount", "shift=0,sleep=off"],
    });
    qemu.arg("-kernel").arg(image).arg("-initrd").arg(&archive);
    let mut qemu = qemu.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::inherit()).spawn().context(QEMU)?;
    let mut console = qemu.stdout.take().context("no console")?;
    let reader = thread::spawn(move || {
        let mut bytes = Vec::new();
        // What there is of a broken console is shown.
        let _ = console.read_to_end(&mut bytes);
        String::from_utf8_lossy(&bytes).replace('\r', "")
    });
    let ended = ends(&mut qemu, patience);
    if !ended {
        qemu.kill()?;
        qemu.wait()?;
    }
    let output = reader.join().unwrap_or_default();
    if !ended {
        bail!("the guest hangs:\n{output}");
    }
    Ok(output)
}

fn ends(qemu: &mut Child, patience: Duration) -> bool {
    let deadline = Instant::now() + patience;
    while Instant::now() < deadline {
        if !matches!(qemu.try_wait(), Ok(None)) {
            return true;
        }
        thread::sleep(Duration::from_millis(50));
    }
    false
}

/// The guest's files: a cpio archive, the "newc" kind that the kernel unpacks
/// (Documentation/driver-api/early-userspace/buffer-format.rst).
#[derive(Debug, Default)]
pub struct Files {
    bytes: Vec<u8>,
    names: Vec<String>,
    entries: u32,
}

impl Files {
    /// A system whose first process mounts what Linux programs expect, runs `script` by busybox' shell and powers off.
    pub fn new(script: &str) -> Result<Self> {
        let mut files = Self::default();
        for folder in ["bin", "proc", "sys", "dev", "tmp"] {
            files.folder(folder);
        }
        files.add("init", INIT.as_bytes(), 0o755);
        files.add("script", script.as_bytes(), 0o644);
        files.copy("bin/busybox", Path::new(BUSYBOX))?;
        Ok(files)
    }

    /// A program, without its debug information (nine tenths of it), and the shared libraries that it needs.
    pub fn program(&mut self, name: &str, from: &Path) -> Result<()> {
        self.stripped(name, from, "--strip-all")
    }

    /// The same, with the names of its functions.
    pub fn program_with_symbols(&mut self, name: &str, from: &Path) -> Result<()> {
        self.stripped(name, from, "--strip-debug")
    }

    fn stripped(&mut self, name: &str, from: &Path, how: &str) -> Result<()> {
        let stripped = tempfile::NamedTempFile::new()?.into_temp_path();
        let status = Command::new("strip").args([how, "-o"]).arg(&stripped).arg(from).status().context("strip")?;
        ensure!(status.success(), "{} cannot be stripped: {status}", from.display());
        self.add(name, &fs::read(&stripped)?, 0o755);
        for library in libraries(from)? {
            self.copy(library.to_string_lossy().trim_start_matches('/'), &library)?;
        }
        Ok(())
    }

    /// A file as it is.
    pub fn copy(&mut self, name: &str, from: &Path) -> Result<()> {
        let content = fs::read(from).with_context(|| from.display().to_string())?;
        self.add(name, &content, fs::metadata(from)?.permissions().mode());
        Ok(())
    }

    fn add(&mut self, name: &str, content: &[u8], mode: u32) {
        if let Some((folder, _)) = name.rsplit_once('/') {
            self.folder(folder);
        }
        self.entry(name, 0o100_000 | mode & 0o777, content);
    }

    /// The folder and those that it lies in.
    fn folder(&mut self, name: &str) {
        if let Some((parent, _)) = name.rsplit_once('/') {
            self.folder(parent);
        }
        self.entry(name, 0o040_755, &[]);
    }

    /// A name that is there already stays what it is: several programs need the same libraries.
    fn entry(&mut self, name: &str, mode: u32, content: &[u8]) {
        if self.names.iter().any(|known| known == name) {
            return;
        }
        self.names.push(name.to_owned());
        self.entries += 1;
        let name_len = name.len() as u32 + 1;
        // Number, mode, owner, group, links, time, size, device, device of a special file, name, checksum.
        let fields = [self.entries, mode, 0, 0, 1, 0, content.len() as u32, 0, 0, 0, 0, name_len, 0];
        self.bytes.extend(b"070701");
        for field in fields {
            self.bytes.extend(format!("{field:08x}").bytes());
        }
        self.bytes.extend(name.bytes().chain([0]));
        self.pad();
        self.bytes.extend(content);
        self.pad();
    }

    fn pad(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }

    fn finish(mut self) -> Vec<u8> {
        self.entry("TRAILER!!!", 0, &[]);
        self.bytes
    }
}

/// The guest's first process.
const INIT: &str = r#"#!/bin/busybox sh
/bin/busybox --install -s /bin
export PATH=/bin RUST_BACKTRACE=1
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs dev /dev
mount -t tmpfs tmp /tmp
ip link set lo up
echo "guest: Linux $(uname -r)"
. /script
echo "guest: exit code $?"
poweroff -f
"#;

/// The shared libraries that a program needs, the loader among them; none if it is linked statically.
fn libraries(program: &Path) -> Result<Vec<PathBuf>> {
    let output = Command::new("ldd").arg(program).output().context("ldd")?;
    let text = String::from_utf8(output.stdout)?;
    Ok(text.split_whitespace().filter(|word| word.starts_with('/')).map(PathBuf::from).collect())
}
