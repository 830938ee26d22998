// Express in a worker thread.
const path = require('node:path');
const { SHARE_ENV, Worker } = require('node:worker_threads');

new Worker(path.join(__dirname, 'express.js'), { env: SHARE_ENV });
