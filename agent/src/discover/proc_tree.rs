//! What `/proc` says of a process.

use std::{
    collections::HashSet,
    fs::{self, File},
    io::Read,
    path::{Path, PathBuf},
};

use procfs::{
    net::TcpState,
    process::{FDTarget, Process},
};

use super::{
    attributes, container, docker,
    elf::{self, Toolchain},
    language::{self, Language},
    selection::Subject,
    unit,
};

/// Bytes of `/proc/PID/environ` and `/proc/PID/maps` that are looked at.
const MAX_FILE: u64 = 1 << 20;
/// Bytes of a command line that rules look at: it is kept of every process.
const MAX_ARGUMENTS: usize = 1024;
/// The same where all of it is of interest: programs with tens of thousands of mappings have libraries at the end.
const MAX_MAPS: u64 = 16 << 20;
/// Ancestors of a process that are looked for.
const MAX_ANCESTORS: usize = 32;

/// A `/proc`: the real one, or a directory that looks like it.
#[derive(Clone, Debug)]
pub struct ProcTree {
    root: PathBuf,
}

/// What is read of a process.
#[derive(Clone, Debug)]
pub(super) struct Facts {
    /// Path of the executable, in the process's own mount namespace.
    pub(super) executable_path: Option<String>,
    /// Name of the main thread, 15 bytes at most.
    pub(super) comm: Option<String>,
    /// The command line.
    pub(super) arguments: Vec<String>,
    /// The working directory.
    pub(super) directory: Option<PathBuf>,
    /// Where it runs.
    pub(super) group: Group,
    /// What Docker says of the container.
    pub(super) docker: Option<docker::Container>,
    /// In what it is written.
    pub(super) language: Language,
    /// What its environment says of it.
    pub(super) declared: Declared,
}

/// What the paths of its control groups say of a process.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub(super) struct Group {
    /// Id of the container.
    pub(super) container_id: Option<String>,
    /// Uid of the pod, or the hash of a static one.
    pub(super) pod_uid: Option<String>,
    /// Systemd's service, of what is in no container.
    pub(super) unit: Option<String>,
}

/// The identity that a process was given by its environment. Nothing else of an environment is ever kept: it holds
/// passwords.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub(super) struct Declared {
    /// `OTEL_SERVICE_NAME`.
    pub(super) service_name: Option<String>,
    /// The pairs of `OTEL_RESOURCE_ATTRIBUTES`.
    pub(super) attributes: Vec<(String, String)>,
}

impl Facts {
    /// What rules ask of the process; `executed` is its path if that could not be read.
    pub(super) fn subject(&self, tgid: u32, executed: Option<&str>) -> Subject {
        let mut arguments = self.arguments.get(1..).unwrap_or_default().join(" ");
        arguments.truncate(arguments.floor_char_boundary(MAX_ARGUMENTS));
        Subject {
            tgid,
            executable_path: self.executable_path.as_deref().or(executed).unwrap_or_default().into(),
            arguments: arguments.into(),
            language: self.language.as_str(),
            container_id: self.group.container_id.as_deref().map(Into::into),
            container_name: self.docker.as_ref().map(|container| container.name.as_str().into()),
            pod_uid: self.group.pod_uid.as_deref().map(Into::into),
        }
    }
}

impl ProcTree {
    /// A tree at `root`, usually `/proc`.
    pub fn new(root: impl Into<PathBuf>) -> Self {
        Self { root: root.into() }
    }

    /// What is known of a process, `None` if it is gone.
    pub(super) fn read(&self, tgid: u32) -> Option<Facts> {
        let directory = self.directory(tgid);
        let process = Process::new_with_root(directory.clone()).ok()?;
        let executable_path = process.exe().ok().map(|path| without_deleted_mark(&path.to_string_lossy()).to_owned());
        let comm = fs::read_to_string(directory.join("comm")).ok().map(|comm| comm.trim_end().to_owned());
        if executable_path.is_none() && comm.is_none() {
            return None;
        }
        let executable_name = executable_path.as_deref().map_or("", file_name);
        let maps = read_bounded(&directory.join("maps")).unwrap_or_default();
        let group = group(&process);
        // The containers of a pod are named by Kubernetes.
        let of_docker = group.container_id.as_deref().filter(|_| group.pod_uid.is_none());
        let docker = of_docker.and_then(|id| self.docker(id));
        Some(Facts {
            language: language::detect(executable_name, &String::from_utf8_lossy(&maps), || toolchain(&directory)),
            arguments: process.cmdline().unwrap_or_default(),
            directory: process.cwd().ok(),
            group,
            docker,
            declared: read_bounded(&directory.join("environ")).map(|bytes| declared(&bytes)).unwrap_or_default(),
            executable_path,
            comm,
        })
    }

