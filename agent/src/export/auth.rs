//! The `authorization` of requests, from files.

use std::{
    fs, io,
    path::{Path, PathBuf},
    sync::Arc,
};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use http::HeaderValue;

use super::watched::Watched;

/// How requests say who sends them. Only files hold secrets.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub enum Auth {
    /// Not at all, unless a header of the configuration does.
    #[default]
    None,
    /// `Bearer` and the token in a file.
    Bearer {
        /// The file; white space around the token is left out.
        token_file: PathBuf,
    },
    /// `Basic`.
    Basic {
        /// Name of the user.
        username: String,
        /// File with the password; white space around it is left out.
        password_file: PathBuf,
    },
}

/// Why there is no `authorization`. What is in the files is not told.
#[derive(Clone, Debug, thiserror::Error)]
pub enum AuthError {
    /// The file cannot be read.
    #[error("cannot read {}", path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// Why not.
        #[source]
        source: Arc<io::Error>,
    },
    /// There is nothing in the file that can be sent.
    #[error("there is no token or password in {}: it is empty, or has characters that no header can have", path.display())]
    Unusable {
        /// The file.
        path: PathBuf,
    },
}

/// The header, read again when its file changes.
#[derive(Debug)]
pub(super) struct Authorization {
    auth: Auth,
    header: Watched<HeaderValue>,
}

impl Authorization {
    /// Fails if there is no header now.
    pub(super) fn new(auth: &Auth) -> Result<Self, AuthError> {
        let files = match auth {
            Auth::None => vec![],
            Auth::Bearer { token_file: file } | Auth::Basic { password_file: file, .. } => vec![file.clone()],
        };
        let authorization = Self { auth: auth.clone(), header: Watched::new(files) };
        authorization.header()?;
        Ok(authorization)
    }

    /// Whether a refusal may be over once the file is another.
    pub(super) fn may_change(&self) -> bool {
        self.auth != Auth::None
    }

    /// The value of the header, marked so that nobody prints it.
    pub(super) fn header(&self) -> Result<Option<HeaderValue>, AuthError> {
        match &self.auth {
            Auth::None => Ok(None),
            Auth::Bearer { token_file } => {
                self.header.get(|| sensitive(token_file, |token| format!("Bearer {token}"))).map(Some)
            }
            Auth::Basic { username, password_file } => {
                let basic = |password: &str| format!("Basic {}", STANDARD.encode(format!("{username}:{password}")));
                self.header.get(|| sensitive(password_file, basic)).map(Some)
            }
        }
    }
}

fn sensitive(file: &Path, value: impl Fn(&str) -> String) -> Result<HeaderValue, AuthError> {
    let text = fs::read_to_string(file)
        .map_err(|source| AuthError::Unreadable { path: file.to_owned(), source: Arc::new(source) })?;
    let unusable = || AuthError::Unusable { path: file.to_owned() };
    let text = Some(text.trim()).filter(|text| !text.is_empty()).ok_or_else(unusable)?;
    let mut header = HeaderValue::from_str(&value(text)).map_err(|_| unusable())?;
    header.set_sensitive(true);
    Ok(header)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_header_follows_its_file() {
        let folder = tempfile::tempdir().unwrap();
        let token_file = folder.path().join("token");
        fs::write(&token_file, "  first\n").unwrap();
        let authorization = Authorization::new(&Auth::Bearer { token_file: token_file.clone() }).unwrap();
        assert_eq!(authorization.header().unwrap().unwrap(), "Bearer first");
        fs::write(&token_file, "the second one").unwrap();
        let header = authorization.header().unwrap().unwrap();
        assert_eq!(header, "Bearer the second one");
        assert!(!format!("{header:?} {authorization:?}").contains("second"));
        // As Kubernetes does it: another file of the same size in its place.
        fs::write(folder.path().join("new"), "the third  one").unwrap();
        fs::rename(folder.path().join("new"), &token_file).unwrap();
        assert_eq!(authorization.header().unwrap().unwrap(), "Bearer the third  one");
    }

    #[test]
    fn basic_is_name_and_password() {
        let password = tempfile::NamedTempFile::new().unwrap();
        fs::write(&password, "open sesame\n").unwrap();
        let auth = Auth::Basic { username: "aladdin".to_owned(), password_file: password.path().to_owned() };
        let header = Authorization::new(&auth).unwrap().header().unwrap().unwrap();
        assert_eq!(header, "Basic YWxhZGRpbjpvcGVuIHNlc2FtZQ==");
    }

    #[test]
    fn what_is_missing_is_named_and_what_is_there_is_not() {
        let folder = tempfile::tempdir().unwrap();
        let token_file = folder.path().join("token");
        let auth = Auth::Bearer { token_file: token_file.clone() };
        assert_eq!(Authorization::new(&auth).unwrap_err().to_string(), format!("cannot read {}", token_file.display()));
        for content in ["", " \n", "secret\u{1}"] {
            fs::write(&token_file, content).unwrap();
            let error = Authorization::new(&auth).unwrap_err().to_string();
            assert!(error.contains(token_file.to_str().unwrap()) && !error.contains("secret"), "{error}");
        }
    }
}
