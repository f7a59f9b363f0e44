use super::*;
use coati_common::event::{Exec, Served, Unix};
use proptest::collection::vec;
use proptest::prelude::*;
use std::mem::{offset_of, size_of};

/// Writes fields where the compiler, which knows `repr(C)`, says that they lie.
macro_rules! lay {
    ($bytes:ident, $at:expr, $type:ty, $value:expr, [$($integer:ident),*], [$($array:ident),*]) => {{
        $($bytes[$at + offset_of!($type, $integer)..][..size_of_val(&$value.$integer)]
            .copy_from_slice(&$value.$integer.to_ne_bytes());)*
        $($bytes[$at + offset_of!($type, $array)..][..size_of_val(&$value.$array)].copy_from_slice(&$value.$array);)*
    }};
}

fn lay_header(bytes: &mut [u8], header: &Header) {
    lay!(bytes, 0, Header, header, [kind, cpu, cpu_seq, time_ns], []);
}

fn lay_served(bytes: &mut [u8], at: usize, served: Served) {
    bytes[at + offset_of!(Served, connection)..][..8].copy_from_slice(&served.connection.to_ne_bytes());
    bytes[at + offset_of!(Served, exchange)..][..4].copy_from_slice(&served.exchange.to_ne_bytes());
    bytes[at + offset_of!(Served, place)..][..4].copy_from_slice(&served.place.to_ne_bytes());
}

fn lay_totals(bytes: &mut [u8], at: usize, totals: &Totals) {
    lay!(
        bytes,
        at,
        Totals,
        totals,
        [
            request_bytes,
            response_bytes,
            request_last_ns,
            response_first_ns,
            response_last_ns,
            longest_gap_ns,
            response_chunks,
            reserved
        ],
        []
    );
}

/// The bytes that the kernel programs would write.
fn bytes_of(record: &Record) -> Vec<u8> {
    match record {
        Record::Begin(begin, payload) => {
            let mut bytes = vec![0; size_of::<Begin>()];
            lay!(
                bytes,
                0,
                Begin,
                begin,
                [
                    connection,
                    socket,
                    exchange,
                    tgid,
                    tid,
                    netns,
                    client_position,
                    server_position,
                    local_port,
                    remote_port,
                    role,
                    flags,
                    payload_len,
                    len
                ],
                [local_address, remote_address, last]
            );
            lay_header(&mut bytes, &begin.header);
            lay_served(&mut bytes, offset_of!(Begin, served), begin.served);
            lay_totals(&mut bytes, offset_of!(Begin, previous), &begin.previous);
            bytes.extend(payload);
            bytes
        }
        Record::Data(data, payload) => {
            let mut bytes = vec![0; size_of::<Data>()];
            lay!(bytes, 0, Data, data, [connection, exchange, tgid, tid, payload_len, direction, flags, len], [last]);
            lay_header(&mut bytes, &data.header);
            lay_served(&mut bytes, offset_of!(Data, served), data.served);
            lay_totals(&mut bytes, offset_of!(Data, totals), &data.totals);
            bytes.extend(payload);
            bytes
        }
        Record::Tail(tail, payload) => {
            let mut bytes = vec![0; size_of::<Tail>()];
            lay!(bytes, 0, Tail, tail, [connection, exchange, payload_len, reserved], []);
            lay_header(&mut bytes, &tail.header);
            bytes.extend(payload);
            bytes
        }
        Record::End(end) => {
            let mut bytes = vec![0; size_of::<End>()];
            lay!(bytes, 0, End, end, [connection, exchange, reason], []);
            lay_header(&mut bytes, &end.header);
            lay_totals(&mut bytes, offset_of!(End, totals), &end.totals);
            bytes
        }
        Record::Exec(header, tgid, path) => {
            let mut bytes = vec![0; size_of::<Exec>()];
            lay_header(&mut bytes, header);
            bytes[offset_of!(Exec, tgid)..][..4].copy_from_slice(&tgid.to_ne_bytes());
            bytes[offset_of!(Exec, path_len)..][..4].copy_from_slice(&(path.len() as u32).to_ne_bytes());
            bytes[offset_of!(Exec, path)..][..path.len()].copy_from_slice(path);
            bytes
        }
        Record::Exit(exit) => {
            let mut bytes = vec![0; size_of::<Exit>()];
            lay!(bytes, 0, Exit, exit, [tgid, reserved], []);
            lay_header(&mut bytes, &exit.header);
            bytes
        }
        Record::Unix(header, connection, path) => {
            let mut bytes = vec![0; size_of::<Unix>()];
            lay_header(&mut bytes, header);
            bytes[offset_of!(Unix, connection)..][..8].copy_from_slice(&connection.to_ne_bytes());
            bytes[offset_of!(Unix, path_len)..][..4].copy_from_slice(&(path.len() as u32).to_ne_bytes());
            bytes[offset_of!(Unix, path)..][..path.len()].copy_from_slice(path);
            bytes
        }
        Record::Tls(tls) => {
            let mut bytes = vec![0; size_of::<Tls>()];
            lay!(bytes, 0, Tls, tls, [tgid, reserved], []);
            lay_header(&mut bytes, &tls.header);
            bytes
        }
    }
}

prop_compose! {
    fn header(kind: Kind)(cpu: u32, cpu_seq: u64, time_ns: u64) -> Header {
        Header { kind: kind as u32, cpu, cpu_seq, time_ns }
    }
}

