//! Memory for what does not fit on the 512-byte stack, for each CPU and each program that may use it.
//!
//! A program on a tracepoint or a kprobe is never interrupted by another of them on its CPU (`bpf_prog_active`,
//! kernel/trace/bpf_trace.c), so these share [`Slot::EXCLUSIVE`]. A program on the entry or exit of a function can be,
//! where the kernel may be preempted, by any but itself (`prog->active`, kernel/bpf/trampoline.c): each has a slot of
//! its own. One on a function of a process can be, by any, itself included, as it runs for the process and stays on its CPU
//! (`bpf_prog_run_array_uprobe`, include/linux/bpf.h): these borrow a slot. The programs on socket states and on processes may
//! run in the middle of any of them, so they build their records on the stack.

use core::mem::size_of;

use aya_ebpf::macros::map;
use aya_ebpf::maps::PerCpuArray;
use coati_common::event::{Begin, Connection, Served};
use coati_common::limits::PAYLOAD_BYTES;
use coati_common::loss::Loss;

use crate::emit;
use crate::tell::Moved;

/// Room for a payload: twice its size, because the verifier bounds offset and length one by one.
pub type Payload = [u8; 2 * PAYLOAD_BYTES];

/// A record and its payload as they go into the ring buffer.
#[repr(C)]
pub struct Record<H> {
    pub head: H,
    pub payload: Payload,
}

/// A walk over buffers: what to do, and how far it has come.
#[repr(C)]
pub struct Walk {
    /// Where the first `struct iovec` lies.
    pub vector: u64,
    /// How many there are.
    pub count: u64,
    /// 1 if they lie in kernel memory.
    pub in_kernel: u64,
    /// Bytes of the next buffer that do not count.
    pub skip: u64,
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
    /// Of a walk over frames: how many buffers were begun.
    pub index: u64,
    /// What is left of the current buffer.
    pub address: u64,
    pub len: u64,
    /// The fields of [`coati_common::event::Frames`]; room for a header's nine bytes at any of the first eight.
    pub frame_left: u64,
    pub state: u64,
    pub have: u64,
    pub header: [u64; 4],
    /// 1 if a frame ended.
    pub ended: u64,
}

/// The memory of one program.
#[derive(Clone, Copy)]
pub struct Slot(u32);

impl Slot {
    /// How many there are.
    const COUNT: u32 = Self::FIRST_LENT + Self::LENT;
    /// Of these, those that are lent.
    const FIRST_LENT: u32 = 9;
    const LENT: u32 = 2;

    /// Of programs that do not interrupt each other.
    pub const EXCLUSIVE: Self = Self(0);
    /// Of `fentry_tcp_sendmsg`, and so on: the syscall tracepoints are not used beside these.
    pub const SENDMSG_ENTRY: Self = Self(0);
    pub const SENDMSG_EXIT: Self = Self(1);
    pub const SENDPAGE_ENTRY: Self = Self(2);
    pub const SENDPAGE_EXIT: Self = Self(3);
    pub const RECVMSG_EXIT: Self = Self(4);
    pub const SPLICE_READ_EXIT: Self = Self(5);
    /// The same of Unix sockets; what is rare there borrows a slot.
    pub const UNIX_SENDMSG_ENTRY: Self = Self(6);
    pub const UNIX_SENDMSG_EXIT: Self = Self(7);
    pub const UNIX_RECVMSG_EXIT: Self = Self(8);

    /// One that nobody uses; to be given back. `None`, and counted, if there is none.
    #[inline(always)]
    pub fn borrow() -> Option<Self> {
        for index in 0..Self::LENT {
            if emit::add(&BORROWED, index, 1) == 0 {
                return Some(Self(Self::FIRST_LENT + index));
            }
            emit::add(&BORROWED, index, u64::MAX);
        }
        emit::lost(Loss::ProgramSkipped);
        None
    }

    /// Ends a [`Self::borrow`].
    #[inline(always)]
    pub fn give_back(self) {
        emit::add(&BORROWED, self.0 - Self::FIRST_LENT, u64::MAX);
    }

    /// The slot with a number, which the verifier does not need to know.
    #[inline(always)]
    pub const fn numbered(number: u64) -> Self {
        Self(number as u32)
    }

    /// Its number.
    #[inline(always)]
    pub const fn number(self) -> u64 {
        self.0 as u64
    }

    /// The record under construction. Its payload is [`Self::payload`].
    #[inline(always)]
    pub fn record<H>(self) -> Option<&'static mut Record<H>> {
        let cell = RECORD.get_ptr_mut(self.0)?;
        let unused = size_of::<Record<Begin>>() - size_of::<Record<H>>();
        // SAFETY: as below; a record of a smaller head fits behind the unused bytes.
        Some(unsafe { &mut *cell.byte_add(unused).cast() })
    }

    /// The payload of the record under construction.
    #[inline(always)]
    pub fn payload(self) -> Option<&'static mut Payload> {
        let cell = RECORD.get_ptr_mut(self.0)?;
        // SAFETY: as below.
        Some(unsafe { &mut (*cell).payload })
    }
}

/// Room for the largest record; smaller ones end where it ends, so that the payload lies always at the same place.
#[map]
static RECORD: PerCpuArray<Record<Begin>> = PerCpuArray::with_max_entries(Slot::COUNT, 0);

/// Who uses each slot that is lent.
#[map]
static BORROWED: PerCpuArray<u64> = PerCpuArray::with_max_entries(Slot::LENT, 0);

#[map]
static CONNECTION: PerCpuArray<Connection> = PerCpuArray::with_max_entries(Slot::COUNT, 0);

#[map]
static MOVED: PerCpuArray<Moved> = PerCpuArray::with_max_entries(Slot::COUNT, 0);

#[map]
static SERVED: PerCpuArray<Served> = PerCpuArray::with_max_entries(Slot::COUNT, 0);

#[map]
static WALK: PerCpuArray<Walk> = PerCpuArray::with_max_entries(Slot::COUNT, 0);

macro_rules! scratch {
    ($(#[$doc:meta])* $name:ident, $map:ident, $type:ty) => {
        impl Slot {
            $(#[$doc])*
            #[inline(always)]
            pub fn $name(self) -> Option<&'static mut $type> {
                let cell = $map.get_ptr_mut(self.0)?;
                // SAFETY: the cell belongs to this CPU and to the one program that uses it now (see the module). Where a
                // function that it calls takes a cell again, it has done with what it had of it.
                Some(unsafe { &mut *cell })
            }
        }
    };
}

scratch!(
    /// A [`Connection`] whose entry is gone, or not there yet.
    connection, CONNECTION, Connection
);
scratch!(
    /// What a call has moved.
    moved, MOVED, Moved
);
scratch!(
    /// The request that a goroutine works for.
    served, SERVED, Served
);
scratch!(
    /// State of a walk over buffers.
    walk, WALK, Walk
);
