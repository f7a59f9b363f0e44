//! Attaching what was planned.

use std::collections::HashMap;
use std::error::Error;

use aya::Ebpf;
use aya::programs::{Program, ProgramError};
use tracing::{info, warn};

use super::load::LoadError;
use super::plan::{Group, Plan, Point, Probe};

/// What is watched.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Attached {
    /// What each group of probes watches.
    pub on: Vec<&'static str>,
    /// What is not watched, and why.
    pub off: Vec<(&'static str, String)>,
}

impl Attached {
    /// One line that says what is on and what is off.
    pub(super) fn log(&self, missing: &[&'static str]) {
        let on = self.on.join(" ");
        let off: Vec<_> = self.off.iter().map(|(name, why)| format!("{name} ({why})")).collect();
        if off.is_empty() && missing.is_empty() {
            info!(on, "kernel programs run");
        } else {
            warn!(on, off = off.join(", "), missing = missing.join(", "), "kernel programs run, not all of them");
        }
    }
}

/// Loads and attaches every group of `plan`. One that the kernel refuses is left out, unless nothing works without it.
pub(super) fn attach(ebpf: &mut Ebpf, plan: Plan) -> Result<Attached, LoadError> {
    let mut attached = Attached { on: Vec::new(), off: plan.off };
    let mut loaded = HashMap::new();
    for group in plan.on {
        match attach_group(ebpf, &group, &mut loaded) {
            Ok(()) => attached.on.push(group.name),
            Err(why) if is_needed(group.name) => return Err(LoadError::Refused { what: group.name, why }),
            Err(why) => attached.off.push((group.name, why)),
        }
    }
    Ok(attached)
}

/// Without these nothing can be told, or it would be wrong.
fn is_needed(group: &str) -> bool {
    matches!(group, "connections" | "processes" | "write" | "read" | "sendto" | "recvfrom")
}

/// `loaded` holds what became of each program so far: several groups share one.
fn attach_group(
    ebpf: &mut Ebpf,
    group: &Group,
    loaded: &mut HashMap<&'static str, Result<(), String>>,
) -> Result<(), String> {
    for probe in &group.probes {
        let program = ebpf.program_mut(probe.program).ok_or_else(|| format!("no program {}", probe.program))?;
        loaded.entry(probe.program).or_insert_with(|| load(program).map_err(|error| chain(&error))).clone()?;
    }
    for Probe { program, point } in &group.probes {
        let program = ebpf.program_mut(program).ok_or_else(|| format!("no program {program}"))?;
        at(program, *point).map_err(|error| chain(&error))?;
    }
    Ok(())
}

fn load(program: &mut Program) -> Result<(), ProgramError> {
    match program {
        Program::TracePoint(program) => program.load(),
        Program::RawTracePoint(program) => program.load(),
        _ => Err(ProgramError::UnexpectedProgramType),
    }
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
        _ => Err(ProgramError::UnexpectedProgramType),
    }
}

/// An error and its causes in one line.
fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(": ");
        text.push_str(&error.to_string());
        cause = error.source();
    }
    text
}
