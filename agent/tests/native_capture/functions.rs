//! What only the hooks on TCP's functions see: calls that move bytes without one of the usual system calls.

use std::io::{IoSlice, IoSliceMut, Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::os::fd::AsRawFd;
use std::thread;
use std::time::Duration;

use coati_agent::capture::Source;
use coati_agent::kernel::features::HookSet;
use coati_common::event::direction;
use coati_common::loss::Loss;
use io_uring::{IoUring, opcode, squeue, types::Fd};
use rustix::io::{ReadWriteFlags, preadv2, pwritev2};
use rustix::net::{MMsgHdr, SendAncillaryBuffer, SendFlags, sendmmsg};

use crate::watch::{Seen, Sides, Watch, answer, connect, hooks, read_until};

const REQUEST: &[u8] = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n";
const RESPONSE: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";

/// A capture by such hooks, if there are any.
fn watch(covers: &str) -> Option<Watch> {
    let watch = Watch::start(covers)?;
    if watch.hooks() == HookSet::Syscall {
        println!("SKIPPED: the hooks are on system calls, which do not see them; not covered: {covers}");
        return None;
    }
    Some(watch)
}

/// One exchange, the same at both ends.
fn assert_seen_whole(sides: &Sides) {
    let (client, server) = sides.only();
    for seen in [client, server] {
        assert_eq!(seen.begins.len(), 1);
        assert_eq!(seen.begins[0].1, REQUEST);
        assert_eq!(&seen.begins[0].0.last, b"t: x\r\n\r\n");
        assert_eq!(seen.ends[0].totals.request_bytes, REQUEST.len() as u64);
        assert_eq!(seen.ends[0].totals.response_bytes, RESPONSE.len() as u64);
        let response: Vec<u8> = seen.towards(direction::RESPONSE).iter().flat_map(|(_, bytes)| bytes.clone()).collect();
        assert_eq!(response, RESPONSE);
    }
    let positions = |begin: &coati_common::event::Begin| (begin.client_position, begin.server_position);
    assert_eq!(positions(&client.begins[0].0), positions(&server.begins[0].0));
}

/// Every program that was planned for this kernel is in it: its verifier has nothing against any.
#[test]
fn nothing_is_left_out() {
    let Some(watch) = Watch::start_with_tls("all programs") else { return };
    let attached = &watch.capture().programs().attached;
    if let Some(wanted) = hooks() {
        assert_eq!(attached.hooks, wanted);
        assert_eq!(attached.off, []);
    }
    for cost in watch.capture().programs().costs() {
        println!("{}: {} instructions verified", cost.program, cost.verified);
        assert!(cost.verified < 500_000, "half of what the kernel accepts: {cost:?}");
    }
}

#[test]
fn io_uring_is_seen() {
    let Some(mut watch) = watch("io_uring") else { return };
    let port = connect(
        |stream| {
            let mut ring = IoUring::new(4).unwrap();
            let mut buffer = [0; 200];
            let len = receive(&mut ring, &stream, &mut buffer);
            assert_eq!(&buffer[..len], REQUEST);
            send(&mut ring, &stream, RESPONSE);
        },
        |stream| {
            let mut ring = IoUring::new(4).unwrap();
            send(&mut ring, &stream, REQUEST);
            let mut buffer = [0; 200];
            let len = receive(&mut ring, &stream, &mut buffer);
            assert_eq!(&buffer[..len], RESPONSE);
        },
    );
    assert_seen_whole(&watch.wait(port, |sides| sides.ended(1)));
}

fn send(ring: &mut IoUring, stream: &TcpStream, bytes: &[u8]) {
    let entry = opcode::Send::new(Fd(stream.as_raw_fd()), bytes.as_ptr(), bytes.len() as u32);
    assert_eq!(submit(ring, &entry.build()), bytes.len());
}

fn receive(ring: &mut IoUring, stream: &TcpStream, buffer: &mut [u8]) -> usize {
    let entry = opcode::Recv::new(Fd(stream.as_raw_fd()), buffer.as_mut_ptr(), buffer.len() as u32);
    submit(ring, &entry.build())
}

fn submit(ring: &mut IoUring, entry: &squeue::Entry) -> usize {
    // SAFETY: the buffer that the entry points to is borrowed by the caller until the operation is over.
    unsafe { ring.submission().push(entry) }.unwrap();
    ring.submit_and_wait(1).unwrap();
    usize::try_from(ring.completion().next().unwrap().result()).unwrap()
}

/// `sendmmsg`, and `preadv2` and `pwritev2`, which take sockets too.
#[test]
fn rare_system_calls_are_seen() {
    let Some(mut watch) = watch("sendmmsg, preadv2, pwritev2") else { return };
    let port = connect(
        |stream| {
            let mut buffer = [0; 200];
            let len = preadv2(&stream, &mut [IoSliceMut::new(&mut buffer)], u64::MAX, ReadWriteFlags::empty()).unwrap();
            assert_eq!(&buffer[..len], REQUEST);
            let (head, body) = RESPONSE.split_at(20);
            let parts = [IoSlice::new(head), IoSlice::new(body)];
            assert_eq!(pwritev2(&stream, &parts, u64::MAX, ReadWriteFlags::empty()).unwrap(), RESPONSE.len());
        },
        |mut stream| {
            let part = [IoSlice::new(REQUEST)];
            let mut ancillary = SendAncillaryBuffer::default();
            let mut messages = [MMsgHdr::new(&part, &mut ancillary)];
            assert_eq!(sendmmsg(&stream, &mut messages, SendFlags::empty()).unwrap(), 1);
            read_until(&mut stream, b"ok");
        },
    );
    assert_seen_whole(&watch.wait(port, |sides| sides.ended(1)));
}

/// More threads wait in a receive than the kernel follows to the return of a kprobe's function: every request is told or
/// counted, and by the other hooks told.
#[test]
fn requests_to_many_waiting_threads_are_told_or_counted() {
    const THREADS: usize = 40;
    let Some(mut watch) = Watch::start("many threads that wait") else { return };
    let missed = |watch: &Watch| watch.capture().health().unwrap().losses[Loss::ReturnMissed as usize];
    let before = missed(&watch);
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let address = listener.local_addr().unwrap();
    let mut clients = Vec::new();
    let servers: Vec<_> = (0..THREADS)
        .map(|_| {
            clients.push(TcpStream::connect(address).unwrap());
            let mut stream = listener.accept().unwrap().0;
            thread::spawn(move || {
                answer(stream.try_clone().unwrap(), &[RESPONSE; 2]);
                assert_eq!(stream.read(&mut [0]).unwrap(), 0);
            })
        })
        .collect();
    // Most of them wait by now; how many does not matter.
    thread::sleep(Duration::from_millis(300));
    for _ in 0..2 {
        for client in &mut clients {
            client.write_all(REQUEST).unwrap();
            read_until(client, b"ok");
        }
    }
    drop(clients);
    for server in servers {
        server.join().unwrap();
    }
    // The last End of all: before it, everything was told that was seen.
    let port = address.port();
    let ended = |sides: &Sides| sides.client.iter().filter(|seen| !seen.ends.is_empty()).count();
    let sides = watch.wait(port, |sides| ended(sides) == THREADS);
    let missed = missed(&watch) - before;
    let told = |side: &[Seen]| side.iter().map(|seen| seen.begins.len()).sum::<usize>();
    let (sent, received) = (told(&sides.client), told(&sides.server));
    println!("{} requests: sent {sent}, received {received}, returns missed {missed}", 2 * THREADS);
    if watch.hooks() == HookSet::Kprobe {
        // A return that is missed costs at most the request that it received, or the one after the answer.
        assert!(missed > 0 && sent + received + missed as usize >= 4 * THREADS);
    } else {
        assert_eq!((sent, received, missed), (2 * THREADS, 2 * THREADS, 0));
    }
}

/// Bytes that are spliced out of a connection are counted; the head that was read before is told.
#[test]
fn bytes_spliced_out_are_counted() {
    let Some(mut watch) = watch("splice from a connection") else { return };
    let port = connect(
        |mut stream| {
            read_until(&mut stream, b"\r\n\r\n");
            stream.write_all(RESPONSE).unwrap();
        },
        |mut stream| {
            stream.write_all(REQUEST).unwrap();
            let mut head = vec![0; RESPONSE.len() - 2];
            stream.read_exact(&mut head).unwrap();
            let (mut reader, writer) = std::io::pipe().unwrap();
            let spliced = rustix::pipe::splice(&stream, None, &writer, None, 100, rustix::pipe::SpliceFlags::empty());
            assert_eq!(spliced.unwrap(), 2);
            let mut body = [0; 2];
            reader.read_exact(&mut body).unwrap();
            assert_eq!(&body, b"ok");
        },
    );
    let sides = watch.wait(port, |sides| sides.ended(1));
    let (client, _) = sides.only();
    assert_eq!(client.chunks(1), [RESPONSE.len() as u64 - 2, 2]);
    assert_eq!(client.ends[0].totals.response_bytes, RESPONSE.len() as u64);
}
