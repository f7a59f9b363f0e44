//! Calls that a program makes when another one is answered.

use super::*;

/// What goes on after an answer is a part of the request that has asked, unless another one may have waited for the same answer: one
/// without a call of its own that is open, and without an answer.
#[rstest]
#[case::alone(None, true)]
#[case::the_other_waits_for_its_own_call(Some((true, false)), true)]
#[case::the_other_may_wait_for_the_same(Some((false, false)), false)]
#[case::the_other_is_being_answered(Some((false, true)), true)]
fn a_call_after_an_answer_is_below_its_request_if_that_is_certain(
    #[case] other: Option<(bool, bool)>,
    #[case] is_linked: bool,
) {
    let [mut one, mut two] = [2, 3].map(|connection| wire(Wire::server(connection), SHOP, 0));
    two.client_position = 9;
    one.request(GET).wait(60 * MS).response(OK);
    let call = |connection: u64, at, served, answered_after| {
        let mut client = wire(Wire::client(connection), SHOP, at);
        client.client_position = 70 + connection as u32;
        client.served = Served { connection: served, exchange: 1, place: 0 };
        client.is_after_answer = connection == 5;
        client.request(GET).wait(answered_after * MS).response(OK);
        client
    };
    let (first, second, of_other) = (call(4, 2, 2, 10), call(5, 20, 2, 10), call(6, 3, 3, 40));
    if let Some((_, is_answered)) = other {
        two.request(GET);
        if is_answered {
            two.response(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n");
        }
        two.wait(60 * MS).response(if is_answered { b"0\r\n\r\n" } else { OK });
    }
    let mut wires = vec![&one, &first, &second];
    wires.extend(other.map(|_| &two));
    wires.extend(other.filter(|(asks, _)| *asks).map(|_| &of_other));
    let run = Run::new(&wires);
    assert_child(run.span(4), run.span(2));
    if is_linked {
        assert_child(run.span(5), run.span(2));
    } else {
        assert_root(run.span(5));
    }
    assert_eq!(run.stitcher.counters().ambiguous, u64::from(!is_linked));
    assert!(run.is_empty());
}

/// What another thread does is not woken by it.
#[test]
fn requests_of_other_threads_do_not_wait_for_the_same_answer() {
    let [mut one, mut two] = [2, 3].map(|connection| wire(Wire::server(connection), SHOP, 0));
    two.client_position = 9;
    one.request(GET).wait(30 * MS).response(OK);
    two.thread = Some(7);
    two.request(GET).wait(30 * MS).response(OK);
    let mut client = wire(Wire::client(1), SHOP, 10);
    (client.client_position, client.is_after_answer) = (77, true);
    client.served = Served { connection: 2, exchange: 1, place: 0 };
    client.request(GET).response(OK);
    let run = Run::new(&[&one, &two, &client]);
    assert_child(run.span(1), run.span(2));
}
