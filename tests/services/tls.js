// An HTTPS server of Node.js, whose OpenSSL is part of the executable: PORT [NEXT_PORT], CERTIFICATE.
// Answers the request's body, or what the next service answered; /slow after a second. With CACHE, a port, it asks there
// first, a line for a line, and then makes a new connection to the next service.
const fs = require("fs");
const https = require("https");
const net = require("net");

const [port, next] = process.argv.slice(2).map(Number);
const pem = fs.readFileSync(process.env.CERTIFICATE);
const cache = process.env.CACHE ? net.connect(+process.env.CACHE, "127.0.0.1") : null;
const agent = new https.Agent({ ca: pem, keepAlive: !cache });
const waiting = [];

function ask(done) {
  if (!cache) return done();
  waiting.push(done);
  cache.write("GET\n");
}
if (cache) {
  cache.on("data", (lines) => {
    for (const byte of lines) if (byte === 10) waiting.shift()();
  });
}

https
  .createServer({ key: pem, cert: pem }, (request, response) => {
    if (request.url === "/slow") {
      setTimeout(() => response.end("slow"), 1000);
      return;
    }
    if (!next) {
      request.pipe(response);
      return;
    }
    const options = { host: "127.0.0.1", port: next, path: request.url, agent };
    options.headers = { "X-Request-Id": request.headers["x-request-id"] || "" };
    ask(() =>
      https
        .get(options, (answer) => answer.pipe(response))
        .on("error", (error) => {
          response.statusCode = 502;
          response.end(String(error));
        })
    );
  })
  .listen(port, "127.0.0.1");
