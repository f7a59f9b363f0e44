//! Why the backend does not run.

use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;

use crate::access::AccessError;
use crate::blocks::BlocksError;
use crate::catalog::CatalogError;
use crate::generator::{ExportError, FilterError};
use crate::overrides::OverridesError;
use crate::store::OpenError;
use crate::wal::WalError;

/// Why the backend does not run.
#[derive(Debug, thiserror::Error)]
pub enum ServerError {
    /// Certificates or credentials cannot be used.
    #[error("cannot let anybody in")]
    Access(#[source] AccessError),
    /// An address cannot be listened on.
    #[error("cannot listen on {address} (--{flag})")]
    Bind {
        /// The address.
        address: SocketAddr,
        /// The flag that says so.
        flag: &'static str,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The list of blocks cannot be read.
    #[error("cannot open the list of blocks")]
    Blocks(#[source] BlocksError),
    /// The catalog fails even when it is begun anew.
    #[error("cannot open the catalog")]
    Catalog(#[source] CatalogError),
    /// The data directory cannot be made or written.
    #[error("cannot use the data directory {} (--data-dir)", path.display())]
    DataDir {
        /// The directory.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Another backend has it.
    #[error("the data directory {} (--data-dir) is in use by another coati-backend", path.display())]
    DataDirInUse {
        /// The directory.
        path: PathBuf,
    },
    /// Which spans are counted in metrics is not said in a way that can be used.
    #[error("metrics_generator: filter policies")]
    Filter(#[source] FilterError),
    /// What was counted of spans before cannot be kept.
    #[error("cannot write {}", path.display())]
    Generator {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// What tenants said of themselves cannot be read.
    #[error("cannot read overrides of tenants")]
    Overrides(#[source] OverridesError),
    /// Metrics cannot be sent to where they are to go.
    #[error("cannot send metrics")]
    Export(#[source] ExportError),
    /// The log cannot be opened.
    #[error("cannot open the log")]
    Log(#[source] WalError),
    /// The store refuses.
    #[error("cannot open the store")]
    Store(#[source] OpenError),
    /// A thread could not be started, or broke off.
    #[error("cannot start {what}")]
    Thread {
        /// What it was to do.
        what: &'static str,
        /// Why.
        #[source]
        source: io::Error,
    },
}
