"""A small model behind a streaming HTTP server, for a machine with an NVIDIA GPU: random weights, real work.

Answers POST /api/generate as ollama does, token by token. Needs PyTorch with CUDA, nothing else; downloads nothing.
"""
import json
import os
import sys
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import torch

WIDTH, LAYERS = int(os.environ.get("WIDTH", "4096")), int(os.environ.get("LAYERS", "24"))
DEVICE = torch.device("cuda")
WEIGHTS = None


def load():
    global WEIGHTS
    if WEIGHTS is None:
        WEIGHTS = [torch.randn(WIDTH, WIDTH, device=DEVICE, dtype=torch.float16) / WIDTH**0.5 for _ in range(LAYERS)]
        torch.cuda.synchronize()


def forward(state):
    for weight in WEIGHTS:
        state = torch.tanh(state @ weight)
    return state


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self):
        asked = json.loads(self.rfile.read(int(self.headers["content-length"])))
        tokens, prompt = asked["options"]["num_predict"], asked["options"]["prompt_tokens"]
        begin = time.perf_counter_ns()
        load()
        loaded = time.perf_counter_ns()
        state = forward(torch.randn(prompt, WIDTH, device=DEVICE, dtype=torch.float16))[-1:]
        torch.cuda.synchronize()
        prompted = time.perf_counter_ns()
        self.send_response(200)
        self.send_header("content-type", "application/x-ndjson")
        self.send_header("transfer-encoding", "chunked")
        self.end_headers()
        for number in range(tokens):
            # A batch that keeps the device busy for some milliseconds.
            for _ in range(asked["options"].get("repeat", 20)):
                state = forward(state.expand(512, -1))[-1:]
            torch.cuda.synchronize()
            self.chunk({"model": asked["model"], "response": f" {number}", "done": False})
        end = time.perf_counter_ns()
        self.chunk({"model": asked["model"], "response": "", "done": True, "done_reason": "length", "total_duration": end - begin,
                    "load_duration": loaded - begin, "prompt_eval_count": prompt, "prompt_eval_duration": prompted - loaded,
                    "eval_count": tokens, "eval_duration": end - prompted})
        self.wfile.write(b"0\r\n\r\n")

    def chunk(self, message):
        line = json.dumps(message, separators=(",", ":")).encode() + b"\n"
        self.wfile.write(b"%x\r\n%s\r\n" % (len(line), line))

    def log_message(self, *_):
        pass


ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
