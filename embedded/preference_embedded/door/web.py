"""The door's HTTP side: health, metadata, statistics and battles as JSON on one port, metrics on another.

What it forwards are fixed paths without a body; battles go to the server by gRPC.
"""

import asyncio
import logging
import ssl
from collections.abc import Awaitable, Callable, Sequence
from http import HTTPStatus
from typing import Any

import aiohttp
from aiohttp import web

from preference_core.triton.answers import OVERLOADED
from preference_embedded.door import rest
from preference_embedded.door.contract import Refused
from preference_embedded.door.desk import Desk, UpstreamError

JSON_LENGTH_HEADER = "Inference-Header-Content-Length"
#: Seconds in which the head of a request must have come since the connection or the last answer, and then its body.
HEAD_TIMEOUT_S = 20.0
BODY_TIMEOUT_S = 30.0
#: Bytes of bodies that may be under way at a time.
MAX_BODIES_BYTES = 256 * 2**20
FORWARD_TIMEOUT = aiohttp.ClientTimeout(total=10.0)
STATUS_OF_CODE = {"INVALID_ARGUMENT": 400, "NOT_FOUND": 404, "UNAVAILABLE": 503, "DEADLINE_EXCEEDED": 504}
MODEL = r"/v2/models/{model}"
VERSION = r"/versions/{version:\d{1,19}}"

Handler = Callable[[web.Request], Awaitable[web.Response]]


class HttpSide:
    """The two HTTP servers of the door."""

    def __init__(self, desk: Desk) -> None:
        self._desk = desk
        self._bodies_bytes = 0
        self._http_url = self._metrics_url = ""
        self._runners: list[web.AppRunner] = []

    def forward_to(self, http_url: str, metrics_url: str) -> None:
        """Where the server is now."""
        self._http_url, self._metrics_url = http_url, metrics_url

    async def start(self, address: str, http_port: int, metrics_port: int, tls: ssl.SSLContext | None) -> None:
        """Listens on both ports."""
        for routes, port in ((self._routes(), http_port), ([web.get("/metrics", self._metrics)], metrics_port)):
            application = web.Application(client_max_size=self._desk.limits.message_bytes, middlewares=[_answering])
            application.add_routes(routes)
            runner = web.AppRunner(
                application,
                access_log=None,
                logger=_silent_logger(),
                handle_signals=False,
                auto_decompress=False,
                keepalive_timeout=HEAD_TIMEOUT_S,
                lingering_time=1.0,
                shutdown_timeout=1.0,
            )
            self._runners.append(runner)
            await runner.setup()
            await web.TCPSite(runner, address, port, ssl_context=tls).start()

    async def stop(self) -> None:
        """Lets answers under way go out, and closes the ports."""
        for runner in self._runners:
            await runner.cleanup()

    def _routes(self) -> Sequence[web.RouteDef]:
        routes = [
            web.get("/v2/health/live", self._live),
            web.get("/v2/health/ready", self._ready),
            web.get("/v2", self._forwarded("")),
        ]
        for model in (MODEL, MODEL + VERSION):
            routes += [
                web.get(model, self._forwarded("")),
                web.get(model + "/config", self._forwarded("/config")),
                web.get(model + "/stats", self._forwarded("/stats")),
                web.get(model + "/ready", self._model_ready),
                web.post(model + "/infer", self._infer),
            ]
        return routes

    async def _live(self, request: web.Request) -> web.Response:
        return web.Response()

    async def _ready(self, request: web.Request) -> web.Response:
        return web.Response(status=HTTPStatus.OK if self._desk.ready else HTTPStatus.SERVICE_UNAVAILABLE)

    async def _model_ready(self, request: web.Request) -> web.Response:
        self._desk.check_model(*_model_of(request))
        return web.Response()

    async def _infer(self, request: web.Request) -> web.Response:
        self._desk.server()
        body = await self._body_of(request)
        json_bytes = request.headers.get(JSON_LENGTH_HEADER, str(len(body)))
        if not (
            json_bytes.isascii() and json_bytes.isdigit() and len(json_bytes) < 12 and int(json_bytes) <= len(body)
        ):
            raise web.HTTPBadRequest(reason=f"{JSON_LENGTH_HEADER} is not a number of bytes within the body")
        answer = await self._desk.infer(rest.request_of(body, int(json_bytes), *_model_of(request)))
        return web.json_response(rest.answer_of(answer))

    async def _body_of(self, request: web.Request) -> bytes:
        size, limit = request.content_length, self._desk.limits.message_bytes
        if request.headers.get("Content-Encoding", "identity") != "identity":
            raise web.HTTPUnsupportedMediaType(reason="Compressed bodies are not accepted")
        if size is None:
            raise web.HTTPLengthRequired(reason="The body has no Content-Length")
        if size > limit:
            raise web.HTTPRequestEntityTooLarge(limit, size)
        if self._bodies_bytes + size > MAX_BODIES_BYTES:
            raise web.HTTPServiceUnavailable(reason=f"{OVERLOADED}too many long requests are under way")
        self._bodies_bytes += size
        try:
            return await asyncio.wait_for(request.read(), BODY_TIMEOUT_S)
        except TimeoutError as error:
            request.protocol.force_close()
            raise web.HTTPRequestTimeout() from error
        finally:
            self._bodies_bytes -= size

    def _forwarded(self, end: str) -> Handler:
        """A handler that asks the server about an ensemble, or about itself."""

        async def forward(request: web.Request) -> web.Response:
            path = "/v2"
            if "model" in request.match_info:
                name, version = _model_of(request)
                self._desk.check_model(name, version)
                path += f"/models/{name}" + (f"/versions/{version}" if version else "")
            self._desk.server()
            return await self._fetched(self._http_url, path + end)

        return forward

    async def _metrics(self, request: web.Request) -> web.Response:
        own = _own_metrics(self._desk)
        if not self._desk.ready:
            return web.Response(text=own)
        theirs = await self._fetched(self._metrics_url, "/metrics")
        return web.Response(text=(theirs.text or "") + own if theirs.status == HTTPStatus.OK else own)

    async def _fetched(self, url: str, path: str) -> web.Response:
        unix = url.startswith("unix:")
        connector = aiohttp.UnixConnector(url.removeprefix("unix:")) if unix else aiohttp.TCPConnector()
        try:
            async with (
                aiohttp.ClientSession(connector=connector, timeout=FORWARD_TIMEOUT) as session,
                session.get(f"http://{'localhost' if unix else url}{path}") as answer,
            ):
                return web.Response(status=answer.status, body=await answer.read(), content_type=answer.content_type)
        except (aiohttp.ClientError, TimeoutError) as error:
            raise web.HTTPServiceUnavailable(reason="The server does not answer") from error