    /// What Docker says of a container. Its files are the node's; where the agent may not look at those of the first process it
    /// looks at its own root, which is the node's or has Docker's folder mounted.
    fn docker(&self, id: &str) -> Option<docker::Container> {
        docker::container(&self.root.join("1/root"), id).or_else(|| docker::container(Path::new("/"), id))
    }

    /// What is mapped into the process's memory, as text; `None` if it is gone.
    pub(crate) fn maps(&self, tgid: u32) -> Option<Vec<u8>> {
        let mut bytes = Vec::new();
        File::open(self.directory(tgid).join("maps")).ok()?.take(MAX_MAPS).read_to_end(&mut bytes).ok()?;
        Some(bytes)
    }

    /// Path of the process's executable, in its own mount namespace.
    pub(crate) fn executable(&self, tgid: u32) -> Option<String> {
        let path = fs::read_link(self.directory(tgid).join("exe")).ok()?;
        Some(without_deleted_mark(path.to_str()?).to_owned())
    }

    /// Opens the file of one of the process's mappings. For this the kernel wants `CAP_CHECKPOINT_RESTORE`.
    pub(crate) fn map_file(&self, tgid: u32, range: &str) -> PathBuf {
        self.directory(tgid).join("map_files").join(range)
    }

    /// Opens the file at this path in the process's mount namespace.
    pub(crate) fn in_root(&self, tgid: u32, path: &str) -> PathBuf {
        self.directory(tgid).join("root").join(path.trim_start_matches('/'))
    }

    /// Every process.
    pub(crate) fn all(&self) -> Vec<u32> {
        let entries = fs::read_dir(&self.root).into_iter().flatten().flatten();
        entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect()
    }

    /// Whether the process is there.
    pub(crate) fn has(&self, tgid: u32) -> bool {
        self.directory(tgid).is_dir()
    }

    /// The TCP ports on which the process listens, in its own network namespace.
    pub(super) fn listening_ports(&self, tgid: u32) -> Vec<u16> {
        let Ok(process) = Process::new_with_root(self.directory(tgid)) else { return Vec::new() };
        let Ok(descriptors) = process.fd() else { return Vec::new() };
        let sockets: HashSet<u64> = descriptors
            .filter_map(|descriptor| match descriptor.ok()?.target {
                FDTarget::Socket(inode) => Some(inode),
                _ => None,
            })
            .collect();
        [process.tcp(), process.tcp6()]
            .into_iter()
            .flatten()
            .flatten()
            .filter(|entry| entry.state == TcpState::Listen && sockets.contains(&entry.inode))
            .map(|entry| entry.local_address.port())
            .collect()
    }

    /// The process's parent, its parent and so on, without the first process of the node.
    pub(crate) fn ancestors(&self, tgid: u32) -> Vec<u32> {
        let parent = |tgid: &u32| {
            let stat = Process::new_with_root(self.directory(*tgid)).ok()?.stat().ok()?;
            u32::try_from(stat.ppid).ok().filter(|parent| *parent > 1)
        };
        // A process that ends meanwhile may give its place to another: no chain is that long.
        std::iter::successors(parent(&tgid), parent).take(MAX_ANCESTORS).collect()
    }

    /// The id of the process's container, if it is in one.
    pub(crate) fn container_of(&self, tgid: u32) -> Option<String> {
        group(&Process::new_with_root(self.directory(tgid)).ok()?).container_id
    }

    /// The processes whose executable's file has this name.
    pub fn running(&self, executable_name: &str) -> Vec<u32> {
        let Ok(processes) = procfs::process::all_processes_with_root(&self.root) else { return Vec::new() };
        processes
            .filter_map(Result::ok)
            .filter(|process| {
                let path = process.exe().unwrap_or_default();
                file_name(without_deleted_mark(&path.to_string_lossy())) == executable_name
            })
            .filter_map(|process| u32::try_from(process.pid()).ok())
            .collect()
    }

    /// `host.name`, if it can be read. An agent in a container has a name of its own; the node's is the first process's.
    pub(super) fn host_name(&self) -> Option<String> {
        let namespace = |process: &str| fs::read_link(self.root.join(process).join("ns/uts")).ok();
        let of_node = || first_line(&self.root.join("1/root/etc/hostname"));
        let is_own = namespace("self") == namespace("1");
        (!is_own).then(of_node).flatten().or_else(|| first_line(&self.root.join("sys/kernel/hostname")))
    }

    /// `host.id`, if it can be read. By way of the first process, because the agent's own `/etc` may be a container's.
    pub(super) fn host_id(&self) -> Option<String> {
        first_line(&self.root.join("1/root/etc/machine-id")).or_else(|| first_line(Path::new("/etc/machine-id")))
    }

    pub(super) fn directory(&self, tgid: u32) -> PathBuf {
        self.path(&tgid.to_string())
    }

