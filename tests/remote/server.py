"""moto's S3 over HTTP, with faults on request. ``python -m tests.remote.server PORT`` serves on the loopback device.

What one request is to suffer is POSTed to ``/_faults`` as JSON and stays until the next POST::

    match     part of "METHOD /bucket/key?query" of the requests that are meant
    times     how many of these; the others go through
    kind      "500", "drop" (the connection is closed without an answer), "cut" (the answer ends early), "slow" (2 s),
              "die" (the whole server ends), "unconditional" (conditions are not looked at)

GET ``/_seen`` gives the lines of all requests since the last POST. Requests that write under a condition wait for each
other, as those of a real store do: moto looks and writes in two steps.
"""

from __future__ import annotations

import json
import os
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterable
from typing import Any

from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import WSGIRequestHandler, make_server

Environ = dict[str, Any]


class Faults:
    def __init__(self, app: Callable[..., Iterable[bytes]]) -> None:
        self._app = app
        self._guard, self._conditions = threading.Lock(), threading.Lock()
        self._fault: dict[str, Any] = {"times": 0}
        self._seen: list[str] = []

    def __call__(self, environ: Environ, start: Callable[..., Any]) -> Iterable[bytes]:
        path = environ["PATH_INFO"]
        if path == "/_faults":
            length = int(environ["CONTENT_LENGTH"])
            with self._guard:
                self._fault, self._seen = json.loads(environ["wsgi.input"].read(length)), []
            start("200 OK", [])
            return [b""]
        if path == "/_seen":
            start("200 OK", [("Content-Type", "application/json")])
            return [json.dumps(self._seen).encode()]
        kind = self._kind(f"{environ['REQUEST_METHOD']} {path}?{environ.get('QUERY_STRING', '')}")
        if kind == "die":
            os._exit(9)
        if kind == "500":
            start("503 Slow Down", [("Content-Length", "0")])
            return [b""]
        if kind == "drop":
            environ["werkzeug.socket"].shutdown(socket.SHUT_RDWR)
            return [b""]
        if kind == "slow":
            time.sleep(2)
        if kind == "unconditional":
            for name in ("HTTP_IF_MATCH", "HTTP_IF_NONE_MATCH"):
                environ.pop(name, None)
        if environ["REQUEST_METHOD"] == "PUT" and {"HTTP_IF_MATCH", "HTTP_IF_NONE_MATCH"} & set(environ):
            with self._conditions:
                return list(self._app(environ, start))
        answer = self._app(environ, start)
        if kind == "cut":
            whole = b"".join(answer)
            return self._cut(environ, whole)
        return answer

    def _cut(self, environ: Environ, whole: bytes) -> Iterable[bytes]:
        yield whole[: len(whole) // 2]
        environ["werkzeug.socket"].shutdown(socket.SHUT_RDWR)

    def _kind(self, line: str) -> str | None:
        with self._guard:
            self._seen.append(line)
            if self._fault["times"] < 1 or self._fault["match"] not in line:
                return None
            self._fault["times"] -= 1
            return str(self._fault["kind"])


class Quiet(WSGIRequestHandler):
    protocol_version = "HTTP/1.1"

    def log(self, *_: Any, **__: Any) -> None:
        pass


if __name__ == "__main__":
    app = Faults(DomainDispatcherApplication(create_backend_app))
    make_server("127.0.0.1", int(sys.argv[1]), app, threaded=True, request_handler=Quiet).serve_forever()
