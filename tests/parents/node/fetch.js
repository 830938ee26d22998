// node:http as the server, and the built-in fetch for the calls. SOCKETS bounds its connections.
const http = require('node:http');
const { setTimeout: sleep } = require('node:timers/promises');
const fastq = require('fastq');

const { PORT, BACKEND, POLLER, SOCKETS } = process.env;
if (SOCKETS) {
  const { Agent, setGlobalDispatcher } = require('undici');
  setGlobalDispatcher(new Agent({ connections: Number(SOCKETS) }));
}

async function call(path) {
  const response = await fetch(BACKEND + path);
  return response.text();
}

const queue = fastq.promise(call, 4);

const handlers = {
  '/at-once': (id) => call(`/call?id=${id}`),
  '/sleep': async (id) => {
    await sleep(10);
    return call(`/call?id=${id}`);
  },
  '/two': async (id) => {
    const answers = await Promise.all([call(`/call?id=${id}&n=1`), call(`/call?id=${id}&n=2`)]);
    return answers.join('');
  },
  '/pool': (id) => queue.push(`/call?id=${id}`),
  '/after': async (id) => {
    setTimeout(() => call(`/call?id=${id}`).catch(console.error), id % 11);
    return 'ok';
  },
  '/body': async (id, request) => {
    for await (const _ of request);
    return call(`/call?id=${id}`);
  },
};

const server = http.createServer(async (request, response) => {
  const url = new URL(request.url, 'http://localhost');
  const handler = handlers[url.pathname];
  if (!handler) {
    response.writeHead(404).end();
    return;
  }
  try {
    response.end(await handler(url.searchParams.get('id'), request));
  } catch (error) {
    console.error(error);
    response.writeHead(500).end();
  }
});

if (POLLER) {
  let polls = 0;
  setInterval(() => call(`/poll?id=${polls++}`).catch(console.error), 20);
}
server.listen(Number(PORT), '127.0.0.1');
