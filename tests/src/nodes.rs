//! Nodes of a network, on one machine: network namespaces, joined by pairs of virtual interfaces.
//!
//! ```text
//! outside 10.77.1.2 ── 10.77.1.1  A  10.77.0.1 ── 10.77.0.2  B
//! ```
//!
//! Requests to port 8 of a node go to port 80 there by DNAT, those to 9 to 90 and so on: server and client see different
//! ports. Kernel programs see all of the machine; an agent is kept to its node by rules.

use std::fs::File;
use std::net::{Ipv4Addr, SocketAddr};
use std::process::{Command, id};
use std::thread;

use anyhow::{Context, Result, anyhow, ensure};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use crate::tools::system;

/// Factor from the port that clients know to that on which servers listen.
const TRANSLATED: u16 = 10;

/// A namespace.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Node {
    /// No agent watches it.
    Outside,
    /// The first node.
    A,
    /// The second node.
    B,
}

impl Node {
    const ALL: [Self; 3] = [Self::Outside, Self::A, Self::B];

    const fn name(self) -> &'static str {
        match self {
            Self::Outside => "outside",
            Self::A => "a",
            Self::B => "b",
        }
    }

    /// The address that the others know.
    const fn address(self) -> Ipv4Addr {
        match self {
            Self::Outside => Ipv4Addr::new(10, 77, 1, 2),
            Self::A => Ipv4Addr::new(10, 77, 0, 1),
            Self::B => Ipv4Addr::new(10, 77, 0, 2),
        }
    }

    /// Where a client on another node reaches the server that listens on `listen` here.
    pub const fn reached(self, listen: u16) -> SocketAddr {
        SocketAddr::new(std::net::IpAddr::V4(self.address()), listen / TRANSLATED)
    }
}

/// The namespaces; gone when dropped.
#[derive(Debug)]
pub struct Nodes {
    prefix: String,
}

impl Nodes {
    /// Makes them; `ports` are those on which servers listen, multiples of ten.
    pub fn new(ports: &[u16]) -> Result<Self> {
        let nodes = Self { prefix: format!("coati-{}", id()) };
        let [outside, a, b] = Node::ALL.map(|node| nodes.namespace(node));
        for namespace in [&outside, &a, &b] {
            ip(&["netns", "add", namespace])?;
            ip(&["-n", namespace, "link", "set", "lo", "up"])?;
        }
        for ((left, left_address), (right, right_address)) in
            [((&outside, "10.77.1.2/24"), (&a, "10.77.1.1/24")), ((&a, "10.77.0.1/24"), (&b, "10.77.0.2/24"))]
        {
            ip(&["-n", left, "link", "add", "right", "type", "veth", "peer", "name", "left", "netns", right])?;
            for (namespace, link, address) in [(left, "right", left_address), (right, "left", right_address)] {
                ip(&["-n", namespace, "address", "add", address, "dev", link])?;
                ip(&["-n", namespace, "link", "set", link, "up"])?;
            }
        }
        ip(&["-n", &outside, "route", "add", "default", "via", "10.77.1.1"])?;
        for node in [Node::A, Node::B] {
            let nft = |rule: &[&str]| run(nodes.command(node, "nft").args(rule));
            nft(&["add", "table", "ip", "nat"])?;
            nft(&["add", "chain", "ip", "nat", "prerouting", "{ type nat hook prerouting priority -100; }"])?;
            for port in ports {
                let (known, to) = ((port / TRANSLATED).to_string(), format!("{}:{port}", node.address()));
                nft(&["add", "rule", "ip", "nat", "prerouting", "tcp", "dport", &known, "dnat", "to", &to])?;
            }
        }
        Ok(nodes)
    }

