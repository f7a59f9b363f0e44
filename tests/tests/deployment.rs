//! Guarantee: what `deploy/` says is valid, and the programs work with the privileges that it gives to them and no others.

#![expect(clippy::indexing_slicing, reason = "indexing JSON gives null, it never panics")]

use std::collections::BTreeSet;
use std::fs;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use coati_tests::backend::Backend;
use coati_tests::front::Front;
use coati_tests::http;
use coati_tests::manifests::{folder, list, object, objects, render, text};
use coati_tests::privileges;
use coati_tests::process::{self, Running, free_port};
use coati_tests::sample::{Sample, Server};
use coati_tests::seen::spans_of;
use coati_tests::tools::{binaries, binary, system, tool, workspace};
use rstest::rstest;
use serde_json::{Value, json};

const OVERLAYS: [&str; 5] = ["base", "overlays/otlp", "overlays/ringtail", "overlays/s3", "overlays/tls"];

/// Definitions of the Prometheus operator, which Kubernetes does not know.
fn is_custom(object: &Value) -> bool {
    text(object, "/apiVersion").starts_with("monitoring.coreos.com/")
}

/// Fails unless Kubernetes knows every field of a file.
fn validate(file: &Path) -> Result<()> {
    let output =
        Command::new(tool("python/bin/kubernetes-validate")?).args(["--strict", "--quiet"]).arg(file).output()?;
    let said = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
    ensure!(output.status.success(), "{}: {said}", file.display());
    Ok(())
}

#[test]
fn every_overlay_renders_and_every_field_is_one_of_kubernetes() -> Result<()> {
    let files = tempfile::tempdir()?;
    let mut all = Vec::new();
    for overlay in OVERLAYS {
        let objects = objects(&render(overlay)?)?;
        is_consistent(&objects).with_context(|| overlay.to_owned())?;
        all.extend(objects.into_iter().filter(|object| !is_custom(object)));
    }
    // One call for all: starting Python is what takes the time.
    let write = |name: &str, objects: &[Value]| -> Result<PathBuf> {
        let file = files.path().join(name);
        let texts = objects.iter().map(Value::to_string).collect::<Vec<_>>();
        fs::write(&file, texts.join("\n---\n"))?;
        Ok(file)
    };
    validate(&write("all.yaml", &all)?)?;
    // It can fail.
    let mut spoiled =
        object(&all, "StatefulSet", "coati-backend").or_else(|_| all.first().context("no objects"))?.clone();
    spoiled["spec"]["securityContex"] = json!({});
    ensure!(validate(&write("spoiled.yaml", &[spoiled])?).is_err(), "an unknown field passes");
    Ok(())
}

