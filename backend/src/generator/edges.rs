//! Ends of requests that wait for their other end.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use foldhash::fast::RandomState;

/// Places in the order that what has met its other end may take, beside as many again as may wait.
const MET: usize = 1_024;

/// Trace id, and id of the span at the client's end. The client's end of an agent waits under the provisional trace id
/// that a server's end on another node has: the agent that makes it does not know where the server is.
pub(super) type EdgeKey = [u8; 24];

/// One end of a request, or both.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Edge {
    pub(super) client: Option<Arc<str>>,
    pub(super) server: Option<Arc<str>>,
    /// Who is at the other end, if an attribute names it.
    pub(super) peer: Option<Box<str>>,
    pub(super) connection: Connection,
    /// Seconds, of the ends that were seen.
    pub(super) client_seconds: Option<f64>,
    pub(super) server_seconds: Option<f64>,
    /// Nanoseconds since the epoch.
    pub(super) client_end_ns: u64,
    pub(super) server_start_ns: u64,
    pub(super) failed: bool,
    /// How many requests it stands for.
    pub(super) times: f64,
    /// The trace that the first end came in.
    pub(super) trace_id: [u8; 16],
    /// Value of the label `virtual_node`.
    pub(super) virtual_node: &'static str,
    /// Values of the dimensions.
    pub(super) dimensions: Vec<Box<str>>,
}

/// Value of the label `connection_type`.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub(super) enum Connection {
    #[default]
    Direct,
    Virtual,
    Messaging,
    Database,
}

impl Connection {
    pub(super) const ALL: [Self; 4] = [Self::Direct, Self::Virtual, Self::Messaging, Self::Database];

    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Direct => "",
            Self::Virtual => "virtual_node",
            Self::Messaging => "messaging_system",
            Self::Database => "database",
        }
    }
}

/// What waits, in the order in which it came.
#[derive(Debug, Default)]
pub(super) struct Edges {
    /// With their numbers, and their places in `ends`.
    waiting: HashMap<EdgeKey, (u64, usize), RandomState>,
    /// Not in the map, which is looked up for every span and should be small.
    ends: Vec<Edge>,
    /// Free places.
    free: Vec<usize>,
    /// When each is given up, milliseconds since the epoch. What has met its other end is here still; the number tells.
    order: VecDeque<(u64, u64, EdgeKey)>,
    next: u64,
}

impl Edges {
    /// The end that waits for this one, taken out.
    pub(super) fn take(&mut self, key: &EdgeKey) -> Option<Edge> {
        let (_, place) = self.waiting.remove(key)?;
        self.free.push(place);
        self.ends.get_mut(place).map(std::mem::take)
    }

    /// The end that waits there.
    pub(super) fn get(&self, key: &EdgeKey) -> Option<&Edge> {
        let (_, place) = self.waiting.get(key)?;
        self.ends.get(*place)
    }

    /// Lets an end wait. Call [`Self::expired`] before, so that there is room.
    pub(super) fn wait(&mut self, key: EdgeKey, edge: Edge, until_ms: u64) {
        self.next += 1;
        let place = self.free.pop().unwrap_or(self.ends.len());
        match self.ends.get_mut(place) {
            Some(slot) => *slot = edge,
            None => self.ends.push(edge),
        }
        if let Some((_, before)) = self.waiting.insert(key, (self.next, place)) {
            self.free.push(before);
        }
        self.order.push_back((until_ms, self.next, key));
    }

    /// The next one that is given up: because its time is over, or because too many wait.
    pub(super) fn expired(&mut self, now_ms: u64, max: usize) -> Option<(EdgeKey, Edge)> {
        loop {
            let (until_ms, number, key) = *self.order.front()?;
            let full = self.waiting.len() > max || self.order.len() > max.saturating_mul(2).saturating_add(MET);
            if until_ms > now_ms && !full {
                return None;
            }
            self.order.pop_front();
            if self.waiting.get(&key).is_some_and(|(waiting, _)| *waiting == number) {
                return self.take(&key).map(|edge| (key, edge));
            }
        }
    }

    pub(super) fn len(&self) -> usize {
        self.waiting.len()
    }

    /// What waits, with the time until which it does, the oldest first.
    pub(super) fn iter(&self) -> impl Iterator<Item = (u64, &EdgeKey, &Edge)> {
        self.order.iter().filter_map(|(until_ms, number, key)| {
            let (waiting, place) = self.waiting.get(key)?;
            let edge = self.ends.get(*place)?;
            (waiting == number).then_some((*until_ms, key, edge))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn edge(client: &str) -> Edge {
        Edge { client: Some(client.into()), ..Edge::default() }
    }

    fn given_up(edges: &mut Edges, now_ms: u64, max: usize) -> Vec<String> {
        std::iter::from_fn(|| edges.expired(now_ms, max)).map(|(_, edge)| edge.client.unwrap().to_string()).collect()
    }

    #[test]
    fn what_waits_is_given_up_in_its_time() {
        let mut edges = Edges::default();
        for (name, until_ms) in [("a", 10), ("b", 11), ("c", 12)] {
            edges.wait([name.as_bytes()[0]; 24], edge(name), until_ms);
        }
        assert_eq!(edges.take(&[b'b'; 24]), Some(edge("b")));
        assert_eq!(given_up(&mut edges, 9, 10), [""; 0]);
        assert_eq!(given_up(&mut edges, 11, 10), ["a"]);
        assert_eq!(given_up(&mut edges, 12, 10), ["c"]);
        assert_eq!((edges.len(), edges.order.len()), (0, 0));
    }

    #[test]
    fn one_that_waits_again_has_its_whole_time() {
        let mut edges = Edges::default();
        edges.wait([1; 24], edge("a"), 10);
        assert!(edges.take(&[1; 24]).is_some());
        edges.wait([1; 24], edge("b"), 15);
        assert_eq!(edges.iter().count(), 1);
        assert_eq!(given_up(&mut edges, 14, 10), [""; 0]);
        assert_eq!(given_up(&mut edges, 15, 10), ["b"]);
    }

    #[test]
    fn the_oldest_goes_when_there_are_too_many() {
        let mut edges = Edges::default();
        for number in 0..5 {
            edges.wait([number; 24], edge(&number.to_string()), 100);
        }
        assert_eq!(given_up(&mut edges, 1, 2), ["0", "1", "2"]);
        assert_eq!(edges.len(), 2);
    }

    #[test]
    fn what_has_met_takes_no_memory_for_ever() {
        let mut edges = Edges::default();
        for number in 0..100_000_u32 {
            let mut key = [0; 24];
            key[..4].copy_from_slice(&number.to_be_bytes());
            edges.wait(key, edge("x"), 100);
            assert!(edges.take(&key).is_some());
            assert_eq!(edges.expired(1, 10), None);
        }
        assert!(edges.order.len() <= 1_044, "{}", edges.order.len());
    }
}
