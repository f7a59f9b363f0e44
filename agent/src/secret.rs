//! Text that nobody should read by accident.

use std::fmt;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// A password, a token or a header that may hold one: shown as `***` wherever it might be printed.
///
/// Serialised it is itself, because a configuration that is written must be one that can be read: what is shown goes
/// through [`Secret::hide`] first.
#[derive(Clone, Default, Deserialize, Eq, JsonSchema, PartialEq, Serialize)]
#[serde(transparent)]
pub struct Secret(String);

impl Secret {
    /// The text itself, for who must send it.
    pub fn reveal(&self) -> &str {
        &self.0
    }

    /// Forgets the text.
    pub fn hide(&mut self) {
        "***".clone_into(&mut self.0);
    }
}

impl From<String> for Secret {
    fn from(text: String) -> Self {
        Self(text)
    }
}

impl From<&str> for Secret {
    fn from(text: &str) -> Self {
        Self(text.to_owned())
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("***")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn is_not_shown() {
        assert_eq!(format!("{:?}", Some(Secret::from("hunter2"))), "Some(***)");
        assert_eq!(Secret::from("hunter2").reveal(), "hunter2");
        let mut secret = Secret::from("hunter2");
        secret.hide();
        assert_eq!(secret.reveal(), "***");
    }
}
