// A Node.js service (http) that calls on: PORT NEXT_PORT MODE. MODE says when it calls:
//   new     at once, over a connection of its own
//   keep    at once, over an agent that keeps connections
//   timer   after 0 to 10 ms
//   twice   at once, and a second time when the first answer has come
//   early   every second request is answered at once, and calls 0 to 10 ms later
//   poller  at once; beside that a timer makes a call each 5 ms
//   mixed   every fourth request after a timer, the others at once
const http = require('http');
const [port, next, mode] = [+process.argv[2], +process.argv[3], process.argv[4]];
const agent = new http.Agent({ keepAlive: mode !== 'new', maxSockets: 256 });
const call = (path, done) =>
  http.get({ host: '127.0.0.1', port: next, path, agent }, (res) => {
    let body = '';
    res.on('data', (chunk) => (body += chunk));
    res.on('end', () => done(body));
  }).on('error', (error) => done(String(error)));
let count = 0;
if (mode === 'poller') setInterval(() => call('/poll', () => {}), 5);
http.createServer((req, res) => {
  const answer = (body) => res.end(body);
  const late = mode === 'timer' || (mode === 'mixed' && ++count % 4 === 0);
  if (mode === 'early' && ++count % 2 === 0) {
    res.end('early');
    setTimeout(() => call(req.url, () => {}), Math.random() * 10);
  } else if (late) setTimeout(() => call(req.url, answer), Math.random() * 10);
  else if (mode === 'twice') call(req.url + '/1', () => call(req.url + '/2', answer));
  else call(req.url, answer);
}).listen(port, '127.0.0.1', 512);
