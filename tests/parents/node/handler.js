// One handler of undici for all calls, as a sender of logs has it. It calls while the request is open, and waits for no answer.
// COPY: by a second copy of undici, as packages bring it.
const http = require('node:http');
const { setTimeout: sleep } = require('node:timers/promises');

const { PORT, BACKEND, COPY } = process.env;
if (COPY) {
  require('undici');
  for (const file of Object.keys(require.cache)) delete require.cache[file];
}
const { Pool } = require('undici');

const pool = new Pool(BACKEND, { connections: 4 });
const handler = {
  onRequestStart() {},
  onResponseStart() {},
  onResponseData() {},
  onResponseEnd() {},
  onResponseError(_, error) {
    console.error(error);
  },
};

const server = http.createServer(async (request, response) => {
  const { pathname, searchParams } = new URL(request.url, 'http://localhost');
  if (pathname === '/sleep') await sleep(10);
  pool.dispatch({ path: `/call?id=${searchParams.get('id')}`, method: 'GET' }, handler);
  await sleep(500);
  response.end('ok');
});
server.listen(Number(PORT), '127.0.0.1');
