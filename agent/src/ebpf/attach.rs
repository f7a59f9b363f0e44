//! Attaching what was planned.

use std::collections::HashMap;

use aya::programs::{Program, ProgramError};
use aya::{Btf, BtfError, Ebpf};
use tracing::{info, warn};

use super::linked::Linked;
use super::load::{LoadError, Options};
use super::plan::{self, Group, Plan, Point, Probe, list, plan};
use crate::kernel::features::{Features, HookSet};
use crate::telemetry::chain;

/// What the programs for TLS libraries, for Go, for event loops, for Python, and for CUDA's library, are called.
const TLS: &str = "tls";
const GO: &str = "go";
const LOOPS: &str = "loops";
const PYTHON: &str = "python";
const CUDA: &str = "cuda";

/// What is watched.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Attached {
    /// How bytes are seen.
    pub hooks: HookSet,
    /// What each group of probes watches.
    pub on: Vec<&'static str>,
    /// What is not watched, and why.
    pub off: Vec<(&'static str, String)>,
}

impl Attached {
    /// Whether probes can be attached to TLS libraries.
    pub fn has_tls(&self) -> bool {
        self.on.contains(&TLS)
    }

    /// Whether probes can be attached to programs written in Go.
    pub fn has_go(&self) -> bool {
        self.on.contains(&GO)
    }

    /// Whether probes can be attached to programs with event loops.
    pub fn has_loops(&self) -> bool {
        self.on.contains(&LOOPS)
    }

    /// Whether probes can be attached to Python.
    pub fn has_python(&self) -> bool {
        self.on.contains(&PYTHON)
    }

    /// Whether probes can be attached to CUDA's driver library.
    pub fn has_cuda(&self) -> bool {
        self.on.contains(&CUDA)
    }

    /// One line that says what is on and what is off.
    pub(super) fn log(&self, missing: &[&'static str]) {
        let (hooks, on) = (self.hooks.name(), self.on.join(" "));
        if self.off.is_empty() && missing.is_empty() {
            info!(hooks, on, "kernel programs run");
        } else {
            let (off, missing) = (list(&self.off), missing.join(", "));
            warn!(hooks, on, off, missing, "kernel programs run, not all of them");
        }
    }
}

/// Attaches the best hooks that work: what a kernel refuses to run is known only when it has been tried, and then
/// there is another plan. A group that is refused is left out, unless nothing works without it. The programs for
/// libraries are loaded if they are wanted, and attached to files later.
pub(super) fn attach(
    ebpf: &mut Ebpf,
    linked: Option<&Linked>,
    mut features: Features,
    options: &Options,
) -> Result<Attached, LoadError> {
    let mut attacher = Attacher { ebpf, linked, loaded: HashMap::new(), kernel: None };
    let mut has_base = false;
    loop {
        let Plan { hooks, base, on, mut off } = plan(&features, options.hooks)?;
        if !has_base {
            for group in &base {
                attacher.group(group).map_err(|why| LoadError::Refused { what: group.name, why })?;
            }
            has_base = true;
        }
        match attacher.hooks(&on, &mut off) {
            Ok(names) => {
                let mut on: Vec<_> = base.iter().map(|group| group.name).chain(names).collect();
                let libraries = [
                    (TLS, options.tls, plan::tls as fn(&Features) -> Result<Group, String>),
                    (GO, options.tls, plan::go),
                    (LOOPS, options.tls, plan::loops),
                    (PYTHON, options.tls, plan::python),
                    (CUDA, options.cuda, plan::cuda),
                ];
                for (name, _, group) in libraries.into_iter().filter(|(_, is_wanted, _)| *is_wanted) {
                    match group(&features).and_then(|group| attacher.group(&group)) {
                        Ok(()) => on.push(name),
                        Err(why) => off.push((name, why)),
                    }
                }
                return Ok(Attached { hooks, on, off });
            }
            Err(why) => features.refused.insert(hooks, why),
        };
    }
}

struct Attacher<'a> {
    ebpf: &'a mut Ebpf,
    /// What is loaded already.
    linked: Option<&'a Linked>,
    /// What became of each program so far: several groups share one.
    loaded: HashMap<&'static str, Result<(), String>>,
    /// The kernel's type information, read when it is first needed: it takes tens of megabytes.
    kernel: Option<Btf>,
}

