# A thread for each connection, in Ruby: PORT NEXT_PORT. Each request makes two calls, one after the other.
require 'socket'
require 'net/http'

port, onward = ARGV[0].to_i, ARGV[1].to_i
listener = TCPServer.new('127.0.0.1', port)
listener.listen(512)
loop do
  Thread.new(listener.accept) do |client|
    begin
      loop do
        request = +''
        request << client.readpartial(4096) until request.include?("\r\n\r\n")
        path = request.split(' ')[1]
        body = %w[1 2].map { |part| Net::HTTP.get(URI("http://127.0.0.1:#{onward}#{path}/#{part}")) }.join
        client.write("HTTP/1.1 200 OK\r\nContent-Length: #{body.bytesize}\r\n\r\n#{body}")
      end
    rescue EOFError
      client.close
    end
  end
end
