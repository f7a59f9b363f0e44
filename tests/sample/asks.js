// A service that asks another for each request, in the way that the path begins with, and passes the path on.
'use strict';

const fs = require('node:fs');
const http = require('node:http');
const https = require('node:https');

const back = new URL(process.env.SAMPLE_BACK);
const agent = new http.Agent({ keepAlive: true });
// Most requests wait for one of its connections.
const few = new http.Agent({ keepAlive: true, maxSockets: 4 });

function get(path, agent, done) {
  const asked = http.get({ host: back.hostname, port: back.port, path, agent }, (answer) => {
    let body = '';
    answer.on('data', (chunk) => { body += chunk; });
    answer.on('end', () => done(body));
  });
  asked.on('error', (error) => done(`error: ${error.message}`));
}

const ask = (path, agent) => new Promise((resolve) => { get(path, agent, resolve); });
const text = async (path) => (await fetch(new URL(path, back))).text();

// All that come while it is under way share one call.
let token;
function shared(path) {
  token ??= ask(path, agent).finally(() => { token = undefined; });
  return token;
}

const ways = {
  agent: (path, done) => get(path, agent, done),
  secure: (path, done) => get(path, agent, done),
  few: (path, done) => get(path, few, done),
  fetch: async (path, done) => done(await text(path)),
  immediate: (path, done) => setImmediate(() => get(path, agent, done)),
  twice: (path, done) => get(path, agent, () => get(path, agent, done)),
  awaits: async (path, done) => {
    await ask(path, agent);
    await ask(path, agent);
    done(await ask(path, agent));
  },
  fetches: async (path, done) => {
    await text(path);
    await text(path);
    done(await text(path));
  },
  shared: async (path, done) => {
    await shared(path);
    done(await ask(path, agent));
  },
};

function answer(request, response) {
  const way = ways[request.url.split('/')[1]];
  if (!way) {
    response.end('ready');
    return;
  }
  way(request.url, (body) => {
    response.statusCode = body.startsWith('error') ? 502 : 200;
    response.end(body);
  });
}

http.createServer(answer).listen(Number(process.env.SAMPLE_PORT), '127.0.0.1');
const [cert, key] = [process.env.SAMPLE_CERTIFICATE, process.env.SAMPLE_KEY].map((file) => fs.readFileSync(file));
https.createServer({ cert, key }, answer).listen(Number(process.env.SAMPLE_TLS_PORT), '127.0.0.1');
