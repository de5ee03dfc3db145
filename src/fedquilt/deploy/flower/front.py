"""A door before Flower's SuperLink: it lets through what clients need, and nothing else.

Flower's open-source SuperLink has one port for its clients and for its control interface, and asks nobody who uses the latter:
whoever reaches the port can register nodes and start programs on every client. Here the SuperLink listens on this machine alone,
and the port that others reach answers only the requests that a SuperNode makes, whose signatures the SuperLink checks.
"""

from __future__ import annotations

import asyncio
import ssl
from functools import partial
from pathlib import Path

import httpx
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

MOST = 16 << 20  # bytes of a request; Flower cuts what is larger into objects of 5 MiB
PATIENCE = 60.0  # seconds for a request to arrive
CONNECTIONS = 256  # at a time
GRACE = 5  # seconds for requests that are being answered, when the door closes
NAMES = (
    *("register-node", "activate-node", "deactivate-node", "unregister-node", "send-node-heartbeat", "pull-messages"),
    *("push-messages", "get-run", "get-fab", "push-object", "pull-object", "confirm-message-received"),
)
OWN = {"host", "connection", "content-length", "transfer-encoding", "content-encoding"}  # headers of one connection


def door(client: httpx.AsyncClient) -> Starlette:
    """The application. ``client``: reaches the SuperLink."""

    async def pass_on(path: str, request: Request) -> Response:
        try:
            if int(request.headers.get("content-length", 0)) > MOST:
                return Response("too large", 413)
            async with asyncio.timeout(PATIENCE):
                body = await _body(request)
        except (ValueError, TimeoutError):
            return Response("no request", 400)
        if body is None:
            return Response("too large", 413)
        headers = {name: value for name, value in request.headers.items() if name not in OWN}
        try:
            answer = await client.post(path, content=body, headers=headers)
        except httpx.TransportError:
            return Response("the SuperLink does not answer", 502)
        own = {name: value for name, value in answer.headers.items() if name not in OWN}
        return Response(answer.content, answer.status_code, own)

    paths = [f"/v1/fleet/{name}" for name in NAMES]
    return Starlette(routes=[Route(path, partial(pass_on, path), methods=["POST"]) for path in paths])


async def _body(request: Request) -> bytes | None:
    """None: too large."""
    body = bytearray()
    async for part in request.stream():
        body += part
        if len(body) > MOST:
            return None
    return bytes(body)


def configured(folder: Path, listen: str, port: int, inner: int) -> uvicorn.Config:
    """``folder``: with the certificate; ``inner``: the SuperLink's port on this machine."""
    trust = ssl.create_default_context(cafile=str(folder / "ca.crt"))
    client = httpx.AsyncClient(base_url=f"https://127.0.0.1:{inner}", verify=trust, timeout=None, trust_env=False)
    return uvicorn.Config(
        door(client),
        host=listen,
        port=port,
        ssl_certfile=str(folder / "server.pem"),
        ssl_keyfile=str(folder / "server.key"),
        limit_concurrency=CONNECTIONS,
        timeout_graceful_shutdown=GRACE,
        log_level="warning",
        access_log=False,
    )
