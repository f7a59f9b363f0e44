// An inference server without a model: it answers as ollama, llama.cpp, OpenAI's and Anthropic's servers do, at a pace
// that the request's headers ask for. Streams are written token by token, as those servers write them.
//
//   x-load-ms, x-prompt-ms   pauses before the first token        x-prompt-tokens   tokens of the prompt
//   x-gap-us                 pause before each further token       x-tokens          tokens to generate
//
// With SAMPLE_RUNNER, the address of a cuda.py, that process computes the tokens, or seems to, as llama-server does for ollama.
'use strict';

const http = require('node:http');

const RUNNER = process.env.SAMPLE_RUNNER;

const ns = (ms) => Math.round(ms * 1e6);
const sleep = (ms) => new Promise((resolve) => setTimeout(resolve, ms));
const number = (request, name, otherwise) => Number(request.headers[name] ?? otherwise);

async function body(request) {
  const parts = [];
  for await (const part of request) parts.push(part);
  const text = Buffer.concat(parts).toString();
  try { return JSON.parse(text); } catch { return {}; }
}

// The answers of each server: type of the stream, a token's part of it, its end, and the whole answer without stream.
const KINDS = {
  ollama: (chat) => ({
    type: 'application/x-ndjson',
    part: (m, i) => JSON.stringify({ model: m.model, created_at: new Date().toISOString(), ...(chat ? { message: { role: 'assistant', content: ` t${i}` } } : { response: ` t${i}` }), done: false }) + '\n',
    end: (m, t) => [JSON.stringify({ model: m.model, created_at: new Date().toISOString(), ...(chat ? { message: { role: 'assistant', content: '' } } : { response: '' }), done: true, done_reason: 'stop', ...(chat ? {} : { context: [1, 2, 3] }), total_duration: t.total, load_duration: t.load, prompt_eval_count: m.promptTokens, prompt_eval_duration: t.prompt, eval_count: m.tokens, eval_duration: t.eval }) + '\n'],
    whole: (m, t) => ({ model: m.model, ...(chat ? { message: { role: 'assistant', content: 'x '.repeat(m.tokens) } } : { response: 'x '.repeat(m.tokens) }), done: true, done_reason: 'length', total_duration: t.total, load_duration: t.load, prompt_eval_count: m.promptTokens, prompt_eval_duration: t.prompt, eval_count: m.tokens, eval_duration: t.eval }),
    streams: true,
  }),
  openai: (chat) => ({
    type: 'text/event-stream; charset=utf-8',
    part: (m, i) => `data: ${JSON.stringify({ id: 'chatcmpl-1', object: 'chat.completion.chunk', created: 1, model: m.model + '-0613', choices: [{ index: 0, ...(chat ? { delta: { content: ` t${i}` } } : { text: ` t${i}` }), finish_reason: null }] })}\n\n`,
    end: (m) => [
      `data: ${JSON.stringify({ id: 'chatcmpl-1', object: 'chat.completion.chunk', created: 1, model: m.model + '-0613', choices: [{ index: 0, delta: {}, finish_reason: 'stop' }] })}\n\n`,
      `data: ${JSON.stringify({ id: 'chatcmpl-1', object: 'chat.completion.chunk', created: 1, model: m.model + '-0613', choices: [], usage: { prompt_tokens: m.promptTokens, total_tokens: m.promptTokens + m.tokens, completion_tokens: m.tokens } })}\n\n`,
      'data: [DONE]\n\n',
    ],
    whole: (m) => ({ id: 'chatcmpl-1', object: 'chat.completion', created: 1, model: m.model + '-0613', choices: [{ index: 0, message: { role: 'assistant', content: 'x '.repeat(m.tokens) }, finish_reason: 'length' }], usage: { prompt_tokens: m.promptTokens, completion_tokens: m.tokens, total_tokens: m.promptTokens + m.tokens } }),
  }),
  llama: () => ({
    type: 'text/event-stream',
    part: (m, i) => `data: ${JSON.stringify({ index: 0, content: ` t${i}`, tokens: [i], stop: false })}\n\n`,
    end: (m, t) => [`data: ${JSON.stringify({ index: 0, content: '', stop: true, model: m.model, tokens_predicted: m.tokens, tokens_evaluated: m.promptTokens, stop_type: 'eos', timings: { prompt_n: m.promptTokens, prompt_ms: t.prompt / 1e6, predicted_n: m.tokens, predicted_ms: t.eval / 1e6 } })}\n\n`],
    whole: (m, t) => ({ index: 0, content: 'x '.repeat(m.tokens), stop: true, model: m.model, tokens_predicted: m.tokens, tokens_evaluated: m.promptTokens, stop_type: 'limit', timings: { prompt_n: m.promptTokens, prompt_ms: t.prompt / 1e6, predicted_n: m.tokens, predicted_ms: t.eval / 1e6 } }),
  }),
  anthropic: () => ({
    type: 'text/event-stream',
    begin: (m) => `event: message_start\ndata: ${JSON.stringify({ type: 'message_start', message: { id: 'msg_1', type: 'message', role: 'assistant', model: m.model + '-20260101', content: [], stop_reason: null, usage: { input_tokens: m.promptTokens, output_tokens: 1 } } })}\n\n`,
    part: (m, i) => `event: content_block_delta\ndata: ${JSON.stringify({ type: 'content_block_delta', index: 0, delta: { type: 'text_delta', text: ` t${i}` } })}\n\n`,
    end: (m) => [`event: message_delta\ndata: ${JSON.stringify({ type: 'message_delta', delta: { stop_reason: 'end_turn', stop_sequence: null }, usage: { output_tokens: m.tokens } })}\n\n`, `event: message_stop\ndata: {"type":"message_stop"}\n\n`],
    whole: (m) => ({ id: 'msg_1', type: 'message', role: 'assistant', model: m.model + '-20260101', content: [{ type: 'text', text: 'x '.repeat(m.tokens) }], stop_reason: 'end_turn', stop_sequence: null, usage: { input_tokens: m.promptTokens, output_tokens: m.tokens } }),
  }),
  embedding: (ollama) => ({
    whole: (m, t) => ollama
      ? { model: m.model, embeddings: [Array.from({ length: 768 }, (_, i) => i / 768)], total_duration: t.total, load_duration: t.load, prompt_eval_count: m.promptTokens }
      : { object: 'list', data: [{ object: 'embedding', index: 0, embedding: Array.from({ length: 768 }, (_, i) => i / 768) }], model: m.model + '-v1', usage: { prompt_tokens: m.promptTokens, total_tokens: m.promptTokens } },
  }),
};

