// HTTPS server of Node.js, whose OpenSSL is part of the executable: PORT [NEXT_PORT], CERTIFICATE.
// Answers the request's body, or what the next service answered.
const fs = require("fs");
const https = require("https");

const [port, next] = process.argv.slice(2).map(Number);
const pem = fs.readFileSync(process.env.CERTIFICATE);
const agent = new https.Agent({ ca: pem, keepAlive: true });

https
  .createServer({ key: pem, cert: pem }, (request, response) => {
    if (!next) {
      request.pipe(response);
      return;
    }
    const options = { host: "127.0.0.1", port: next, path: request.url, agent };
    options.headers = { "X-Request-Id": request.headers["x-request-id"] || "" };
    https
      .get(options, (answer) => answer.pipe(response))
      .on("error", (error) => {
        response.statusCode = 502;
        response.end(String(error));
      });
  })
  .listen(port, "127.0.0.1");
