// A service that calls https://127.0.0.1:BACK: by four kept connections, or each call by its own. It listens by HTTP, and
// by HTTPS where PORT_TLS and CERTIFICATE are set.
const fs = require('node:fs');
const http = require('node:http');
const https = require('node:https');
const { setTimeout: sleep } = require('node:timers/promises');

const { PORT, PORT_TLS, CERTIFICATE, BACK } = process.env;
const options = { host: '127.0.0.1', port: BACK, rejectUnauthorized: false };
const agents = {
  '/kept': new https.Agent({ keepAlive: true, maxSockets: 4 }),
  '/own': new https.Agent({ keepAlive: false }),
};

async function serve(request, response) {
  const { pathname, search } = new URL(request.url, 'http://localhost');
  await sleep(Math.random() * 5);
  const path = `/call${search}`;
  https
    .get({ ...options, path, agent: agents[pathname] }, (answer) => answer.pipe(response))
    .on('error', (error) => response.writeHead(502).end(String(error)));
}

http.createServer(serve).listen(Number(PORT), '127.0.0.1');
if (PORT_TLS) {
  const pem = fs.readFileSync(CERTIFICATE);
  const server = https.createServer({ key: pem, cert: pem, keepAliveTimeout: 60_000 }, serve);
  server.listen(Number(PORT_TLS), '127.0.0.1');
}
