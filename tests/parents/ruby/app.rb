# Sinatra on Puma: Net::HTTP for the calls, and Redis through a pool of connections.
require 'concurrent'
require 'connection_pool'
require 'net/http'
require 'redis'
require 'sinatra/base'

BACKEND = ENV.fetch('BACKEND')
REDIS = ConnectionPool.new(size: 4) { Redis.new(host: '127.0.0.1', port: ENV.fetch('REDIS_PORT').to_i) }
POOL = Concurrent::FixedThreadPool.new(4)

class App < Sinatra::Base
  set :environment, :production

  helpers do
    def call_backend(path)
      Net::HTTP.get(URI(BACKEND + path))
    end

    def id
      params['id'].to_i
    end
  end

  get '/at-once' do
    call_backend("/call?id=#{id}")
  end

  get '/sleep' do
    sleep 0.01
    call_backend("/call?id=#{id}")
  end

  get '/database' do
    REDIS.with { |redis| redis.get('visits') }
    call_backend("/call?id=#{id}")
  end

  get '/two' do
    number = id
    [1, 2].map { |n| Thread.new { call_backend("/call?id=#{number}&n=#{n}") } }.map(&:value).join
  end

  get '/pool' do
    number = id
    Concurrent::Promises.future_on(POOL) { call_backend("/call?id=#{number}") }.value!
  end

  get '/after' do
    number = id
    env['rack.after_reply'] << lambda do
      sleep number % 11 / 1000.0
      call_backend("/call?id=#{number}")
    end
    'ok'
  end

  post '/body' do
    request.body.read
    call_backend("/call?id=#{id}")
  end
end

unless ENV.fetch('POLLER', '').empty?
  Thread.new do
    (0..).each do |number|
      Net::HTTP.get(URI("#{BACKEND}/poll?id=#{number}"))
      sleep 0.02
    end
  end
end
