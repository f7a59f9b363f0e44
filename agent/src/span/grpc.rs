//! What a call of gRPC is called, and which of its statuses are errors (semantic conventions for RPC).

use crate::decode::Role;

/// Names of the status codes, from 0 on.
const NAMES: [&str; 17] = [
    "OK",
    "CANCELLED",
    "UNKNOWN",
    "INVALID_ARGUMENT",
    "DEADLINE_EXCEEDED",
    "NOT_FOUND",
    "ALREADY_EXISTS",
    "PERMISSION_DENIED",
    "RESOURCE_EXHAUSTED",
    "FAILED_PRECONDITION",
    "ABORTED",
    "OUT_OF_RANGE",
    "UNIMPLEMENTED",
    "INTERNAL",
    "UNAVAILABLE",
    "DATA_LOSS",
    "UNAUTHENTICATED",
];

/// Service and method of the path `/package.Service/Method`.
pub(super) fn names(path: &str) -> Option<(&str, &str)> {
    let (service, method) = path.strip_prefix('/')?.rsplit_once('/')?;
    (!service.is_empty() && !method.is_empty()).then_some((service, method))
}

/// Whether `status` is an error of the process that is a `role` of the call: a server is not to blame for what it was
/// asked for.
pub(super) fn is_error(status: u32, role: Role) -> bool {
    match role {
        Role::Client => status != 0,
        // UNKNOWN, DEADLINE_EXCEEDED, UNIMPLEMENTED, INTERNAL, UNAVAILABLE, DATA_LOSS.
        Role::Server => matches!(status, 2 | 4 | 12..=15),
    }
}

/// The name of `status`, `None` if it has none.
pub(super) fn status_name(status: u32) -> Option<&'static str> {
    NAMES.get(status as usize).copied()
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    #[rstest]
    #[case::usual("/shop.v1.Cart/Add", Some(("shop.v1.Cart", "Add")))]
    #[case::behind_a_prefix("/api/shop.Cart/Add", Some(("api/shop.Cart", "Add")))]
    #[case::no_method("/shop.Cart/", None)]
    #[case::no_service("/Add", None)]
    #[case::no_path("*", None)]
    fn paths(#[case] path: &str, #[case] expected: Option<(&str, &str)>) {
        assert_eq!(names(path), expected);
    }

    #[test]
    fn a_server_is_to_blame_for_six_statuses() {
        let of = |role| (0..17).filter(|status| is_error(*status, role)).filter_map(status_name).collect::<Vec<_>>();
        let blamed = ["UNKNOWN", "DEADLINE_EXCEEDED", "UNIMPLEMENTED", "INTERNAL", "UNAVAILABLE", "DATA_LOSS"];
        assert_eq!(of(Role::Server), blamed);
        assert_eq!(of(Role::Client), NAMES[1..]);
    }
}
