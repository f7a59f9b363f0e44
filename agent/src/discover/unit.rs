//! Systemd units in control group paths.

const SUFFIX: &str = ".service";

/// Units that run what is not theirs: it is not called after them.
const OF_OTHERS: [&str; 11] =
    ["atd", "containerd", "crio", "cron", "crond", "docker", "k3s", "k3s-agent", "kubelet", "ssh", "sshd"];

/// The service that a process belongs to, by one path of `/proc/PID/cgroup`, as systemd calls it but without `.service`.
///
/// The innermost one, because the services of a user are inside that of the user's manager (`user@1000.service`).
pub(super) fn name(path: &str) -> Option<String> {
    let unit = path.rsplit('/').find_map(|segment| segment.strip_suffix(SUFFIX))?;
    let is_others = unit.starts_with("user@") || unit.starts_with("getty@") || OF_OTHERS.contains(&unit);
    (!unit.is_empty() && !is_others).then(|| unescape(unit))
}

/// What a unit's name may not have is written `\x2d` in it.
fn unescape(unit: &str) -> String {
    let mut parts = unit.split("\\x");
    let mut bytes = parts.next().unwrap_or_default().as_bytes().to_vec();
    for part in parts {
        let escaped = part.get(..2).and_then(|digits| u8::from_str_radix(digits, 16).ok());
        if let Some((byte, rest)) = escaped.zip(part.get(2..)) {
            bytes.push(byte);
            bytes.extend_from_slice(rest.as_bytes());
        } else {
            bytes.extend_from_slice(b"\\x");
            bytes.extend_from_slice(part.as_bytes());
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use rstest::rstest;

    use super::*;

    #[rstest]
    #[case::service("/system.slice/ollama.service", Some("ollama"))]
    #[case::below_its_service("/system.slice/gitea.service/worker", Some("gitea"))]
    #[case::instance("/system.slice/system-app.slice/app@orders.service", Some("app@orders"))]
    #[case::escaped(r"/system.slice/home\x2dassistant.service", Some("home-assistant"))]
    #[case::cut_escape(r"/system.slice/a\x2.service", Some(r"a\x2"))]
    #[case::of_a_user("/user.slice/user-1000.slice/user@1000.service/app.slice/syncthing.service", Some("syncthing"))]
    #[case::manager_of_a_user("/user.slice/user-1000.slice/user@1000.service/init.scope", None)]
    #[case::session("/user.slice/user-1000.slice/session-3.scope", None)]
    #[case::of_others("/system.slice/cron.service", None)]
    #[case::root("/", None)]
    #[case::no_name("/system.slice/.service", None)]
    fn names(#[case] path: &str, #[case] expected: Option<&str>) {
        assert_eq!(name(path).as_deref(), expected);
        for length in 0..path.len() {
            let _ = path.get(..length).and_then(name);
        }
    }

    proptest! {
        #[test]
        fn takes_any_text(path in ".*", unit in ".*") {
            let _ = (name(&path), name(&format!("/{unit}.service")));
        }
    }
}
