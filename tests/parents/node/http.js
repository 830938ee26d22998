// node:http alone: a server, and http.Agent with kept connections for the calls.
const http = require('node:http');
const { once } = require('node:events');
const { listener, poll } = require('./handlers.js');

const { PORT, BACKEND } = process.env;
const agent = new http.Agent({ keepAlive: true, maxSockets: 16 });

async function call(path) {
  const request = http.get(BACKEND + path, { agent });
  const [response] = await once(request, 'response');
  let text = '';
  for await (const chunk of response) text += chunk;
  return text;
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

for (let count = 0; count < 4; count++) worker();
poll(call);
http
  .createServer(listener(call, { '/pool': (id) => handOver(`/call?id=${id}`) }))
  .listen(Number(PORT), '127.0.0.1');
