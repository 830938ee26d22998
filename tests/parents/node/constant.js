// One options object and one handler of undici for all calls, by DISPATCHERS in turn. Requests stay open, and wait for no answer.
const http = require('node:http');
const { setTimeout: sleep } = require('node:timers/promises');
const { Agent, Client, Pool, RetryAgent, interceptors } = require('undici');

const { PORT, BACKEND, DISPATCHERS } = process.env;
const handler = {
  onRequestStart() {},
  onResponseStart() {},
  onResponseData() {},
  onResponseEnd() {},
  onResponseError(_, error) {
    console.error(error);
  },
};

// A pool that is busy reads the path later: in the order in which it was asked.
const paths = [];
let path;
const options = {
  origin: BACKEND,
  method: 'GET',
  get path() {
    return path || paths.shift();
  },
};

function directly(dispatcher) {
  return (wanted) => {
    path = wanted;
    dispatcher.dispatch(options, handler);
    path = undefined;
  };
}

function later(pool) {
  return (wanted) => {
    paths.push(wanted);
    pool.dispatch(options, handler);
  };
}

const KINDS = {
  client: () => directly(new Client(BACKEND)),
  pipelined: () => directly(new Client(BACKEND, { pipelining: 4 })),
  agent: () => directly(new Agent()),
  retried: () => directly(new RetryAgent(new Agent())),
  composed: () => directly(new Agent().compose(interceptors.retry())),
  pool: () => later(new Pool(BACKEND, { connections: 1 })), // one only: there is one row of paths
};
const calls = DISPATCHERS.split(' ').map((kind) => KINDS[kind]());
let turn = 0;

const server = http.createServer(async (request, response) => {
  const { pathname, searchParams } = new URL(request.url, 'http://localhost');
  if (pathname === '/sleep') await sleep(10);
  calls[turn++ % calls.length](`/call?id=${searchParams.get('id')}`);
  await sleep(500);
  response.end('ok');
});
server.listen(Number(PORT), '127.0.0.1');
