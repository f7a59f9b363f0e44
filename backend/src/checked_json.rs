//! One JSON object on a line that ends with the checksum of all before it, as its last member. So the whole is one JSON
//! value, and a torn or changed one is seen before it is parsed.

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

const CHECKSUM: &str = ",\"crc32c\":\"";
const DIGITS: usize = 8;
const END: &str = "\"}\n";

/// Why there is nothing to read.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CheckedJsonError {
    /// Bytes are missing or changed.
    #[error("its checksum is wrong or missing")]
    Checksum,
    /// Another version of this program wrote it.
    #[error("it has format {0}")]
    Format(u32),
    /// The checksum is right, but it is another object.
    #[error("it is another object")]
    Json(#[source] serde_json::Error),
}

/// The line of an object, which has at least one member, `format`.
pub(crate) fn encode(object: &impl Serialize) -> Result<Vec<u8>, serde_json::Error> {
    let mut bytes = serde_json::to_vec(object)?;
    bytes.pop();
    let checksum = crc32c::crc32c(&bytes);
    bytes.extend_from_slice(format!("{CHECKSUM}{checksum:08x}{END}").as_bytes());
    Ok(bytes)
}

/// Reads what [`encode`] wrote, if it has this format. Members that are not known are left out.
pub(crate) fn decode<T: DeserializeOwned>(bytes: &[u8], expected_format: u32) -> Result<T, CheckedJsonError> {
    #[derive(Deserialize)]
    struct Format {
        format: u32,
    }
    let ending = CHECKSUM.len() + DIGITS + END.len();
    let (content, ending) = bytes.split_at_checked(bytes.len().saturating_sub(ending)).unwrap_or_default();
    let expected = format!("{CHECKSUM}{:08x}{END}", crc32c::crc32c(content));
    if ending != expected.as_bytes() {
        return Err(CheckedJsonError::Checksum);
    }
    // First of all, because another format may look different.
    let Format { format } = serde_json::from_slice(bytes).map_err(CheckedJsonError::Json)?;
    if format != expected_format {
        return Err(CheckedJsonError::Format(format));
    }
    serde_json::from_slice(bytes).map_err(CheckedJsonError::Json)
}
