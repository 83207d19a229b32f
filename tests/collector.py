"""An OpenTelemetry collector on loopback that stores the spans it receives."""

from __future__ import annotations

import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, NamedTuple

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)

if TYPE_CHECKING:
    from opentelemetry.proto.common.v1.common_pb2 import KeyValue


class Span(NamedTuple):
    worker: str  # its name in the worker's OTEL_RESOURCE_ATTRIBUTES
    trace_id: bytes
    span_id: bytes
    parent_id: bytes
    name: str
    attributes: dict[str, str]


class Collector:
    """Serves /v1/traces.

    Attributes:
        spans: The received spans, unordered.
        raw: All received bytes.
    """

    def __init__(self) -> None:
        self.spans: list[Span] = []
        self.raw = b""
        collector = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                assert self.path == "/v1/traces"
                collector.take(self.rfile.read(int(self.headers["content-length"])))
                body = ExportTraceServiceResponse().SerializeToString()
                self.send_response(200)
                self.send_header("content-type", "application/x-protobuf")
                self.send_header("content-length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *args: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,))
        self._thread.start()

    @property
    def env(self) -> dict[str, str]:
        """The settings of a worker that sends spans here, only at its end or if it has very many."""
        return {
            "FANOUT_TRACES": "otlp",
            "OTEL_EXPORTER_OTLP_ENDPOINT": self.url,
            "OTEL_BSP_SCHEDULE_DELAY": "600000",
        }

    def take(self, data: bytes) -> None:
        request = ExportTraceServiceRequest.FromString(data)
        self.raw += data
        for resource in request.resource_spans:
            worker = _values(resource.resource.attributes).get("service.instance.id", "")
            for scope in resource.scope_spans:
                self.spans += [
                    Span(
                        worker,
                        span.trace_id,
                        span.span_id,
                        span.parent_span_id,
                        span.name,
                        _values(span.attributes),
                    )
                    for span in scope.spans
                ]

    def named(self, name: str) -> list[Span]:
        return [span for span in self.spans if span.name == name]

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


def _values(attributes: list[KeyValue]) -> dict[str, str]:
    return {
        pair.key: str(getattr(pair.value, pair.value.WhichOneof("value") or "string_value"))
        for pair in attributes
    }
