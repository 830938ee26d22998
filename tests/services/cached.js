// A Node.js service (http) that asks Redis before it calls on: PORT NEXT_PORT REDIS_PORT MODE. MODE:
//   pool    each request takes a connection of its own from a pool while it asks
//   shared  all requests share one connection and pipeline on it
const http = require('http');
const net = require('net');
const [port, next, redis, mode] = [+process.argv[2], +process.argv[3], +process.argv[4], process.argv[5]];
const agent = new http.Agent({ keepAlive: true, maxSockets: 256 });
const idle = [];

// A connection to Redis with its queue of callbacks: one reply (a simple string) ends one of them.
function connect() {
  const socket = net.connect(redis, '127.0.0.1');
  const waiting = [];
  let text = '';
  socket.setNoDelay(true);
  socket.on('data', (data) => {
    text += data;
    for (let end; (end = text.indexOf('\r\n')) >= 0; text = text.slice(end + 2)) waiting.shift()();
  });
  return { ask: (done) => (waiting.push(done), socket.write('PING\r\n')) };
}
const shared = mode === 'shared' ? connect() : null;

function ask(done) {
  if (shared) return shared.ask(done);
  const one = idle.pop() || connect();
  one.ask(() => (idle.push(one), done()));
}
http.createServer((req, res) => {
  ask(() => http.get({ host: '127.0.0.1', port: next, path: req.url, agent }, (answer) => {
    let body = '';
    answer.on('data', (chunk) => (body += chunk));
    answer.on('end', () => res.end(body));
  }));
}).listen(port, '127.0.0.1', 512);
