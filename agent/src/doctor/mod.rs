//! `coati-agent doctor`: what capture there would be on this node, and what the agent that runs on it has lost.
//!
//! [`examine`] asks the kernel, the agent and `/proc`; [`report`] is a pure function of what they say. Whether a kernel
//! runs a program is known only when it has been tried, so the programs are loaded and attached, and taken out again.

mod needed;
mod running;

use std::{fmt::Write as _, net::SocketAddr, path::Path, time::Duration};

use coati_common::limits;

use crate::{
    config::{Config, Switch},
    ebpf::{Options, Programs},
    kernel::{
        btf::Btf,
        features::{BTF_PATH, HookSet},
        offsets::Offsets,
    },
    privileges::{self, Later},
    telemetry::chain,
};
use needed::Privileges;
use running::{Agent, AgentError};

/// How long the agent that runs may take to answer.
const PATIENCE: Duration = Duration::from_secs(2);
/// The ring buffer of the trial: nobody reads it.
const TRIAL_RING_BYTES: u32 = 4096;
/// Losses and oddities that are listed at most.
const LISTED: usize = 24;

/// What was found out.
#[derive(Debug)]
struct Findings {
    /// As `uname` says.
    kernel: String,
    processors: usize,
    privileges: Privileges,
    /// What is kept once programs are attached.
    kept: String,
    types: Types,
    /// The hooks that the configuration asks for; `None` for the best.
    wanted: Option<HookSet>,
    trial: Trial,
    listen: SocketAddr,
    agent: Result<Agent, AgentError>,
}

/// The kernel's type information.
#[derive(Debug)]
enum Types {
    /// There is none, or it makes no sense: why.
    Unusable(String),
    /// Its bytes, and what cannot be told for want of a field.
    Usable(u64, Vec<&'static str>),
}

/// How it went to load and attach the programs.
#[derive(Debug)]
enum Trial {
    /// The hooks, what is watched by them, and what is not and why.
    Attached(HookSet, Vec<&'static str>, Vec<(&'static str, String)>),
    /// Why not.
    Failed(String),
}

/// What is printed, and whether capture would work.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Report {
    /// Lines.
    pub text: String,
    /// The programs could be attached.
    pub works: bool,
}

/// Looks at this node as the agent would with `config`.
pub fn examine(config: &Config) -> Report {
    let uname = rustix::system::uname();
    let part = |text: &std::ffi::CStr| text.to_string_lossy().into_owned();
    let (trial, kept) = trial(config);
    report(&Findings {
        kernel: format!("{} {} {}", part(uname.sysname()), part(uname.release()), part(uname.machine())),
        processors: std::thread::available_parallelism().map_or(1, usize::from),
        privileges: Privileges::of(&std::fs::read_to_string("/proc/self/status").unwrap_or_default()),
        kept,
        types: types(Path::new(BTF_PATH)),
        wanted: config.hooks.into(),
        trial,
        listen: config.listen,
        agent: Agent::ask(config.listen, PATIENCE),
    })
}

fn types(path: &Path) -> Types {
    let bytes = match std::fs::read(path) {
        Ok(bytes) => bytes,
        Err(error) => return Types::Unusable(error.to_string()),
    };
    let found = Btf::parse(&bytes).map_err(|error| chain(&error));
    match found.and_then(|btf| Offsets::find(&btf).map_err(|error| chain(&error))) {
        Ok(offsets) => Types::Usable(bytes.len() as u64, offsets.missing),
        Err(why) => Types::Unusable(why),
    }
}

/// How it went, and what capabilities would be kept.
fn trial(config: &Config) -> (Trial, String) {
    let options = Options {
        hooks: config.hooks.into(),
        tls: config.tls == Switch::Auto,
        cuda: config.cuda == Switch::Auto,
        ring_bytes: TRIAL_RING_BYTES,
        ..Options::default()
    };
    match Programs::load(&options) {
        Ok(mut programs) => {
            let has = privileges::held();
            let kept = match Later::of(&mut programs) {
                Ok(later) if later.lacks_probes(has) => {
                    let kept = privileges::names(later.needs(has));
                    format!("{kept}; this kernel wants CAP_SYS_ADMIN for probes in libraries (TLS, CUDA)")
                }
                Ok(later) => privileges::names(later.needs(has)),
                Err(error) => chain(&error),
            };
            let attached = programs.attached;
            (Trial::Attached(attached.hooks, attached.on, attached.off), kept)
        }
        Err(error) => (Trial::Failed(chain(&error)), String::new()),
    }
}