    /// The folder of a process, by number or as `self`.
    pub(super) fn path(&self, process: &str) -> PathBuf {
        self.root.join(process)
    }
}

/// The last part of a path.
pub(super) fn file_name(path: &str) -> &str {
    path.rsplit('/').next().unwrap_or(path)
}

/// The kernel marks the path of a file that was replaced, for example by an upgrade of its package.
fn without_deleted_mark(path: &str) -> &str {
    path.strip_suffix(" (deleted)").unwrap_or(path)
}

/// `/proc/PID/exe` opens the very file that runs, in any mount namespace, deleted or not.
fn toolchain(directory: &Path) -> Option<Toolchain> {
    elf::toolchain(&File::open(directory.join("exe")).ok()?)
}

/// With cgroup v1 there is a path for each controller, all alike but some at the root.
fn group(process: &Process) -> Group {
    let groups = process.cgroups().map(|groups| groups.0).unwrap_or_default();
    let paths = || groups.iter().map(|group| group.pathname.as_str());
    let container_id = paths().find_map(container::container_id).map(str::to_owned);
    let unit = paths().find_map(unit::name).filter(|_| container_id.is_none());
    Group { container_id, pod_uid: paths().find_map(container::pod_uid), unit }
}

fn declared(environment: &[u8]) -> Declared {
    let mut declared = Declared::default();
    for entry in environment.split(|byte| *byte == 0) {
        if let Some(value) = entry.strip_prefix(b"OTEL_SERVICE_NAME=") {
            declared.service_name = Some(String::from_utf8_lossy(value).trim().to_owned());
        } else if let Some(value) = entry.strip_prefix(b"OTEL_RESOURCE_ATTRIBUTES=") {
            declared.attributes = attributes::parse(&String::from_utf8_lossy(value)).unwrap_or_default();
        }
    }
    declared.service_name = declared.service_name.filter(|name| !name.is_empty());
    declared
}

fn read_bounded(path: &Path) -> Option<Vec<u8>> {
    let mut bytes = Vec::new();
    File::open(path).ok()?.take(MAX_FILE).read_to_end(&mut bytes).ok()?;
    Some(bytes)
}

fn first_line(path: &Path) -> Option<String> {
    let text = fs::read_to_string(path).ok()?;
    text.lines().next().map(str::trim).filter(|line| !line.is_empty()).map(str::to_owned)
}

#[cfg(test)]
pub(super) mod tests {
    use std::{net::TcpListener, os::unix::fs::symlink};

    use rstest::rstest;

    use super::*;

    /// A directory that looks like `/proc`.
    pub(in crate::discover) struct FakeTree {
        pub(in crate::discover) directory: tempfile::TempDir,
    }

    impl FakeTree {
        pub(in crate::discover) fn new() -> Self {
            let directory = tempfile::tempdir().unwrap();
            let kernel = directory.path().join("sys/kernel");
            fs::create_dir_all(&kernel).unwrap();
            fs::write(kernel.join("hostname"), "node-1\n").unwrap();
            let etc = directory.path().join("1/root/etc");
            fs::create_dir_all(&etc).unwrap();
            fs::write(etc.join("machine-id"), "0123456789abcdef0123456789abcdef\n").unwrap();
            Self { directory }
        }

        pub(in crate::discover) fn tree(&self) -> ProcTree {
            ProcTree::new(self.directory.path())
        }

        pub(in crate::discover) fn add(&self, tgid: u32, executable: &str, command: &[&str], environment: &[&str]) {
            let directory = self.directory.path().join(tgid.to_string());
            fs::create_dir_all(&directory).unwrap();
            symlink(executable, directory.join("exe")).unwrap();
            symlink("/srv", directory.join("cwd")).unwrap();
            fs::write(directory.join("comm"), "comm\n").unwrap();
            fs::write(directory.join("cmdline"), command.join("\0") + "\0").unwrap();
            fs::write(directory.join("environ"), environment.join("\0") + "\0").unwrap();
            fs::write(directory.join("cgroup"), format!("0::/system.slice/docker-{}.scope\n", "ab".repeat(32)))
                .unwrap();
            fs::write(directory.join("maps"), "").unwrap();
        }

        /// The process is in this control group.
        pub(in crate::discover) fn set_group(&self, tgid: u32, path: &str) {
            let directory = self.directory.path().join(tgid.to_string());
            fs::write(directory.join("cgroup"), format!("0::{path}\n")).unwrap();
        }

        pub(in crate::discover) fn remove(&self, tgid: u32) {
            fs::remove_dir_all(self.directory.path().join(tgid.to_string())).unwrap();
        }
    }

