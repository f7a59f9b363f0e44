//! Threads whose numbers lead to one place of what is noted of calls.

use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::mpsc;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use coati_agent::capture::Source as _;
use coati_common::limits;
use rustix::net::sockopt::{set_socket_recv_buffer_size, set_socket_send_buffer_size};

use crate::watch::{Watch, hooks, read_until};

const REQUEST: &[u8] = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n";

/// How far numbers of threads lie apart that lead to the same place, of sends as of receives.
const APART: u32 = if limits::SENDING > limits::RECEIVING { limits::SENDING } else { limits::RECEIVING };

/// More than fits between two sockets with such buffers.
const BODY_BYTES: usize = 1 << 20;
const BUFFER_BYTES: usize = 1 << 14;

/// The kernel gives the number that follows to the next thread or process that starts, here or elsewhere.
const LAST_NUMBER: &str = "/proc/sys/kernel/ns_last_pid";

/// How often that is tried, on a machine where others start some as well.
const TRIES: u32 = 50;

/// How long a thread may take until it waits.
const PATIENCE: Duration = Duration::from_secs(10);

type Work = Box<dyn FnOnce() + Send>;

/// A server of one connection on a thread with a number.
struct Server {
    client: TcpStream,
    port: u16,
    thread: Thread,
}

struct Thread {
    number: u32,
    /// Gives the work back that it did not do.
    handle: JoinHandle<Option<Work>>,
}

/// A thread that does something, once one has the `wanted` number, if any; `None` if none ever has.
fn start(wanted: Option<u32>, mut work: Work) -> Option<Thread> {
    for _ in 0..TRIES {
        if let Some(wanted) = wanted
            && let Err(error) = std::fs::write(LAST_NUMBER, (wanted - 1).to_string())
        {
            println!("{LAST_NUMBER} cannot be written: {error}");
            return None;
        }
        let (tell, told) = mpsc::channel();
        let is_right = move |number| wanted.is_none_or(|wanted| wanted == number);
        let handle = thread::spawn(move || {
            let number = rustix::thread::gettid().as_raw_nonzero().get().cast_unsigned();
            tell.send(number).unwrap();
            if !is_right(number) {
                return Some(work);
            }
            work();
            None
        });
        let number = told.recv().unwrap();
        if is_right(number) {
            return Some(Thread { number, handle });
        }
        work = handle.join().unwrap()?;
    }
    None
}

/// A server that answers one request with `response`, which its client does not read yet.
fn serve(number: Option<u32>, response: &Arc<[u8]>) -> Option<Server> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let address = listener.local_addr().unwrap();
    let client = TcpStream::connect(address).unwrap();
    set_socket_recv_buffer_size(&client, BUFFER_BYTES).unwrap();
    let mut stream = listener.accept().unwrap().0;
    set_socket_send_buffer_size(&stream, BUFFER_BYTES).unwrap();
    let response = Arc::clone(response);
    let work = move || {
        read_until(&mut stream, b"\r\n\r\n");
        stream.write_all(&response).unwrap();
    };
    let thread = start(number, Box::new(work))?;
    Some(Server { client, port: address.port(), thread })
}

/// Returns when both wait in the system call with a number.
fn wait_until_they_wait(servers: [&Server; 2], system_call: &str) {
    let deadline = Instant::now() + PATIENCE;
    let waits = |server: &Server| {
        let path = format!("/proc/self/task/{}/syscall", server.thread.number);
        std::fs::read_to_string(path).unwrap().split(' ').next() == Some(system_call)
    };
    while !servers.into_iter().all(waits) {
        assert!(Instant::now() < deadline, "the servers do not wait in system call {system_call}");
        thread::sleep(Duration::from_millis(1));
    }
}

/// Both wait in a receive at the same time, and then in a send: what is noted of either is of that one.
#[test]
fn two_threads_with_one_place_are_told_apart() {
    let Some(mut watch) = Watch::start("threads with one place") else { return };
    let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {BODY_BYTES}\r\n\r\n");
    let response: Arc<[u8]> = head.bytes().chain(std::iter::repeat_n(b'x', BODY_BYTES)).collect();
    let losses = |watch: &Watch| watch.capture().health().unwrap().losses;
    let before = losses(&watch);

    let first = serve(None, &response).unwrap();
    let number =
        if first.thread.number > APART + 2 { first.thread.number - APART } else { first.thread.number + APART };
    let Some(second) = serve(Some(number), &response) else {
        // In a guest it must be possible.
        assert!(hooks().is_none(), "no thread gets the number {number}");
        println!("SKIPPED: no thread gets the number {number}; not covered: threads with one place");
        return;
    };
    let mut servers = [first, second];
    wait_until_they_wait(servers.each_ref(), &libc::SYS_recvfrom.to_string());
    // The one that came last first.
    for server in servers.iter_mut().rev() {
        server.client.write_all(REQUEST).unwrap();
    }
    wait_until_they_wait(servers.each_ref(), &libc::SYS_sendto.to_string());
    let mut numbers = Vec::new();
    for Server { mut client, port, thread } in servers {
        let mut received = Vec::new();
        client.read_to_end(&mut received).unwrap();
        assert_eq!(received, *response);
        thread.handle.join().unwrap();
        drop(client);
        let sides = watch.wait(port, |sides| sides.ended(1));
        let (sent, served) = sides.only();
        for seen in [sent, served] {
            assert_eq!(seen.begins.len(), 1, "{:?}", watch.hooks());
            assert_eq!(seen.ends[0].totals.response_bytes, response.len() as u64, "{:?}", watch.hooks());
        }
        numbers.push(served.begins[0].0.tid);
    }
    // Else this test is of a container, whose numbers are not those that the kernel programs see.
    assert_eq!(numbers[0].abs_diff(numbers[1]), APART, "{numbers:?}");
    assert_eq!(losses(&watch), before);
}