prop_compose! {
    fn totals()(sums: [u64; 6], response_chunks: u32) -> Totals {
        let [request_bytes, response_bytes, request_last_ns, response_first_ns, response_last_ns, longest_gap_ns] = sums;
        Totals {
            request_bytes,
            response_bytes,
            request_last_ns,
            response_first_ns,
            response_last_ns,
            longest_gap_ns,
            response_chunks,
            reserved: 0,
        }
    }
}

prop_compose! {
    fn served()(connection: u64, [exchange, place] in any::<[u32; 2]>()) -> Served {
        Served { connection, exchange, place }
    }
}

prop_compose! {
    fn begin()(
        header in header(Kind::Begin),
        long: [u64; 3],
        words: [u32; 6],
        [local_address, remote_address] in any::<[[u8; 16]; 2]>(),
        [local_port, remote_port] in any::<[u16; 2]>(),
        [role, flags] in any::<[u8; 2]>(),
        last: [u8; 8],
        served in served(),
        previous in totals(),
        payload in vec(any::<u8>(), 0..64),
    ) -> Record {
        let [connection, socket, len] = long;
        let [exchange, tgid, tid, netns, client_position, server_position] = words;
        let begin = Begin {
            header, connection, socket, exchange, tgid, tid, netns, client_position, server_position, local_address,
            remote_address, local_port, remote_port, role, flags, payload_len: payload.len() as u16, len,
            last, served, previous,
        };
        Record::Begin(Box::new(begin), payload)
    }
}

prop_compose! {
    fn data()(
        header in header(Kind::Data),
        [connection, len] in any::<[u64; 2]>(),
        [exchange, tgid, tid] in any::<[u32; 3]>(),
        [direction, flags] in any::<[u8; 2]>(),
        last: [u8; 8],
        served in served(),
        totals in totals(),
        payload in vec(any::<u8>(), 0..64),
    ) -> Record {
        let payload_len = payload.len() as u16;
        let data = Data { header, connection, exchange, tgid, tid, payload_len, direction, flags, len, last, served, totals };
        Record::Data(data, payload)
    }
}

fn record() -> impl Strategy<Value = Record> {
    prop_oneof![
        begin(),
        data(),
        (header(Kind::Tail), any::<u64>(), any::<[u16; 2]>(), vec(any::<u8>(), 0..64)).prop_map(
            |(header, connection, [exchange, reserved], payload)| {
                let (exchange, payload_len) = (exchange.into(), payload.len() as u16);
                Record::Tail(Tail { header, connection, exchange, payload_len, reserved }, payload)
            }
        ),
        (header(Kind::End), any::<u64>(), any::<[u32; 2]>(), totals()).prop_map(
            |(header, connection, [exchange, reason], totals)| {
                Record::End(End { header, connection, exchange, reason, totals })
            }
        ),
        (header(Kind::Exec), any::<u32>(), vec(any::<u8>(), 0..=PATH_BYTES))
            .prop_map(|(header, tgid, path)| Record::Exec(header, tgid, path)),
        (header(Kind::Exit), any::<u32>()).prop_map(|(header, tgid)| Record::Exit(Exit { header, tgid, reserved: 0 })),
        (header(Kind::Unix), any::<u64>(), vec(any::<u8>(), 0..=UNIX_PATH_BYTES))
            .prop_map(|(header, connection, path)| Record::Unix(header, connection, path)),
        (header(Kind::Tls), any::<u32>()).prop_map(|(header, tgid)| Record::Tls(Tls { header, tgid, reserved: 0 })),
    ]
}

proptest! {
    #[test]
    fn what_is_laid_out_is_read(record in record()) {
        prop_assert_eq!(Record::parse(&bytes_of(&record)), Ok(record));
    }

    #[test]
    fn every_prefix_is_refused(record in record()) {
        let bytes = bytes_of(&record);
        for len in 0..bytes.len() {
            let found = Record::parse(&bytes[..len]);
            prop_assert!(matches!(found, Err(RecordError::Cut { .. })), "{} bytes: {:?}", len, found);
        }
    }

    /// The ring buffer rounds up to eight bytes.
    #[test]
    fn bytes_behind_a_record_are_ignored(record in record(), rest in vec(any::<u8>(), 0..8)) {
        let mut bytes = bytes_of(&record);
        bytes.extend(rest);
        prop_assert_eq!(Record::parse(&bytes), Ok(record));
    }

    #[test]
    fn any_bytes_are_survived(bytes in vec(any::<u8>(), 0..512), kind in 0_u32..11) {
        let mut known = kind.to_ne_bytes().to_vec();
        known.extend(&bytes);
        let _ = Record::parse(&known);
        let _ = Record::parse(&bytes);
    }
}

#[test]
fn an_unknown_kind_is_refused() {
    let mut bytes = vec![0; 64];
    bytes[0] = 10;
    let found = u32::from_ne_bytes([10, 0, 0, 0]);
    assert_eq!(Record::parse(&bytes), Err(RecordError::Kind { found }));
}

#[test]
fn a_path_longer_than_its_field_is_refused() {
    let mut bytes = bytes_of(&Record::Exec(Header { kind: Kind::Exec as u32, ..Header::default() }, 1, vec![]));
    bytes[offset_of!(Exec, path_len)..][..4].copy_from_slice(&129_u32.to_ne_bytes());
    assert_eq!(Record::parse(&bytes), Err(RecordError::Path { found: 129, most: 128 }));
}
