//! The kernel programs: which to use ([`mod@plan`]), loading them, and the maps that they share with the agent.

mod attach;
mod linked;
mod load;
mod maps;
mod memory;
pub mod plan;
mod scheduling;
mod told;
mod uprobes;

pub use attach::Attached;
pub use load::{Cost, LoadError, Options, Programs};
pub use maps::{Maps, MapsError};
pub use memory::give_memory_back;
pub use plan::plan;
pub use scheduling::give_way;
pub use uprobes::{
    Attachment, CudaCall, Detaching, GoCall, LibraryCall, LoopCall, ProbePoint, PythonCall, TlsCall, UprobeError,
};
