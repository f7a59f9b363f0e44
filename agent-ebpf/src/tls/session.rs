//! Sessions of a TLS library: which are followed, and on which sockets they are.

use aya_ebpf::macros::map;
use aya_ebpf::maps::HashMap;
use coati_common::follow::Meaning;
use coati_common::limits;
use coati_common::loss::Loss;
use coati_common::tls::{Session, SessionId};

use super::place;
use crate::closing;
use crate::emit;
use crate::exchange::Caller;
use crate::iov::Source;
use crate::maps::NO_PREALLOC;

/// The socket of a session that has moved records on several.
pub(super) const SEVERAL: u64 = u64::MAX;

/// Sessions that speak HTTP, or of which a record has come in parts.
#[map]
static SESSIONS: HashMap<SessionId, Session> = HashMap::with_max_entries(limits::TLS_SESSIONS, NO_PREALLOC);

/// The sessions whose socket is known, by its address.
#[map]
pub(super) static SOCKETS: HashMap<u64, SessionId> = HashMap::with_max_entries(limits::TLS_SESSIONS, NO_PREALLOC);

/// Key in `CONNECTIONS` of the session on `socket`.
#[inline(always)]
pub fn key_of(socket: u64) -> Option<u64> {
    let id = SOCKETS.get_ptr(socket)?;
    // SAFETY: as above.
    Some(followed(unsafe { &*id })?.key)
}

/// Key in `CONNECTIONS` of a session.
#[inline(always)]
pub fn key_of_session(id: &SessionId) -> Option<u64> {
    Some(followed(id)?.key)
}

/// `socket` is gone, and so is the session on it.
#[inline(always)]
pub fn socket_gone(socket: u64) -> Option<()> {
    let id = SOCKETS.get_ptr(socket)?;
    // SAFETY: as above.
    let id = unsafe { *id };
    let _gone_is_fine = SESSIONS.remove(id);
    SOCKETS.remove(socket).ok()
}

/// The library forgets the session.
#[inline(always)]
pub fn free(caller: Caller, object: u64) -> Option<()> {
    let id = caller.session(object);
    let session = *followed(&id)?;
    closing::session_gone(session.key);
    if SOCKETS.get_ptr(session.socket).is_some() {
        let _gone_is_fine = SOCKETS.remove(session.socket);
    }
    SESSIONS.remove(id).ok()
}

/// The session, which begins to be followed if the `len` bytes at `source` may be the first of HTTP.
#[inline(always)]
pub(super) fn session(id: &SessionId, source: &Source, len: u64) -> Option<&'static mut Session> {
    if let Some(session) = followed(id) {
        return Some(session);
    }
    Meaning::first(&source.sniff(len)?)?;
    begin(id)
}

#[inline(always)]
pub(super) fn followed(id: &SessionId) -> Option<&'static mut Session> {
    // SAFETY: as in `exchange::followed`.
    SESSIONS.get_ptr_mut(id).map(|session| unsafe { &mut *session })
}

#[inline(always)]
pub(super) fn begin(id: &SessionId) -> Option<&'static mut Session> {
    let session = Session {
        key: emit::new_connection(),
        socket: 0,
        candidate: 0,
        witnesses: 0,
        has_match: 0,
        position: 0,
        place: place::NONE,
        retries: 0,
        reserved: 0,
    };
    if SESSIONS.insert(id, session, 0).is_err() {
        emit::lost(Loss::ConnectionsFull);
        return None;
    }
    followed(id)
}

/// Notes that the session's records moved on `socket`.
#[inline(always)]
pub(super) fn bind(id: &SessionId, session: &mut Session, socket: u64) {
    if socket == 0 || session.socket == socket || session.socket == SEVERAL {
        return;
    }
    if session.socket != 0 || socket == SEVERAL {
        if session.socket != 0 {
            let _gone_is_fine = SOCKETS.remove(session.socket);
        }
        session.socket = SEVERAL;
        return;
    }
    if SOCKETS.insert(socket, *id, 0).is_ok() {
        session.socket = socket;
    }
}

/// The address, if it is one; else 0.
#[inline(always)]
pub(super) fn known(socket: u64) -> u64 {
    if socket == SEVERAL { 0 } else { socket }
}

impl Caller {
    #[inline(always)]
    pub(super) const fn session(self, object: u64) -> SessionId {
        SessionId { tgid: self.tgid(), reserved: 0, object }
    }
}