const PATHS = {
  '/api/generate': KINDS.ollama(false), '/api/chat': KINDS.ollama(true), '/api/embed': KINDS.embedding(true),
  '/v1/chat/completions': KINDS.openai(true), '/v1/completions': KINDS.openai(false), '/v1/embeddings': KINDS.embedding(false),
  '/completion': KINDS.llama(), '/v1/messages': KINDS.anthropic(),
};

// Has the runner copy the prompt and launch kernels for each token, and wait for them; resolves, once that is asked for, to
// a promise of its end.
async function run(message, gapUs) {
  const calls = [
    { name: 'cuMemcpyHtoDAsync_v2', args: [0, 0, 4096, 0] },
    { name: 'cuLaunchKernel', args: Array(11).fill(0), count: 40 },
    { name: 'cuGraphLaunch', args: [0, 0] },
    { name: 'cuMemcpyDtoHAsync_v2', args: [0, 0, 128, 0] },
    { name: 'cuStreamSynchronize', args: [Math.max(1, Math.floor(gapUs / 1000) - 2)] },
  ];
  const asked = http.request(`${RUNNER}/completion`, { method: 'POST', headers: { 'content-type': 'application/json' } });
  const over = new Promise((resolve, reject) => {
    asked.on('response', (response) => response.resume().on('end', resolve)).on('error', reject);
  });
  const sent = new Promise((resolve) => asked.on('finish', resolve));
  asked.end(JSON.stringify({ model: message.model, repeat: message.tokens, calls }));
  await Promise.race([sent, over]);
  return { over };
}

async function answer(request, response) {
  const asked = await body(request);
  const kind = PATHS[request.url.split('?')[0]];
  if (request.url.startsWith('/work')) {
    await sleep(number(request, 'x-work-ms', 100));
    return response.end('done\n');
  }
  if (!kind) {
    response.statusCode = 404;
    return response.end('{"error":"not found"}');
  }
  const message = { model: asked.model ?? 'default', tokens: number(request, 'x-tokens', 8), promptTokens: number(request, 'x-prompt-tokens', 12) };
  const [load, prompt, gapUs] = [number(request, 'x-load-ms', 0), number(request, 'x-prompt-ms', 0), number(request, 'x-gap-us', 0)];
  if (load + prompt > 0) await sleep(load + prompt);
  const begin = process.hrtime.bigint();
  const times = () => {
    const generated = Number(process.hrtime.bigint() - begin);
    return { load: ns(load), prompt: ns(prompt), eval: generated, total: ns(load) + ns(prompt) + generated };
  };
  const streams = kind.part && (asked.stream ?? kind.streams ?? false);
  if (!streams) {
    const text = JSON.stringify(kind.whole(message, times()));
    response.writeHead(200, { 'content-type': 'application/json', 'content-length': Buffer.byteLength(text) });
    return response.end(text);
  }
  // Before the answer begins: what is asked for later may be for another request.
  const work = RUNNER ? await run(message, gapUs) : null;
  response.writeHead(200, { 'content-type': kind.type });
  if (kind.begin) response.write(kind.begin(message));
  for (let i = 0; i < message.tokens; i += 1) {
    if (i > 0 && gapUs > 0) await sleep(gapUs / 1000);
    if (!response.write(kind.part(message, i))) await new Promise((resolve) => response.once('drain', resolve));
    // As a model that computes does: each token is sent before the next one is there.
    if (gapUs === 0) await new Promise((resolve) => setImmediate(resolve));
  }
  if (work) await work.over;
  for (const part of kind.end(message, times())) response.write(part);
  return response.end();
}

const server = http.createServer((request, response) => {
  answer(request, response).catch((error) => { console.error(error); response.destroy(); });
});
server.keepAliveTimeout = 60_000;
server.listen(Number(process.env.SAMPLE_PORT), '127.0.0.1');
