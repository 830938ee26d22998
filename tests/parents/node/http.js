// node:http alone: a server, and http.Agent with kept connections for the calls.
const http = require('node:http');
const { once } = require('node:events');
const { setTimeout: sleep } = require('node:timers/promises');

const { PORT, BACKEND, POLLER } = process.env;
const agent = new http.Agent({ keepAlive: true, maxSockets: 16 });

async function read(stream) {
  let text = '';
  for await (const chunk of stream) text += chunk;
  return text;
}

async function call(path) {
  const request = http.get(BACKEND + path, { agent });
  const [response] = await once(request, 'response');
  return read(response);
}

// Work that requests hand over: four workers take it in turn.
const queue = [];
const idle = [];

function handOver(path) {
  return new Promise((resolve, reject) => {
    queue.push({ path, resolve, reject });
    idle.shift()?.();
  });
}

async function worker() {
  for (;;) {
    while (queue.length === 0) await new Promise((wake) => idle.push(wake));
    const { path, resolve, reject } = queue.shift();
    await call(path).then(resolve, reject);
  }
}

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
  '/pool': (id) => handOver(`/call?id=${id}`),
  '/after': async (id) => {
    setTimeout(() => call(`/call?id=${id}`).catch(console.error), id % 11);
    return 'ok';
  },
  '/body': async (id, request) => {
    await read(request);
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

for (let count = 0; count < 4; count++) worker();
if (POLLER) {
  let polls = 0;
  setInterval(() => call(`/poll?id=${polls++}`).catch(console.error), 20);
}
server.listen(Number(PORT), '127.0.0.1');