/// Lines of a subject each, with what belongs to it below.
#[derive(Default)]
struct Lines(String);

impl Lines {
    fn subject(&mut self, name: &str, text: &str) {
        let _ = writeln!(self.0, "{name:<11} {text}");
    }

    fn detail(&mut self, text: &str) {
        self.subject("", text);
    }
}

fn report(findings: &Findings) -> Report {
    let mut lines = Lines::default();
    lines.subject("kernel", &format!("{}, processors: {}", findings.kernel, findings.processors));
    of_privileges(&mut lines, &findings.privileges, &findings.kept);
    match &findings.types {
        Types::Unusable(why) => lines.subject("types", &format!("{BTF_PATH} cannot be used: {why}")),
        Types::Usable(bytes, missing) => {
            lines.subject("types", &format!("{BTF_PATH}, {} KiB", bytes / 1024));
            for what in missing {
                lines.detail(&format!("not there: {what}"));
            }
        }
    }
    let works = hooks(&mut lines, findings.wanted, &findings.trial);
    lines.subject(
        "ring",
        &format!("{} KiB, {} connections, {} threads", limits::RING_BYTES / 1024, limits::CONNECTIONS, limits::CALLS),
    );
    agent(&mut lines, findings.listen, &findings.agent);
    lines.subject("verdict", if works { "capture works here" } else { "capture does not work here" });
    Report { text: lines.0, works }
}

fn of_privileges(lines: &mut Lines, privileges: &Privileges, kept: &str) {
    let missing = privileges.missing();
    let all = if missing.is_empty() { "all that are needed" } else { "not all that are needed" };
    lines.subject("privileges", all);
    for (name, without) in missing {
        lines.detail(&format!("missing: {name}, for {without}"));
    }
    let kept = if kept.is_empty() { "none" } else { kept };
    lines.detail(&format!("kept when programs are attached: {kept}"));
}

fn hooks(lines: &mut Lines, wanted: Option<HookSet>, trial: &Trial) -> bool {
    let asked = wanted
        .map_or_else(|| "the best were asked for".to_owned(), |set| format!("only {} were asked for", set.name()));
    match trial {
        Trial::Attached(hooks, on, off) => {
            lines.subject("hooks", &format!("{} ({asked}; they were attached and taken out again)", hooks.name()));
            lines.detail(&format!("on: {}", on.join(" ")));
            for (name, why) in off {
                lines.detail(&format!("off: {name}, because {why}"));
            }
            true
        }
        Trial::Failed(why) => {
            lines.subject("hooks", &format!("none ({asked}): {why}"));
            false
        }
    }
}

fn agent(lines: &mut Lines, listen: SocketAddr, agent: &Result<Agent, AgentError>) {
    let agent = match agent {
        Ok(agent) => agent,
        Err(error) => return lines.subject("agent", &format!("none that answers at {listen}: {}", chain(error))),
    };
    let version = agent.version.as_deref().unwrap_or("of an unknown version");
    lines.subject("agent", &format!("{version} runs at {listen}, {}", agent.ready));
    lines.detail(&format!(
        "requests {}, spans {}, delivered {}, open now {}",
        agent.sum("coati_agent_exchanges_total"),
        agent.sum("coati_agent_spans_total"),
        agent.sum("coati_agent_spans_exported_total"),
        agent.sum("coati_agent_exchanges_open"),
    ));
    let groups = [
        ("lost", "coati_agent_losses_total"),
        ("dropped", "coati_agent_spans_dropped_total"),
        ("odd", "coati_agent_anomalies_total"),
    ];
    for (word, metric) in groups {
        let found = agent.by_cause(metric);
        if found.is_empty() {
            lines.detail(&format!("{word}: nothing"));
        }
        for (cause, count) in found.iter().take(LISTED) {
            lines.detail(&format!("{word}: {cause} {count}"));
        }
    }
}

#[cfg(test)]
mod tests;
