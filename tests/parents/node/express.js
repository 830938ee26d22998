// Express with axios, and a database. SOCKETS bounds the connections to the backend. By HTTPS where
// CERTIFICATE is set.
const fs = require('node:fs');
const http = require('node:http');
const https = require('node:https');
const { setTimeout: sleep } = require('node:timers/promises');
const axios = require('axios');
const express = require('express');
const fastq = require('fastq');
const { database } = require('./databases.js');

const { PORT, BACKEND, POLLER, SOCKETS, CERTIFICATE } = process.env;

const client = axios.create({
  baseURL: BACKEND,
  httpAgent: new http.Agent({ keepAlive: true, maxSockets: Number(SOCKETS) || Infinity }),
  responseType: 'text',
});
const call = async (path) => (await client.get(path)).data;
const queue = fastq.promise(call, 4);
let ask;

const app = express();

app.get('/at-once', async (req, res) => {
  res.send(await call(`/call?id=${req.query.id}`));
});

app.get('/sleep', async (req, res) => {
  await sleep(10);
  res.send(await call(`/call?id=${req.query.id}`));
});

app.get('/database', async (req, res) => {
  await ask();
  res.send(await call(`/call?id=${req.query.id}`));
});

app.get('/two', async (req, res) => {
  const { id } = req.query;
  const answers = await Promise.all([call(`/call?id=${id}&n=1`), call(`/call?id=${id}&n=2`)]);
  res.send(answers.join(''));
});

app.get('/pool', async (req, res) => {
  res.send(await queue.push(`/call?id=${req.query.id}`));
});

app.get('/after', (req, res) => {
  const { id } = req.query;
  setTimeout(() => call(`/call?id=${id}`).catch(console.error), id % 11);
  res.send('ok');
});

app.post('/body', express.raw({ type: () => true, limit: '1mb' }), async (req, res) => {
  res.send(await call(`/call?id=${req.query.id}`));
});

async function main() {
  ask = await database();
  if (POLLER) {
    let polls = 0;
    setInterval(() => call(`/poll?id=${polls++}`).catch(console.error), 20);
  }
  const pem = CERTIFICATE && fs.readFileSync(CERTIFICATE);
  const server = pem ? https.createServer({ key: pem, cert: pem }, app) : http.createServer(app);
  server.listen(Number(PORT), '127.0.0.1');
}

main();
