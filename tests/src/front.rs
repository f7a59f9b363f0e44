//! nginx in front of a server: with TLS, or as a forward proxy, which lets a client use names that no resolver knows.

use std::fs;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Result, bail};

use crate::process::{Running, free_port};
use crate::tools::system;

/// A running nginx; ends when dropped.
#[derive(Debug)]
pub struct Front {
    /// With TLS.
    pub tls: SocketAddr,
    /// Plain; takes requests to any host, as a proxy does, and leaves the host's name in them.
    pub proxy: SocketAddr,
    /// The certificate of the authority that signed that of the server.
    pub authority: PathBuf,
    _process: Running,
}

impl Front {
    /// Starts it in front of `server`, with everything under `folder`. Its certificate is for 127.0.0.1.
    pub fn start(folder: &Path, server: SocketAddr) -> Result<Self> {
        let folder = folder.join("front");
        fs::create_dir_all(&folder)?;
        make_certificates(&folder)?;
        let [tls, proxy] = [free_port()?, free_port()?].map(|port| SocketAddr::from((Ipv4Addr::LOCALHOST, port)));
        let at = folder.display();
        let forward = format!("location / {{ proxy_pass http://{server}; proxy_set_header Host $http_host; }}");
        let text = format!(
            "daemon off;\n\
             master_process off;\n\
             pid {at}/nginx.pid;\n\
             error_log stderr;\n\
             events {{ }}\n\
             http {{\n\
               access_log off;\n\
               client_max_body_size 0;\n\
               client_body_temp_path {at}/body; proxy_temp_path {at}/proxy; fastcgi_temp_path {at}/fastcgi;\n\
               uwsgi_temp_path {at}/uwsgi; scgi_temp_path {at}/scgi;\n\
               proxy_http_version 1.1;\n\
               server {{ listen {proxy}; {forward} }}\n\
               server {{ listen {tls} ssl; ssl_certificate {at}/server.pem; ssl_certificate_key {at}/server.key; {forward} }}\n\
             }}\n"
        );
        let config = folder.join("nginx.conf");
        fs::write(&config, text)?;
        let mut command = Command::new(system("nginx")?);
        command.arg("-c").arg(&config).arg("-p").arg(&folder);
        let mut process = Running::start("nginx", &folder, &mut command)?;
        for address in [tls, proxy] {
            process.wait_for_port(address, Duration::from_secs(20))?;
        }
        Ok(Self { tls, proxy, authority: folder.join("authority.pem"), _process: process })
    }
}

/// An authority, and a certificate of it for `127.0.0.1` and `localhost`, both valid for a day: `authority.pem`, `server.pem`,
/// `server.key`.
pub fn make_certificates(folder: &Path) -> Result<()> {
    fs::write(folder.join("server.ext"), "subjectAltName=IP:127.0.0.1,DNS:localhost\n")?;
    let key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"];
    let authority = ["req", "-x509", "-days", "1", "-subj", "/CN=Coati test authority"];
    let authority_files = ["-keyout", "authority.key", "-out", "authority.pem"];
    openssl(folder, &[&authority[..], &key, &authority_files].concat())?;
    let request = ["req", "-subj", "/CN=127.0.0.1", "-keyout", "server.key", "-out", "server.csr"];
    openssl(folder, &[&request[..], &key].concat())?;
    let sign = ["x509", "-req", "-days", "1", "-in", "server.csr", "-CA", "authority.pem", "-CAkey", "authority.key"];
    let files = ["-CAcreateserial", "-extfile", "server.ext", "-out", "server.pem"];
    openssl(folder, &[&sign[..], &files].concat())
}

fn openssl(folder: &Path, arguments: &[&str]) -> Result<()> {
    let done = Command::new(system("openssl")?).args(arguments).current_dir(folder).output()?;
    if !done.status.success() {
        bail!("openssl {arguments:?}: {}: {}", done.status, String::from_utf8_lossy(&done.stderr));
    }
    Ok(())
}
