//! Containers and pods in control group paths.

/// Hexadecimal digits of a container id, the same in Docker, containerd, CRI-O and Podman.
const ID_DIGITS: usize = 64;
/// Hexadecimal digits and dashes of a pod's uid; hashes have no dashes.
const UID_DIGITS: usize = 32;
const UID_DASHES: usize = 4;

/// The container id in one path of `/proc/PID/cgroup`, for cgroup v1 and v2.
///
/// Runtimes decorate the id (`docker-ID.scope`, `cri-containerd-ID.scope`, `crio-ID.scope`, `libpod-ID.scope`,
/// `kubepods-…:cri-containerd:ID`, plain `ID`), so the id is any run of exactly 64 hexadecimal digits. The innermost one
/// wins: that is the container itself when containers are nested. Monitor processes (`crio-conmon-ID`,
/// `libpod-conmon-ID`) live beside the container, not in it.
pub(super) fn container_id(path: &str) -> Option<&str> {
    path.rsplit('/').filter(|segment| !segment.contains("conmon-")).find_map(id_in_segment)
}

fn id_in_segment(segment: &str) -> Option<&str> {
    segment
        .split(|letter: char| !letter.is_ascii_alphanumeric())
        .find(|word| word.len() == ID_DIGITS && word.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f')))
}

/// The uid of the pod in one path of `/proc/PID/cgroup`; of a static pod, the hash that the kubelet has in its place.
///
/// The kubelet names the group of a pod `podUID`, or `kubepods-burstable-podUID.slice` with `_` for `-` where systemd makes
/// the groups (`pkg/kubelet/cm/pod_container_manager_linux.go`, `cgroup_manager_linux.go` of Kubernetes). It is there from
/// the start, while the API server learns the ids of containers only after they have been started.
pub(super) fn pod_uid(path: &str) -> Option<String> {
    path.rsplit('/').find_map(uid_in_segment)
}

fn uid_in_segment(segment: &str) -> Option<String> {
    let group = segment.split(':').next()?;
    let (before, uid) = group.strip_suffix(".slice").unwrap_or(group).rsplit_once("pod")?;
    let is_group = before.is_empty() || (before.starts_with("kubepods") && before.ends_with('-'));
    let uid = uid.replace('_', "-");
    let digits = uid.bytes().filter(u8::is_ascii_hexdigit).count();
    let dashes = uid.bytes().filter(|byte| *byte == b'-').count();
    let is_uid = digits == UID_DIGITS && digits + dashes == uid.len() && matches!(dashes, 0 | UID_DASHES);
    (is_group && is_uid).then_some(uid)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use rstest::rstest;

    use super::*;

    const ID: &str = "3f1a9c0e5b7d2468ace013579bdf02468ace13579bdf02468ace13579bdf0246";
    const OUTER: &str = "00000000000000000000000000000000000000000000000000000000deadbeef";

    #[rstest]
    #[case::docker_v1("/docker/{ID}")]
    #[case::docker_v2_systemd("/system.slice/docker-{ID}.scope")]
    #[case::docker_in_docker("/docker/{OUTER}/docker/{ID}")]
    #[case::docker_v2_with_child_group("/system.slice/docker-{ID}.scope/init")]
    #[case::kubernetes_cgroupfs("/kubepods/besteffort/pod2a58a6a2-8b3b-4a2c-9f0e-0d1c2b3a4f5e/{ID}")]
    #[case::kubernetes_containerd(
        "/kubepods.slice/kubepods-besteffort.slice/kubepods-besteffort-pod2a58.slice/cri-containerd-{ID}.scope"
    )]
    #[case::containerd_under_its_service("/system.slice/containerd.service/kubepods-pod2a58.slice:cri-containerd:{ID}")]
    #[case::k3s_without_systemd("/k3s/kubepods/burstable/pod2a58/{ID}")]
    #[case::from_another_cgroup_namespace("/../../kubepods-pod2a58.slice/cri-containerd-{ID}.scope")]
    #[case::crio("/kubepods.slice/kubepods-pod2a58.slice/crio-{ID}.scope")]
    #[case::crio_with_container_group("/kubepods.slice/crio-{ID}.scope/container")]
    #[case::podman("/machine.slice/libpod-{ID}.scope")]
    #[case::podman_rootless("/user.slice/user-1000.slice/user@1000.service/user.slice/libpod-{ID}.scope/container")]
    fn finds_the_id(#[case] path: &str) {
        let path = path.replace("{ID}", ID).replace("{OUTER}", OUTER);
        assert_eq!(container_id(&path), Some(ID));
    }

    #[rstest]
    #[case::root("/")]
    #[case::empty("")]
    #[case::service("/system.slice/ssh.service")]
    #[case::session("/user.slice/user-1000.slice/session-3.scope")]
    #[case::crio_monitor(
        "/kubepods.slice/crio-conmon-3f1a9c0e5b7d2468ace013579bdf02468ace13579bdf02468ace13579bdf0246.scope"
    )]
    #[case::one_digit_short("/docker/3f1a9c0e5b7d2468ace013579bdf02468ace13579bdf02468ace13579bdf024")]
    #[case::one_digit_long("/docker/3f1a9c0e5b7d2468ace013579bdf02468ace13579bdf02468ace13579bdf02460")]
    #[case::not_hexadecimal("/docker/3f1a9c0e5b7d2468ace013579bdf02468ace13579bdf02468ace13579bdf024z")]
    fn finds_none(#[case] path: &str) {
        assert_eq!(container_id(path), None);
    }

    const UID: &str = "2a58a6a2-8b3b-4a2c-9f0e-0d1c2b3a4f5e";
    const HASH: &str = "0123456789abcdef0123456789abcdef";

    #[rstest]
    #[case::cgroupfs("/kubepods/besteffort/pod{UID}/{ID}", UID)]
    #[case::guaranteed("/kubepods/pod{UID}/{ID}", UID)]
    #[case::k3s("/k3s/kubepods/burstable/pod{UID}/{ID}", UID)]
    #[case::systemd(
        "/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod{SLICE}.slice/cri-containerd-{ID}.scope",
        UID
    )]
    #[case::systemd_guaranteed("/kubepods.slice/kubepods-pod{SLICE}.slice/crio-{ID}.scope/container", UID)]
    #[case::containerd_under_its_service(
        "/system.slice/containerd.service/kubepods-pod{SLICE}.slice:cri-containerd:{ID}",
        UID
    )]
    #[case::from_another_cgroup_namespace("/../../kubepods-besteffort-pod{SLICE}.slice/cri-containerd-{ID}.scope", UID)]
    #[case::static_pod("/kubepods/burstable/pod{HASH}/{ID}", HASH)]
    fn finds_the_pod(#[case] path: &str, #[case] expected: &str) {
        let slice = UID.replace('-', "_");
        let path = path.replace("{SLICE}", &slice).replace("{UID}", UID).replace("{HASH}", HASH).replace("{ID}", ID);
        assert_eq!(pod_uid(&path).as_deref(), Some(expected));
        for length in 0..path.len() {
            assert!(path.get(..length).and_then(pod_uid).is_none_or(|uid| uid == expected), "{length}");
        }
    }

    #[rstest]
    #[case::docker("/system.slice/docker-3f1a9c0e5b7d2468ace013579bdf02468ace13579bdf02468ace13579bdf0246.scope")]
    #[case::all_pods("/kubepods.slice")]
    #[case::podman("/machine.slice/libpod-3f1a9c0e5b7d2468ace013579bdf02468ace13579bdf02468ace13579bdf0246.scope")]
    #[case::somebody_elses("/system.slice/my-pod2a58a6a2-8b3b-4a2c-9f0e-0d1c2b3a4f5e.service")]
    #[case::short("/kubepods/pod2a58a6a2-8b3b-4a2c-9f0e-0d1c2b3a4f5")]
    #[case::not_hexadecimal("/kubepods/pod2a58a6a2-8b3b-4a2c-9f0e-0d1c2b3a4f5z")]
    fn finds_no_pod(#[case] path: &str) {
        assert_eq!(pod_uid(path), None);
    }

    proptest! {
        #[test]
        fn takes_any_text(path in ".*") {
            let _ = pod_uid(&path);
            if let Some(id) = container_id(&path) {
                prop_assert_eq!(id.len(), ID_DIGITS);
            }
        }
    }
}
