"""Exports spans with everything that Python's OpenTelemetry SDK can put into one, and prints what they were.

    sdk.py grpc|http/protobuf ENDPOINT

Standard output: one JSON list, one object a span. It is made from the SDK's own span objects, not by its exporter.
Numbers that JSON cannot hold are texts: integers in decimal, doubles as the 16 hexadecimal digits of their bits.
"""

import json
import struct
import sys

from opentelemetry import trace
from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter as GrpcExporter
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter as HttpExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import SpanLimits, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import Link, SpanContext, SpanKind, Status, StatusCode, TraceFlags, TraceState

# OTLP counts the kinds from 1: 0 is for "not said", which the SDK cannot express.
KINDS = {SpanKind.INTERNAL: 1, SpanKind.SERVER: 2, SpanKind.CLIENT: 3, SpanKind.PRODUCER: 4, SpanKind.CONSUMER: 5}

ATTRIBUTES = {
    # Five more than the limit: this SDK drops the oldest.
    **{f"dropped.{number}": number for number in range(5)},
    "text": "hello",
    "text.empty": "",
    "text.unicode": "žluťoučký kůň 🐎 \u0000\u001f\"\\ \u2028",
    "text.long": "x" * 5000,
    "yes": True,
    "no": False,
    "int": 42,
    "int.zero": 0,
    "int.beyond.double": 2**53 + 1,
    "int.max": 2**63 - 1,
    "int.min": -(2**63),
    "double": 0.1,
    "double.whole": 3.0,
    "double.tiny": 5e-324,
    "double.huge": 1.7976931348623157e308,
    "double.negative.zero": -0.0,
    "double.infinite": float("inf"),
    "double.minus.infinite": float("-inf"),
    "double.nan": float("nan"),
    "bytes": b"\x00\xff\x80bytes",
    "texts": ["a", "", "ü"],
    "ints": [1, -1, 2**62],
    "doubles": [0.5, -1e300],
    "bools": [True, False],
    "empty.list": [],
    "key with spaces and ünicode": "value",
}


def value(of):
    if isinstance(of, bool):
        return {"bool": of}
    if isinstance(of, str):
        return {"string": of}
    if isinstance(of, int):
        return {"int": str(of)}
    if isinstance(of, float):
        return {"double": struct.pack(">d", of).hex()}
    if isinstance(of, bytes):
        return {"bytes": of.hex()}
    return {"array": [value(element) for element in of]}


def attributes(of):
    return {key: value(element) for key, element in (of or {}).items()}


def state(of):
    return ",".join(f"{key}={element}" for key, element in (of or {}).items())


def flags(remote_of):
    """The low byte is not sent by this SDK; 0x100 says that 0x200 is known: the other context came over the wire."""
    return 0x100 | (0x200 if remote_of is not None and remote_of.is_remote else 0)


def plain(span):
    scope = span.instrumentation_scope
    return {
        "resource": attributes(span.resource.attributes),
        "resource_schema_url": span.resource.schema_url,
        "scope": {"name": scope.name, "version": scope.version or "", "attributes": attributes(scope.attributes)},
        "scope_schema_url": scope.schema_url or "",
        "trace_id": f"{span.context.trace_id:032x}",
        "span_id": f"{span.context.span_id:016x}",
        "parent_span_id": f"{span.parent.span_id:016x}" if span.parent else "",
        "trace_state": state(span.context.trace_state),
        "flags": flags(span.parent),
        "name": span.name,
        "kind": KINDS[span.kind],
        "start": str(span.start_time),
        "end": str(span.end_time),
        "attributes": attributes(span.attributes),
        "dropped_attributes": span.dropped_attributes,
        "events": [
            {
                "name": event.name,
                "time": str(event.timestamp),
                "attributes": attributes(event.attributes),
                "dropped_attributes": event.dropped_attributes,
            }
            for event in span.events
        ],
        "dropped_events": span.dropped_events,
        "links": [
            {
                "trace_id": f"{link.context.trace_id:032x}",
                "span_id": f"{link.context.span_id:016x}",
                # This SDK's exporter does not send a link's trace state.
                "trace_state": "",
                "flags": flags(link.context),
                "attributes": attributes(link.attributes),
                "dropped_attributes": link.dropped_attributes,
            }
            for link in span.links
        ],
        "dropped_links": span.dropped_links,
        "status": {"code": span.status.status_code.value, "message": span.status.description or ""},
    }


def remote(number, flag=TraceFlags.SAMPLED):
    return SpanContext(number, number & (2**64 - 1), True, TraceFlags(flag), TraceState([("vendor", "a:1"), ("b", "2")]))


def main(protocol, endpoint):
    resource = Resource.create(
        {"service.name": f"python-{protocol}", "service.namespace": "shop", "process.pid": 7, "ratio": 0.25,
         "host.ip": ["10.0.0.1", "::1"]},
        "https://opentelemetry.io/schemas/1.30.0",
    )
    exporter = GrpcExporter(endpoint, insecure=endpoint.startswith("http:")) if protocol == "grpc" else HttpExporter(f"{endpoint}/v1/traces")
    memory = InMemorySpanExporter()
    provider = TracerProvider(
        resource=resource, span_limits=SpanLimits(max_attributes=45, max_events=4, max_links=3, max_link_attributes=2)
    )
    provider.add_span_processor(SimpleSpanProcessor(memory))
    processor = SimpleSpanProcessor(exporter)
    provider.add_span_processor(processor)
    whole = provider.get_tracer("whole", "1.2.3", "https://opentelemetry.io/schemas/1.31.0", {"scope.key": "scope value"})
    bare = provider.get_tracer("bare")

    parent = trace.set_span_in_context(trace.NonRecordingSpan(remote(0xA1B2C3D4E5F60718293A4B5C6D7E8F90)))
    links = [Link(remote(1 << 100 | 5), {"why": "batch", "n": 1, "over": "the limit"}), Link(remote(9)), Link(remote(1 << 127), {"x": [1, 2]}),
             Link(remote(77), {"the": "first is dropped"})]
    with whole.start_as_current_span("GET /items/{item}", parent, SpanKind.SERVER, ATTRIBUTES, links) as server:
        server.add_event("first, dropped")
        server.add_event("cache.miss", {"key": "item:1", "size": 2**40, "hit": False})
        server.add_event("", {}, timestamp=1)
        server.record_exception(ValueError("bad välue"))
        server.add_event("last", {"weights": [0.25, 0.75]})
        for kind in (SpanKind.CLIENT, SpanKind.PRODUCER, SpanKind.CONSUMER, SpanKind.INTERNAL):
            with bare.start_as_current_span(f"child {kind.name}", kind=kind) as child:
                child.set_attribute("http.response.status_code", 404)
                child.set_status(Status(StatusCode.ERROR, "Not Found – ü") if kind is SpanKind.CLIENT else Status(StatusCode.OK))
        for number in range(20):
            server.set_attribute(f"many.{number}", number)
        server.set_status(Status(StatusCode.ERROR, ""))
    with bare.start_as_current_span("", context=trace.set_span_in_context(trace.INVALID_SPAN)):
        pass  # A root of a trace of its own, without a name.
    provider.shutdown()
    json.dump([plain(span) for span in memory.get_finished_spans()], sys.stdout)


main(*sys.argv[1:])
