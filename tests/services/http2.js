// A service that answers by HTTP/1 on PORT, by HTTP/2 on PORT_H2C, and by both on PORT_TLS. Each request calls BACK by
// HTTP/1, one for /ask after an answer by HTTP/2, for which all share a session that the first one has made. STREAMS:
// HTTP/2 by the event `stream`. A request for /listen listens on PORT_LATE, by HTTP/2, and stays open
// until one for /close comes.
const fs = require('node:fs');
const http = require('node:http');
const http2 = require('node:http2');
const { setTimeout: sleep } = require('node:timers/promises');

const { PORT, PORT_H2C, PORT_LATE, PORT_TLS, CERTIFICATE, BACK, STREAMS } = process.env;
const agent = new http.Agent({ keepAlive: true });
let open;
let session;

// By events, and not by a promise, which would have its own context.
function ask(url, answer) {
  session = session || http2.connect(`http://127.0.0.1:${PORT_H2C}`);
  const stream = session.request({ ':path': '/echo' });
  stream.on('end', () => call(url, answer)).resume();
}

async function call(url, answer) {
  const { search } = new URL(url, 'http://localhost');
  await sleep(Math.random() * 5);
  const options = { host: '127.0.0.1', port: BACK, path: `/call${search}`, agent };
  http.get(options, (found) => found.pipe(answer)).on('error', (error) => answer.destroy(error));
}

function serve(request, response) {
  if (request.url.startsWith('/listen')) {
    open = response;
    listen(http2.createServer(), PORT_LATE);
  } else if (request.url.startsWith('/close')) {
    open.end();
    response.end();
  } else if (request.url.startsWith('/echo')) {
    response.end('echo');
  } else if (request.url.startsWith('/ask')) {
    ask(request.url, response);
  } else {
    call(request.url, response);
  }
}

function listen(server, port) {
  if (STREAMS) {
    server.on('stream', (stream, headers) => {
      stream.respond({ ':status': 200 });
      if (headers[':path'] === '/echo') stream.end('echo');
      else call(headers[':path'], stream);
    });
    server.on('request', (request, response) => {
      if (request.httpVersionMajor === 1) serve(request, response);
    });
  } else {
    server.on('request', serve);
  }
  server.listen(Number(port), '127.0.0.1');
}

http.createServer(serve).listen(Number(PORT), '127.0.0.1');
listen(http2.createServer(), PORT_H2C);
const pem = fs.readFileSync(CERTIFICATE);
listen(http2.createSecureServer({ key: pem, cert: pem, allowHTTP1: true }), PORT_TLS);
