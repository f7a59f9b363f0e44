//! What the programs keep and what they share with user space.

use aya_ebpf::macros::map;
use aya_ebpf::maps::{Array, HashMap, PerCpuArray, RingBuf};
use coati_common::event::Connection;
use coati_common::loss::Loss;
use coati_common::{counter, limits};

use crate::call::Call;
use crate::hooks::kprobes::Receive;
use crate::notes::{Note, Noted, Place};

/// `BPF_F_NO_PREALLOC`: memory only for what is there.
pub const NO_PREALLOC: u32 = 1;

/// Records for user space.
#[map]
pub static RECORDS: RingBuf = RingBuf::with_byte_size(limits::RING_BYTES, 0);

/// 1 once all programs are attached: half of them would see requests without their answers, or the other way round.
#[map]
pub static FOLLOWING: Array<u32> = Array::with_max_entries(1, 0);

/// Connections with a recognised protocol, by the address of their `struct sock`.
#[map]
pub static CONNECTIONS: HashMap<u64, Connection> = HashMap::with_max_entries(limits::CONNECTIONS, NO_PREALLOC);

/// The sends on such connections that are under way, by thread.
#[map]
pub static SENDING: Array<Place<Call>> = Array::with_max_entries(Call::PLACES, 0);

/// Those that have no place there.
#[map]
pub static CALLS: HashMap<u64, Note<Call>> = HashMap::with_max_entries(limits::CALLS, NO_PREALLOC);

/// The same of receives: only of the programs that do not find their arguments when a call returns.
#[map]
pub static RECEIVING: Array<Place<Receive>> = Array::with_max_entries(Receive::PLACES, 0);

/// Those that have no place there.
#[map]
pub static RECEIVES: HashMap<u64, Note<Receive>> = HashMap::with_max_entries(limits::CALLS, NO_PREALLOC);

/// What is known of processes: of [`coati_common::process`].
#[map]
pub static PROCESSES: HashMap<u32, u8> = HashMap::with_max_entries(limits::PROCESSES, NO_PREALLOC);

/// Those of them that are not watched, each at the place where the last bits of its number lead, which it may have to leave to
/// another one: so most need no look-up in the hash map.
#[map]
pub static SKIPPED: Array<u32> = Array::with_max_entries(limits::SKIPPED, 0);

/// What was lost, by cause: index is a [`Loss`].
#[map]
pub static LOSSES: PerCpuArray<u64> = PerCpuArray::with_max_entries(Loss::ALL.len() as u32, 0);

/// What was counted: index is a [`coati_common::counter`].
#[map]
pub static COUNTERS: PerCpuArray<u64> = PerCpuArray::with_max_entries(counter::COUNT, 0);
