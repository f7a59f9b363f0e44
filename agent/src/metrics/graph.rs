//! Who speaks to whom: the service graph.

use std::collections::HashMap;

use foldhash::fast::RandomState;

use super::{request::Request, service::Service};
use crate::decode::{Key, Origin, Role};

/// Exchanges that are followed at once; what comes then has ends that do not know each other.
const MAX_OPEN: usize = 65_536;

/// The open exchanges of which an end is seen. Both ends know the same positions of their connection.
#[derive(Debug, Default)]
pub struct Peers {
    ends: HashMap<Key, Ends, RandomState>,
}

/// Process ids.
#[derive(Debug, Default)]
struct Ends {
    client: Option<End>,
    server: Option<End>,
}

#[derive(Clone, Copy, Debug)]
struct End {
    tgid: u32,
    is_over: bool,
}

impl Peers {
    /// An exchange has begun, at this end.
    pub fn began(&mut self, origin: &Origin) {
        let Some(key) = origin.key else { return };
        if self.ends.len() >= MAX_OPEN && !self.ends.contains_key(&key) {
            return;
        }
        let (own, _) = self.ends.entry(key).or_default().of(origin.role);
        *own = Some(End { tgid: origin.tgid, is_over: false });
    }

    /// It is over at this end; says which process is at the other, if it is one of this node that is observed.
    pub fn ended(&mut self, origin: &Origin) -> Option<u32> {
        let key = origin.key?;
        let (own, other) = self.ends.get_mut(&key)?.of(origin.role);
        let peer = *other;
        if let Some(own) = own {
            own.is_over = true;
        }
        // A client that has its answer has heard of its server: who is not here by now will not come.
        if peer.is_none_or(|peer| peer.is_over) {
            self.ends.remove(&key);
        }
        peer.map(|peer| peer.tgid)
    }

    /// How many exchanges are followed.
    #[cfg(test)]
    fn len(&self) -> usize {
        self.ends.len()
    }
}

impl Ends {
    /// The end of this role, and the other.
    const fn of(&mut self, role: Role) -> (&mut Option<End>, &mut Option<End>) {
        match role {
            Role::Client => (&mut self.client, &mut self.server),
            Role::Server => (&mut self.server, &mut self.client),
        }
    }
}

/// A request from one service to another.
#[derive(Clone, Copy, Debug)]
pub(super) struct Edge<'a> {
    pub(super) client: Node<'a>,
    pub(super) server: Node<'a>,
    /// `virtual_node` if nothing is known of one end but its address, as Tempo says it.
    pub(super) connection_type: &'static str,
    /// The request is counted at this end: the server's, or the client's if nobody counts it there.
    pub(super) is_counted: bool,
}

/// One end. What is not known is empty.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub(super) struct Node<'a> {
    pub(super) name: &'a str,
    pub(super) namespace: &'a str,
    pub(super) k8s_namespace: &'a str,
    pub(super) k8s_cluster: &'a str,
}

/// Tempo's name of a client of which nothing is known.
const USER: &str = "user";

impl<'a> Edge<'a> {
    /// `peer` is the service at the other end, if its process is of this node and observed. `None` if a service speaks to
    /// itself.
    pub(super) fn of(request: &Request<'a>, own: &'a Service, peer: Option<&'a Service>) -> Option<Self> {
        let named = Node { name: request.peer_name, namespace: request.peer_namespace, ..Node::default() };
        let (own, is_named) = (Node::of(own), !named.name.is_empty());
        let (other, is_outside) = match (peer, request.role) {
            (Some(peer), _) => (Node::of(peer), false),
            (None, _) if is_named => (named, false),
            (None, Role::Server) => (Node { name: USER, ..Node::default() }, true),
            (None, Role::Client) => (Node { name: request.server_address, ..Node::default() }, true),
        };
        if (own.name, own.namespace) == (other.name, other.namespace) {
            return None;
        }
        let (client, server, is_counted) = match request.role {
            Role::Server => (other, own, true),
            // A server in the cluster is counted by the agent of its node.
            Role::Client => (own, other, is_outside),
        };
        Some(Self { client, server, connection_type: if is_outside { "virtual_node" } else { "" }, is_counted })
    }
}

impl<'a> Node<'a> {
    fn of(service: &'a Service) -> Self {
        let Service { name, namespace, k8s_namespace, k8s_cluster, .. } = service;
        Self { name, namespace, k8s_namespace, k8s_cluster }
    }
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, SocketAddr};

    use rstest::rstest;

    use super::*;
    use crate::decode::{ExchangeId, Within};

    fn origin(role: Role, number: u32) -> Origin {
        let here = SocketAddr::from((Ipv4Addr::LOCALHOST, 1));
        let tgid = if role == Role::Client { 1 } else { 2 };
        Origin {
            id: ExchangeId { connection: 1, number: 1, place: 0 },
            socket: 0,
            role,
            tgid,
            tid: tgid,
            netns: 0,
            key: Some(Key::Tcp { client_position: number, server_position: 7 }),
            local: here,
            remote: here,
            is_tls: false,
            is_unix: false,
            begin_ns: 0,
            served: None,
            is_after_answer: false,
            within: Within::Unknown,
        }
    }

    /// `C` and `S` are begins, `c` and `s` ends; gives what the ends were told.
    fn told(events: &str) -> (String, usize) {
        let mut peers = Peers::default();
        let mut told = String::new();
        for event in events.chars() {
            let role = if matches!(event, 'C' | 'c') { Role::Client } else { Role::Server };
            if event.is_uppercase() {
                peers.began(&origin(role, 5));
            } else {
                told.push_str(&peers.ended(&origin(role, 5)).map_or("-".to_owned(), |tgid| tgid.to_string()));
            }
        }
        (told, peers.len())
    }

    #[rstest]
    #[case::both("CSsc", "12")]
    #[case::the_server_was_told_of_first("SCsc", "12")]
    #[case::the_client_gave_up("CScs", "21")]
    #[case::only_a_client("Cc", "-")]
    #[case::only_a_server("Ss", "-")]
    #[case::the_client_left_before_the_server_came("CcSs", "--")]
    #[case::an_end_without_a_begin("s", "-")]
    fn ends_know_each_other_and_nothing_is_left(#[case] events: &str, #[case] expected: &str) {
        assert_eq!(told(events), (expected.to_owned(), 0));
    }

    #[test]
    fn there_is_an_end_to_what_is_followed() {
        let mut peers = Peers::default();
        for number in 0..=MAX_OPEN as u32 {
            peers.began(&origin(Role::Client, number));
        }
        assert_eq!(peers.len(), MAX_OPEN);
        // What is followed already goes on.
        peers.began(&origin(Role::Server, 0));
        assert_eq!(peers.ended(&origin(Role::Server, 0)), Some(1));
    }
}
