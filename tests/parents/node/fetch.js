// node:http as the server, and the built-in fetch for the calls. SOCKETS bounds its connections.
const http = require('node:http');
const fastq = require('fastq');
const { listener, poll } = require('./handlers.js');

const { PORT, BACKEND, SOCKETS } = process.env;
if (SOCKETS) {
  const { Agent, setGlobalDispatcher } = require('undici');
  setGlobalDispatcher(new Agent({ connections: Number(SOCKETS) }));
}

async function call(path) {
  const response = await fetch(BACKEND + path);
  return response.text();
}

const queue = fastq.promise(call, 4);

poll(call);
http
  .createServer(listener(call, { '/pool': (id) => queue.push(`/call?id=${id}`) }))
  .listen(Number(PORT), '127.0.0.1');