/// What no schema tells: names that objects use of each other are there.
fn is_consistent(objects: &[Value]) -> Result<()> {
    let daemon = object(objects, "DaemonSet", "coati-agent")?;
    let stateful = object(objects, "StatefulSet", "coati-backend")?;
    for workload in [daemon, stateful] {
        let labels = &workload["spec"]["template"]["metadata"]["labels"];
        ensure!(workload["spec"]["selector"]["matchLabels"] == *labels, "selector of {}", workload["metadata"]["name"]);
        let pod = &workload["spec"]["template"]["spec"];
        object(objects, "ServiceAccount", text(pod, "/serviceAccountName"))?;
        for volume in list(pod, "/volumes").iter().filter(|volume| volume.get("configMap").is_some()) {
            object(objects, "ConfigMap", text(volume, "/configMap/name"))?;
        }
        let container = &pod["containers"][0];
        ensure!(text(container, "/image").contains(':'), "an image without a version: {}", container["image"]);
        let named = |name: &str| list(container, "/ports").iter().any(|port| port["name"] == name);
        let services = objects.iter().filter(|object| object["kind"] == "Service");
        for service in services.filter(|service| service["spec"]["selector"] == *labels) {
            for port in list(service, "/spec/ports") {
                ensure!(named(text(port, "/targetPort")), "no port {} in {}", port["targetPort"], workload["kind"]);
            }
        }
        for probe in ["startupProbe", "readinessProbe", "livenessProbe"] {
            ensure!(named(text(&container[probe], "/httpGet/port")), "the port of {probe}");
        }
        ensure!(container["securityContext"]["privileged"] != json!(true), "privileged");
        ensure!(container["securityContext"]["readOnlyRootFilesystem"] == json!(true), "a root that can be written");
    }
    let selected = |kind: &str, pointer: &str| -> Result<()> {
        let template = &stateful["spec"]["template"]["metadata"]["labels"];
        let object = object(objects, kind, "coati-backend")?;
        ensure!(object.pointer(pointer) == Some(template), "{kind} is for {:?}", object.pointer(pointer));
        Ok(())
    };
    selected("PodDisruptionBudget", "/spec/selector/matchLabels")?;
    selected("NetworkPolicy", "/spec/podSelector/matchLabels")?;
    let service = text(stateful, "/spec/serviceName");
    object(objects, "Service", service)?;
    let storage = stateful.pointer("/spec/volumeClaimTemplates/0/spec/resources/requests/storage");
    ensure!(storage == Some(&json!("10Gi")), "volume: {storage:?}");
    let rules = json!([{"apiGroups": [""], "resources": ["pods", "services"], "verbs": ["get", "list", "watch"]}]);
    ensure!(object(objects, "ClusterRole", "coati-agent")?["rules"] == rules, "the agent may do other things");
    for monitor in objects.iter().filter(|object| object["kind"] == "ServiceMonitor") {
        let is_for = |service: &&Value| {
            service["kind"] == "Service"
                && service["metadata"]["labels"]["app.kubernetes.io/name"]
                    == monitor["spec"]["selector"]["matchLabels"]["app.kubernetes.io/name"]
        };
        let mut services = objects.iter().filter(is_for);
        let service = services.next().context("a monitor of nothing")?;
        ensure!(services.next().is_none(), "a monitor of several services would count twice");
        for endpoint in list(monitor, "/spec/endpoints") {
            let has = list(service, "/spec/ports").iter().any(|port| port["name"] == endpoint["port"]);
            ensure!(has, "no port {}", endpoint["port"]);
        }
    }
    Ok(())
}

/// How a container of a manifest runs.
struct Contained {
    user: u64,
    group: u64,
    capabilities: Vec<String>,
    /// Where volumes are that it may write to.
    writable: Vec<String>,
    /// Its configuration, as the config map has it.
    config: String,
}

fn contained(kind: &str, name: &str, key: &str) -> Result<Contained> {
    let objects = objects(&render("base")?)?;
    let workload = object(&objects, kind, name)?;
    let pod = &workload["spec"]["template"]["spec"];
    let own = &pod["containers"][0]["securityContext"];
    ensure!(own["allowPrivilegeEscalation"] == json!(false) && own["capabilities"]["drop"] == json!(["ALL"]), "{own}");
    let number = |key: &str| {
        own[key].as_u64().or_else(|| pod["securityContext"][key].as_u64()).with_context(|| format!("no {key}"))
    };
    let add = list(own, "/capabilities/add").iter().filter_map(Value::as_str);
    let mounts = list(&pod["containers"][0], "/volumeMounts").iter();
    let writable = mounts.filter(|mount| mount["readOnly"] != json!(true));
    let config = &object(&objects, "ConfigMap", name)?["data"][key];
    Ok(Contained {
        user: number("runAsUser")?,
        group: number("runAsGroup")?,
        capabilities: add.map(str::to_lowercase).collect(),
        writable: writable.map(|mount| text(mount, "/mountPath").to_owned()).collect(),
        config: config.as_str().context("no configuration")?.to_owned(),
    })
}

