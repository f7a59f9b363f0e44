//! What begins and ends with a process.

use super::*;

#[rstest]
#[case::running(200, &[], &[], &[200])]
#[case::no_room(200, &[200], &[], &[])]
#[case::gone_already(300, &[], &[], &[])]
#[case::ends_in_the_same_batch(200, &[], &[200], &[])]
fn only_a_running_process_is_skipped(
    #[case] tgid: u32,
    #[case] unskippable: &[u32],
    #[case] exits: &[u32],
    #[case] skipped: &[u32],
) {
    let mut client = Wire::client(1);
    client.tgid = tgid;
    client.request(b"GET / HTTP/1.1\r\n\r\n").response(b"HTTP/1.1 204 No Content\r\n\r\n");
    let end = client.time_ns;
    let exit = |tgid: &u32| {
        let header = Header { kind: Kind::Exit as u32, time_ns: end, ..Header::default() };
        Record::Exit(Exit { header, tgid: *tgid, reserved: 0 })
    };
    let records = [client.records, exits.iter().map(exit).collect()].concat();
    let mut script = Script { drains: [records].into(), unskippable: unskippable.to_vec(), ..Script::default() };
    let rule = Rule { exe_path: Pattern::executable("shop"), ..Rule::default() };
    let (spans, _) = run_script(&mut script, Selection { include: vec![rule], exclude: vec![] });
    assert!(spans.is_empty(), "{spans:?}");
    assert_eq!(script.skipped, skipped);
}

#[test]
fn a_process_that_has_ended_is_no_longer_skipped() {
    let mut script = Script { skipped: vec![200], ..Script::default() };
    let header = Header { kind: Kind::Exit as u32, time_ns: MS, ..Header::default() };
    script.drains.push_back(vec![Record::Exit(Exit { header, tgid: 200, reserved: 0 })]);
    run_script(&mut script, Selection::default());
    assert!(script.skipped.is_empty());
}

/// Of a TLS session whose socket is not known, the end of its process is the end.
#[test]
fn the_sessions_of_a_process_that_is_gone_end() {
    let node = Node::new();
    let folder = node.proc.path().join("200");
    fs::create_dir(folder.join("map_files")).unwrap();
    fs::write(folder.join("map_files/1000-2000"), crate::discover::elf::library()).unwrap();
    fs::write(folder.join("maps"), "1000-2000 r-xp 00000000 fd:01 7 /usr/lib/libssl.so.3\n").unwrap();
    let mut script = Script::default();
    let wanted = Wanted { tls: true, cuda: true, go: true, loops: true, python: true };
    let mut libraries = Libraries::new(ProcTree::new(node.proc.path()), wanted);
    libraries.look_at_all(MS, &mut script, &mut |_| true);
    assert_eq!(script.probed, [folder.join("map_files/1000-2000")]);

    let mut client = Wire::client(2);
    client.request(b"GET /a HTTP/1.1\r\nhost: shop\r\n\r\n");
    let Some(Record::Begin(begin, _)) = client.records.first() else { panic!("{:?}", client.records) };
    let (connection, exchange) = (begin.connection, begin.exchange);
    script.sessions.push((200, Connection { connection, exchange, ..Connection::default() }));
    let header = Header { kind: Kind::Exit as u32, time_ns: 20 * MS, ..Header::default() };
    let exit = Record::Exit(Exit { header, tgid: 200, reserved: 0 });

    let telemetry = Telemetry::default();
    let (queue, received) = export::queue::bounded(100, 100, 1, telemetry.clone());
    let mut stages = node.stages(queue, &telemetry, Selection::default());
    stages.watch_libraries(libraries);
    stages.take(&mut [client.records, vec![exit]].concat(), &mut script).unwrap();
    for now_ns in [2000 * MS, 4000 * MS] {
        stages.tick(now_ns, Clock::new(0, 1_000_000_000), &mut script).unwrap();
    }
    drop(stages);
    let spans = spans(received);
    let [span] = &spans[..] else { panic!("{spans:?}") };
    assert!(span.span.status.as_ref().unwrap().message.starts_with("connection closed"), "{span:?}");
    assert!(script.sessions.is_empty());
}

#[test]
fn exec_and_exit_records_reach_the_processes() {
    let header = |kind: Kind, time_ns| Header { kind: kind as u32, time_ns, ..Header::default() };
    let mut server = Wire::server(2);
    server.tgid = 300;
    server.request(b"GET / HTTP/1.1\r\n\r\n").response(b"HTTP/1.1 204 No Content\r\n\r\n");
    let exec = Record::Exec(header(Kind::Exec, 0), 300, b"/opt/short-lived".to_vec());
    let exit = Record::Exit(Exit { header: header(Kind::Exit, server.time_ns), tgid: 300, reserved: 0 });
    let records = [vec![exec], server.records, vec![exit]].concat();
    let (spans, telemetry) =
        run_script(&mut Script { drains: [records].into(), ..Script::default() }, Selection::default());
    let [span] = &spans[..] else { panic!("{spans:?}") };
    assert_eq!(span.process.service_name, "short-lived");
    assert_eq!((telemetry.records(Kind::Exec).get(), telemetry.records(Kind::Exit).get()), (1, 1));
}
