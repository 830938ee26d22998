// shop-stock: answers GET /stock/ID with what shop-prices says about it.
'use strict';
const http = require('http');

const prices = new URL(process.env.SHOP_PRICES);

http.createServer((request, response) => {
  const cart = request.url.split('/').pop();
  const options = { host: prices.hostname, port: prices.port, path: `/prices/${cart}` };
  http.get(options, (answer) => {
    let text = '';
    answer.setEncoding('utf8');
    answer.on('data', (chunk) => { text += chunk; });
    answer.on('end', () => {
      response.writeHead(200, { 'Content-Type': 'application/json' });
      response.end(JSON.stringify({ service: 'stock', cart, prices: JSON.parse(text) }));
    });
  }).on('error', (error) => {
    response.writeHead(502);
    response.end(String(error));
  });
}).listen(8002, '0.0.0.0');
