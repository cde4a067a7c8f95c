"""Who may speak to the server, and how much they may say: before any of it is read."""

import asyncio
import base64
import binascii
import contextlib
import hmac
import ipaddress
import json
import logging
import socket
import time
from collections.abc import Iterable
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from genpipe.server.errors import ApiError, error_response

# What is shown to everybody: the page and its parts, and whether the server lives. Files have names that nobody guesses.
_OPEN = ("/page/", "/static-offline-docs/", "/files/")
_OPEN_EXACT = {"/", "/healthz", "/readyz", "/docs", "/docs/oauth2-redirect", "/openapi.json", "/favicon.ico"}
# What is asked every few seconds.
_QUIET = {"/healthz", "/readyz", "/metrics"}
# Seconds that a client may take for the next part of its body.
PATIENCE = 30.0
_log = logging.getLogger("genpipe.server")


class Guard:
    """The first thing that a request meets.

    Args:
        app: what it comes to if it may.
        key: that it has to know; None lets everybody in.
        hosts: names of this server beside its addresses, against other people's pages that have their names point here.
        origins: of pages that may speak to it beside its own.
        body: bytes that it may have.
        patience: seconds that it may take for each part of them.
        json_log: write a JSON object per request; else a line.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        key: str | None,
        hosts: Iterable[str],
        origins: Iterable[str],
        body: int,
        patience: float = PATIENCE,
        json_log: bool = False,
    ) -> None:
        self._app, self._key, self._body, self._patience = app, key, body, patience
        self._hosts = {"localhost", socket.gethostname().lower(), *(host.lower() for host in hosts)}
        self._origins = set(origins)
        self._json_log = json_log

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request that may not be, or pass it on."""
        if scope["type"] != "http":
            if scope["type"] == "lifespan":
                await self._app(scope, receive, send)
            return
        started, status = time.perf_counter(), 0

        async def noted(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message.get("headers", ()), *_SAFE]
            await send(message)

        try:
            self._check(scope)
            await self._app(scope, self._limited(scope, receive), noted)
        except ApiError as error:
            if status:  # the answer has begun: it can only be cut off
                raise
            await error_response(scope["path"], error)(scope, receive, noted)
        finally:
            self._note(scope, status, time.perf_counter() - started)

    def _check(self, scope: Scope) -> None:
        headers, path = Headers(scope=scope), scope["path"]
        if not self._is_here(headers.get("host", "")):
            raise ApiError(421, "this server is not called so: start it with --allow-host to give it a name")
        if scope["method"] not in ("GET", "HEAD") and not self._is_own(headers):
            raise ApiError(403, "a page of another site may not speak to this server")
        length = headers.get("content-length", "0")
        if not (length.isascii() and length.isdecimal()):
            raise ApiError(400, "the Content-Length is not a number")
        if int(length[:20]) > self._body:
            raise ApiError(413, f"the request is larger than {self._body} bytes: make its images smaller")
        if self._key is None or path in _OPEN_EXACT or path.startswith(_OPEN) or scope["method"] == "OPTIONS":
            return
        if not any(hmac.compare_digest(given, self._key.encode()) for given in _keys(headers)):
            raise ApiError(401, "this server wants a key: send it as 'Authorization: Bearer KEY'")

    def _is_here(self, host: str) -> bool:
        try:
            name = (urlsplit(f"//{host}").hostname or "").lower()
        except ValueError:
            return False
        try:
            ipaddress.ip_address(name)
        except ValueError:
            return name in self._hosts
        return True  # nobody makes an address point elsewhere

    def _is_own(self, headers: Headers) -> bool:
        origin = headers.get("origin")
        if origin is None:
            return headers.get("sec-fetch-site") in (None, "same-origin", "none")
        try:
            netloc = urlsplit(origin).netloc
        except ValueError:
            return False
        return netloc == headers.get("host") or origin in self._origins

    def _limited(self, scope: Scope, receive: Receive) -> Receive:
        taken, whole = 0, False

        async def limited() -> Message:
            nonlocal taken, whole
            if whole:
                return await receive()
            try:
                message = await asyncio.wait_for(receive(), self._patience)
            except TimeoutError:
                raise ApiError(408, "the request came too slowly") from None
            if message["type"] == "http.request":
                taken += len(message.get("body", b""))
                whole = not message.get("more_body", False)
                if taken > self._body:
                    raise ApiError(413, f"the request is larger than {self._body} bytes: make its images smaller")
            return message

        return limited

    def _note(self, scope: Scope, status: int, seconds: float) -> None:
        if scope["path"] in _QUIET and status in (200, 503):
            return
        client = (scope.get("client") or ("",))[0]
        # Neither what was asked for nor the names of files, which are as good as keys.
        path = "/files/…" if scope["path"].startswith("/files/") else scope["path"][:200]
        if self._json_log:
            said = {"time": round(time.time(), 3), "client": client, "method": scope["method"], "path": path}
            _log.info(json.dumps({**said, "status": status, "seconds": round(seconds, 4)}))
        else:
            _log.info("%s %s %s %s %.3f s", client, scope["method"], ascii(path)[1:-1], status, seconds)


_SAFE = [
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"cross-origin-resource-policy", b"same-origin"),
    (b"x-frame-options", b"DENY"),
]


def _keys(headers: Headers) -> list[bytes]:
    """The keys that a request shows: as a bearer, as the password of anybody (A1111's clients), or by itself."""
    found = [headers["x-api-key"]] if "x-api-key" in headers else []
    scheme, _, value = headers.get("authorization", "").partition(" ")
    if scheme.lower() == "bearer":
        found.append(value.strip())
    elif scheme.lower() == "basic":
        with contextlib.suppress(binascii.Error, ValueError):
            found.append(base64.b64decode(value, validate=True).decode("latin-1").partition(":")[2])
    return [one.encode("latin-1", "replace") for one in found]
