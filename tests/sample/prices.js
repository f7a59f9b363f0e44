// The Node service of the sample system: prices, asked from the Go service behind it.
'use strict';

const http = require('node:http');

const go = new URL(process.env.SAMPLE_GO);
const agent = new http.Agent({ keepAlive: true });

function answer(request, response, status, body) {
  response.writeHead(status, { 'content-type': 'application/json' });
  response.end(JSON.stringify(body));
  process.stdout.write(`${request.method} ${request.url} ${status}\n`);
}

const server = http.createServer((request, response) => {
  const path = request.url.split('?')[0];
  const price = /^\/prices\/(\d+)$/.exec(path);
  if (price) {
    const upstream = http.get({ host: go.hostname, port: go.port, path: `/stock/${price[1]}`, agent }, (stock) => {
      let body = '';
      stock.on('data', (chunk) => { body += chunk; });
      stock.on('end', () => answer(request, response, 200, { price: Number(price[1]) * 3, stock: JSON.parse(body) }));
    });
    upstream.on('error', (error) => answer(request, response, 502, { error: error.message }));
  } else if (path === '/health') {
    answer(request, response, 200, { ok: true });
  } else if (path === '/broken') {
    answer(request, response, 500, { error: 'broken on purpose' });
  } else {
    request.resume();
    answer(request, response, 404, { error: 'no such path' });
  }
});

server.keepAliveTimeout = 60_000;
server.listen(Number(process.env.SAMPLE_PORT), process.env.SAMPLE_HOST);