impl Contained {
    /// The command that runs `program` so: as this user, with these capabilities at most, unable to get others, on a root
    /// that cannot be written but for `writable`.
    fn command(&self, program: &Path, arguments: &[String], writable: &Path) -> Result<Command> {
        let wanted = self.capabilities.iter().map(|name| format!("+{name}"));
        let set = std::iter::once("-all".to_owned()).chain(wanted).collect::<Vec<_>>().join(",");
        let script = "mount --bind \"$1\" \"$1\" && mount -o remount,bind,ro / && shift && exec \"$@\"";
        let mut command = Command::new(system("unshare")?);
        command.args(["--mount", "--propagation", "private", "sh", "-c", script, "sh"]).arg(writable);
        command.arg(system("setpriv")?).args(["--no-new-privs", "--clear-groups"]);
        command.arg(format!("--reuid={}", self.user)).arg(format!("--regid={}", self.group));
        command.arg(format!("--bounding-set={set}")).arg(format!("--inh-caps={set}"));
        // Who is not root has only what is handed on.
        command.arg(format!("--ambient-caps={set}")).arg(program).args(arguments);
        Ok(command)
    }
}

fn arguments(of: &[(&str, String)]) -> Vec<String> {
    of.iter().flat_map(|(flag, value)| [(*flag).to_owned(), value.clone()]).collect()
}

#[test]
fn the_agent_captures_with_the_capabilities_of_its_daemon_set() -> Result<()> {
    let folder = process::folder()?;
    let contained = contained("DaemonSet", "coati-agent", "agent.yaml")?;
    ensure!(
        contained.capabilities == ["bpf", "perfmon", "sys_ptrace", "dac_read_search"],
        "{:?}",
        contained.capabilities
    );
    let config = folder.path().join("agent.yaml");
    let empty = folder.path().join("empty");
    fs::create_dir(&empty)?;
    // The only thing that it may write to stands for the node's folder.
    ensure!(contained.writable == ["/var/lib/coati-agent"], "{:?}", contained.writable);
    let state = empty.display().to_string();
    fs::write(&config, contained.config.replace("/var/lib/coati-agent", &state))?;
    let backend = Backend::start(folder.path(), &[])?;
    // Its workers are another user's, and its files are.
    let sample = Sample::start_only(&folder.path().join("sample"), &[Server::Nginx])?;
    let front = Front::start(folder.path(), sample.address(Server::Nginx))?;
    let listen = SocketAddr::from((Ipv4Addr::LOCALHOST, free_port()?));
    let flags = arguments(&[
        ("--config", config.display().to_string()),
        ("--otlp-endpoint", format!("http://{}", backend.grpc)),
        ("--listen", listen.to_string()),
    ]);
    let program = binary(&binaries(), "coati-agent")?;

    let doctor = [vec!["doctor".to_owned()], flags.clone()].concat();
    let doctor = contained.command(&program, &doctor, &empty)?.output()?;
    let said = String::from_utf8_lossy(&doctor.stdout).into_owned();
    ensure!(
        doctor.status.success() && !said.contains("missing: CAP_"),
        "doctor: {said}{}",
        String::from_utf8_lossy(&doctor.stderr)
    );

    let mut agent = Running::start("coati-agent", folder.path(), &mut contained.command(&program, &flags, &empty)?)?;
    let ready = format!("http://{listen}/readyz");
    agent.wait_for("ready agent", Duration::from_secs(20), |_| {
        http::get(&ready).is_ok_and(|answer| answer.status == 200).then_some(())
    })?;
    privileges::assert_given_away(agent.id())?;

    http::get(&format!("{}/hello.txt", sample.url(Server::Nginx)))?;
    let query = "{ kind = server && span.url.path = \"/hello.txt\" }";
    ensure!(backend.wait_for_count(query, 1, Duration::from_secs(10))? == 1, "no span:\n{}", agent.output());
    let spans = spans_of(&backend, query)?;
    let span = spans.iter().find(|span| span.kind == "SPAN_KIND_SERVER").context("no span")?;
    ensure!(span.service() == "nginx", "service {:?}: {span:?}", span.service());
    if privileges::has_probe_links()? {
        let is_probed = |log: &str| log.contains("probes are in a library").then_some(());
        agent.wait_for("probes in nginx's library", Duration::from_secs(10), is_probed)?;
        let mut curl = Command::new(system("curl")?);
        curl.args(["--silent", "--show-error", "--fail", "--cacert"]).arg(&front.authority);
        let answer = curl.arg(format!("https://{}/hello.txt?tls", front.tls)).output()?;
        ensure!(answer.status.success(), "curl: {}", String::from_utf8_lossy(&answer.stderr));
        let query = "{ kind = server && span.url.path = \"/hello.txt\" && span.url.scheme = \"https\" }";
        let found = backend.wait_for_count(query, 1, Duration::from_secs(10))?;
        ensure!(found == 1, "under TLS {found} spans:\n{}", agent.output());
    } else {
        println!("SKIPPED: this kernel has no links for probes in files; not covered: TLS with the four capabilities");
    }
    ensure!(empty.join("export-queue").is_dir(), "no queue on disk:\n{}", agent.output());
    ensure!(agent.stop()?.success(), "it did not end well:\n{}", agent.output());
    Ok(())
}

