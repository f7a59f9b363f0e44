//! How connections end, and what is told then.

use coati_common::event::end_reason::{CLOSED, RESET};
use coati_common::event::{Connection, End, Kind, connection_flags, role};
use coati_common::loss::Loss;

use crate::emit;
use crate::exchange::{followed, forget, now, on};
use crate::globals::Mark;
use crate::scratch::Slot;
use crate::sock::{self, Socket};
use crate::tail;
use crate::tls;

/// This end of the connection at `socket` was closed: nothing of a server's response is to come. A client may still
/// receive its answer.
#[inline(always)]
pub fn closed_here(socket: u64) -> Option<()> {
    let (key, connection) = on(socket)?;
    if connection.role == role::SERVER {
        tell_end(key, connection, CLOSED);
    }
    Some(())
}

/// The connection at `socket` is over, in order or by a reset.
#[inline(always)]
pub fn disconnected(socket: u64, by_reset: bool) -> Option<()> {
    let (key, connection) = on(socket)?;
    // What has arrived can still be read, or may be with the TLS library: then the response ends with the socket.
    if connection.role == role::CLIENT && (key != socket || sock::has_unread(socket)) {
        if by_reset {
            connection.flags |= connection_flags::RESET;
        }
        return None;
    }
    tell_end(key, connection, if by_reset { RESET } else { CLOSED });
    forget(key)
}

/// The socket at `socket` is gone, or will be used for another connection.
#[inline(always)]
pub fn gone(socket: u64) -> Option<()> {
    if let Some((key, _)) = on(socket) {
        session_gone(key);
    }
    tls::socket_gone(socket)
}

/// Set when the first connection of Unix sockets is followed.
pub static HAS_UNIX: Mark = Mark::new();

/// The only descriptor of `socket` is being closed. The end of a TCP connection is told of elsewhere.
#[inline(always)]
pub fn last_descriptor(socket: impl FnOnce() -> Option<Socket>) -> Option<()> {
    if !HAS_UNIX.is_set() {
        return None;
    }
    let socket = socket()?;
    let is_unix = followed(socket.key)?.flags & connection_flags::UNIX != 0;
    if is_unix { session_gone(socket.key) } else { None }
}

/// The connection with a key is over.
#[inline(always)]
pub fn session_gone(key: u64) -> Option<()> {
    let connection = followed(key)?;
    tell_end(key, connection, if connection.flags & connection_flags::RESET != 0 { RESET } else { CLOSED });
    forget(key)
}

#[inline(always)]
fn tell_end(key: u64, connection: &mut Connection, reason: u32) {
    if !connection.finish() {
        return;
    }
    tail::over(key, connection, now());
    // On the stack: this may run in an interrupt in the middle of another program (see `scratch`).
    let record = end(connection, reason);
    emit::plain(&record, Loss::RingFullEnd);
}

#[inline(always)]
fn end(connection: &Connection, reason: u32) -> End {
    End {
        header: emit::header(Kind::End, now()),
        connection: connection.connection,
        exchange: connection.exchange,
        reason,
        totals: connection.totals,
    }
}

/// The connection at `key` is over, at a time that is not known.
///
/// Exported, so that the verifier checks it once; and its record lies in the slot, so that it does not count as stack of
/// every hook.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn end_of_another(slot: u64, key: u64) -> u64 {
    let (Some(connection), Some(record)) = (followed(key), Slot::numbered(slot).record::<End>()) else { return 0 };
    if connection.finish() {
        tail::over(key, connection, now());
        record.head = end(connection, CLOSED);
        emit::plain(&record.head, Loss::RingFullEnd);
    }
    let _gone_is_fine = forget(key);
    1
}
