//! With the capabilities that the agent keeps, a capture goes on: what is told, new processes, probes in other files.

use std::process::{Command, Stdio};
use std::thread;

use coati_agent::capture::{Record, Source};
use coati_agent::ebpf::{Options, Programs};
use coati_agent::privileges::{Later, Probes as Privileges, held, keep_only};
use coati_tests::privileges::has_probe_links;
use rustix::thread::CapabilitySet;

use crate::uprobes::{Probes, assert_innermost};
use crate::watch::Watch;

#[test]
fn what_is_kept_is_enough() {
    // Capabilities are a thread's: those of other tests keep theirs.
    thread::spawn(kept).join().unwrap();
}

fn kept() {
    let Some(mut watch) = Watch::start_with_tls("captures with the capabilities that are kept") else { return };
    let later = Later::of(watch.source().programs_mut()).unwrap();
    assert_eq!(later.probes == Privileges::Free, has_probe_links().unwrap(), "{later:?}");
    let needed = later.needs(held());
    keep_only(needed).unwrap();
    let _probes = Probes::put(&mut watch);
    assert_innermost(&mut watch);

    let program = std::env::current_exe().unwrap();
    let mut child = Command::new(program).arg("--help").stdout(Stdio::null()).spawn().unwrap();
    let id = child.id();
    child.wait().unwrap();
    watch.wait_for(|record| matches!(record, Record::Exec(_, tgid, _) if *tgid == id).then_some(()));
    // Every kind of access to a map.
    watch.source().skip(id).unwrap();
    watch.source().unskip(id);
    watch.source().forget_tls(&[id].into_iter().collect()).unwrap();
    watch.capture().health().unwrap();

    // The test can fail: what loading takes is gone.
    if !needed.intersects(CapabilitySet::BPF | CapabilitySet::SYS_ADMIN) {
        assert!(Programs::load(&Options::default()).is_err());
    }
}
