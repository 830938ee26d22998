# Sinatra.
require 'sinatra/base'
require_relative 'calls'

class App < Sinatra::Base
  set :environment, :production

  helpers do
    def id
      params['id'].to_i
    end
  end

  get('/at-once') { Calls.at_once(id) }
  get('/sleep') { Calls.after_sleep(id) }
  get('/database') { Calls.behind_database(id) }
  get('/two') { Calls.two(id) }
  get('/pool') { Calls.handed_over(id) }

  get '/after' do
    number = id
    env['rack.after_reply'] << -> { Calls.after_answer(number) }
    'ok'
  end

  post '/body' do
    request.body.read
    Calls.at_once(id)
  end
end
