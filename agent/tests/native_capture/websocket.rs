//! Connections that are switched to WebSocket, with a library that others wrote.

use coati_agent::decode::{Role, WebSocketSide};

use crate::software::{has, run, start, wait};
use crate::watch::Watch;

const PYTHON: &str = "/usr/bin/python3";

/// Answers every message with two.
const SERVER: &str = "
import asyncio, sys, websockets
async def serve(socket):
    async for message in socket:
        await socket.send('one')
        await socket.send(b'two' * 100)
async def main():
    async with websockets.serve(serve, '127.0.0.1', int(sys.argv[1])):
        await asyncio.Future()
asyncio.run(main())
";

/// Ten messages, one of them long, and a close with a code of its own.
const CLIENT: &str = "
import asyncio, sys, websockets
async def main():
    socket = await websockets.connect('ws://127.0.0.1:' + sys.argv[1] + '/chat', compression=None)
    for number in range(10):
        await socket.send('m' * (100 if number else 100000))
        await socket.recv()
        await socket.recv()
    await socket.close(4001, 'enough')
asyncio.run(main())
";

#[test]
fn messages_and_the_close_code_of_a_library_are_told() {
    let covers = "WebSocket";
    if !has(&[PYTHON, "/usr/lib/python3/dist-packages/websockets"], covers) {
        return;
    }
    let Some(mut watch) = Watch::start(covers) else { return };
    let (_server, port) = start(PYTHON, |port| vec!["-c".into(), SERVER.into(), port.to_string()]);
    run(PYTHON, &["-c", CLIENT, &port.to_string()]);
    let decoded = wait(&mut watch, port, 1);
    for role in [Role::Client, Role::Server] {
        assert_eq!(decoded.lines(role), ["GET /chat 101 0→0"]);
        let exchange = decoded.exchanges.iter().find(|it| it.origin.role == role).unwrap();
        let websocket = exchange.websocket.unwrap();
        assert_eq!(websocket.close_code, Some(4001));
        // Headers of 14 and nine times 6; the close frame has its code and a reason.
        let requests = WebSocketSide { messages: Some(10), bytes: 100_014 + 9 * 106 + 14 };
        assert_eq!(websocket.requests, requests);
        assert_eq!(websocket.responses.messages, Some(20));
    }
    decoded.assert_paired();
}
