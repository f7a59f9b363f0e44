"""A server of raw sockets that answers in every way that HTTP/1 allows, and in some that it does not.

    awkward.py ADDRESS PORT

The last part of the path says how: `/anything/chunked` is answered in chunks.
"""

import os
import socket
import sys
import tempfile
import threading
import time

BODY = b"0123456789" * 10


def head(status, *headers):
    return "\r\n".join([f"HTTP/1.1 {status}", "Server: awkward", *headers, "", ""]).encode()


def plain(connection, status="200 OK", body=BODY):
    connection.sendall(head(status, f"Content-Length: {len(body)}") + body)


def chunked(connection):
    connection.sendall(head("200 OK", "Transfer-Encoding: chunked"))
    for size in (1, 10, 50):
        time.sleep(0.01)
        connection.sendall(b"%x\r\n%s\r\n" % (size, b"c" * size))
    connection.sendall(b"0\r\n\r\n")


def chunks_at_once(connection):
    """Whole answer in one piece, with a trailer."""
    connection.sendall(head("200 OK", "Transfer-Encoding: chunked") + b"5;name=value\r\nhello\r\n0\r\nX-Sum: 1\r\n\r\n")


def until_close(connection):
    connection.sendall(head("200 OK", "Connection: close"))
    for _ in range(3):
        connection.sendall(BODY)
        time.sleep(0.005)
    return True


def http10(connection):
    connection.sendall(b"HTTP/1.0 200 OK\r\nContent-Type: text/plain\r\n\r\n" + BODY)
    return True


def silent(connection):
    """Takes the request and hangs up."""
    return True


def half(connection):
    """Promises a thousand bytes, sends ten, hangs up."""
    connection.sendall(head("200 OK", "Content-Length: 1000") + b"0123456789")
    return True


def hang(connection):
    time.sleep(600)


def slowly(connection):
    for byte in head("200 OK", "Content-Length: 3") + b"abc":
        connection.send(bytes([byte]))
        time.sleep(0.001)


def endless(connection):
    """More than a client that goes away will read."""
    connection.sendall(head("200 OK", "Content-Length: 1000000000"))
    try:
        while True:
            connection.sendall(b"x" * 10_000)
            time.sleep(0.001)
    except OSError:
        return True


def many_pieces(connection):
    """More pieces than the kernel programs tell of one by one."""
    connection.sendall(head("200 OK", "Content-Length: 2000"))
    for _ in range(200):
        connection.send(b"p" * 10)
        time.sleep(0.0005)


def writev(connection):
    os.writev(connection.fileno(), [head("200 OK", f"Content-Length: {2 * len(BODY)}"), BODY, BODY])


def sendmsg(connection):
    connection.sendmsg([b"HTTP/1.1 ", b"200 OK\r\n", b"Content-Length: 100\r\n\r\n", BODY])


def sendfile(connection):
    with tempfile.TemporaryFile() as file:
        file.write(BODY * 1000)
        file.flush()
        connection.sendall(head("200 OK", f"Content-Length: {len(BODY) * 1000}"))
        sent = 0
        while sent < len(BODY) * 1000:
            sent += os.sendfile(connection.fileno(), file.fileno(), sent, len(BODY) * 1000 - sent)


def early_hints(connection):
    connection.sendall(b"HTTP/1.1 103 Early Hints\r\nLink: </style.css>\r\n\r\n")
    time.sleep(0.01)
    plain(connection)


ANSWERS = {
    "plain": plain,
    "created": lambda connection: plain(connection, "201 Created", b""),
    "missing": lambda connection: plain(connection, "404 Not Found", b"missing"),
    "broken": lambda connection: plain(connection, "500 Internal Server Error", b"broken"),
    "no-content": lambda connection: connection.sendall(head("204 No Content")),
    "not-modified": lambda connection: connection.sendall(head("304 Not Modified", "Content-Length: 100")),
    "head": lambda connection: connection.sendall(head("200 OK", "Content-Length: 100")),
    "chunked": chunked,
    "chunks-at-once": chunks_at_once,
    "until-close": until_close,
    "http10": http10,
    "silent": silent,
    "half": half,
    "hang": hang,
    "slowly": slowly,
    "endless": endless,
    "many-pieces": many_pieces,
    "writev": writev,
    "sendmsg": sendmsg,
    "sendfile": sendfile,
    "early-hints": early_hints,
}


def serve(connection):
    """Answers one request after the other; an answer that is true ends the connection."""
    received = b""
    with connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        while True:
            while b"\r\n\r\n" not in received:
                piece = connection.recv(65536)
                if not piece:
                    return
                received += piece
            request, received = received.split(b"\r\n\r\n", 1)
            lines = request.decode("latin-1").split("\r\n")
            headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines[1:])}
            if headers.get("expect") == "100-continue":
                connection.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")
            length = int(headers.get("content-length", 0))
            while len(received) < length:
                piece = connection.recv(65536)
                if not piece:
                    return
                received += piece
            received = received[length:]
            if headers.get("transfer-encoding") == "chunked":
                while not received.endswith(b"0\r\n\r\n"):
                    piece = connection.recv(65536)
                    if not piece:
                        return
                    received += piece
                received = b""
            words = lines[0].split(" ")
            kind = words[1].split("?")[0].rsplit("/", 1)[-1] if len(words) == 3 else ""
            if kind not in ANSWERS:
                plain(connection, "400 Bad Request", b"")
                return
            if ANSWERS[kind](connection):
                return


def guarded(connection):
    try:
        serve(connection)
    except (OSError, ValueError):
        pass  # The client went away, or never spoke HTTP.


def main(address, port):
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.create_server((address, int(port)), family=family, backlog=512) as listener:
        while True:
            connection, _ = listener.accept()
            threading.Thread(target=guarded, args=(connection,), daemon=True).start()


main(*sys.argv[1:])
