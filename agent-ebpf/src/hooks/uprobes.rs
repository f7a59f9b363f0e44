//! Calls of TLS libraries, by uprobes on their functions: of OpenSSL and BoringSSL, and of GnuTLS, which has the same with
//! other names.

use aya_ebpf::macros::{uprobe, uretprobe};
use aya_ebpf::programs::{ProbeContext, RetProbeContext};

use crate::exchange::Caller;
use crate::strand::ByThread;
use crate::tls::{self, Entered, kind};

/// `SSL_write(ssl, buf, num)`, `gnutls_record_send(session, data, size)`
#[uprobe]
pub fn tls_write(ctx: ProbeContext) -> u32 {
    enter(&ctx, kind::WRITE, |_| Some(0))
}

/// `SSL_write_ex(ssl, buf, num, written)`
#[uprobe]
pub fn tls_write_ex(ctx: ProbeContext) -> u32 {
    enter(&ctx, kind::WRITE, |ctx| ctx.arg(3))
}

/// The return of both.
#[uretprobe]
pub fn tls_written(ctx: RetProbeContext) -> u32 {
    let _nothing_to_do = (|| {
        let caller = Caller::watched()?;
        tls::sent(&ctx, &ByThread(caller.pid_tgid()), caller, result(&ctx))
    })();
    0
}

/// `SSL_read(ssl, buf, num)`, `gnutls_record_recv(session, data, size)`
#[uprobe]
pub fn tls_read(ctx: ProbeContext) -> u32 {
    enter(&ctx, kind::READ, |_| Some(0))
}

/// `SSL_read_ex(ssl, buf, num, readbytes)`
#[uprobe]
pub fn tls_read_ex(ctx: ProbeContext) -> u32 {
    enter(&ctx, kind::READ, |ctx| ctx.arg(3))
}

/// The return of both.
#[uretprobe]
pub fn tls_was_read(ctx: RetProbeContext) -> u32 {
    let _nothing_to_do = (|| {
        let caller = Caller::watched()?;
        tls::received(&ctx, &ByThread(caller.pid_tgid()), caller, result(&ctx))
    })();
    0
}

/// `SSL_do_handshake(ssl)`, `gnutls_handshake(session)`
#[uprobe]
pub fn tls_handshake(ctx: ProbeContext) -> u32 {
    let _nothing_to_do = (|| {
        let call = Entered { object: ctx.arg(0)?, buffer: 0, size: 0, moved: 0 };
        if call.object == 0 {
            return None;
        }
        let caller = Caller::watched()?;
        tls::enter(&ByThread(caller.pid_tgid()), caller, &call, kind::HANDSHAKE)
    })();
    0
}

/// The return of these.
#[uretprobe]
pub fn tls_shaken(_ctx: RetProbeContext) -> u32 {
    let _nothing_to_do = tls::shaken();
    0
}

/// `SSL_free(ssl)`, `gnutls_deinit(session)`
#[uprobe]
pub fn tls_free(ctx: ProbeContext) -> u32 {
    let _nothing_to_do = (|| tls::free(Caller::watched()?, ctx.arg(0)?))();
    0
}

#[inline(always)]
fn enter(ctx: &ProbeContext, kind: u32, moved: impl Fn(&ProbeContext) -> Option<u64>) -> u32 {
    let _nothing_to_do = (|| {
        let caller = Caller::watched()?;
        // In OpenSSL `num` is an `int`: the upper half may be anything.
        let size = ctx.arg::<u64>(2)? & 0xffff_ffff;
        let call = Entered { object: ctx.arg(0)?, buffer: ctx.arg(1)?, size, moved: moved(ctx)? };
        if call.object == 0 || size == 0 {
            return None;
        }
        tls::enter(&ByThread(caller.pid_tgid()), caller, &call, kind)
    })();
    0
}

/// Neither returns more than an `int` holds.
#[inline(always)]
fn result(ctx: &RetProbeContext) -> i64 {
    i64::from(ctx.ret::<i32>())
}
