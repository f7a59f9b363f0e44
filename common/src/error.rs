//! What led to an error.

use std::error::Error;
use std::format;
use std::string::{String, ToString as _};

/// An error and its causes on one line.
pub fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let message = cause.to_string();
        // Some errors show their cause themselves.
        if !text.ends_with(&message) {
            text = format!("{text}: {message}");
        }
        source = cause.source();
    }
    text.replace('\n', " ")
}

#[cfg(test)]
mod tests {
    use std::boxed::Box;
    use std::fmt;

    use super::*;

    #[derive(Debug)]
    struct Failed(&'static str, Option<Box<Failed>>);

    impl fmt::Display for Failed {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str(self.0)
        }
    }

    impl Error for Failed {
        fn source(&self) -> Option<&(dyn Error + 'static)> {
            self.1.as_deref().map(|cause| cause as &dyn Error)
        }
    }

    #[test]
    fn every_cause_is_told_once_and_on_one_line() {
        let cause = || Some(Box::new(Failed("line one\nline two", None)));
        let shows_its_cause = Failed("read: line one\nline two", cause());
        assert_eq!(chain(&shows_its_cause), "read: line one line two");
        let hides_it = Failed("cannot start", Some(Box::new(Failed("file", cause()))));
        assert_eq!(chain(&hides_it), "cannot start: file: line one line two");
    }
}
