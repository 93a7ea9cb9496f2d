"""An OpenTelemetry collector as Triton needs one: takes OTLP as JSON over HTTP and keeps the spans."""

import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class Collector:
    """Where spans go; `spans` are those that have come."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.spans: list[dict[str, Any]] = []
        self.services: set[str] = set()

    def wait_for(self, *traces: str, least: int | None = None, timeout_s: float = 60.0) -> list[str]:
        """Until every trace, or at `least` some, has the span of its request, which ends last; returns those that have.

        A server sends them every few seconds.
        """
        end = time.monotonic() + timeout_s
        while True:
            came = [trace for trace in traces if "InferRequest" in self.of(trace)]
            if len(came) >= (len(traces) if least is None else least):
                return came
            assert time.monotonic() < end, f"spans of {traces} within {timeout_s:.0f} s, there are {self.spans}"
            time.sleep(0.1)

    def of(self, trace: str) -> dict[str, dict[str, Any]]:
        """The spans of a trace by name, without those of the computing inside a model."""
        return {span["name"]: span for span in self.spans if span["traceId"] == trace and span["name"] != "compute"}


@contextmanager
def collecting() -> Iterator[Collector]:
    """A collector on the loopback."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["content-length"])))
            for resource in body["resourceSpans"]:
                attributes = {each["key"]: each["value"] for each in resource["resource"]["attributes"]}
                collector.services.add(attributes["service.name"]["stringValue"])
                for scope in resource["scopeSpans"]:
                    collector.spans += scope["spans"]
            self.send_response(200)
            self.send_header("content-length", "2")
            self.end_headers()
            self.wfile.write(b"{}")

        def log_message(self, format: str, *arguments: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        collector = Collector(f"http://127.0.0.1:{server.server_port}/v1/traces")
        yield collector
        server.shutdown()
