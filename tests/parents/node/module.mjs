// An ES module: the functions of node:http are imported by name.
import { once } from 'node:events';
import { Agent, createServer, get } from 'node:http';
import { listener, poll } from './handlers.js';

const { PORT, BACKEND } = process.env;
const agent = new Agent({ keepAlive: true, maxSockets: 4 });

async function call(path) {
  const [response] = await once(get(BACKEND + path, { agent }), 'response');
  let text = '';
  for await (const chunk of response) text += chunk;
  return text;
}

// By events, without a promise in between.
const body = (id, request) =>
  new Promise((resolve, reject) => {
    request.on('end', () => call(`/call?id=${id}`).then(resolve, reject));
    request.resume();
  });

poll(call);
createServer(listener(call, { '/body': body })).listen(Number(PORT), '127.0.0.1');
