//! The parsers of outside bytes, one function each: for the fuzz targets in `fuzz/`, and for the test that replays
//! their corpus. None of them may panic, whatever the bytes.

use std::io;

use crate::capture::Record;
use crate::decode::{Head, HeaderDecoder, RequestHead, ResponseHead, fuzz_http2, fuzz_websocket};
use crate::discover::elf::{Functions, GoFunctions, ReadAt, toolchain};
use crate::kernel::btf::Btf;
use crate::stitch::TraceParent;

/// A parser of outside bytes.
pub type Target = fn(&[u8]);

/// Every parser, with the name of its fuzz target and of its folder in `fuzz/corpus`.
pub const TARGETS: &[(&str, Target)] = &[
    ("alloy", alloy),
    ("beyla", beyla),
    ("btf", btf),
    ("elf", elf),
    ("export_queue", export_queue),
    ("gopclntab", gopclntab),
    ("hpack", hpack),
    ("http1_request", http1_request),
    ("http1_response", http1_response),
    ("http2", http2),
    ("inference", inference),
    ("nginx_code", nginx_code),
    ("node_code", node_code),
    ("record", record),
    ("traceparent", traceparent),
    ("websocket", websocket),
];

/// A configuration of Grafana Alloy.
pub fn alloy(bytes: &[u8]) {
    if let Ok(text) = std::str::from_utf8(bytes) {
        crate::config::translate_any(text, "x.alloy");
    }
}

/// A configuration, of Beyla or of ours.
pub fn beyla(bytes: &[u8]) {
    if let Ok(text) = std::str::from_utf8(bytes) {
        crate::config::translate_any(text, "x.yaml");
    }
}

/// The kernel's type information.
pub fn btf(bytes: &[u8]) {
    if let Ok(btf) = Btf::parse(bytes) {
        let _ = btf.field("task_struct", "files.fdt");
        let _ = (btf.enumerator("iter_type", "ITER_UBUF"), btf.parameter("tcp_recvmsg", "flags"));
    }
}

/// A file in memory.
struct Bytes<'a>(&'a [u8]);

impl ReadAt for Bytes<'_> {
    fn read_exact_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        let start = usize::try_from(offset).map_err(io::Error::other)?;
        let found = start.checked_add(buffer.len()).and_then(|end| self.0.get(start..end));
        buffer.copy_from_slice(found.ok_or(io::ErrorKind::UnexpectedEof)?);
        Ok(())
    }
}

/// The executable of a process.
pub fn elf(bytes: &[u8]) {
    let _ = toolchain(&Bytes(bytes));
    if let Some(functions) = Functions::of(&Bytes(bytes)) {
        let names = ["SSL_read", "SSL_write"];
        let _ = (functions.build_id(), functions.exported(names), functions.local(names));
    }
}

/// The table of the functions of a program written in Go, and their code.
pub fn gopclntab(bytes: &[u8]) {
    let file = Bytes(bytes);
    let Some(functions) = Functions::of(&file) else { return };
    let Some(program) = GoFunctions::of(&file, &functions) else { return };
    let found = program.find(["crypto/tls.(*Conn).Read", "crypto/tls.(*Conn).Write"]);
    for function in found.into_iter().flatten().flatten() {
        for text in program.texts() {
            if let Some((_, code)) = program.code(*text, function) {
                crate::libraries::fuzz_go_code(&code);
            }
        }
    }
}

/// A file of the export's queue on disk.
pub fn export_queue(bytes: &[u8]) {
    crate::export::disk::fuzz(bytes);
}

/// The head of a request, whole or cut by the capture.
pub fn http1_request(bytes: &[u8]) {
    let heads = [RequestHead::parse(bytes), RequestHead::parse_cut(bytes).map(Some)];
    for head in heads.into_iter().flatten().flatten() {
        let _ = (head.method_text(), head.path(), head.query(), head.host(), head.user_agent(), head.tracestate());
        assert!(
            head.cut || head.size() <= bytes.len(),
            "a whole head is no longer than the bytes that it was read from"
        );
    }
}

/// The head of a response, whole or cut by the capture.
pub fn http1_response(bytes: &[u8]) {
    let heads = [ResponseHead::parse(bytes), ResponseHead::parse_cut(bytes).map(Some)];
    for head in heads.into_iter().flatten().flatten() {
        let _ = head.is_interim();
        assert!(
            head.cut || head.size() <= bytes.len(),
            "a whole head is no longer than the bytes that it was read from"
        );
    }
}

/// The bodies of a request to a model.
pub fn inference(bytes: &[u8]) {
    crate::inference::read_any(bytes);
}

/// Header blocks, each behind its length in two bytes, for who has seen all of them and for who has not.
pub fn hpack(bytes: &[u8]) {
    for mut decoder in [HeaderDecoder::new(), HeaderDecoder::joined()] {
        let mut rest = bytes;
        while let Some((length, behind)) = rest.split_first_chunk() {
            let length = usize::from(u16::from_be_bytes(*length)).min(behind.len());
            let (block, behind) = behind.split_at(length);
            let mut fields = 0;
            let _ = decoder.decode(block, &mut |_| fields += 1);
            assert!(fields <= block.len(), "a field takes a byte at least");
            rest = behind;
        }
    }
}

/// The records of a connection that speaks HTTP/2: what moved, and how much of it is told.
pub fn http2(bytes: &[u8]) {
    fuzz_http2(bytes);
}

/// The code of nginx's function that says where a request has its HTTP/2 stream.
pub fn nginx_code(bytes: &[u8]) {
    crate::libraries::fuzz_nginx_code(bytes);
}

/// The code of Node.js's function that says where an object has its async id.
pub fn node_code(bytes: &[u8]) {
    crate::libraries::fuzz_node_code(bytes);
}

/// A record of the kernel programs.
pub fn record(bytes: &[u8]) {
    let _ = Record::parse(bytes);
}

/// The header that continues a trace.
pub fn traceparent(bytes: &[u8]) {
    if let Ok(text) = std::str::from_utf8(bytes) {
        let _ = TraceParent::parse(text);
    }
}

/// What moves on a connection that was switched to WebSocket.
pub fn websocket(bytes: &[u8]) {
    fuzz_websocket(bytes);
}
