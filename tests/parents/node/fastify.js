// Fastify, and a pool of four connections of undici.
const { setTimeout: sleep } = require('node:timers/promises');
const fastify = require('fastify');
const { Pool } = require('undici');

const { PORT, BACKEND, POLLER } = process.env;
const pool = new Pool(BACKEND, { connections: 4 });

async function call(path) {
  const { body } = await pool.request({ path, method: 'GET' });
  return body.text();
}

const app = fastify({ bodyLimit: 1 << 20 });
app.addContentTypeParser('*', { parseAs: 'buffer' }, (request, body, done) => done(null, body));

app.get('/at-once', (request) => call(`/call?id=${request.query.id}`));

app.get('/sleep', async (request) => {
  await sleep(10);
  return call(`/call?id=${request.query.id}`);
});

app.get('/two', async (request) => {
  const { id } = request.query;
  const answers = await Promise.all([call(`/call?id=${id}&n=1`), call(`/call?id=${id}&n=2`)]);
  return answers.join('');
});

app.get('/after', async (request) => {
  const { id } = request.query;
  setTimeout(() => call(`/call?id=${id}`).catch(console.error), id % 11);
  return 'ok';
});

app.post('/body', (request) => call(`/call?id=${request.query.id}`));

if (POLLER) {
  let polls = 0;
  setInterval(() => call(`/poll?id=${polls++}`).catch(console.error), 20);
}
app.listen({ port: Number(PORT), host: '127.0.0.1' });
