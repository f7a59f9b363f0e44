mod follow;
mod index;
mod naming;
mod pod_resources;

use rstest::rstest;

use super::connect::{Credentials, credentials};

#[rstest]
#[case::nothing(&[], false, None)]
#[case::service_account(&["KUBERNETES_SERVICE_HOST"], true, Some(Credentials::ServiceAccount))]
#[case::no_token(&["KUBERNETES_SERVICE_HOST"], false, None)]
#[case::token_only(&[], true, None)]
#[case::file(&["KUBECONFIG"], false, Some(Credentials::Kubeconfig))]
#[case::file_wins(&["KUBECONFIG", "KUBERNETES_SERVICE_HOST"], true, Some(Credentials::Kubeconfig))]
fn there_is_a_cluster_if_there_is_something_to_ask_it_with(
    #[case] variables: &[&str],
    #[case] has_token: bool,
    #[case] expected: Option<Credentials>,
) {
    let folder = tempfile::tempdir().unwrap();
    let token = folder.path().join("token");
    if has_token {
        std::fs::write(&token, "secret").unwrap();
    }
    assert_eq!(credentials(&|name| variables.contains(&name).then(|| "set".to_owned()), &token), expected);
    assert_eq!(credentials(&|name| variables.contains(&name).then(String::new), &token), None, "empty is not set");
}
