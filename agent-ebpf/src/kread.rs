//! Reading memory that is not ours: every read can fail, none can fault.

use core::mem::size_of;

use aya_ebpf::helpers::{
    bpf_get_current_task_btf, bpf_probe_read_kernel, bpf_probe_read_user, bpf_task_pt_regs, generated,
};

/// The value of type `T` that lies `offset` bytes into the kernel object at `base`.
#[inline(always)]
pub fn field<T: Copy>(base: u64, offset: u32) -> Option<T> {
    // SAFETY: the helper checks the address; `T` is an integer or an array of them, so any bytes are a value of it.
    unsafe { bpf_probe_read_kernel((base + u64::from(offset)) as *const T) }.ok()
}

/// As [`field`], for a pointer that must not be null.
#[inline(always)]
pub fn pointer(base: u64, offset: u32) -> Option<u64> {
    field::<u64>(base, offset).filter(|&address| address != 0)
}

/// The beginning of a kernel object, read at once: `WORDS` times eight bytes.
pub struct Head<const WORDS: usize> {
    address: u64,
    words: [u64; WORDS],
}

impl<const WORDS: usize> Head<WORDS> {
    /// Of the object at `address`, all zeros until it is [read](Self::read).
    #[inline(always)]
    pub const fn at(address: u64) -> Self {
        Self { address, words: [0; WORDS] }
    }

    /// Reads it, to where it lies: to hand it on would copy it, which costs more than to read it. Zeros if it cannot be read
    /// (`bpf_probe_read_kernel_common`, kernel/trace/bpf_trace.c).
    #[inline(always)]
    pub fn read(&mut self) -> &Self {
        // SAFETY: `words` is valid for its size.
        let _zeros_if_not =
            unsafe { kernel_bytes(self.words.as_mut_ptr().cast(), size_of::<[u64; WORDS]>() as u64, self.address) };
        self
    }

    /// The field at `offset`, from what was read if it lies there, and where the compiler puts fields of its size. The verifier
    /// knows the offset, so one of the two ways is gone when the program runs.
    #[inline(always)]
    pub fn get<T: Copy + Default>(&self, offset: u32) -> T {
        let at = offset as usize;
        if at <= size_of::<[u64; WORDS]>() - size_of::<T>() && at % size_of::<T>() == 0 {
            // SAFETY: the field lies within `words`, aligned as they are; `T` is an integer.
            unsafe { self.words.as_ptr().byte_add(at).cast::<T>().read() }
        } else {
            field(self.address, offset).unwrap_or_default()
        }
    }
}

/// A kernel object whose type the verifier knows: it is read without a helper, which is many times cheaper.
#[derive(Clone, Copy)]
pub struct Typed(*const u8);

impl Typed {
    /// The task that runs.
    #[inline(always)]
    pub fn current_task() -> Self {
        // SAFETY: the helper has no requirements.
        Self(unsafe { bpf_get_current_task_btf() } as *const u8)
    }

    /// The registers that the task saved when it entered the kernel; `self` must be a task.
    #[inline(always)]
    pub fn saved_registers(self) -> Self {
        // SAFETY: the verifier checks that it is a task.
        Self(unsafe { bpf_task_pt_regs(self.0.cast_mut().cast()) } as *const u8)
    }

    /// The object that the field at `offset` points to, if any.
    #[inline(always)]
    pub fn pointer(self, offset: u32) -> Option<Self> {
        // SAFETY: as in `u64`.
        let pointer = unsafe { self.0.add(offset as usize).cast::<*const u8>().read_volatile() };
        (!pointer.is_null()).then_some(Self(pointer))
    }

    /// The field at `offset`.
    #[inline(always)]
    pub fn u64(self, offset: u32) -> u64 {
        // SAFETY: the verifier knows offset and type, and checks that such a field is there; a bad address reads as 0.
        unsafe { self.0.add(offset as usize).cast::<u64>().read_volatile() }
    }

    /// The field at `offset`.
    #[inline(always)]
    pub fn u32(self, offset: u32) -> u32 {
        // SAFETY: as in `u64`.
        unsafe { self.0.add(offset as usize).cast::<u32>().read_volatile() }
    }
}

/// Reads `T` from the process's memory.
#[inline(always)]
pub fn user<T: Copy>(address: u64) -> Option<T> {
    // SAFETY: as in `field`.
    unsafe { bpf_probe_read_user(address as *const T) }.ok()
}

/// Reads `len` bytes of the process's memory to `to`.
///
/// # Safety
///
/// `to` must be valid for `len` bytes; the verifier checks that it is.
#[inline(always)]
pub unsafe fn user_bytes(to: *mut u8, len: u64, address: u64) -> bool {
    // SAFETY: the caller answers for `to`; the helper checks the address.
    unsafe { generated::bpf_probe_read_user(to.cast(), len as u32, address as *const core::ffi::c_void) == 0 }
}

/// Reads `len` bytes of the kernel's memory to `to`.
///
/// # Safety
///
/// `to` must be valid for `len` bytes; the verifier checks that it is.
#[inline(always)]
pub unsafe fn kernel_bytes(to: *mut u8, len: u64, address: u64) -> bool {
    // SAFETY: the caller answers for `to`; the helper checks the address.
    unsafe { generated::bpf_probe_read_kernel(to.cast(), len as u32, address as *const core::ffi::c_void) == 0 }
}

/// Copies `len` bytes of our own memory.
///
/// # Safety
///
/// `to` must be valid for `len` bytes; the verifier checks that it is.
#[inline(always)]
pub unsafe fn own_bytes(to: *mut u8, len: u64, from: *const u8) -> bool {
    // SAFETY: the caller answers for `to`.
    unsafe { kernel_bytes(to, len, from as u64) }
}

/// Hides from the compiler what it knows of `value`, so that the bound check after it stays in the program, in the very
/// register that is used: the verifier knows only what it sees.
#[inline(always)]
pub fn opaque(value: u64) -> u64 {
    let mut hidden = value;
    // SAFETY: copies a register to itself. (With no instruction at all, line information would be doubled, which the
    // kernel refuses.)
    unsafe { core::arch::asm!("{0} = {0}", inout(reg) hidden, options(nomem, nostack, preserves_flags)) };
    hidden
}

/// `value`, but at most `MAX`.
///
/// In one piece, so that every use is of the register that was compared: the compiler would keep copies from before, of
/// which older verifiers know nothing.
#[inline(always)]
pub fn at_most<const MAX: u64>(value: u64) -> u64 {
    let mut bounded = value;
    // SAFETY: a comparison and a move.
    unsafe {
        core::arch::asm!(
            "if {0} <= {max} goto +1",
            "{0} = {max}",
            inout(reg) bounded,
            max = const MAX,
            options(pure, nomem, nostack)
        );
    }
    bounded
}
