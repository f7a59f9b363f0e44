//! Per-CPU memory for what does not fit on the 512-byte stack.
//!
//! Only the programs on system calls use it: they never interrupt each other on a CPU. The program on socket states
//! may run in an interrupt in the middle of one of them, so it builds its records on the stack.

use core::mem::size_of;

use aya_ebpf::macros::map;
use aya_ebpf::maps::PerCpuArray;
use coati_common::event::{Begin, Connection};
use coati_common::limits::PAYLOAD_BYTES;

use crate::exchange::Call;

/// Room for a payload: twice its size, because the verifier bounds offset and length one by one.
pub type Payload = [u8; 2 * PAYLOAD_BYTES];

/// A record and its payload as they go into the ring buffer.
#[repr(C)]
pub struct Record<H> {
    pub head: H,
    pub payload: Payload,
}

/// How far a walk over buffers has come.
#[repr(C)]
pub struct Walk {
    /// Bytes that moved and lie in buffers not yet walked.
    pub left: u64,
    /// Bytes of payload copied.
    pub copied: u64,
    /// Bytes of payload wanted.
    pub room: u64,
    /// Address and used length of the last buffer that was not empty.
    pub last: [u64; 2],
    /// The same of the one before it.
    pub before: [u64; 2],
    /// 1 if a buffer could not be read.
    pub unreadable: u64,
}

/// Room for the largest record; smaller ones end where it ends, so that the payload lies always at the same place.
#[map]
static RECORD: PerCpuArray<Record<Begin>> = PerCpuArray::with_max_entries(1, 0);

#[map]
static CALL: PerCpuArray<Call> = PerCpuArray::with_max_entries(1, 0);

#[map]
static CONNECTION: PerCpuArray<Connection> = PerCpuArray::with_max_entries(1, 0);

#[map]
static WALK: PerCpuArray<Walk> = PerCpuArray::with_max_entries(1, 0);

macro_rules! scratch {
    ($(#[$doc:meta])* $name:ident, $map:ident, $type:ty) => {
        $(#[$doc])*
        #[inline(always)]
        pub fn $name() -> Option<&'static mut $type> {
            let cell = $map.get_ptr_mut(0)?;
            // SAFETY: the cell belongs to this CPU and to the one program that runs on it now (see the module);
            // every program takes each cell once at most.
            Some(unsafe { &mut *cell })
        }
    };
}

scratch!(
    /// The [`Call`] under construction.
    call, CALL, Call
);
scratch!(
    /// A [`Connection`] whose entry is gone.
    connection, CONNECTION, Connection
);
scratch!(
    /// State of a walk over buffers.
    walk, WALK, Walk
);

/// The record under construction. Its payload is [`payload`].
#[inline(always)]
pub fn record<H>() -> Option<&'static mut Record<H>> {
    let cell = RECORD.get_ptr_mut(0)?;
    let unused = size_of::<Record<Begin>>() - size_of::<Record<H>>();
    // SAFETY: as above; a record of a smaller head fits behind the unused bytes.
    Some(unsafe { &mut *cell.byte_add(unused).cast() })
}

/// The payload of the record under construction.
#[inline(always)]
pub fn payload() -> Option<&'static mut Payload> {
    let cell = RECORD.get_ptr_mut(0)?;
    // SAFETY: as above.
    Some(unsafe { &mut (*cell).payload })
}
