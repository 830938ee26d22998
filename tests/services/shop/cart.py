"""shop-cart: answers GET /cart/ID with what shop-orders says about it."""

import os
from typing import Any

import httpx
from fastapi import FastAPI

app = FastAPI()
# Connections that are older than an agent carry no header: where one is restarted, they end soon.
limits = httpx.Limits(keepalive_expiry=1)
orders = httpx.AsyncClient(base_url=os.environ["SHOP_ORDERS"], timeout=10, limits=limits)


@app.get("/cart/{cart}")
async def answer(cart: str) -> dict[str, Any]:
    found = await orders.get(f"/orders/{cart}")
    found.raise_for_status()
    return {"service": "cart", "cart": cart, "orders": found.json()}