@web.middleware
async def _answering(request: web.Request, handler: Any) -> web.StreamResponse:
    """Errors as Triton writes them: one JSON object with the key `error`."""
    try:
        answer: web.StreamResponse = await handler(request)
        return answer
    except Refused as error:
        return _error(error.reason.value, error.message)
    except UpstreamError as error:
        return _error(STATUS_OF_CODE.get(error.code.name, 500), error.message)
    except web.HTTPException as error:
        return _error(error.status, error.reason)


def _error(status: int, message: str) -> web.Response:
    return web.json_response({"error": message}, status=status)


def _model_of(request: web.Request) -> tuple[str, str]:
    return request.match_info["model"], request.match_info.get("version", "")


def _own_metrics(desk: Desk) -> str:
    """The door's own numbers, in Prometheus' text format."""
    admission = desk.admission
    values = (
        ("battles_accepted_total", "counter", "Battles that were let in", admission.accepted),
        ("battles_refused_total", "counter", "Battles that were refused because of overload", admission.refused),
        ("battles_invalid_total", "counter", "Battles that the contract refuses", desk.invalid),
        ("battles_failed_total", "counter", "Battles that the server answered with an error", desk.failed),
        ("battles_under_way", "gauge", "Battles that were let in and are not answered yet", admission.under_way),
        ("battles_limit", "gauge", "Battles that may be under way now", admission.limit),
        ("door_ready", "gauge", "Whether battles are taken", int(desk.ready)),
    )
    return "".join(
        f"# HELP preference_{name} {text}\n# TYPE preference_{name} {kind}\npreference_{name} {value}\n"
        for name, kind, text, value in values
    )


def _silent_logger() -> logging.Logger:
    """Keeps out of the log what strangers send: aiohttp would write it there."""
    logger = logging.getLogger("preference_embedded.door.web")
    logger.setLevel(logging.CRITICAL)
    return logger
