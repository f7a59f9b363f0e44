"""A server that calls CUDA's driver library, or what is in its place, as each request asks.

    cuda.py PORT LIBRARY [BACKEND_PORT]

POST /work takes {"calls": [{"name": …, "args": […], "count": …, "through_pointer": …}], "repeat": …}. With BACKEND_PORT the
server calls nothing itself: it starts such a server there, as ollama starts one for its model, and hands requests on.
"""
import ctypes
import http.client
import json
import subprocess
import sys
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

PORT, LIBRARY = int(sys.argv[1]), sys.argv[2]
BACKEND = int(sys.argv[3]) if len(sys.argv) > 3 else None
CUDA = None if BACKEND else ctypes.CDLL(LIBRARY)


def function(name, through_pointer, count):
    if not through_pointer:
        found = getattr(CUDA, name)
    else:
        address, status = ctypes.c_void_p(), ctypes.c_int()
        result = CUDA.cuGetProcAddress_v2(name.encode(), ctypes.byref(address), 12000, ctypes.c_ulonglong(0), ctypes.byref(status))
        assert result == 0, name
        found = ctypes.CFUNCTYPE(ctypes.c_uint)(address.value)
    found.argtypes = [ctypes.c_size_t] * count
    return found


def work(asked):
    calls = [(function(call["name"], call.get("through_pointer"), len(call.get("args", []))), call.get("args", []), call.get("count", 1))
             for call in asked["calls"]]
    for _ in range(asked.get("repeat", 1)):
        for called, args, count in calls:
            for _ in range(count):
                called(*args)
    return b"done\n"


def hand_on(path, body):
    connection = http.client.HTTPConnection("127.0.0.1", BACKEND)
    connection.request("POST", path, body, {"content-type": "application/json"})
    answer = connection.getresponse().read()
    connection.close()
    return answer


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self):
        body = self.rfile.read(int(self.headers["content-length"]))
        answer = hand_on(self.path, body) if BACKEND else work(json.loads(body))
        self.send_response(200)
        self.send_header("content-length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def log_message(self, *_):
        pass


def wait_for(port):
    for _ in range(200):
        try:
            http.client.HTTPConnection("127.0.0.1", port).connect()
            return
        except OSError:
            time.sleep(0.05)


if BACKEND:
    # It ends when this process does, however that ends: PR_SET_PDEATHSIG, SIGKILL.
    subprocess.Popen([sys.executable, __file__, str(BACKEND), LIBRARY], preexec_fn=lambda: ctypes.CDLL(None).prctl(1, 9))
    wait_for(BACKEND)
ThreadingHTTPServer(("127.0.0.1", PORT), Handler).serve_forever()
