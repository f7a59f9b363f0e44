//! Every system call that moves bytes, and what they do besides.

use std::fs::File;
use std::io::{self, IoSlice, IoSliceMut, Read, Seek, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::os::fd::AsFd;
use std::process::Command;

use coati_common::event::direction;
use rustix::net::{RecvAncillaryBuffer, RecvFlags, SendAncillaryBuffer, SendFlags, recv, recvmsg, send, sendmsg};
use rustix::pipe::{SpliceFlags, pipe, splice};

use crate::watch::{Watch, connect, read_until};

const HEAD: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\n";
const REQUEST: &[u8] = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n";

/// `writev` and `readv`, `sendmsg` and `recvmsg`: the payload is gathered, the last bytes cross buffers.
#[test]
fn several_buffers_are_one_message() {
    let Some(mut watch) = Watch::start("writev, readv, sendmsg, recvmsg") else { return };
    let port = connect(
        |mut stream| {
            read_until(&mut stream, b"\r\n\r\n");
            let parts = [HEAD, b"", b"01234", b"56", b"789"].map(IoSlice::new);
            assert_eq!(stream.write_vectored(&parts).unwrap(), HEAD.len() + 10);
            receive_message(&stream);
            send_message(&stream, &[HEAD, b"0123456789"]);
        },
        |mut stream| {
            let parts = [&REQUEST[..4], &REQUEST[4..]].map(IoSlice::new);
            assert_eq!(stream.write_vectored(&parts).unwrap(), REQUEST.len());
            let (mut first, mut second) = ([0; 30], [0; 200]);
            let mut parts = [IoSliceMut::new(&mut first), IoSliceMut::new(&mut second)];
            assert_eq!(stream.read_vectored(&mut parts).unwrap(), HEAD.len() + 10);
            send_message(&stream, &[REQUEST]);
            receive_message(&stream);
        },
    );
    let sides = watch.wait(port, |sides| sides.ended(1));
    let (client, server) = sides.only();
    for seen in [client, server] {
        assert_eq!(seen.begins.len(), 2);
        for (begin, payload) in &seen.begins {
            assert_eq!(payload, REQUEST);
            assert_eq!(&begin.last, b"t: x\r\n\r\n");
        }
        assert_eq!(seen.data.len(), 2);
        for (data, payload) in &seen.data {
            assert_eq!(payload, &[HEAD, b"0123456789"].concat());
            assert_eq!(data.len as usize, HEAD.len() + 10);
        }
    }
    // The last two of the server's buffers hold five bytes: more is not known.
    assert_eq!(&server.data[0].0.last, b"\x00\x00\x0056789");
    // The client's hold more.
    assert_eq!(&client.data[0].0.last, b"23456789");
}

fn send_message(stream: &TcpStream, parts: &[&[u8]]) {
    let parts: Vec<_> = parts.iter().map(|part| IoSlice::new(part)).collect();
    sendmsg(stream, &parts, &mut SendAncillaryBuffer::default(), SendFlags::empty()).unwrap();
}

fn receive_message(stream: &TcpStream) {
    let mut buffer = [0; 300];
    recvmsg(stream, &mut [IoSliceMut::new(&mut buffer)], &mut RecvAncillaryBuffer::default(), RecvFlags::empty())
        .unwrap();
}

/// `sendto` and `recvfrom` with flags; looking without taking does not count.
#[test]
fn peeking_takes_nothing() {
    let Some(mut watch) = Watch::start("MSG_PEEK") else { return };
    let port = connect(
        |mut stream| {
            let mut buffer = [0; 100];
            for _ in 0..3 {
                assert!(recv(&stream, &mut buffer[..], RecvFlags::PEEK).unwrap().0 > 0);
            }
            let mut part = [IoSliceMut::new(&mut buffer)];
            assert!(
                recvmsg(&stream, &mut part, &mut RecvAncillaryBuffer::default(), RecvFlags::PEEK).unwrap().bytes > 0
            );
            read_until(&mut stream, b"\r\n\r\n");
            stream.write_all(HEAD).unwrap();
        },
        |mut stream| {
            send(&stream, REQUEST, SendFlags::NOSIGNAL).unwrap();
            let mut buffer = [0; 100];
            assert!(stream.peek(&mut buffer).unwrap() > 0);
            read_until(&mut stream, b"\r\n\r\n");
        },
    );
    let sides = watch.wait(port, |sides| sides.ended(1));
    let (client, server) = sides.only();
    for seen in [client, server] {
        assert_eq!(seen.begins.len(), 1);
        assert_eq!(seen.chunks(1), [HEAD.len() as u64]);
        assert_eq!(seen.ends[0].totals.request_bytes, REQUEST.len() as u64);
    }
}

/// `sendfile` and `splice`: bytes that never pass the process are counted.
#[test]
fn bytes_from_files_are_counted() {
    let Some(mut watch) = Watch::start("sendfile, splice") else { return };
    let port = connect(
        |mut stream| {
            let mut file = tempfile::tempfile().unwrap();
            file.write_all(b"0123456789").unwrap();
            read_until(&mut stream, b"\r\n\r\n");
            stream.write_all(HEAD).unwrap();
            send_file(&mut file, &stream);
            read_until(&mut stream, b"\r\n\r\n");
            stream.write_all(HEAD).unwrap();
            splice_out(&mut file, &stream);
        },
        |mut stream| {
            stream.write_all(REQUEST).unwrap();
            read_until(&mut stream, b"789");
            stream.write_all(REQUEST).unwrap();
            read_until(&mut stream, b"\r\n\r\n0123456789");
        },
    );
    let sides = watch.wait(port, |sides| sides.ended(1));
    let (_, server) = sides.only();
    for exchange in [1, 2] {
        assert_eq!(server.chunks(exchange), [HEAD.len() as u64, 10]);
    }
    let second = server.towards(direction::RESPONSE)[1];
    assert_eq!((second.0.payload_len, second.0.last, second.0.flags), (0, [0; 8], 0));
    assert_eq!(server.ends[0].totals.response_bytes as usize, HEAD.len() + 10);
}

fn send_file(file: &mut File, stream: &TcpStream) {
    let mut offset = 0;
    assert_eq!(rustix::fs::sendfile(stream, file.as_fd(), Some(&mut offset), 10).unwrap(), 10);
}

fn splice_out(file: &mut File, stream: &TcpStream) {
    let (read, write) = pipe().unwrap();
    file.rewind().unwrap();
    assert_eq!(splice(file.as_fd(), None, &write, None, 10, SpliceFlags::empty()).unwrap(), 10);
    assert_eq!(splice(&read, None, stream, None, 10, SpliceFlags::empty()).unwrap(), 10);
}

/// A socket that takes only a part, and then nothing: only what was taken counts, and a request that was refused and
/// sent again is one request.
#[test]
fn what_was_not_sent_does_not_count() {
    let Some(mut watch) = Watch::start("partial writes and EAGAIN") else { return };
    let (sent, to_read) = std::sync::mpsc::channel::<usize>();
    let (read, drained) = std::sync::mpsc::channel::<()>();
    let port = connect(
        move |mut stream| {
            read_until(&mut stream, b"\r\n\r\n");
            stream.write_all(HEAD).unwrap();
            let mut junk = vec![0; to_read.recv().unwrap()];
            stream.read_exact(&mut junk).unwrap();
            read.send(()).unwrap();
            read_until(&mut stream, b"\r\n\r\n");
            stream.write_all(HEAD).unwrap();
        },
        move |mut stream| {
            stream.write_all(REQUEST).unwrap();
            read_until(&mut stream, b"\r\n\r\n");
            stream.set_nonblocking(true).unwrap();
            let mut total = 0;
            let junk = vec![b'j'; 1 << 20];
            let refused = |error: io::Error| assert_eq!(error.kind(), io::ErrorKind::WouldBlock);
            loop {
                match stream.write(&junk) {
                    Ok(len) => total += len,
                    Err(error) => break refused(error),
                }
            }
            for _ in 0..3 {
                refused(stream.write(REQUEST).unwrap_err());
            }
            sent.send(total).unwrap();
            drained.recv().unwrap();
            stream.set_nonblocking(false).unwrap();
            stream.write_all(REQUEST).unwrap();
            read_until(&mut stream, b"\r\n\r\n");
            JUNK.store(total as u64, std::sync::atomic::Ordering::Relaxed);
        },
    );
    let junk = JUNK.load(std::sync::atomic::Ordering::Relaxed);
    let sides = watch.wait(port, |sides| sides.ended(1));
    let (client, server) = sides.only();
    for seen in [client, server] {
        let exchanges: Vec<_> = seen.begins.iter().map(|(begin, _)| begin.exchange).collect();
        assert_eq!(exchanges, [1, 2]);
        assert_eq!(seen.begins[1].0.previous.request_bytes, REQUEST.len() as u64 + junk);
        assert_eq!(seen.ends[0].totals.request_bytes, REQUEST.len() as u64);
    }
    assert_eq!(client.begins[1].0.client_position, server.begins[1].0.client_position);
}

/// Bytes that [`what_was_not_sent_does_not_count`] sends before the socket is full.
static JUNK: std::sync::atomic::AtomicU64 = std::sync::atomic::AtomicU64::new(0);

/// The first request of a connection is refused: nothing is followed until one is taken.
#[test]
fn a_first_request_that_fails_is_forgotten() {
    let Some(mut watch) = Watch::start("requests that cannot be sent") else { return };
    let port = connect(
        |mut stream| {
            read_until(&mut stream, b"\r\n\r\n");
            stream.write_all(HEAD).unwrap();
            stream.read_to_end(&mut Vec::new()).unwrap();
        },
        |mut stream| {
            stream.write_all(REQUEST).unwrap();
            read_until(&mut stream, b"\r\n\r\n");
            stream.shutdown(std::net::Shutdown::Write).unwrap();
            assert_eq!(stream.write(REQUEST).unwrap_err().kind(), io::ErrorKind::BrokenPipe);
        },
    );
    let sides = watch.wait(port, |sides| sides.ended(1));
    let (client, _) = sides.only();
    assert_eq!(client.begins.len(), 1);
    assert_eq!((client.ends[0].exchange, client.ends[0].totals.request_bytes), (1, REQUEST.len() as u64));
}

/// A request in a page that nobody has touched: before the call it cannot be read, after it it can.
#[test]
fn a_request_in_an_untouched_page_is_seen() {
    let Some(mut watch) = Watch::start("requests sent from pages that are not present") else { return };
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(REQUEST).unwrap();
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let port = listener.local_addr().unwrap().port();
    let script = "import mmap, socket, sys; file = open(sys.argv[2], 'rb'); \
        page = mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ, flags=mmap.MAP_PRIVATE); \
        stream = socket.create_connection(('127.0.0.1', int(sys.argv[1]))); stream.sendall(page); stream.recv(100)";
    let child = Command::new("python3").args(["-c", script, &port.to_string()]).arg(file.path()).spawn();
    let Ok(mut child) = child else {
        println!("SKIPPED: there is no python3; not covered: requests sent from pages that are not present");
        return;
    };
    let mut stream = listener.accept().unwrap().0;
    read_until(&mut stream, b"\r\n\r\n");
    stream.write_all(HEAD).unwrap();
    drop(stream);
    assert!(child.wait().unwrap().success());
    let sides = watch.wait(port, |sides| sides.ended(1));
    let (client, server) = sides.only();
    assert_eq!(client.begins[0].1, REQUEST);
    assert_eq!(client.begins[0].0.client_position, server.begins[0].0.client_position);
    assert_eq!(client.chunks(1), [HEAD.len() as u64]);
}
