"""A service with a thread for each connection, which passes each request on through a connection of its thread's."""

import http.client
import os
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit

NEXT = urlsplit(os.environ["SAMPLE_NEXT"]).netloc
local = threading.local()


class Handler(BaseHTTPRequestHandler):
    """Answers with what the next service says."""

    protocol_version = "HTTP/1.1"

    def do_GET(self):
        """Asks it with the same path."""
        if not hasattr(local, "connection"):
            local.connection = http.client.HTTPConnection(NEXT, timeout=20)
        local.connection.request("GET", self.path)
        answer = local.connection.getresponse()
        body = answer.read()
        self.send_response(answer.status)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


class Server(ThreadingHTTPServer):
    """More connections at once than usual."""

    request_queue_size = 256


HOST, PORT = os.environ["SAMPLE_HOST"], int(os.environ["SAMPLE_PORT"])
print(f"listens on port {PORT}", flush=True)
Server((HOST, PORT), Handler).serve_forever()
