// Loaded in front of the preload: sees what it shows while a call is written, as BPF programs do.
// FIRST_FAILS: the first time that the preload tells where its bytes are fails.
const fs = require('node:fs');
const http = require('node:http');
const net = require('node:net');

const { FIRST_FAILS } = process.env;
const POSITION = 0x746c6e6f6465;
const { openSync, writeSync } = fs;
const opened = []; // the flags with which /dev/null was opened
const calls = [];
const wanted = []; // sockets for which the backend owes an answer
const descriptors = new Map(); // of connections, and the numbers of their requests
const open = new Map(); // answers by the numbers of their requests
let shown; // the bytes of the preload
let told = 0;

fs.openSync = function (path, flags) {
  if (path === '/dev/null') {
    opened.push(flags);
    if (FIRST_FAILS && opened.length === 1) throw new Error('EMFILE: too many open files');
  }
  return openSync.apply(this, arguments);
};
fs.writeSync = function (file, bytes, offset, length, position) {
  if (position === POSITION) {
    shown = new Uint32Array(bytes.buffer);
    told++;
  }
  return writeSync.apply(this, arguments);
};

for (const name of ['_write', '_writev']) {
  const write = net.Socket.prototype[name];
  net.Socket.prototype[name] = function (chunk) {
    const parts = name === '_writev' ? chunk.map((part) => part.chunk) : [chunk];
    const text = parts.map((part) => String(part)).join('');
    if (text.includes(' /call')) calls.push(descriptors.get(shown[2] - 1) ?? null);
    return write.apply(this, arguments);
  };
}

const turn = () => new Promise((resolve) => setTimeout(resolve, 10));

async function until(condition) {
  for (let count = 0; count < 1000; count++) {
    if (condition()) return;
    await turn();
  }
  throw new Error(`not so after 10 seconds: ${condition}`);
}

const listen = (server) =>
  new Promise((resolve) => server.listen(0, '127.0.0.1', () => resolve(server.address().port)));

// Starts a backend that keeps its calls until answer(), and a server: ask(number, handle) sends it a
// request with this number, runs `handle` in its context, and leaves the request open.
async function begin() {
  const backend = await listen(
    net.createServer((socket) => {
      socket.on('error', () => {});
      socket.on('data', () => wanted.push(socket));
    }),
  );
  let handle;
  const front = await listen(
    http.createServer(async (request, response) => {
      const number = Number(request.headers.number);
      descriptors.set(request.socket._handle.fd, number);
      open.set(number, response);
      await turn();
      await handle();
      open.get(number).handled = true;
    }),
  );
  async function ask(number, wantedHandle) {
    handle = wantedHandle;
    const socket = net.connect(front, '127.0.0.1');
    socket.write(`GET / HTTP/1.1\r\nHost: x\r\nNumber: ${number}\r\n\r\n`);
    await until(() => open.has(number) && open.get(number).handled);
  }
  return { origin: `http://127.0.0.1:${backend}`, ask };
}

async function answer(count) {
  for (let done = 0; done < count; done++) {
    await until(() => wanted.length);
    wanted.shift().write('HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok');
    await turn();
  }
}

// For which requests the calls were shown, in the order in which they were written: numbers, or null.
async function callers(count) {
  await until(() => calls.length >= count);
  return calls.slice();
}

module.exports = { begin, answer, callers, turn, opened, told: () => told };
