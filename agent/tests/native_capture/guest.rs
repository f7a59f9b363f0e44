//! The same tests on other kernels: this very program is the payload of virtual machines that boot them.
//!
//! `cargo xtask setup` puts Debian's kernels into `target/tools/kernels` and installs QEMU. No disk and no network: an
//! initramfs with this program, the libraries that it needs and busybox, and a serial console that tells the result.

use std::fs;
use std::io::{Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use rstest::rstest;

use crate::watch::HOOKS;

/// Set by `cargo xtask test`: a guest that cannot be started is a failure then.
const REQUIRED: &str = "COATI_TEST_GUESTS";

/// A guest that takes longer hangs. It takes about 20 s when it has a processor for itself.
const PATIENCE: Duration = Duration::from_secs(500);

/// What runs in the guest: what differs between hooks and between kernels, and not what takes long when every
/// instruction is interpreted.
const TESTS: [&str; 17] = [
    "functions::",
    "system_calls::several_buffers",
    "system_calls::peeking",
    "system_calls::bytes_from_files",
    "system_calls::a_first_request_that_fails",
    "exchanges::both_ends",
    "exchanges::ipv6",
    "exchanges::a_connection_from_before",
    "exchanges::long_responses",
    "exchanges::other_protocols",
    "http2::frames_are_told",
    "http2::a_connection_from_before",
    "closing::resets",
    "closing::half_a_close",
    "processes::the_end_of_a_thread",
    "tails::the_end_of_a_large",
    "tails::the_end_of_a_long",
];

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
. /parameters
/payload --test-threads=1 $TESTS
echo "guest: exit code $?"
poweroff -f
"#;

#[rstest]
#[case::linux_6_1_fentry("6.1", "fentry")]
#[case::linux_6_1_kprobe("6.1", "kprobe")]
#[case::linux_6_1_syscall("6.1", "syscall")]
#[case::linux_6_12_fentry("6.12", "fentry")]
#[case::linux_6_12_kprobe("6.12", "kprobe")]
#[case::linux_6_12_syscall("6.12", "syscall")]
fn the_tests_pass_in_a_guest(#[case] kernel: &str, #[case] hooks: &str) {
    let image = match prepared(kernel) {
        Ok(image) => image,
        Err(why) if std::env::var_os(REQUIRED).is_none() => {
            println!("SKIPPED: no guest can be started ({why}; `cargo xtask setup`); not covered: {hooks} on {kernel}");
            return;
        }
        Err(why) => panic!("no guest can be started: {why}"),
    };
    let folder = tempfile::tempdir().unwrap();
    let archive = folder.path().join("initramfs");
    fs::write(&archive, initramfs(hooks, folder.path())).unwrap();
    let output = run(&image, &archive);
    println!("{output}");
    assert!(output.contains(&format!("guest: Linux {kernel}.")), "another kernel was started");
    assert!(output.contains("guest: exit code 0"), "tests failed in the guest");
    let summary = output.lines().find_map(|line| line.strip_prefix("test result: ok. ")).unwrap();
    let passed: usize = summary.split(' ').next().unwrap().parse().unwrap();
    assert!(passed >= TESTS.len(), "{passed} tests ran");
}

/// The kernel's image, if there is all that a guest takes.
fn prepared(kernel: &str) -> Result<PathBuf, String> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/tools/kernels").join(kernel).join("boot");
    for program in ["/usr/bin/qemu-system-x86_64", "/bin/busybox"] {
        if !Path::new(program).exists() {
            return Err(format!("no {program}"));
        }
    }
    let entries = fs::read_dir(&folder).map_err(|error| format!("{}: {error}", folder.display()))?;
    let mut files = entries.flatten().map(|entry| entry.path());
    files
        .find(|path| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("vmlinuz")))
        .ok_or_else(|| format!("no kernel in {}", folder.display()))
}

