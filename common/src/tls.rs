//! What the kernel programs keep of TLS sessions.

/// A session: the address of what the library keeps of it, in a process. Key of the `SESSIONS` map.
#[derive(Clone, Copy, Debug, Default, Eq, Hash, PartialEq)]
#[repr(C)]
pub struct SessionId {
    /// The process.
    pub tgid: u32,
    /// Reserved, 0.
    pub reserved: u32,
    /// `SSL *`, or `gnutls_session_t`.
    pub object: u64,
}

/// Value of the `SESSIONS` map.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
#[repr(C)]
pub struct Session {
    /// Key of the `CONNECTIONS` map.
    pub key: u64,
    /// Address of the `struct sock`; 0 if not known, all ones if there are several.
    pub socket: u64,
    /// Address of the `struct sock` that it would be by what happens around its calls; 0 if nothing did.
    pub candidate: u64,
    /// How often it was that one.
    pub witnesses: u32,
    /// 1 if a record on it was as long as what the session gave then.
    pub has_match: u32,
    /// TCP sequence number of a record of which a call has read only a part.
    pub position: u32,
    /// Whether there is such a record, and whether its number is known.
    pub place: u32,
    /// 1 if the last call that was to send has failed: the next one may go on with a record that is half sent.
    pub retries: u32,
    /// Reserved, 0.
    pub reserved: u32,
}

#[cfg(test)]
mod tests {
    use super::*;
    use core::mem::size_of;

    /// User space reads them as they lie.
    #[test]
    fn there_is_no_padding() {
        assert_eq!(size_of::<SessionId>(), 4 + 4 + 8);
        assert_eq!(size_of::<Session>(), 3 * 8 + 6 * 4);
    }
}
