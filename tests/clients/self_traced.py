"""A service that traces itself with OpenTelemetry's SDK.

    self_traced.py grpc|http/protobuf ENDPOINT PORT DOWNSTREAM

Each GET makes a server span and, for the request to DOWNSTREAM with the same path, a client span, whose context goes along
in `traceparent`. There is no instrumentation that does this by itself: spans are made by hand, as far as the SDK is concerned
the same ones.
"""

import signal
import sys
import urllib.request
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter as GrpcExporter
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter as HttpExporter
from opentelemetry.propagate import extract, inject
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.trace import SpanKind

protocol, endpoint, port, downstream = sys.argv[1:]
exporter = GrpcExporter(endpoint, insecure=True) if protocol == "grpc" else HttpExporter(f"{endpoint}/v1/traces")
provider = TracerProvider()
provider.add_span_processor(BatchSpanProcessor(exporter, schedule_delay_millis=200))
tracer = provider.get_tracer("shop")


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        with tracer.start_as_current_span(f"GET {self.path}", extract(self.headers), SpanKind.SERVER):
            with tracer.start_as_current_span("call", kind=SpanKind.CLIENT):
                request = urllib.request.Request(downstream + self.path)
                inject(request.headers)
                with urllib.request.urlopen(request) as answer:
                    body = answer.read()
        self.send_response(200)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


def end(*_):
    provider.shutdown()
    sys.exit(0)


signal.signal(signal.SIGTERM, end)
ThreadingHTTPServer(("127.0.0.1", int(port)), Handler).serve_forever()
