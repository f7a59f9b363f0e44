//! A real Ceph with its S3 gateway: one monitor, one OSD in memory, one gateway.

use std::fs;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail};

use crate::process::{Running, free_port};
use crate::tools::system;

/// Keys of the gateway's one user.
pub const ACCESS_KEY: &str = "COATITESTKEY";
/// Keys of the gateway's one user.
pub const SECRET_KEY: &str = "coati/test+secret";

/// How long each of its programs may take to begin.
const READY_WITHIN: Duration = Duration::from_mins(2);

/// Cluster id; nobody else sees it.
const CLUSTER: &str = "6f4c2d8e-1f3b-4a55-9c0e-0c0a71c0a71c";

/// A running Ceph. Fields are dropped, and programs ended, in this order.
#[derive(Debug)]
pub struct Rgw {
    /// Where the gateway listens: HTTP.
    pub address: SocketAddr,
    _gateway: Running,
    _osd: Running,
    _monitor: Running,
}

impl Rgw {
    /// Starts it with everything under `folder`, and makes the user.
    pub fn start(folder: &Path) -> Result<Self> {
        let ceph = Ceph { folder: folder.to_owned() };
        let [monitor_port, gateway_port] = [free_port()?, free_port()?];
        ceph.write_config(monitor_port)?;
        ceph.make_monitor(monitor_port)?;
        let monitor = ceph.spawn("ceph-mon", &["-f", "-i", "a"])?;
        ceph.make_osd()?;
        let osd = ceph.spawn("ceph-osd", &["-f", "-i", "0"])?;

        let keyring = ceph.path("client.rgw.keyring");
        let caps = ["mon", "allow rw", "osd", "allow rwx"];
        ceph.run("ceph", &[&["auth", "get-or-create", "client.rgw"], &caps[..], &["-o", &keyring]].concat())?;
        // Without it the gateway holds the end of each small answer back until the start is acknowledged: 40 ms.
        let frontend = format!("--rgw-frontends=beast endpoint=127.0.0.1:{gateway_port} tcp_nodelay=1");
        let mut gateway = ceph.spawn("radosgw", &["-f", "-n", "client.rgw", "--keyring", &keyring, &frontend])?;
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, gateway_port));
        gateway.wait_for_port(address, READY_WITHIN)?;
        let user = ["user", "create", "--uid=coati", "--display-name=coati"];
        let keys = ["--access-key", ACCESS_KEY, "--secret-key", SECRET_KEY];
        ceph.run("radosgw-admin", &[&user[..], &keys[..]].concat())?;
        Ok(Self { address, _gateway: gateway, _osd: osd, _monitor: monitor })
    }
}

struct Ceph {
    folder: PathBuf,
}

impl Ceph {
    fn path(&self, name: &str) -> String {
        self.folder.join(name).to_string_lossy().into_owned()
    }

    fn write_config(&self, port: u16) -> Result<()> {
        let folder = self.folder.display();
        // No manager: nothing here needs statistics. Without cephx the gateway does not begin.
        let text = format!(
            "[global]\n\
             fsid = {CLUSTER}\n\
             mon host = v1:127.0.0.1:{port}\n\
             public addr = 127.0.0.1\n\
             cluster addr = 127.0.0.1\n\
             auth cluster required = cephx\n\
             auth service required = cephx\n\
             auth client required = cephx\n\
             keyring = {folder}/$name.keyring\n\
             run dir = {folder}\n\
             admin socket =\n\
             pid file =\n\
             log file = {folder}/$name.ceph.log\n\
             mon data = {folder}/mon\n\
             mon cluster log file = {folder}/cluster.log\n\
             mon data avail warn = 0\n\
             mon data avail crit = 0\n\
             mon allow pool size one = true\n\
             osd data = {folder}/osd\n\
             osd objectstore = memstore\n\
             memstore device bytes = 1073741824\n\
             osd crush chooseleaf type = 0\n\
             osd pool default size = 1\n\
             osd pool default min size = 1\n\
             osd pool default pg num = 4\n\
             osd pool default pgp num = 4\n\
             osd pool default pg autoscale mode = off\n\
             mon max pg per osd = 1000\n\
             rgw thread pool size = 64\n\
             rgw data = {folder}/rgw\n"
        );
        fs::create_dir_all(self.folder.join("osd"))?;
        fs::write(self.folder.join("ceph.conf"), text).context("ceph.conf")
    }

    fn make_monitor(&self, port: u16) -> Result<()> {
        let (mon, admin) = (self.path("mon.a.keyring"), self.path("client.admin.keyring"));
        self.run("ceph-authtool", &["-C", &mon, "--gen-key", "-n", "mon.", "--cap", "mon", "allow *"])?;
        let caps = ["--cap", "mon", "allow *", "--cap", "osd", "allow *"];
        self.run("ceph-authtool", &[&["-C", &admin, "--gen-key", "-n", "client.admin"], &caps[..]].concat())?;
        self.run("ceph-authtool", &[&mon, "--import-keyring", &admin])?;
        let (map, address) = (self.path("monmap"), format!("[v1:127.0.0.1:{port}]"));
        self.run("monmaptool", &["--create", "--fsid", CLUSTER, "--addv", "a", &address, &map])?;
        self.run("ceph-mon", &["--mkfs", "-i", "a", "--monmap", &map, "--keyring", &mon])
    }

    fn make_osd(&self) -> Result<()> {
        let keyring = self.path("osd.0.keyring");
        // The first to ask the monitor waits for it.
        self.run("ceph", &["osd", "new", CLUSTER])?;
        let caps = ["mon", "allow profile osd", "osd", "allow *"];
        self.run("ceph", &[&["auth", "get-or-create", "osd.0"], &caps[..], &["-o", &keyring]].concat())?;
        self.run("ceph-osd", &["-i", "0", "--mkfs", "--osd-uuid", CLUSTER])
    }

    fn command(&self, program: &str, arguments: &[&str]) -> Result<Command> {
        let mut command = Command::new(system(program)?);
        if !matches!(program, "ceph-authtool" | "monmaptool") {
            command.arg("-c").arg(self.path("ceph.conf"));
        }
        command.args(arguments);
        Ok(command)
    }

    fn spawn(&self, program: &str, arguments: &[&str]) -> Result<Running> {
        Running::start(program, &self.folder, &mut self.command(program, arguments)?)
    }

    fn run(&self, program: &str, arguments: &[&str]) -> Result<()> {
        let name = format!("{program} {}", arguments.first().unwrap_or(&""));
        let mut step = Running::start("setup", &self.folder, &mut self.command(program, arguments)?)?;
        let status = step.wait(READY_WITHIN)?;
        if !status.success() {
            bail!("{name}: {status}:\n{}", step.output());
        }
        Ok(())
    }
}
