//! What the programs keep and what they share with user space.

use aya_ebpf::macros::map;
use aya_ebpf::maps::{Array, HashMap, PerCpuArray, RingBuf};
use coati_common::event::Connection;
use coati_common::loss::Loss;
use coati_common::{counter, limits};

use crate::call::Call;
use crate::hooks::kprobes::Receive;

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

/// The sends on such connections, by thread (`pid_tgid`): the one under way, or the last one.
#[map]
pub static CALLS: HashMap<u64, Call> = HashMap::with_max_entries(limits::CALLS, NO_PREALLOC);

/// The same of receives: only of the programs that do not find their arguments when a call returns.
#[map]
pub static RECEIVES: HashMap<u64, Receive> = HashMap::with_max_entries(limits::CALLS, NO_PREALLOC);

/// What is known of processes: of [`coati_common::process`].
#[map]
pub static PROCESSES: HashMap<u32, u8> = HashMap::with_max_entries(limits::PROCESSES, NO_PREALLOC);

/// What was lost, by cause: index is a [`Loss`].
#[map]
pub static LOSSES: PerCpuArray<u64> = PerCpuArray::with_max_entries(Loss::ALL.len() as u32, 0);

/// What was counted: index is a [`coati_common::counter`].
#[map]
pub static COUNTERS: PerCpuArray<u64> = PerCpuArray::with_max_entries(counter::COUNT, 0);
