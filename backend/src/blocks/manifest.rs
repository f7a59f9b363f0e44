//! The format of manifests; `docs/format/manifest.md` describes it.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::WriterId;
use crate::block::{BlockId, BlockSummary};
use crate::checked_json::{self, CheckedJsonError};

/// Format that this program writes, and the only one that it reads.
pub const FORMAT_VERSION: u32 = 1;

/// Where manifests lie in the store.
pub(super) const FOLDER: &str = "manifest/";

/// One commit: what it adds to the list of blocks and what it removes.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct Manifest {
    /// [`FORMAT_VERSION`].
    pub format: u32,
    /// Number of the commit, from 1, without gaps; the same as in the object's name.
    pub version: u64,
    /// Random; by this a writer whose `create` got no answer finds out whether the manifest is its own.
    pub commit: String,
    /// Who committed.
    pub writer: WriterId,
    /// When, nanoseconds since the epoch, by the writer's clock.
    pub created_ns: u64,
    /// Blocks that are new.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub add: Vec<BlockSummary>,
    /// Blocks that are there no more; their files are deleted later.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub remove: Vec<BlockId>,
    /// Every frame of the writer's log with a lower sequence number is in blocks.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub checkpoint: Option<u64>,
    /// Everything as it is after this commit: reading begins here.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub snapshot: Option<Snapshot>,
}

/// The sum of all commits.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
pub struct Snapshot {
    /// All blocks.
    pub blocks: Vec<Arc<BlockSummary>>,
    /// Checkpoints of all writers.
    pub checkpoints: BTreeMap<WriterId, u64>,
    /// Blocks that were removed and whose files may still be there.
    pub removed: Vec<RemovedBlock>,
}

/// A block whose files wait for deletion.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct RemovedBlock {
    /// Which.
    pub id: BlockId,
    /// Whose it was; says where the files lie.
    pub tenant: Arc<str>,
    /// When it was removed, nanoseconds since the epoch.
    pub removed_ns: u64,
}

/// What is wrong with a manifest.
#[derive(Debug, thiserror::Error)]
pub enum ManifestError {
    /// It was written by a program that this one does not understand.
    #[error(
        "it has format {format}, this program reads format {FORMAT_VERSION}: run the version that wrote it, or a newer one"
    )]
    Format {
        /// What it says.
        format: u32,
    },
    /// Bytes are missing or changed.
    #[error("its checksum is wrong or missing")]
    Checksum,
    /// The checksum is right, but it is not what a manifest looks like.
    #[error("it is no manifest")]
    Json(#[source] serde_json::Error),
    /// It lies under the name of another.
    #[error("it says that it is version {found}")]
    Version {
        /// What it says.
        found: u64,
    },
    /// The first one must say all.
    #[error("neither it nor any before it has a snapshot")]
    NoSnapshot,
    /// It does not go with those before it.
    #[error("it adds block {block}, which is there already")]
    Added {
        /// The block.
        block: BlockId,
    },
    /// It does not go with those before it.
    #[error("it removes block {block}, which is not there")]
    Removed {
        /// The block.
        block: BlockId,
    },
}

impl Manifest {
    /// Where the manifest of a version lies in the store: 20 digits, so that names sort by version.
    pub fn path(version: u64) -> String {
        format!("{FOLDER}{version:020}.json")
    }

    /// The version that a path in the store names, if it is that of a manifest.
    pub fn version_of(path: &str) -> Option<u64> {
        let version = path.strip_prefix(FOLDER)?.strip_suffix(".json")?.parse().ok()?;
        (Self::path(version) == path).then_some(version)
    }

    /// JSON with the checksum in it.
    pub fn encode(&self) -> Result<Vec<u8>, ManifestError> {
        checked_json::encode(self).map_err(ManifestError::Json)
    }

    /// Reads what [`Self::encode`] wrote. Members that it does not know are left out.
    pub fn decode(bytes: &[u8]) -> Result<Self, ManifestError> {
        checked_json::decode(bytes, FORMAT_VERSION).map_err(|error| match error {
            CheckedJsonError::Checksum => ManifestError::Checksum,
            CheckedJsonError::Format(format) => ManifestError::Format { format },
            CheckedJsonError::Json(error) => ManifestError::Json(error),
        })
    }
}
