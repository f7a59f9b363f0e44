//! Connections that were switched to another protocol, long responses, and what is open for long.

use super::{Connection, Event, Http2, Method, Moment, Moved, Open, Out, Session, StreamEnd, Upgrade, progress};

impl Connection {
    /// The answer to `front` is complete. If it switches the connection, `moved` came behind it; gives the exchange back if
    /// not.
    pub(super) fn switch(
        &mut self,
        mut front: Box<Open>,
        moved: &Moved<'_>,
        at: Moment<'_>,
        out: &mut Out<'_>,
    ) -> Option<Box<Open>> {
        let head = front.response.head.as_ref();
        let (status, upgrade) = head.map_or((0, None), |head| (head.status, head.upgrade));
        let is_tunnel = front.method() == Method::Connect && matches!(status, 200..=299);
        self.is_deaf |= status == 101 || is_tunnel;
        match upgrade.filter(|_| status == 101) {
            Some(Upgrade::H2c) => {
                let start = front.response.bytes;
                let mut http2 = Box::new(Http2::upgraded(&mut front, start)?);
                http2.switched(start, moved.len(), moved.known(), at.first_ns, out);
                self.http2 = Some(http2);
                None
            }
            Some(Upgrade::WebSocket) => {
                (out.emit)(Event::Upgraded(&front.origin));
                let session = self.websocket.insert(Box::new(Session::new(front, self.request_seen)));
                session.switched(moved.len(), moved.known(), out);
                None
            }
            None => Some(front),
        }
    }

    /// Notes how far long responses have come; gives how many there are.
    pub(in super::super) fn note_progress(&mut self, now_ns: u64) -> usize {
        let counted = self.counted.filter(|_| !self.is_shared && self.pending.len() == 1);
        let mut long = self.http2.as_mut().map_or(0, |http2| http2.note_progress(now_ns));
        if let Some(front) = self.pending.front_mut() {
            front.note_progress(now_ns, counted.as_ref());
            long += usize::from(progress::is_long(front.first_ns, now_ns));
        }
        if let Some(session) = &mut self.websocket {
            session.note_progress(now_ns);
            long += usize::from(progress::is_long(session.open.first_ns, now_ns));
        }
        long
    }

    /// Shows what has been open for `after_ns`.
    pub(in super::super) fn show(&mut self, after_ns: u64, now_ns: u64, out: &mut Out<'_>) {
        let counted = self.counted.filter(|_| !self.is_shared && self.pending.len() == 1);
        if let Some(http2) = &mut self.http2 {
            http2.show(after_ns, now_ns, out);
        }
        if let Some(front) = self.pending.front_mut() {
            front.show(after_ns, now_ns, counted.as_ref(), out);
        }
        if let Some(session) = &mut self.websocket {
            session.show(after_ns, now_ns, out);
        }
    }

    /// Ends what goes on after the switch without knowing how.
    pub(super) fn abandon_switched(&mut self, out: &mut Out<'_>) {
        if let Some(session) = self.websocket.take() {
            let last_ns = session.last_ns();
            session.finish(last_ns, false, out);
        }
        if let Some(http2) = &mut self.http2 {
            http2.finish(StreamEnd::Unknown, out);
        }
    }

    /// The connection of a WebSocket is over.
    pub(super) fn close_websocket(&mut self, time_ns: u64, out: &mut Out<'_>) {
        if let Some(session) = self.websocket.take() {
            session.finish(time_ns, true, out);
        }
    }

    /// Exchanges that go on after the switch.
    pub(super) fn switched_exchanges(&self) -> usize {
        usize::from(self.websocket.is_some()) + self.http2.as_ref().map_or(0, |http2| http2.open())
    }

    /// Gives them up; gives their number.
    pub(super) fn evict_switched(&mut self, out: &mut Out<'_>) -> u64 {
        let mut evicted = self.http2.as_mut().map_or(0, |http2| http2.evict(out));
        if let Some(session) = self.websocket.take() {
            evicted += 1;
            session.open.give_up(out);
        }
        evicted
    }
}
