// Perses' client for Tempo, as its plugin for dashboards uses it: prints what it got of each of its calls.
// Usage: node perses.js <url of the API> <TraceQL> <tag>

'use strict';

const client = require('@perses-dev/tempo-plugin/lib/cjs/model/tempo-client.js');

async function main(datasourceUrl, q, tag) {
  const options = { datasourceUrl };
  const found = await client.search({ q, limit: 20 }, options);
  // Without a query there are no statistics in the answer: the client reads the traces and counts.
  const counted = await client.searchWithFallback({ tags: 'service.name=perses-shop' }, options);
  const result = {
    found,
    counted,
    traces: await Promise.all(found.traces.map((trace) => client.query({ traceId: trace.traceID }, options))),
    tags: await client.searchTags({ limit: 5000 }, options),
    values: await client.searchTagValues({ tag, limit: 5000 }, options),
    valuesOfQuery: await client.searchTagValues({ tag, q: `{ name = "buy" && ${tag} = }` }, options),
    error: await client.search({ q: '{ nmae = 1 }' }, options).then(() => null, (error) => error.message),
  };
  process.stdout.write(JSON.stringify(result));
}

main(...process.argv.slice(2)).catch((error) => {
  process.stderr.write(`${require('node:util').inspect(error)}\n`);
  process.exitCode = 1;
});
