"""A provider on this machine with scripted answers."""

from __future__ import annotations

import json
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    # A fleet starts all its calls at once.
    request_queue_size = 256

    def handle_error(self, request: Any, client_address: object) -> None:
        """Report an error, unless the client has disconnected."""
        if not isinstance(sys.exc_info()[1], ConnectionError):
            super().handle_error(request, client_address)


class ScriptedProvider:
    """Answers with `status`, `headers` and `body` (or `bodies`, by path) after `delay_s`.

    `requests` records the requests, and `callers` the client address of each. A body may be a
    function of the request and the client address; bytes are sent unchanged. `respond`, if set,
    takes the headers and JSON of each request, and returns status and body.
    """

    def __init__(self, address: str = "127.0.0.1") -> None:
        self.status = 200
        self.body: Any = {}
        self.bodies: dict[str, Any] = {}
        self.headers: dict[str, str] = {}
        self.respond: Callable[[dict[str, str], Any], tuple[int, Any]] | None = None
        self.requests: list[tuple[str, dict[str, str], Any]] = []
        self.callers: list[str] = []
        self.delay_s = 0.0
        lock = threading.Lock()
        provider = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            # Headers and bodies are sent apart: a client delays its acknowledgement of the first.
            disable_nagle_algorithm = True

            def answer(self) -> None:
                data = self.rfile.read(int(self.headers.get("content-length") or 0))
                headers = {name.lower(): value for name, value in self.headers.items()}
                request = json.loads(data or "null")
                with lock:
                    provider.requests.append((self.path, headers, request))
                    provider.callers.append(caller := str(self.client_address[0]))
                time.sleep(provider.delay_s)
                status, content = provider.status, provider.bodies.get(self.path, provider.body)
                if provider.respond is not None:
                    status, content = provider.respond(headers, request)
                content = content(request, caller) if callable(content) else content
                body = content if isinstance(content, bytes) else json.dumps(content).encode()
                self.send_response(status)
                headers = {"content-type": "application/json", "content-length": str(len(body))}
                for name, value in (headers | provider.headers).items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(body)

            do_GET = do_POST = answer  # noqa: N815 - the handler's names

            def log_message(self, *args: object) -> None:
                pass

        self._server = _Server((address, 0), Handler)
        self.url = f"http://{address}:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,))
        self._thread.start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


def openai_reply(text: str | None = "hi", finish: str = "stop", **message: Any) -> dict[str, Any]:
    return {
        "id": "1",
        "object": "chat.completion",
        "created": 1,
        "model": "m",
        "choices": [
            {
                "index": 0,
                "finish_reason": finish,
                "message": {"role": "assistant", "content": text, **message},
            },
        ],
        "usage": {"prompt_tokens": 5, "completion_tokens": 2, "total_tokens": 7},
    }


def anthropic_reply(text: str = "hi", stop: str = "end_turn") -> dict[str, Any]:
    return {
        "id": "1",
        "type": "message",
        "role": "assistant",
        "model": "m",
        "stop_reason": stop,
        "stop_sequence": None,
        "content": [{"type": "text", "text": text}],
        "usage": {"input_tokens": 3, "output_tokens": 2, "cache_read_input_tokens": 2},
    }


def gemini_reply(text: str = "hi", finish: str = "STOP", **fields: Any) -> dict[str, Any]:
    candidate = {"content": {"role": "model", "parts": [{"text": text}]}, "finishReason": finish}
    return {
        "candidates": [{**candidate, "index": 0}],
        "usageMetadata": {"promptTokenCount": 3, "candidatesTokenCount": 2, "totalTokenCount": 5},
        "modelVersion": "m-001",
        "responseId": "1",
        **fields,
    }
