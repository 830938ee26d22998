"""Django with requests in synchronous views, and with httpx in asynchronous ones.

`gunicorn django_site:wsgi`, `uvicorn django_site:asgi`.
"""

from __future__ import annotations

import asyncio
import os
import threading
import time

import django
import httpx
import redis
import redis.asyncio
import requests
from django.conf import settings
from django.core.asgi import get_asgi_application
from django.core.wsgi import get_wsgi_application
from django.http import HttpRequest, HttpResponse
from django.urls import path
from requests.adapters import HTTPAdapter

settings.configure(
    ALLOWED_HOSTS=["*"],
    DEBUG=False,
    ROOT_URLCONF=__name__,
    SECRET_KEY="of the bench",
    MIDDLEWARE=["django.middleware.common.CommonMiddleware"],
)
django.setup()

BACKEND = os.environ["BACKEND"]
_POOL = {"port": int(os.environ["REDIS_PORT"]), "max_connections": 4}
session = requests.Session()
session.mount("http://", HTTPAdapter(pool_maxsize=40))
cache = redis.Redis(connection_pool=redis.BlockingConnectionPool(**_POOL))
client = httpx.AsyncClient(timeout=20, limits=httpx.Limits(max_connections=None))
async_cache = redis.asyncio.Redis(
    connection_pool=redis.asyncio.BlockingConnectionPool(**_POOL),
)


def poll() -> None:
    number = 0
    while True:
        session.get(f"{BACKEND}/poll?id={number}", timeout=20)
        number += 1
        time.sleep(0.02)


if os.environ.get("POLLER"):
    threading.Thread(target=poll, daemon=True).start()


def call(request: HttpRequest) -> HttpResponse:
    return HttpResponse(session.get(f"{BACKEND}/call?id={request.GET['id']}", timeout=20).text)


def sleep(request: HttpRequest) -> HttpResponse:
    time.sleep(0.01)
    return call(request)


def database(request: HttpRequest) -> HttpResponse:
    cache.get("key")
    return call(request)


def body(request: HttpRequest) -> HttpResponse:
    assert request.body
    return call(request)


async def async_call(request: HttpRequest, rest: str = "") -> HttpResponse:
    found = await client.get(f"{BACKEND}/call?id={request.GET['id']}{rest}")
    return HttpResponse(found.text)


async def async_sleep(request: HttpRequest) -> HttpResponse:
    await asyncio.sleep(0.01)
    return await async_call(request)


async def async_database(request: HttpRequest) -> HttpResponse:
    await async_cache.get("key")
    return await async_call(request)


async def async_two(request: HttpRequest) -> HttpResponse:
    found = await asyncio.gather(async_call(request, "&n=1"), async_call(request, "&n=2"))
    return found[0]


async def async_body(request: HttpRequest) -> HttpResponse:
    assert request.body
    return await async_call(request)


IS_ASYNC = bool(os.environ.get("ASYNC"))
urlpatterns = [
    path("at-once", async_call if IS_ASYNC else call),
    path("sleep", async_sleep if IS_ASYNC else sleep),
    path("database", async_database if IS_ASYNC else database),
    path("two", async_two),
    path("body", async_body if IS_ASYNC else body),
    path("pool", call),  # a synchronous view below ASGI: asgiref hands it to a thread
]
wsgi = get_wsgi_application()
asgi = get_asgi_application()
