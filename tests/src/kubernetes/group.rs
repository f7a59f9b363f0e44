//! Control groups of containers.

use std::fs;
use std::path::PathBuf;

use anyhow::{Context, Result, bail};

/// A control group as the kubelet makes them; removed when dropped, after what ran in it has ended.
#[derive(Debug)]
pub struct Group(PathBuf);

impl Group {
    /// Of a container of a pod, in the first hierarchy of control groups that takes one.
    pub fn new(pod_uid: &str, container: &str) -> Result<Self> {
        let mounts = fs::read_to_string("/proc/self/mounts")?;
        let is_control = |fields: &[&str]| matches!(fields.get(2), Some(&("cgroup2" | "cgroup")));
        let roots = mounts.lines().map(|line| line.split(' ').collect::<Vec<_>>()).filter(|fields| is_control(fields));
        for root in roots.filter_map(|fields| fields.get(1).map(PathBuf::from)) {
            let path = root.join(format!("kubepods/burstable/pod{pod_uid}/{container}"));
            if fs::create_dir_all(&path).is_ok() && path.join("cgroup.procs").is_file() {
                return Ok(Self(path));
            }
        }
        bail!("no hierarchy of control groups takes a new one: this needs root and a writable one")
    }

    /// Moves a process into it.
    pub fn add(&self, pid: u32) -> Result<()> {
        fs::write(self.0.join("cgroup.procs"), pid.to_string()).context("a process into the group")
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        for path in self.0.ancestors().take_while(|path| !path.ends_with("kubepods")) {
            let _ = fs::remove_dir(path);
        }
        if let Some(root) = self.0.ancestors().find(|path| path.ends_with("kubepods")) {
            let _ = fs::remove_dir(root);
        }
    }
}