#[test]
fn the_backend_works_as_the_user_of_its_stateful_set() -> Result<()> {
    let folder = process::folder()?;
    let contained = contained("StatefulSet", "coati-backend", "backend.yaml")?;
    ensure!(
        contained.user != 0 && contained.capabilities.is_empty(),
        "{} {:?}",
        contained.user,
        contained.capabilities
    );
    // Where the binary is built another user may not come.
    let program = folder.path().join("coati-backend");
    fs::copy(binary(&binaries(), "coati-backend")?, &program)?;
    let config = folder.path().join("backend.yaml");
    fs::write(&config, &contained.config)?;
    // As `fsGroup` leaves a new volume.
    let data = folder.path().join("data");
    fs::create_dir(&data)?;
    let script = "chgrp \"$1\" \"$2\" && chmod 2775 \"$2\"";
    let group = contained.group.to_string();
    let status = Command::new("sh").args(["-c", script, "sh", &group]).arg(&data).status()?;
    ensure!(status.success(), "chgrp: {status}");

    let [api, grpc, otlp_http] = [free_port()?, free_port()?, free_port()?].map(|port| format!("127.0.0.1:{port}"));
    let flags = arguments(&[
        ("--config", config.display().to_string()),
        ("--data-dir", data.display().to_string()),
        ("--api-listen", api.clone()),
        ("--otlp-grpc-listen", grpc),
        ("--otlp-http-listen", otlp_http),
    ]);
    let mut backend = Running::start("coati-backend", folder.path(), &mut contained.command(&program, &flags, &data)?)?;
    let ready = format!("http://{api}/ready");
    backend.wait_for("ready backend", Duration::from_secs(20), |_| {
        http::get(&ready).is_ok_and(|answer| answer.status == 200).then_some(())
    })?;
    ensure!(data.join("wal").is_dir(), "nothing was written");
    ensure!(backend.stop()?.success(), "it did not end well:\n{}", backend.output());
    Ok(())
}

/// The value of a key of a unit; of a key that is there several times, the values in a row.
fn values(unit: &str, key: &str) -> String {
    let values = unit.lines().filter_map(|line| line.strip_prefix(key)?.strip_prefix('='));
    values.collect::<Vec<_>>().join(" ")
}

