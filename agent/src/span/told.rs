//! What the spans of a connection's requests have in common.
//!
//! Who keeps a connection mostly asks for the same again, with the same head to the last byte; the decoder then gives the same
//! [`RequestHead`], not an equal one. What its span says of the request, of both ends and of the route is found out once.

use std::{
    borrow::Cow,
    net::SocketAddr,
    sync::{Arc, OnceLock, Weak},
};

use coati_common::stitch::mix;

use crate::{
    decode::{Exchange, RequestHead},
    discover::Process,
    kubernetes::Peer,
};

/// Connections that are remembered: what falls into the place of another one pushes it out.
const PLACES: usize = 1024;

/// What a span says of its request that does not depend on the answer. What is not known is absent.
#[derive(Debug)]
pub(super) struct Told {
    /// Its name. What is behind `route_at` is the route.
    pub(super) name: String,
    pub(super) route_at: Option<usize>,
    /// The query as it is shown.
    pub(super) query: Option<String>,
    pub(super) scheme: Cow<'static, str>,
    pub(super) server_address: Option<Box<str>>,
    pub(super) server_port: Option<u16>,
    /// Address of the other end.
    pub(super) remote: Option<Box<str>>,
    /// What Kubernetes calls the other end.
    pub(super) peer: Option<Peer>,
    /// Its attributes as they are sent, once it has come again.
    pub(super) encoded: OnceLock<Box<[u8]>>,
}

/// What was told of the last request of each connection.
#[derive(Debug)]
pub(super) struct LastTold {
    places: Vec<Option<Last>>,
}

/// Whom it was told of. What nobody else needs any more is not held.
#[derive(Debug)]
struct Last {
    head: Weak<RequestHead>,
    process: Weak<Process>,
    /// Of a TLS session they may become known later.
    ends: [SocketAddr; 2],
    /// Of what Kubernetes had said by then.
    generation: u64,
    told: Arc<Told>,
}

impl LastTold {
    pub(super) fn new() -> Self {
        Self { places: Vec::new() }
    }

    /// What was told of such a request, if its connection's last one was the same.
    pub(super) fn again(&self, exchange: &Exchange, process: &Arc<Process>, generation: u64) -> Option<&Arc<Told>> {
        let Exchange { origin, request, .. } = exchange;
        let last = self.places.get(place(exchange))?.as_ref()?;
        // A head is of one connection.
        let is_same = last.head.as_ptr() == Arc::as_ptr(request)
            && last.process.as_ptr() == Arc::as_ptr(process)
            && last.ends == [origin.local, origin.remote]
            && last.generation == generation;
        is_same.then_some(&last.told)
    }

    /// Keeps what is told of a request.
    pub(super) fn note(&mut self, exchange: &Exchange, process: &Arc<Process>, generation: u64, told: &Arc<Told>) {
        let Exchange { origin, request, .. } = exchange;
        if self.places.is_empty() {
            self.places.resize_with(PLACES, || None);
        }
        if let Some(last) = self.places.get_mut(place(exchange)) {
            *last = Some(Last {
                head: Arc::downgrade(request),
                process: Arc::downgrade(process),
                ends: [origin.local, origin.remote],
                generation,
                told: Arc::clone(told),
            });
        }
    }
}

/// Each CPU numbers the connections that it sees begin, so their numbers are mixed first.
const fn place(exchange: &Exchange) -> usize {
    mix(exchange.origin.id.connection) as usize % PLACES
}
