//! What led to an error, in one line.

use std::{error::Error, io, iter};

use rustls::{CertificateError, Error as TlsError};

use crate::telemetry::chain;

/// An error with everything that led to it; tonic's own text is "transport error". What a person can do about a
/// handshake that failed is added: the words of TLS do not say it.
pub(crate) fn with_causes(error: &(dyn Error + 'static)) -> String {
    let text = chain(error);
    let hint = iter::successors(Some(error), |&error| error.source()).find_map(of_handshake);
    match hint.or_else(|| of_alert(&text)) {
        Some(hint) => format!("{text} ({hint})"),
        None => text,
    }
}

fn of_handshake(error: &(dyn Error + 'static)) -> Option<&'static str> {
    // An I/O error is not the source of what it carries.
    let inner = error.downcast_ref::<io::Error>().and_then(|error| error.get_ref()).map(|inner| inner as &dyn Error);
    let error = error.downcast_ref::<TlsError>().or_else(|| inner?.downcast_ref())?;
    Some(match error {
        TlsError::InvalidCertificate(error) => match error {
            CertificateError::UnknownIssuer | CertificateError::BadSignature => {
                "nobody trusted has signed the endpoint's certificate: see `tls.ca_file`"
            }
            CertificateError::Expired | CertificateError::ExpiredContext { .. } => {
                "the endpoint's certificate has expired"
            }
            CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => {
                "the endpoint's certificate is not valid yet: is the clock of this node right?"
            }
            CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. } => {
                "the endpoint's certificate is for another name: see `tls.server_name`"
            }
            _ => return None,
        },
        TlsError::InvalidMessage(_) => "the endpoint does not speak TLS: is `https` right?",
        _ => return None,
    })
}

/// What the endpoint says about us comes with the first answer, through libraries that keep only its text.
fn of_alert(text: &str) -> Option<&'static str> {
    let (_, alert) = text.split_once("received fatal alert: ")?;
    let is_one_of = |alerts: &[&str]| alerts.iter().any(|name| alert.starts_with(name));
    if is_one_of(&["CertificateRequired"]) {
        return Some("the endpoint wants a client certificate: see `tls.cert_file` and `tls.key_file`");
    }
    let of_certificate = ["UnknownCA", "BadCertificate", "UnsupportedCertificate", "Certificate", "DecryptError"];
    is_one_of(&of_certificate).then_some("the endpoint does not accept the client certificate: see `tls.cert_file`")
}
