// What the applications on node:http alone have in common: their handlers, and a poller.
const { setTimeout: sleep } = require('node:timers/promises');

const { POLLER } = process.env;

// Returns what createServer() takes. `call` makes a call and resolves to the answer's text. `others`
// are handlers by path, beside or instead of those here.
function listener(call, others) {
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
    '/body': async (id, request) => {
      for await (const _ of request);
      return call(`/call?id=${id}`);
    },
    ...others,
  };
  return async (request, response) => {
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
  };
}

// Calls every 20 ms, where POLLER is set.
function poll(call) {
  if (!POLLER) return;
  let polls = 0;
  setInterval(() => call(`/poll?id=${polls++}`).catch(console.error), 20);
}

module.exports = { listener, poll };
