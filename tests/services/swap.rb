# Threads that read requests and do each other's work: PORT NEXT_PORT MODE.
#
# Sixteen workers of two kinds, each kind with a queue. A worker reads a request, puts its call into the queue of the
# other kind, and does one call from the queue of its own. MODE says who answers:
#   taker    the worker that has made the call
#   reader   the worker that has read the request; it waits for the answer to its call
require 'socket'
require 'net/http'

port, onward, mode = ARGV[0].to_i, ARGV[1].to_i, ARGV[2]
listener = TCPServer.new('127.0.0.1', port)
listener.listen(512)
queues = [Queue.new, Queue.new]
Job = Struct.new(:path, :client, :done)

def answer(client, body)
  client.write("HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: #{body.bytesize}\r\n\r\n#{body}")
  client.close
end

def take(queue)
  queue.pop(true)
rescue ThreadError
  nil
end

workers = 16.times.map do |number|
  Thread.new do
    mine, other = queues[number % 2], queues[(number + 1) % 2]
    loop do
      client = listener.accept
      request = +''
      begin
        request << client.readpartial(4096) until request.include?("\r\n\r\n")
      rescue EOFError
        next
      end
      own = Job.new(request.split(' ')[1], client, Queue.new)
      other.push(own)
      job = nil
      20.times { job ||= take(mine) || (sleep(0.002) && nil) }
      # each worker adds one job and takes one: none stays where no more requests come
      job ||= take(other) || take(mine) || (sleep(0.002) && nil) until job
      body = Net::HTTP.get(URI("http://127.0.0.1:#{onward}#{job.path}"))
      if mode == 'taker'
        answer(job.client, body)
      else
        job.done.push(body)
        answer(client, own.done.pop)
      end
    end
  end
end
workers.each(&:join)
