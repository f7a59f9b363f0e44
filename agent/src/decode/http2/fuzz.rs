//! Any bytes as the records of a connection, for the fuzz target `http2`.

use coati_common::event::{Begin, Data, Frames, Header, Kind, Totals, begin_flags, data_flags, direction, role};

use super::super::{DecodeConfig, Decoder, Event};
use crate::capture::Record;

/// Bytes that say what a record is: kind and direction, bytes that moved, bytes that are told, and its mark's state.
const RECORD_BYTES: usize = 4;

/// Feeds the records that `bytes` describe to a decoder: the first one begins the connection. Whatever they are, the
/// books balance.
///
/// # Panics
///
/// If they do not.
pub fn fuzz_http2(bytes: &[u8]) {
    let mut decoder = Decoder::new(DecodeConfig::default());
    let (mut opened, mut over) = (0_u64, 0_u64);
    let mut emit = |event: Event<'_>| match event {
        Event::Began(..) => opened += 1,
        Event::Ended(_) | Event::Dropped(_) => over += 1,
        Event::Opened(_) | Event::Answered(..) | Event::Upgraded(_) | Event::Running(_) => {}
    };
    let (mut rest, mut time_ns, mut totals) = (bytes, 1, Totals::ZERO);
    while let Some(([what, len, told, state], behind)) = rest.split_first_chunk::<RECORD_BYTES>() {
        let (payload, behind) = behind.split_at(behind.len().min(usize::from(*told)));
        rest = behind;
        time_ns += 1_000_000;
        let len = u64::from(*len).max(payload.len() as u64);
        let mark = Frames { left: u32::from(*what) << 4, state: state & 3, have: state >> 4, ..Frames::HEADER }.mark();
        let header = |kind: Kind| Header { kind: kind as u32, cpu: 0, cpu_seq: 0, time_ns };
        let record = if time_ns == 1_000_001 {
            totals.request_bytes = len;
            let last = if what & 1 == 0 { Frames::PREFACE.mark() } else { Frames::HEADER.mark() };
            let begin = Begin {
                header: header(Kind::Http2),
                connection: 1,
                exchange: 1,
                role: if what & 2 == 0 { role::SERVER } else { role::CLIENT },
                flags: begin_flags::POSITIONS,
                len,
                last,
                ..Begin::default()
            };
            Record::Begin(Box::new(begin), payload.to_vec())
        } else {
            let towards = if what & 1 == 0 { direction::REQUEST } else { direction::RESPONSE };
            let total = if what & 1 == 0 { &mut totals.request_bytes } else { &mut totals.response_bytes };
            // Some records are lost.
            *total += len + if what & 2 == 0 { 0 } else { u64::from(what >> 2) };
            let data = Data {
                header: header(Kind::Data),
                connection: 1,
                exchange: 1,
                direction: towards,
                flags: data_flags::FRAMES,
                len,
                last: mark,
                totals,
                ..Data::default()
            };
            Record::Data(data, payload.to_vec())
        };
        decoder.record(record, &mut emit);
    }
    decoder.tick(time_ns + 60_000_000_000, &mut emit);
    decoder.finish(&mut emit);
    assert_eq!(opened, over, "every exchange that began is over");
    let counters = decoder.counters();
    assert_eq!(
        counters.exchanges,
        counters.ended + counters.dropped(),
        "every exchange has ended, or was counted as dropped"
    );
}