    #[test]
    fn reads_a_process() {
        let fake = FakeTree::new();
        let environment = ["PATH=/bin", "PASSWORD=secret", "OTEL_SERVICE_NAME=shop", "OTEL_RESOURCE_ATTRIBUTES=a=1"];
        fake.add(7, "/usr/bin/python3.11 (deleted)", &["python3", "shop.py"], &environment);
        let facts = fake.tree().read(7).unwrap();
        assert_eq!(facts.executable_path.as_deref(), Some("/usr/bin/python3.11"));
        assert_eq!(facts.arguments, ["python3", "shop.py"]);
        assert_eq!(facts.directory.as_deref(), Some(Path::new("/srv")));
        assert_eq!(facts.group.container_id, Some("ab".repeat(32)));
        assert_eq!(facts.language, Language::Python);
        assert_eq!(facts.declared.service_name.as_deref(), Some("shop"));
        assert_eq!(facts.declared.attributes, [("a".to_owned(), "1".to_owned())]);
        assert!(!format!("{facts:?}").contains("secret"));
    }

    #[test]
    fn a_process_that_is_gone_gives_nothing() {
        assert!(FakeTree::new().tree().read(7).is_none());
    }

    #[test]
    fn a_service_is_known_by_its_unit_if_it_is_in_no_container() {
        let fake = FakeTree::new();
        fake.add(7, "/usr/bin/python3.11", &["python3"], &[]);
        let group = |path: &str| {
            fake.set_group(7, path);
            fake.tree().read(7).unwrap().group
        };
        assert_eq!(
            group("/system.slice/orders.service"),
            Group { unit: Some("orders".to_owned()), ..Group::default() }
        );
        let id = "cd".repeat(32);
        let in_container = group(&format!("/system.slice/moby.service/docker-{id}.scope"));
        assert_eq!(in_container, Group { container_id: Some(id), ..Group::default() });
    }

    #[test]
    fn a_container_is_not_the_host() {
        let fake = FakeTree::new();
        let root = fake.directory.path();
        fs::write(root.join("1/root/etc/hostname"), "the-node\n").unwrap();
        assert_eq!(fake.tree().host_name().as_deref(), Some("node-1"));
        for (process, namespace) in [("self", "uts:[4026532000]"), ("1", "uts:[4026531838]")] {
            fs::create_dir_all(root.join(process).join("ns")).unwrap();
            symlink(namespace, root.join(process).join("ns/uts")).unwrap();
        }
        assert_eq!(fake.tree().host_name().as_deref(), Some("the-node"));
        fs::remove_file(root.join("1/root/etc/hostname")).unwrap();
        assert_eq!(fake.tree().host_name().as_deref(), Some("node-1"));
    }

    #[test]
    fn finds_processes_by_the_name_of_their_executable() {
        let fake = FakeTree::new();
        fake.add(7, "/usr/bin/coati-backend", &["x"], &[]);
        fake.add(8, "/usr/bin/coati-backend (deleted)", &["x"], &[]);
        fake.add(9, "/usr/bin/nginx", &["coati-backend"], &[]);
        let mut found = fake.tree().running("coati-backend");
        found.sort_unstable();
        assert_eq!(found, [7, 8]);
    }

    #[test]
    fn the_real_tree_knows_ancestors() {
        let tree = ProcTree::new("/proc");
        let ancestors = tree.ancestors(std::process::id());
        assert_eq!(ancestors.first(), Some(&std::os::unix::process::parent_id()));
        assert!(!ancestors.contains(&1));
        assert!(tree.ancestors(u32::MAX).is_empty());
    }

    #[test]
    fn the_real_tree_knows_this_process() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let tree = ProcTree::new("/proc");
        let facts = tree.read(std::process::id()).unwrap();
        assert_eq!(facts.language, Language::Rust);
        assert_eq!(facts.executable_path, std::env::current_exe().unwrap().to_str().map(str::to_owned));
        assert!(tree.listening_ports(std::process::id()).contains(&listener.local_addr().unwrap().port()));
    }

    #[rstest]
    #[case::nothing(b"", None, 0)]
    #[case::name(b"A=1\0OTEL_SERVICE_NAME=shop\0", Some("shop"), 0)]
    #[case::empty_name(b"OTEL_SERVICE_NAME=\0", None, 0)]
    #[case::not_the_variable(b"MY_OTEL_SERVICE_NAME=shop\0", None, 0)]
    #[case::attributes(b"OTEL_RESOURCE_ATTRIBUTES=a=1,b=2\0", None, 2)]
    #[case::malformed_attributes(b"OTEL_RESOURCE_ATTRIBUTES=a=1,b\0", None, 0)]
    #[case::not_utf8(b"\xff\xfe=1\0OTEL_SERVICE_NAME=shop", Some("shop"), 0)]
    fn reads_two_variables_only(#[case] environment: &[u8], #[case] name: Option<&str>, #[case] attributes: usize) {
        let declared = declared(environment);
        assert_eq!(declared.service_name.as_deref(), name);
        assert_eq!(declared.attributes.len(), attributes);
    }
}
