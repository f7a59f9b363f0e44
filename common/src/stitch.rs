//! How the two ends of a request find each other across nodes: ids that agents and backend compute alike.
//!
//! Laid out as `docs/format/provisional-ids.md` says; agents and backends of different versions must agree, so nothing
//! here may change.

/// The member of `tracestate` by which spans with a provisional trace id are marked, for whoever reads them.
pub const PROVISIONAL_MEMBER: &str = "coati=p";

/// What is mixed into the upper half of a provisional trace id.
const PROVISIONAL: u64 = u64::from_be_bytes(*b"provisio");

/// Span id of the client span of the exchange whose request begins at these TCP stream positions.
///
/// The finaliser of `SplitMix64` over `client position << 32 | server position`. It is a bijection, so two exchanges
/// share an id only if they share both positions; the one pair that gives the invalid id 0 gets 1 instead.
pub const fn client_span_id(client_position: u32, server_position: u32) -> [u8; 8] {
    let id = mix((client_position as u64) << 32 | server_position as u64);
    if id == 0 { 1_u64.to_be_bytes() } else { id.to_be_bytes() }
}

/// The trace id of a server span, and of all below it, whose caller is the client span `caller` in a trace that is not
/// known yet.
///
/// The lower half is `caller`. The upper half is made of it, so that a trace id tells what it is: one of random bits does
/// so wrongly once in 2⁶⁴.
pub const fn provisional_trace_id(caller: [u8; 8]) -> [u8; 16] {
    let caller = u64::from_be_bytes(caller);
    ((mix(caller ^ PROVISIONAL) as u128) << 64 | caller as u128).to_be_bytes()
}

/// The client span that a provisional trace is below; none if the trace id is not provisional.
pub const fn caller_of(trace_id: [u8; 16]) -> Option<[u8; 8]> {
    let id = u128::from_be_bytes(trace_id);
    let (upper, caller) = ((id >> 64) as u64, id as u64);
    // No span has the id 0.
    if caller != 0 && upper == mix(caller ^ PROVISIONAL) { Some(caller.to_be_bytes()) } else { None }
}

/// The finaliser of `SplitMix64`, a bijection.
pub const fn mix(value: u64) -> u64 {
    let value = (value ^ value >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let value = (value ^ value >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    value ^ value >> 31
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Both ends of a connection may be watched by agents of different versions, and the backend may be of another one
    /// still: these must not change.
    #[test]
    fn ids_are_fixed() {
        assert_eq!(mix(1), 0x5692_161d_100b_05e5);
        let span = client_span_id(0x1234_5678, 0x9abc_def0);
        assert_eq!(u64::from_be_bytes(span), 0x9629_f58e_8ec5_b906);
        assert_eq!(client_span_id(0, 0), 1_u64.to_be_bytes());
        for (caller, expected) in [
            (1, 0xa286_46c7_644f_9629_0000_0000_0000_0001),
            (u64::from_be_bytes(span), 0x2847_4270_529a_5685_9629_f58e_8ec5_b906),
            (u64::MAX, 0x651c_417d_7ebf_8b42_ffff_ffff_ffff_ffff),
        ] {
            assert_eq!(u128::from_be_bytes(provisional_trace_id(caller.to_be_bytes())), expected);
        }
    }

    #[test]
    fn a_provisional_trace_id_names_the_caller() {
        for caller in (0..1_000).map(mix).filter(|caller| *caller != 0) {
            let trace = provisional_trace_id(caller.to_be_bytes());
            assert_eq!(caller_of(trace), Some(caller.to_be_bytes()));
            for bit in 0..128 {
                let other = u128::from_be_bytes(trace) ^ 1 << bit;
                assert_eq!(caller_of(other.to_be_bytes()), None, "bit {bit} of {other:032x}");
            }
        }
        assert_eq!(caller_of(provisional_trace_id([0; 8])), None, "no span has this id");
        assert_eq!(caller_of([0; 16]), None);
    }
}
