// A service that calls https://127.0.0.1:BACK: by four kept connections, or each call by its own.
const http = require('node:http');
const https = require('node:https');
const { setTimeout: sleep } = require('node:timers/promises');

const { PORT, BACK } = process.env;
const options = { host: '127.0.0.1', port: BACK, rejectUnauthorized: false };
const agents = {
  '/kept': new https.Agent({ keepAlive: true, maxSockets: 4 }),
  '/own': new https.Agent({ keepAlive: false }),
};

http
  .createServer(async (request, response) => {
    const { pathname, search } = new URL(request.url, 'http://localhost');
    await sleep(Math.random() * 5);
    const path = `/call${search}`;
    https
      .get({ ...options, path, agent: agents[pathname] }, (answer) => answer.pipe(response))
      .on('error', (error) => response.writeHead(502).end(String(error)));
  })
  .listen(Number(PORT), '127.0.0.1');
