# What all applications of Ruby do for a request: Net::HTTP for the calls, and Redis through a pool of
# connections.
require 'concurrent'
require 'connection_pool'
require 'net/http'
require 'redis'

module Calls
  BACKEND = ENV.fetch('BACKEND')
  REDIS = ConnectionPool.new(size: 4) { Redis.new(host: '127.0.0.1', port: ENV.fetch('REDIS_PORT').to_i) }
  POOL = Concurrent::FixedThreadPool.new(4)

  module_function

  def call_backend(path)
    Net::HTTP.get(URI(BACKEND + path))
  end

  def at_once(id)
    call_backend("/call?id=#{id}")
  end

  def after_sleep(id)
    sleep 0.01
    call_backend("/call?id=#{id}")
  end

  def behind_database(id)
    REDIS.with { |redis| redis.get('visits') }
    call_backend("/call?id=#{id}")
  end

  def two(id)
    [1, 2].map { |n| Thread.new { call_backend("/call?id=#{id}&n=#{n}") } }.map(&:value).join
  end

  def handed_over(id)
    Concurrent::Promises.future_on(POOL) { call_backend("/call?id=#{id}") }.value!
  end

  def after_answer(id)
    sleep id % 11 / 1000.0
    call_backend("/call?id=#{id}")
  end
end

unless ENV.fetch('POLLER', '').empty?
  Thread.new do
    (0..).each do |number|
      Calls.call_backend("/poll?id=#{number}")
      sleep 0.02
    end
  end
end