/// Runs the guest until it has powered off; what its console shows.
fn run(image: &Path, archive: &Path) -> String {
    let mut qemu = Command::new("/usr/bin/qemu-system-x86_64")
        // Interpreted, so that it runs, and runs the same, on machines without virtualisation; by one thread, because
        // one processor may patch code that another is about to run, which QEMU's several threads get wrong.
        .args(["-accel", "tcg,thread=single", "-cpu", "max", "-smp", "2", "-m", "1024", "-display", "none"])
        .args(["-nodefaults", "-no-reboot", "-serial", "stdio", "-append", "console=ttyS0 panic=-1 quiet"])
        .arg("-kernel")
        .arg(image)
        .arg("-initrd")
        .arg(archive)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::inherit())
        .spawn()
        .unwrap();
    let mut console = qemu.stdout.take().unwrap();
    let reader = thread::spawn(move || {
        let mut bytes = Vec::new();
        console.read_to_end(&mut bytes).unwrap();
        String::from_utf8_lossy(&bytes).replace('\r', "")
    });
    if !ends(&mut qemu) {
        qemu.kill().unwrap();
        qemu.wait().unwrap();
        panic!("the guest hangs:\n{}", reader.join().unwrap());
    }
    reader.join().unwrap()
}

fn ends(qemu: &mut Child) -> bool {
    let deadline = Instant::now() + PATIENCE;
    while Instant::now() < deadline {
        if qemu.try_wait().unwrap().is_some() {
            return true;
        }
        thread::sleep(Duration::from_millis(50));
    }
    false
}

/// The guest's files.
fn initramfs(hooks: &str, scratch: &Path) -> Vec<u8> {
    let own = std::env::current_exe().unwrap();
    let payload = scratch.join("payload");
    // The debug information is nine tenths of it.
    assert!(Command::new("strip").arg("-o").arg(&payload).arg(&own).status().unwrap().success());
    let parameters = format!("export {HOOKS}={hooks}\nTESTS='{}'\n", TESTS.join(" "));
    let mut archive = Archive::default();
    for folder in ["bin", "proc", "sys", "dev", "tmp"] {
        archive.folder(folder);
    }
    archive.file("init", INIT.as_bytes(), 0o755);
    archive.file("parameters", parameters.as_bytes(), 0o644);
    archive.copy("bin/busybox", Path::new("/bin/busybox"));
    archive.copy("payload", &payload);
    for library in libraries(&own) {
        archive.copy(library.to_str().unwrap().trim_start_matches('/'), &library);
    }
    archive.finish()
}

/// The shared libraries that a program needs, the loader among them.
fn libraries(program: &Path) -> Vec<PathBuf> {
    let output = Command::new("ldd").arg(program).output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    text.split_whitespace().filter(|word| word.starts_with('/')).map(PathBuf::from).collect()
}

/// A cpio archive, the "newc" kind that the kernel unpacks (Documentation/driver-api/early-userspace/buffer-format.rst).
#[derive(Default)]
struct Archive {
    bytes: Vec<u8>,
    folders: Vec<String>,
    entries: u32,
}

impl Archive {
    fn copy(&mut self, name: &str, from: &Path) {
        let mode = fs::metadata(from).unwrap().permissions().mode();
        self.file(name, &fs::read(from).unwrap(), mode);
    }

    fn file(&mut self, name: &str, content: &[u8], mode: u32) {
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
        if !self.folders.iter().any(|folder| folder == name) {
            self.folders.push(name.to_owned());
            self.entry(name, 0o040_755, &[]);
        }
    }

    fn entry(&mut self, name: &str, mode: u32, content: &[u8]) {
        self.entries += 1;
        let name_len = name.len() as u32 + 1;
        // Number, mode, owner, group, links, time, size, device, device of a special file, name, checksum.
        let fields = [self.entries, mode, 0, 0, 1, 0, content.len() as u32, 0, 0, 0, 0, name_len, 0];
        write!(self.bytes, "070701").unwrap();
        for field in fields {
            write!(self.bytes, "{field:08x}").unwrap();
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
