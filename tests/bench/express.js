// Express with one call by axios, and nothing else.
const http = require('node:http');
const axios = require('axios');
const express = require('express');

const { PORT, BACKEND } = process.env;
const client = axios.create({
  baseURL: BACKEND,
  httpAgent: new http.Agent({ keepAlive: true }),
  responseType: 'text',
});
const app = express();
app.get('/', async (req, res) => {
  res.send((await client.get(`/call?id=${req.query.id}`)).data);
});
app.listen(Number(PORT), '127.0.0.1');
