# A Rails application with an API, in one file.
require 'action_controller/railtie'
require_relative 'calls'

class Service < Rails::Application
  config.root = ENV.fetch('FOLDER')
  config.eager_load = true
  config.api_only = true
  config.secret_key_base = 'x'
  config.logger = Logger.new(nil)
  config.hosts.clear
end

class CallsController < ActionController::API
  def at_once = render(plain: Calls.at_once(id))
  def after_sleep = render(plain: Calls.after_sleep(id))
  def behind_database = render(plain: Calls.behind_database(id))
  def two = render(plain: Calls.two(id))

  def body
    request.raw_post
    render(plain: Calls.at_once(id))
  end

  private

  def id = params[:id].to_i
end

Service.initialize!
Service.routes.draw do
  get '/at-once', to: 'calls#at_once'
  get '/sleep', to: 'calls#after_sleep'
  get '/database', to: 'calls#behind_database'
  get '/two', to: 'calls#two'
  post '/body', to: 'calls#body'
end

run Rails.application
