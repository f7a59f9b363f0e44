//! Whose a TCP connection is: from addresses to a process, by way of `/proc`.

use std::{
    collections::HashSet,
    fs,
    net::{IpAddr, SocketAddr},
    path::PathBuf,
};

use procfs::{
    net::{TcpNetEntry, TcpState},
    process::{FDTarget, Process},
};

use super::ProcTree;

/// Network namespaces whose tables are read at most.
const MAX_NAMESPACES: usize = 512;
/// Descriptors that are looked at at most.
const MAX_DESCRIPTORS: usize = 65_536;

impl ProcTree {
    /// The process on this node that has the connection from `local` to `remote`, both as that process sees them;
    /// through NAT `remote` may be another. `None` if it is none of this node's, or hides among too many.
    pub(crate) fn owner_of(&self, local: SocketAddr, remote: SocketAddr) -> Option<u32> {
        let (local, remote) = (canonical(local), canonical(remote));
        let mut processes = self.all();
        processes.sort_unstable();
        let own = self.namespace("self");
        let namespaces: Vec<_> =
            processes.iter().filter_map(|tgid| Some((*tgid, self.namespace(&tgid.to_string())?))).collect();
        // The agent's own first: it is the node's where the agent is no container's, and then most are there.
        let mut seen = HashSet::new();
        let others = namespaces.iter().map(|(tgid, namespace)| (tgid.to_string(), Some(namespace.clone())));
        for (process, namespace) in std::iter::once(("self".to_owned(), own.clone())).chain(others) {
            if !seen.insert(namespace.clone()) {
                continue;
            }
            // What is on a loopback interface is in one namespace only.
            let is_elsewhere = local.ip().is_loopback() && namespace != own;
            if is_elsewhere || seen.len() > MAX_NAMESPACES {
                break;
            }
            if let Some(inode) = self.socket(&process, local, remote) {
                let here = namespaces.iter().filter(|(_, of)| Some(of) == namespace.as_ref()).map(|(tgid, _)| *tgid);
                return self.holder(here, inode);
            }
        }
        None
    }

    /// The inode of the socket in the process's network namespace.
    fn socket(&self, process: &str, local: SocketAddr, remote: SocketAddr) -> Option<u64> {
        let process = Process::new_with_root(self.path(process)).ok()?;
        let entries: Vec<TcpNetEntry> = [process.tcp(), process.tcp6()]
            .into_iter()
            .flatten()
            .flatten()
            .filter(|entry| {
                entry.state != TcpState::Listen && entry.inode != 0 && canonical(entry.local_address) == local
            })
            .collect();
        let exact = entries.iter().find(|entry| canonical(entry.remote_address) == remote);
        // Behind NAT, the only one with this port.
        let only = match &entries[..] {
            [only] => Some(only),
            _ => None,
        };
        exact.or(only).map(|entry| entry.inode)
    }

    /// The first of these processes that holds the socket.
    fn holder(&self, processes: impl Iterator<Item = u32>, inode: u64) -> Option<u32> {
        let mut left = MAX_DESCRIPTORS;
        for tgid in processes {
            let Ok(process) = Process::new_with_root(self.path(&tgid.to_string())) else { continue };
            let Ok(descriptors) = process.fd() else { continue };
            for descriptor in descriptors.flatten() {
                if matches!(descriptor.target, FDTarget::Socket(of) if of == inode) {
                    return Some(tgid);
                }
                left = left.checked_sub(1)?;
            }
        }
        None
    }

    fn namespace(&self, process: &str) -> Option<PathBuf> {
        fs::read_link(self.path(process).join("ns/net")).ok()
    }
}

fn canonical(address: SocketAddr) -> SocketAddr {
    let ip: IpAddr = address.ip().to_canonical();
    SocketAddr::new(ip, address.port())
}

#[cfg(test)]
mod tests {
    use std::{
        io::{BufRead as _, BufReader},
        net::{TcpListener, TcpStream},
        process::{Command, Stdio},
    };

    use rstest::rstest;

    use super::*;

    #[rstest]
    #[case::v4("127.0.0.1:0")]
    #[case::v6("[::1]:0")]
    fn the_other_end_of_a_connection_is_found(#[case] address: &str) {
        let listener = TcpListener::bind(address).unwrap();
        let here = listener.local_addr().unwrap();
        let mine = TcpStream::connect(here).unwrap();
        let tree = ProcTree::new("/proc");
        assert_eq!(tree.owner_of(mine.local_addr().unwrap(), here), Some(std::process::id()));
        // Somebody else's.
        let host = here.ip().to_string();
        let script = format!(
            "import socket,sys; s = socket.create_connection(('{host}', {})); print(s.getsockname()[1], flush=True); \
             sys.stdin.read()",
            here.port()
        );
        let mut other =
            Command::new("python3").args(["-c", &script]).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let mut port = String::new();
        BufReader::new(other.stdout.as_mut().unwrap()).read_line(&mut port).unwrap();
        let theirs = SocketAddr::new(here.ip(), port.trim().parse().unwrap());
        assert_eq!(tree.owner_of(theirs, here), Some(other.id()));
        // Through NAT the other address is not the one that is known here.
        assert_eq!(tree.owner_of(theirs, "203.0.113.9:4317".parse().unwrap()), Some(other.id()));
        drop(other.stdin.take());
        other.wait().unwrap();
        assert_eq!(tree.owner_of(theirs, here), None);
    }

    #[test]
    fn who_is_not_on_this_node_is_nobody() {
        let tree = ProcTree::new("/proc");
        assert_eq!(tree.owner_of("203.0.113.9:4317".parse().unwrap(), "203.0.113.1:1".parse().unwrap()), None);
        assert_eq!(
            ProcTree::new("/no/such").owner_of("127.0.0.1:1".parse().unwrap(), "127.0.0.1:2".parse().unwrap()),
            None
        );
    }
}
