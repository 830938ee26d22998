// http2_client.js URL FIRST END: one request for each number, 32 at a time, as streams of one connection.
const http2 = require('node:http2');

const [url, first, end] = process.argv.slice(2);
const session = http2.connect(url, { rejectUnauthorized: false, servername: 'localhost' });
let next = Number(first);
let answered = 0;

const ask = (number) =>
  new Promise((resolve, reject) => {
    const stream = session.request({ ':path': `/call?id=${number}` });
    stream.on('response', (headers) => {
      answered += headers[':status'] === 200;
    });
    stream.on('error', reject);
    stream.on('end', resolve);
    stream.resume();
  });

async function work() {
  while (next < Number(end)) await ask(next++);
}

Promise.all(Array.from({ length: 32 }, work)).then(() => {
  session.close();
  console.log(answered);
});