/// systemd's units: it knows every key, finds little to do better, and the agent has the same capabilities as in Kubernetes.
#[rstest]
#[case("coati-agent", 4.0)]
#[case("coati-backend", 1.5)]
fn units_are_hardened(#[case] name: &str, #[case] exposure: f64) -> Result<()> {
    let folder = tempfile::tempdir()?;
    let source = workspace().join(format!("deploy/systemd/{name}.service"));
    let unit = fs::read_to_string(&source)?;
    // The program must be where the unit says.
    let program = binary(&binaries(), name)?;
    let unit = unit.replace(&format!("/usr/local/bin/{name}"), &program.display().to_string());
    let file = folder.path().join(format!("{name}.service"));
    fs::write(&file, &unit)?;
    let verify = Command::new(system("systemd-analyze")?)
        .args(["verify", "--man=no", "--recursive-errors=no"])
        .arg(&file)
        .output()?;
    let said = String::from_utf8_lossy(&verify.stderr).into_owned();
    ensure!(verify.status.success() && !said.contains(name), "verify: {said}");

    let mut security = Command::new(system("systemd-analyze")?);
    let threshold = format!("--threshold={}", exposure * 10.0);
    let security = security.args(["security", "--offline=yes", "--no-pager", &threshold]).arg(&file).output()?;
    let said = String::from_utf8_lossy(&security.stdout).into_owned();
    ensure!(security.status.success(), "more exposed than {exposure}:\n{said}");

    let kind = if name == "coati-agent" { "DaemonSet" } else { "StatefulSet" };
    let contained = contained(kind, name, &format!("{}.yaml", name.trim_start_matches("coati-")))?;
    let wanted: BTreeSet<String> =
        contained.capabilities.iter().map(|name| format!("CAP_{}", name.to_uppercase())).collect();
    let bounding: BTreeSet<String> =
        values(&unit, "CapabilityBoundingSet").split_whitespace().map(str::to_owned).collect();
    ensure!(bounding == wanted, "capabilities: {bounding:?}, not {wanted:?}");
    Ok(())
}

/// No Docker engine is here to build them: what can be read of them is right.
#[rstest]
#[case("agent", "0:0")]
#[case("backend", "65532:65532")]
fn docker_files_build_what_is_released(#[case] name: &str, #[case] user: &str) -> Result<()> {
    let file = fs::read_to_string(workspace().join(format!("deploy/docker/{name}.Dockerfile")))?;
    let (mut stages, mut base) = (BTreeSet::new(), "");
    for line in file.lines() {
        let mut words = line.split_whitespace();
        match words.next() {
            Some("FROM") => {
                base = words.next().context("FROM what?")?;
                if words.next() == Some("AS") {
                    stages.insert(words.next().context("AS what?")?);
                }
            }
            Some("COPY") => {
                for from in words.filter_map(|word| word.strip_prefix("--from=")) {
                    ensure!(stages.contains(from), "no stage {from}");
                }
            }
            _ => {}
        }
    }
    ensure!(base == "scratch", "the last stage is {base}");
    ensure!(file.contains(&format!("\nUSER {user}\n")), "USER {user}");
    ensure!(file.contains(&format!("\nENTRYPOINT [\"/usr/bin/coati-{name}\"]\n")), "ENTRYPOINT");
    ensure!(file.contains("cargo xtask dist --roots"), "it is not built as the release is");
    let ports = file.lines().filter(|line| line.starts_with("EXPOSE")).collect::<Vec<_>>().join(" ");
    let exposed: BTreeSet<&str> = ports.split_whitespace().filter(|word| *word != "EXPOSE").collect();
    let text = render("base")?;
    let objects = objects(&text)?;
    let kind = if name == "agent" { "DaemonSet" } else { "StatefulSet" };
    let ports = list(object(&objects, kind, &format!("coati-{name}"))?, "/spec/template/spec/containers/0/ports");
    let wanted: BTreeSet<String> = ports.iter().map(|port| port["containerPort"].to_string()).collect();
    ensure!(exposed.iter().map(|port| (*port).to_owned()).collect::<BTreeSet<_>>() == wanted, "ports: {exposed:?}");
    ensure!(folder("base").is_dir(), "no manifests");
    Ok(())
}
