// shop-stock: answers GET /stock/ID with what shop-offers says about it. HTTPS where there is a certificate.
'use strict';
const fs = require('fs');
const http = require('http');
const https = require('https');

const offers = new URL(process.env.SHOP_OFFERS);

function serve(request, response) {
  const cart = request.url.split('/').pop();
  const options = { host: offers.hostname, port: offers.port, path: `/offers/${cart}` };
  http.get(options, (answer) => {
    let text = '';
    answer.setEncoding('utf8');
    answer.on('data', (chunk) => { text += chunk; });
    answer.on('end', () => {
      response.writeHead(200, { 'Content-Type': 'application/json' });
      response.end(JSON.stringify({ service: 'stock', cart, offers: JSON.parse(text) }));
    });
  }).on('error', (error) => {
    response.writeHead(502);
    response.end(String(error));
  });
}

if (process.env.SHOP_CERTIFICATE) {
  const pair = {
    cert: fs.readFileSync(process.env.SHOP_CERTIFICATE),
    key: fs.readFileSync(process.env.SHOP_KEY),
  };
  https.createServer(pair, serve).listen(8443, '0.0.0.0');
} else {
  http.createServer(serve).listen(8002, '0.0.0.0');
}
