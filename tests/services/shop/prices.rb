# shop-prices: answers GET /prices/ID, and shows all request headers as they arrived.
require 'json'
require 'webrick'

server = WEBrick::HTTPServer.new(BindAddress: '0.0.0.0', Port: 8003, AccessLog: [])
server.mount_proc('/') do |request, response|
  cart = request.path.split('/').last
  response.content_type = 'application/json'
  response.body = JSON.generate(service: 'prices', cart: cart, received: request.header)
end
trap('TERM') { server.shutdown }
server.start
