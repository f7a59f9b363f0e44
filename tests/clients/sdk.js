// Exports spans with everything that Node's OpenTelemetry SDK can put into one, and prints what they were.
//
//     NODE_PATH=…/node_modules node sdk.js grpc|http/protobuf|http/json ENDPOINT
//
// Standard output: one JSON list, one object a span. It is made from the SDK's own span objects, not by its exporter.
// Numbers that JSON cannot hold are texts: integers in decimal, doubles as the 16 hexadecimal digits of their bits.
'use strict';

const { context, createTraceState, SpanKind, SpanStatusCode, trace, TraceFlags } = require('@opentelemetry/api');
const { resourceFromAttributes } = require('@opentelemetry/resources');
const sdk = require('@opentelemetry/sdk-trace');

const EXPORTERS = {
  grpc: () => require('@opentelemetry/exporter-trace-otlp-grpc'),
  'http/protobuf': () => require('@opentelemetry/exporter-trace-otlp-proto'),
  'http/json': () => require('@opentelemetry/exporter-trace-otlp-http'),
};

const ATTRIBUTES = {
  text: 'hello',
  'text.empty': '',
  'text.unicode': 'žluťoučký kůň 🐎 \u0000\u001f"\\ \u2028',
  'text.long': 'x'.repeat(5000),
  yes: true,
  no: false,
  int: 42,
  'int.zero': 0,
  'int.negative': -1,
  'int.max.safe': Number.MAX_SAFE_INTEGER,
  double: 0.1,
  'double.tiny': 5e-324,
  'double.negative': -123.456,
  texts: ['a', '', 'ü'],
  ints: [1, -1, 2 ** 40],
  doubles: [0.5, -1.25],
  bools: [true, false],
  'empty.list': [],
  'key with spaces and ünicode': 'value',
};

function value(of) {
  if (typeof of === 'string') return { string: of };
  if (typeof of === 'boolean') return { bool: of };
  if (Array.isArray(of)) return { array: of.map(value) };
  // JavaScript has one type of number; the exporter sends a whole one as an integer.
  if (Number.isInteger(of)) return { int: BigInt(of).toString() };
  const bits = Buffer.alloc(8);
  bits.writeDoubleBE(of);
  return { double: bits.toString('hex') };
}

const attributes = (of) => Object.fromEntries(Object.entries(of ?? {}).map(([key, element]) => [key, value(element)]));
const nanoseconds = ([seconds, rest]) => (BigInt(seconds) * 1_000_000_000n + BigInt(rest)).toString();
const flags = (traceFlags, remote) => traceFlags | 0x100 | (remote ? 0x200 : 0);

function plain(span) {
  const own = span.spanContext();
  const scope = span.instrumentationScope;
  return {
    resource: attributes(span.resource.attributes),
    resource_schema_url: span.resource.schemaUrl ?? '',
    // This SDK's tracers have no scope attributes.
    scope: { name: scope.name, version: scope.version ?? '', attributes: {} },
    scope_schema_url: scope.schemaUrl ?? '',
    trace_id: own.traceId,
    span_id: own.spanId,
    parent_span_id: span.parentSpanContext?.spanId ?? '',
    trace_state: own.traceState?.serialize() ?? '',
    flags: flags(own.traceFlags, span.parentSpanContext?.isRemote),
    name: span.name,
    kind: span.kind + 1,
    start: nanoseconds(span.startTime),
    end: nanoseconds(span.endTime),
    attributes: attributes(span.attributes),
    dropped_attributes: span.droppedAttributesCount,
    events: span.events.map((event) => ({
      name: event.name,
      time: nanoseconds(event.time),
      attributes: attributes(event.attributes),
      dropped_attributes: event.droppedAttributesCount ?? 0,
    })),
    dropped_events: span.droppedEventsCount,
    links: span.links.map((link) => ({
      trace_id: link.context.traceId,
      span_id: link.context.spanId,
      trace_state: link.context.traceState?.serialize() ?? '',
      flags: flags(link.context.traceFlags, link.context.isRemote),
      attributes: attributes(link.attributes),
      dropped_attributes: link.droppedAttributesCount ?? 0,
    })),
    dropped_links: span.droppedLinksCount,
    status: { code: span.status.code, message: span.status.message ?? '' },
  };
}

function remote(traceId, spanId) {
  const traceState = createTraceState('vendor=a:1,b=2');
  return { traceId, spanId, traceFlags: TraceFlags.SAMPLED, isRemote: true, traceState };
}

async function main(protocol, endpoint) {
  const { OTLPTraceExporter } = EXPORTERS[protocol]();
  const url = protocol === 'grpc' ? endpoint : `${endpoint}/v1/traces`;
  const memory = new sdk.InMemorySpanExporter();
  const provider = new sdk.TracerProvider({
    resource: resourceFromAttributes(
      { 'service.name': `node-${protocol}`, 'service.namespace': 'shop', 'process.pid': 7, ratio: 0.25, 'host.ip': ['10.0.0.1', '::1'] },
      { schemaUrl: 'https://opentelemetry.io/schemas/1.30.0' },
    ),
    spanLimits: { attributeCountLimit: 30, eventCountLimit: 4, linkCountLimit: 3 },
    spanProcessors: [memory, new OTLPTraceExporter({ url })].map((exporter) => new sdk.SimpleSpanProcessor({ exporter })),
  });
  const whole = provider.getTracer('whole', '1.2.3', { schemaUrl: 'https://opentelemetry.io/schemas/1.31.0' });
  const bare = provider.getTracer('bare');

  const outer = trace.setSpanContext(context.active(), remote('a1b2c3d4e5f60718293a4b5c6d7e8f90', '293a4b5c6d7e8f90'));
  const links = [
    { context: remote('00000000000000000000000000000001', '0000000000000001'), attributes: { why: 'batch', n: 1 } },
    { context: remote('10000000000000000000000000000000', '1000000000000000') },
    { context: remote('ffffffffffffffffffffffffffffffff', 'ffffffffffffffff'), attributes: { x: [1, 2] } },
  ];
  const server = whole.startSpan('GET /items/{item}', { kind: SpanKind.SERVER, attributes: ATTRIBUTES, links }, outer);
  server.addEvent('first, dropped');
  server.addEvent('cache.miss', { key: 'item:1', size: 2 ** 40, hit: false });
  server.addEvent('', {}, 1);
  server.recordException(new Error('bad välue'));
  server.addEvent('last', { weights: [0.25, 0.75] });
  const inner = trace.setSpan(context.active(), server);
  for (const kind of [SpanKind.CLIENT, SpanKind.PRODUCER, SpanKind.CONSUMER, SpanKind.INTERNAL]) {
    const child = bare.startSpan(`child ${SpanKind[kind]}`, { kind }, inner);
    child.setAttribute('http.response.status_code', 404);
    child.setStatus(kind === SpanKind.CLIENT ? { code: SpanStatusCode.ERROR, message: 'Not Found – ü' } : { code: SpanStatusCode.OK });
    child.end();
  }
  for (let number = 0; number < 20; number += 1) server.setAttribute(`many.${number}`, number);
  server.setStatus({ code: SpanStatusCode.ERROR, message: '' });
  server.end();
  bare.startSpan('', {}, context.active()).end();
  await provider.forceFlush();
  const spans = memory.getFinishedSpans().map(plain);
  await provider.shutdown();
  process.stdout.write(JSON.stringify(spans));
}

main(...process.argv.slice(2)).catch((error) => {
  process.stderr.write(`${require('node:util').inspect(error)}\n`);
  process.exitCode = 1;
});
