//! What a thread notes of a call when it enters it, for when it returns.
//!
//! A note lies in an array, where the number of the thread leads, and is a thread's from entry to return: to look there takes
//! 15 instructions, and 150 in a hash map. If another thread is there, whose number leads to the same place, the note goes to a
//! hash map behind; the place counts those, and where it counts none, nobody looks into that map.
//!
//! A place is taken by one atomic operation, and only if nobody has it; so a note is never another thread's, and what a thread has
//! left that ended without our notice costs others the way to the hash map, and nothing more.

use aya_ebpf::maps::{Array, HashMap};
use coati_common::loss::Loss;

use crate::emit;
use crate::exchange::NEW;

/// What is noted of a call.
#[derive(Clone, Copy)]
#[repr(C)]
pub struct Note<T> {
    /// Who is in the call; 0 once it has returned.
    by: u64,
    pub of: T,
}

impl<T> Note<T> {
    /// One of a call that nobody is in.
    pub const fn blank(of: T) -> Self {
        Self { by: 0, of }
    }

    /// Whether the call is under way.
    #[inline(always)]
    fn is_under_way(&self) -> bool {
        self.by != 0
    }

    /// The call has returned, and what is noted of it was read. Another thread may take the place now.
    #[inline(always)]
    pub fn end(&mut self) {
        // A barrier as well: what was read of the note was read before.
        // SAFETY: the first field of a value of a map.
        unsafe { emit::exchange(&raw mut self.by, 0) };
    }
}

/// Where notes of the threads lie whose number leads there.
#[repr(C)]
pub struct Place<T> {
    /// That of the one who came first.
    note: Note<T>,
    /// How many have, or had, theirs in the hash map behind.
    elsewhere: u64,
}

/// Kinds of calls.
pub trait Noted: Copy + 'static {
    /// How many places there are, a power of two.
    const PLACES: u32;

    fn places() -> &'static Array<Place<Self>>;

    /// The hash map behind, by `pid_tgid`. An entry stays until its thread ends: to make one costs more than to look there.
    fn others() -> &'static HashMap<u64, Note<Self>>;

    /// What new entries are made of: they are too large for the stack.
    fn blank() -> &'static Note<Self>;
}

#[inline(always)]
fn place<T: Noted>(pid_tgid: u64) -> Option<&'static mut Place<T>> {
    let place = T::places().get_ptr_mut(pid_tgid as u32 & (T::PLACES - 1))?;
    // SAFETY: the memory of a value stays the map's. Of what others may write meanwhile, `by` and `elsewhere`, each is read
    // and written whole.
    Some(unsafe { &mut *place })
}

/// The note of the call that a thread enters, which is in no other of this kind ([`leaves`]); `None`, and counted, if there is no
/// room.
#[inline(always)]
pub fn enters<T: Noted>(pid_tgid: u64) -> Option<&'static mut Note<T>> {
    let place = place::<T>(pid_tgid)?;
    // SAFETY: a number of a map, and aligned.
    if unsafe { emit::compare_exchange(&raw mut place.note.by, 0, pid_tgid) } == 0 {
        return Some(&mut place.note);
    }
    // SAFETY: as above.
    enters_by(T::others(), &pid_tgid, |by| unsafe {
        emit::fetch_add(&raw mut place.elsewhere, by);
    })
}

/// The same in a hash map, of whoever the key names; `counts` counts its entries.
#[inline(always)]
pub fn enters_by<K, T: Noted>(
    notes: &HashMap<K, Note<T>>,
    key: &K,
    mut counts: impl FnMut(u64),
) -> Option<&'static mut Note<T>> {
    let note = match notes.get_ptr_mut(key) {
        Some(note) => note,
        None => {
            counts(1);
            if notes.insert(key, T::blank(), NEW).is_err() {
                counts(u64::MAX);
                emit::lost(Loss::CallsFull);
                return None;
            }
            notes.get_ptr_mut(key)?
        }
    };
    // SAFETY: as in `exchange::followed`; the entry belongs to whom the key names.
    let note = unsafe { &mut *note };
    note.by = 1;
    Some(note)
}

/// The note of the call that a thread is in, to be ended.
#[inline(always)]
pub fn under_way<T: Noted>(pid_tgid: u64) -> Option<&'static mut Note<T>> {
    let place = place::<T>(pid_tgid)?;
    // SAFETY: numbers of a map, read whole.
    let (by, elsewhere) =
        unsafe { ((&raw const place.note.by).read_volatile(), (&raw const place.elsewhere).read_volatile()) };
    if by == pid_tgid {
        return Some(&mut place.note);
    }
    if elsewhere == 0 { None } else { under_way_by(T::others(), &pid_tgid) }
}

/// The same in a hash map.
#[inline(always)]
pub fn under_way_by<K, T: 'static>(notes: &HashMap<K, Note<T>>, key: &K) -> Option<&'static mut Note<T>> {
    let note = notes.get_ptr_mut(key)?;
    // SAFETY: as in `exchange::followed`; the entry belongs to whom the key names.
    let note = unsafe { &mut *note };
    note.is_under_way().then_some(note)
}

/// A thread is in no call of this kind any more: if it still seems to be in one, then the kernel left out our program when that
/// returned, and it would be given the result of another.
#[inline(always)]
pub fn leaves<T: Noted>(pid_tgid: u64) {
    if let Some(note) = under_way::<T>(pid_tgid) {
        note.end();
        emit::lost(Loss::ReturnMissed);
    }
}

/// The thread has ended.
#[inline(always)]
pub fn thread_gone<T: Noted>(pid_tgid: u64) {
    leaves::<T>(pid_tgid);
    let Some(place) = place::<T>(pid_tgid) else { return };
    if place.elsewhere != 0 && T::others().remove(pid_tgid).is_ok() {
        // SAFETY: as above.
        unsafe { emit::fetch_add(&raw mut place.elsewhere, u64::MAX) };
    }
}
