//! An HTTP proxy that does to requests what networks and servers do on bad days.

use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use anyhow::{Context, Result};

/// What happens to a request.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Fault {
    /// The server does not get it; this status and body are the answer.
    Refuse(u16, &'static str),
    /// The server does it, but this status and body are the answer.
    Pretend(u16, &'static str),
    /// The connection is cut before the server gets it.
    CutBefore,
    /// The server does it; the connection is cut before the answer.
    CutAfter,
    /// The answer's body ends after so many bytes.
    Truncate(usize),
    /// The answer's body comes in pieces of 1 KiB, with this long between them.
    Trickle(Duration),
    /// The server gets it after this long.
    Delay(Duration),
    /// The server does it; no answer comes, and the connection stays.
    Hang,
}

/// Decides about a request, by its method and its path with the query.
type Decide = dyn Fn(&str, &str) -> Option<Fault> + Send + Sync;

/// A running proxy; ends when dropped.
#[derive(Debug)]
pub struct Proxy {
    /// Where it listens.
    pub address: SocketAddr,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Proxy {
    /// Starts a proxy to `server`.
    pub fn start(
        server: SocketAddr,
        decide: impl Fn(&str, &str) -> Option<Fault> + Send + Sync + 'static,
    ) -> Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).context("no port for the proxy")?;
        let address = listener.local_addr()?;
        let stop = Arc::new(AtomicBool::new(false));
        let (stopped, decide): (_, Arc<Decide>) = (Arc::clone(&stop), Arc::new(decide));
        let thread = thread::spawn(move || {
            for client in listener.incoming() {
                if stopped.load(Ordering::Relaxed) {
                    return;
                }
                let (Ok(client), decide, stop) = (client, Arc::clone(&decide), Arc::clone(&stopped)) else { continue };
                // A client that goes away ends its connection, which is all that an error here can mean.
                thread::spawn(move || Connection { client, server, stop }.serve(&*decide));
            }
        });
        Ok(Self { address, stop, thread: Some(thread) })
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        // Wakes it up.
        let _ = TcpStream::connect(self.address);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

struct Connection {
    client: TcpStream,
    server: SocketAddr,
    stop: Arc<AtomicBool>,
}

impl Connection {
    fn serve(mut self, decide: &Decide) -> io::Result<()> {
        let mut buffer = Vec::new();
        while let Some(request) = Message::read(&mut self.client, &mut buffer)? {
            let line = String::from_utf8_lossy(request.line()).into_owned();
            let mut words = line.split(' ');
            let (method, path) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
            match decide(method, path) {
                None => self.client.write_all(&self.forward(&request, method)?.bytes)?,
                Some(Fault::Refuse(status, body)) => self.answer(method, status, body)?,
                Some(Fault::Pretend(status, body)) => {
                    self.forward(&request, method)?;
                    self.answer(method, status, body)?;
                }
                Some(Fault::CutBefore) => return self.client.shutdown(Shutdown::Both),
                Some(Fault::CutAfter) => {
                    self.forward(&request, method)?;
                    return self.client.shutdown(Shutdown::Both);
                }
                Some(Fault::Truncate(bytes)) => {
                    let answer = self.forward(&request, method)?;
                    let end = answer.bytes.len().min(answer.head + bytes);
                    self.client.write_all(answer.bytes.get(..end).unwrap_or_default())?;
                    return self.client.shutdown(Shutdown::Both);
                }
                Some(Fault::Trickle(pause)) => {
                    let answer = self.forward(&request, method)?;
                    let (head, body) = answer.bytes.split_at(answer.head);
                    self.client.write_all(head)?;
                    for piece in body.chunks(1 << 10) {
                        self.client.write_all(piece)?;
                        thread::sleep(pause);
                    }
                }
                Some(Fault::Delay(pause)) => {
                    thread::sleep(pause);
                    self.client.write_all(&self.forward(&request, method)?.bytes)?;
                }
                Some(Fault::Hang) => {
                    self.forward(&request, method)?;
                    while !self.stop.load(Ordering::Relaxed) {
                        thread::sleep(Duration::from_millis(20));
                    }
                    return Ok(());
                }
            }
        }
        Ok(())
    }

    fn answer(&mut self, method: &str, status: u16, body: &str) -> io::Result<()> {
        let length = body.len();
        let body = if method == "HEAD" { "" } else { body };
        write!(self.client, "HTTP/1.1 {status} Fault\r\ncontent-length: {length}\r\n\r\n{body}")
    }

    /// The server's answer.
    fn forward(&self, request: &Message, method: &str) -> io::Result<Message> {
        let mut server = TcpStream::connect(self.server)?;
        server.write_all(&request.bytes)?;
        let mut buffer = Vec::new();
        if method == "HEAD" {
            return Message::read_head(&mut server, &mut buffer)?.ok_or_else(|| io::ErrorKind::UnexpectedEof.into());
        }
        Message::read(&mut server, &mut buffer)?.ok_or_else(|| io::ErrorKind::UnexpectedEof.into())
    }
}

/// A request or an answer.
struct Message {
    bytes: Vec<u8>,
    /// Bytes of the head.
    head: usize,
}

impl Message {
    /// The next one of a connection; `None` at its end. What was read of the one after it is left in `buffer`.
    fn read(stream: &mut TcpStream, buffer: &mut Vec<u8>) -> io::Result<Option<Self>> {
        let Some(Self { mut bytes, head }) = Self::read_head(stream, buffer)? else { return Ok(None) };
        let text = String::from_utf8_lossy(&bytes).to_ascii_lowercase();
        let field = |name: &str| text.lines().find_map(|line| line.strip_prefix(name)).map(str::trim);
        if let Some(length) = field("content-length:") {
            let length = length.parse::<usize>().map_err(io::Error::other)?;
            while buffer.len() < length && more(stream, buffer)? {}
            bytes.extend(buffer.drain(..length.min(buffer.len())));
        } else if field("transfer-encoding:") == Some("chunked") {
            while !buffer.ends_with(b"0\r\n\r\n") && more(stream, buffer)? {}
            bytes.append(buffer);
        }
        Ok(Some(Self { bytes, head }))
    }

    fn read_head(stream: &mut TcpStream, buffer: &mut Vec<u8>) -> io::Result<Option<Self>> {
        loop {
            if let Some(end) = buffer.windows(4).position(|bytes| bytes == b"\r\n\r\n") {
                let head = end + 4;
                return Ok(Some(Self { bytes: buffer.drain(..head).collect(), head }));
            }
            if !more(stream, buffer)? {
                return Ok(None);
            }
        }
    }

    /// The first line.
    fn line(&self) -> &[u8] {
        self.bytes.split(|byte| *byte == b'\r').next().unwrap_or_default()
    }
}

/// Reads on; `false` at the end.
fn more(stream: &mut TcpStream, buffer: &mut Vec<u8>) -> io::Result<bool> {
    let mut piece = [0; 8 << 10];
    let read = stream.read(&mut piece)?;
    buffer.extend_from_slice(piece.get(..read).unwrap_or_default());
    Ok(read > 0)
}
