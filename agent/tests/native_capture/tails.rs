//! The end of responses to `POST`: what no other record carries of them.

use std::io::{IoSlice, Read, Write};
use std::time::Duration;

use coati_agent::capture::Record;
use coati_agent::kernel::features::HookSet;
use coati_common::event::{Begin, Tail, role};
use coati_common::limits::{CHUNK_RECORDS, HEAD_BYTES};

use crate::watch::{Sides, Watch, connect, read_until};

const HEAD: &[u8] = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n";

fn request(method: &str) -> Vec<u8> {
    format!("{method} /api/chat HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\n{{}}").into_bytes()
}

/// The tails of the connection that began so.
fn tails(watch: &Watch, begin: &Begin) -> Vec<(Tail, Vec<u8>)> {
    let own = |record: &Record| match record {
        Record::Tail(tail, payload) if tail.connection == begin.connection => Some((*tail, payload.clone())),
        _ => None,
    };
    watch.records().iter().filter_map(own).collect()
}

/// A server that answers one request with these calls, and a client that reads to the end.
fn exchange(watch: &mut Watch, method: &str, calls: Vec<Vec<u8>>) -> Sides {
    let request = request(method);
    let port = connect(
        move |mut stream| {
            read_until(&mut stream, b"{}");
            for call in calls {
                // Some servers send a chunk's framing and its data from several buffers.
                let (first, rest) = call.split_at(call.len().min(3));
                let sent = stream.write_vectored(&[IoSlice::new(first), IoSlice::new(rest)]).unwrap();
                stream.write_all(&call[sent..]).unwrap();
            }
        },
        move |mut stream| {
            stream.set_nodelay(true).unwrap();
            stream.write_all(&request).unwrap();
            stream.read_to_end(&mut Vec::new()).unwrap();
        },
    );
    watch.wait(port, |sides| sides.ended(1))
}

fn chunk(text: &str) -> Vec<u8> {
    format!("{:x}\r\n{text}\r\n", text.len()).into_bytes()
}

#[test]
fn the_end_of_a_long_stream_is_told_and_nothing_of_its_middle() {
    const CALLS: usize = 3000;
    let Some(mut watch) = Watch::start("the end of long responses to POST") else { return };
    let mut calls = vec![HEAD.to_vec()];
    calls.extend((0..CALLS).map(|number| chunk(&format!("token number {number}"))));
    calls.push(b"0\r\n\r\n".to_vec());
    let sides = exchange(&mut watch, "POST", calls);
    let (_, server) = sides.only();
    let tails = tails(&watch, &server.begins[0].0);
    assert!(tails.len() <= CHUNK_RECORDS as usize + 2, "{} tails", tails.len());
    let (last, payload) = tails.last().expect("a tail");
    assert_eq!((last.exchange, last.reserved), (1, 0));
    // The last tokens, through the two halves, and no call twice.
    let end: Vec<u8> = tails[tails.len() - 2..].iter().flat_map(|(_, payload)| payload.clone()).collect();
    assert!(end.len() > HEAD_BYTES, "{} bytes", end.len());
    assert!(payload.ends_with(format!("token number {}\r\n0\r\n\r\n", CALLS - 1).as_bytes()), "{}", end.escape_ascii());
    let text = String::from_utf8(end).unwrap();
    for number in CALLS - 30..CALLS {
        assert_eq!(text.matches(&format!("token number {number}\r\n")).count(), 1, "{number} in {text}");
    }
}

#[test]
fn the_end_of_a_large_answer_is_told_before_its_record() {
    let Some(mut watch) = Watch::start("the end of large responses to POST") else { return };
    let body = format!("{}THE END", "x".repeat(20_000));
    let answer = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{body}", body.len());
    let sides = exchange(&mut watch, "POST", vec![answer.into_bytes()]);
    let (client, server) = sides.only();
    assert_eq!(server.begins[0].0.role, role::SERVER);
    for seen in [client, server] {
        let begin = &seen.begins[0].0;
        let tails = tails(&watch, begin);
        let (tail, payload) = tails.last().expect("a tail");
        assert_eq!(payload.len(), HEAD_BYTES);
        assert!(payload.ends_with(b"THE END"), "{}", payload.escape_ascii());
        let place = |wanted: &dyn Fn(&Record) -> bool| watch.records().iter().rposition(wanted);
        let of_tail = place(&|record| matches!(record, Record::Tail(it, _) if it == tail));
        let of_data =
            place(&|record| matches!(record, Record::Data(it, _) if it.connection == begin.connection && it.len > 0));
        assert!(of_tail < of_data, "the record that ends the exchange comes last");
    }
}

#[test]
fn other_methods_and_short_answers_have_no_tail() {
    let Some(mut watch) = Watch::start("what has no tail") else { return };
    let short = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello".to_vec();
    let long = [&b"HTTP/1.1 200 OK\r\nContent-Length: 5000\r\n\r\n"[..], &[b'x'; 5000]].concat();
    for (method, answer) in [("POST", short), ("GET", long)] {
        let sides = exchange(&mut watch, method, vec![answer]);
        let (client, server) = sides.only();
        std::thread::sleep(Duration::from_millis(10));
        for seen in [client, server] {
            assert_eq!(tails(&watch, &seen.begins[0].0), [], "{method}");
        }
    }
}

/// The set of hooks that is not the best one here keeps ends as well.
#[test]
fn system_calls_tell_tails_too() {
    let with = |options: &mut coati_agent::ebpf::Options| options.hooks = Some(HookSet::Syscall);
    let Some(mut watch) = Watch::start_with("tails by system calls", with) else { return };
    let mut calls = vec![HEAD.to_vec()];
    calls.extend((0..200).map(|number| chunk(&format!("token number {number}"))));
    calls.push(b"0\r\n\r\n".to_vec());
    let sides = exchange(&mut watch, "POST", calls);
    let (_, server) = sides.only();
    let tails = tails(&watch, &server.begins[0].0);
    let (_, payload) = tails.last().expect("a tail");
    assert!(payload.ends_with(b"token number 199\r\n0\r\n\r\n"), "{}", payload.escape_ascii());
}
