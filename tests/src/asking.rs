//! Asks a service many times at once, as the sample's Go program does: each request has a number of its own at the end of its path.

use std::process::Command;

use anyhow::{Context, Result, ensure};

use crate::sample::go_program;

/// Requests that are open at the same time.
pub const AT_ONCE: usize = 64;

/// Asks for `url/0`, `url/1`, … until there were `count`; by HTTP/1.1, or by what the service prefers.
pub fn ask(url: &str, is_http1: bool, count: usize) -> Result<()> {
    let mut ask = Command::new(go_program("chain", true)?);
    ask.args(["-ask", url, "-count", &count.to_string(), "-at", &AT_ONCE.to_string()]);
    if is_http1 {
        ask.arg("-http1");
    }
    let answer = ask.output().context("the program that asks")?;
    ensure!(answer.status.success(), "{url}: {}", String::from_utf8_lossy(&answer.stderr));
    Ok(())
}