    /// A program to be run on a node.
    pub fn command(&self, node: Node, program: impl AsRef<std::ffi::OsStr>) -> Command {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.namespace(node)]).arg(program);
        command
    }

    /// Does something on a node, in a thread of its own.
    pub fn on<T: Send>(&self, node: Node, work: impl FnOnce() -> T + Send) -> Result<T> {
        let path = format!("/run/netns/{}", self.namespace(node));
        let namespace = File::open(&path).with_context(|| path.clone())?;
        let moved = || {
            move_into_link_name_space(std::os::fd::AsFd::as_fd(&namespace), Some(LinkNameSpaceType::Network))?;
            Ok::<_, rustix::io::Errno>(work())
        };
        let done = thread::scope(|scope| scope.spawn(moved).join());
        done.map_err(|_| anyhow!("what was done in {path} panicked"))?.with_context(|| path)
    }

    fn namespace(&self, node: Node) -> String {
        format!("{}-{}", self.prefix, node.name())
    }
}

impl Drop for Nodes {
    fn drop(&mut self) {
        for node in Node::ALL {
            // One that was not made yet is not there.
            let _ = ip(&["netns", "delete", &self.namespace(node)]);
        }
    }
}

/// A namespace that is joined to this machine's own, as a pod's is to its node's. Gone when dropped.
///
/// ```text
/// here 10.78.0.1 ── 10.78.0.2  pod
/// ```
#[derive(Debug)]
pub struct Pod {
    name: String,
}

impl Pod {
    /// The address of the machine, as the pod knows it.
    pub const NODE: Ipv4Addr = Ipv4Addr::new(10, 78, 0, 1);
    /// What a service is called that exists nowhere: translated, as a cluster does.
    pub const SERVICE: Ipv4Addr = Ipv4Addr::new(10, 96, 0, 10);

    /// Makes it. Connections to port 4317 of [`Self::SERVICE`] go to `port` of the machine; those to port 4318 too, and come
    /// from an address of which no socket knows.
    pub fn new(port: u16) -> Result<Self> {
        let pod = Self { name: format!("coati-{}-pod", id()) };
        let (name, link) = (pod.name.as_str(), format!("coati{}", id()));
        ip(&["netns", "add", name])?;
        ip(&["link", "add", &link, "type", "veth", "peer", "name", "eth0", "netns", name])?;
        ip(&["address", "add", "10.78.0.1/24", "dev", &link])?;
        ip(&["link", "set", &link, "up"])?;
        for address in ["10.78.0.2/24", "10.78.0.3/24"] {
            ip(&["-n", name, "address", "add", address, "dev", "eth0"])?;
        }
        for device in ["lo", "eth0"] {
            ip(&["-n", name, "link", "set", device, "up"])?;
        }
        ip(&["-n", name, "route", "add", "default", "via", "10.78.0.1"])?;
        let nft = |rule: &[&str]| run(pod.command("nft").args(rule));
        nft(&["add", "table", "ip", "nat"])?;
        nft(&["add", "chain", "ip", "nat", "output", "{ type nat hook output priority -100; }"])?;
        nft(&["add", "chain", "ip", "nat", "postrouting", "{ type nat hook postrouting priority 100; }"])?;
        let (service, to) = (Self::SERVICE.to_string(), format!("{}:{port}", Self::NODE));
        for known in ["4317", "4318"] {
            nft(&[
                "add", "rule", "ip", "nat", "output", "ip", "daddr", &service, "tcp", "dport", known, "dnat", "to", &to,
            ])?;
        }
        let hidden = ["ct", "original", "proto-dst", "4318", "snat", "to", "10.78.0.3:20000-29999"];
        nft(&[&["add", "rule", "ip", "nat", "postrouting", "meta", "l4proto", "tcp"][..], &hidden].concat())?;
        Ok(pod)
    }

    /// A program to be run in it.
    pub fn command(&self, program: impl AsRef<std::ffi::OsStr>) -> Command {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.name]).arg(program);
        command
    }
}

impl Drop for Pod {
    fn drop(&mut self) {
        // The link goes with it.
        let _ = ip(&["netns", "delete", &self.name]);
    }
}

fn ip(arguments: &[&str]) -> Result<()> {
    run(Command::new(system("ip")?).args(arguments))
}

fn run(command: &mut Command) -> Result<()> {
    let output = command.output().with_context(|| format!("cannot start {command:?}"))?;
    ensure!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    Ok(())
}