impl Attacher<'_> {
    /// Attaches the groups of a set; what was refused joins `off`. If that is something needed, nothing is left behind.
    fn hooks(&mut self, groups: &[Group], off: &mut Vec<(&'static str, String)>) -> Result<Vec<&'static str>, String> {
        let mut on = Vec::new();
        for group in groups {
            match self.group(group) {
                Ok(()) => on.push(group.name),
                Err(why) if group.is_needed => {
                    for group in groups {
                        self.unload(group);
                    }
                    return Err(format!("{}: {why}", group.name));
                }
                Err(why) => {
                    off.push((group.name, why));
                }
            }
        }
        Ok(on)
    }

    fn group(&mut self, group: &Group) -> Result<(), String> {
        for probe in &group.probes {
            let loaded = match self.loaded.get(probe.program) {
                Some(loaded) => loaded.clone(),
                None => self.load(probe).map_err(|error| refusal(&error)),
            };
            self.loaded.insert(probe.program, loaded.clone());
            loaded?;
        }
        for Probe { program, point } in &group.probes {
            let program = self.ebpf.program_mut(program).ok_or_else(|| format!("no program {program}"))?;
            at(program, *point).map_err(|error| chain(&error))?;
        }
        Ok(())
    }

    fn load(&mut self, probe: &Probe) -> Result<(), TryError> {
        let Self { ebpf, kernel, linked, .. } = self;
        let program = ebpf.program_mut(probe.program).ok_or(TryError::NoProgram { name: probe.program })?;
        match (program, probe.point) {
            (Program::TracePoint(program), _) => program.load()?,
            (Program::RawTracePoint(program), _) => program.load()?,
            (Program::KProbe(program), _) => program.load()?,
            (Program::UProbe(_), _) if linked.is_some_and(|linked| linked.get(probe.program).is_some()) => {}
            (Program::UProbe(program), _) => program.load()?,
            (Program::FEntry(program), Point::FunctionEntry(name)) => program.load(name, types(kernel)?)?,
            (Program::FExit(program), Point::FunctionExit(name)) => program.load(name, types(kernel)?)?,
            _ => return Err(ProgramError::UnexpectedProgramType.into()),
        }
        Ok(())
    }

    /// Takes the programs of a group out of the kernel, attached or not.
    fn unload(&mut self, group: &Group) {
        for Probe { program: name, .. } in &group.probes {
            if self.loaded.remove(name) != Some(Ok(())) {
                continue;
            }
            let unloaded = match self.ebpf.program_mut(name) {
                Some(Program::TracePoint(program)) => program.unload(),
                Some(Program::KProbe(program)) => program.unload(),
                Some(Program::FEntry(program)) => program.unload(),
                Some(Program::FExit(program)) => program.unload(),
                _ => continue,
            };
            if let Err(error) = unloaded {
                warn!(program = name, error = chain(&error), "a kernel program that is not used stays loaded");
            }
        }
    }
}

/// The kernel's type information as the loader wants it.
fn types(kernel: &mut Option<Btf>) -> Result<&Btf, BtfError> {
    match kernel {
        Some(kernel) => Ok(kernel),
        None => Ok(kernel.insert(Btf::from_sys_fs()?)),
    }
}

/// Why a program cannot be used.
#[derive(Debug, thiserror::Error)]
enum TryError {
    #[error("no program {name}")]
    NoProgram { name: &'static str },
    #[error("the kernel's type information is not understood")]
    Types(#[from] BtfError),
    #[error(transparent)]
    Program(#[from] ProgramError),
}

fn at(program: &mut Program, point: Point) -> Result<(), ProgramError> {
    match (program, point) {
        (Program::TracePoint(program), Point::Enter(call)) => {
            program.attach("syscalls", &format!("sys_enter_{call}")).map(drop)
        }
        (Program::TracePoint(program), Point::Exit(call)) => {
            program.attach("syscalls", &format!("sys_exit_{call}")).map(drop)
        }
        (Program::RawTracePoint(program), Point::Raw(_, name)) => program.attach(name).map(drop),
        (Program::FEntry(program), Point::FunctionEntry(_)) => program.attach().map(drop),
        (Program::FExit(program), Point::FunctionExit(_)) => program.attach().map(drop),
        (Program::KProbe(program), Point::Kprobe(name)) => program.attach(name, 0).map(drop),
        (Program::UProbe(_), Point::Files) => Ok(()),
        _ => Err(ProgramError::UnexpectedProgramType),
    }
}

/// Why a program cannot be loaded, in one line: of what the verifier says, the last one but its statistics.
fn refusal(error: &TryError) -> String {
    let TryError::Program(ProgramError::LoadError { io_error, verifier_log }) = error else { return chain(error) };
    let log = verifier_log.to_string();
    let is_statistics =
        |line: &&str| ["processed ", "verification time", "stack depth"].iter().any(|it| line.starts_with(it));
    match log.lines().rev().find(|line| !line.is_empty() && !is_statistics(line)) {
        Some(line) => format!("{io_error}; the verifier: {line}"),
        None => io_error.to_string(),
    }
}
