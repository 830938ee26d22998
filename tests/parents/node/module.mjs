// An ES module: the functions of node:http are imported by name.
import { once } from 'node:events';
import { Agent, createServer, get } from 'node:http';
import { setTimeout as sleep } from 'node:timers/promises';

const { PORT, BACKEND, POLLER } = process.env;
const agent = new Agent({ keepAlive: true, maxSockets: 4 });

async function read(stream) {
  let text = '';
  for await (const chunk of stream) text += chunk;
  return text;
}

async function call(path) {
  const [response] = await once(get(BACKEND + path, { agent }), 'response');
  return read(response);
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
  '/after': async (id) => {
    setTimeout(() => call(`/call?id=${id}`).catch(console.error), id % 11);
    return 'ok';
  },
  // by events, without a promise in between
  '/body': (id, request) =>
    new Promise((resolve, reject) => {
      request.on('end', () => call(`/call?id=${id}`).then(resolve, reject));
      request.resume();
    }),
};

const server = createServer(async (request, response) => {
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
