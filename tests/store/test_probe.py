"""Servers that lie are refused; answers that are lost or unclear are found out."""

from __future__ import annotations

import contextlib
import http.client
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit

import pytest

from pipeline.storage import StorageError, open_objects
from pipeline.store import check_nonce, leave_nonce, probe_storage
from schemas.base import Location
from tests.servers import S3Server
from tests.store.toy import finished

Rule = Callable[[BaseHTTPRequestHandler], str | None]
"""Looks at (and may change) a request: None = pass on, "lose" = pass on without an answer,
three digits = answer with this status at once."""


@contextlib.contextmanager
def proxy(server: S3Server, rule: Rule) -> Iterator[S3Server]:
    """An HTTP proxy in front of a server (moto: it does not check signatures)."""
    target = urlsplit(server.endpoint)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def forward(self):
            body = self.rfile.read(int(self.headers.get("content-length") or 0))
            verdict = rule(self)
            if verdict is not None and verdict.isdigit():
                self.answer(int(verdict), [], b"")
                return
            inner = http.client.HTTPConnection(target.hostname, target.port, timeout=20)
            headers = {k: v for k, v in self.headers.items() if k.lower() != "connection"}
            inner.request(self.command, self.path, body, headers)
            response = inner.getresponse()
            data, fields = response.read(), response.getheaders()
            inner.close()
            if verdict == "lose":
                self.close_connection = True
                return
            self.answer(response.status, fields, data)

        def answer(self, status, fields, data):
            self.send_response_only(status)
            for name, value in fields:
                if name.lower() not in ("content-length", "transfer-encoding", "connection"):
                    self.send_header(name, value)
            length = dict(fields).get("Content-Length") if self.command == "HEAD" else None
            self.send_header("Content-Length", length or str(len(data)))
            self.end_headers()
            self.wfile.write(data if self.command != "HEAD" else b"")

        do_GET = do_PUT = do_HEAD = do_DELETE = do_POST = forward

        def log_message(self, *_):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as listening:
        listening.daemon_threads = True
        thread = threading.Thread(target=listening.serve_forever, args=(0.02,))
        thread.start()
        try:
            endpoint = f"http://127.0.0.1:{listening.server_port}"
            yield S3Server(endpoint, server.access_key, server.secret_key)
        finally:
            listening.shutdown()
            thread.join()


def test_honest_storage_passes_and_is_left_clean(anywhere):
    objects = open_objects(anywhere("o"))
    probe_storage(objects)
    assert list(objects.list("_fieldmill")) == []


def ignore_put_if_absent(request: BaseHTTPRequestHandler) -> None:
    del request.headers["If-None-Match"]


def ignore_suffix_ranges(request: BaseHTTPRequestHandler) -> None:
    if (request.headers.get("Range") or "").startswith("bytes=-"):
        request.headers.replace_header("Range", "bytes=0-4")


def no_server_side_copy(request: BaseHTTPRequestHandler) -> str | None:
    return "501" if request.headers.get("x-amz-copy-source") else None


@pytest.mark.parametrize(
    ("rule", "complaint"),
    [
        (ignore_put_if_absent, "ignores If-None-Match"),
        (ignore_suffix_ranges, "suffix range"),
        (no_server_side_copy, "cannot copy"),
    ],
)
def test_servers_that_lie_are_refused(moto_server, rule, complaint):
    with proxy(moto_server, rule) as liar:
        objects = open_objects(liar.location("tests", f"liar-{rule.__name__}"))
        with pytest.raises(StorageError, match=complaint) as caught:
            probe_storage(objects)
        assert "\n" not in str(caught.value)


class Sometimes:
    """Applies a verdict to the first so many put-if-absent requests of each key."""

    def __init__(self, verdict: str, times: int = 1):
        self.verdict, self.times = verdict, times
        self.seen: dict[str, int] = {}

    def __call__(self, request: BaseHTTPRequestHandler) -> str | None:
        if request.command != "PUT" or request.headers.get("If-None-Match") is None:
            return None
        self.seen[request.path] = self.seen.get(request.path, 0) + 1
        return self.verdict if self.seen[request.path] <= self.times else None


@pytest.mark.parametrize("verdict", ["lose", "409", "500", "503"])
def test_a_create_of_unknown_outcome_is_found_out(moto_server, verdict):
    with proxy(moto_server, Sometimes(verdict)) as unsteady:
        objects = open_objects(unsteady.location("tests", f"unsteady-{verdict}"))
        assert objects.create("record", b"attempt 1")
        assert objects.get("record") == b"attempt 1"
        assert not objects.create("record", b"attempt 2")
        assert objects.get("record") == b"attempt 1"


def test_a_store_written_over_a_connection_that_loses_answers(moto_server, memory):
    with proxy(moto_server, Sometimes("lose")) as unsteady:
        digest = finished(unsteady.location("tests", "lossy"))
    assert digest == finished(memory("o"))


def test_workers_find_the_nonce_or_are_refused(anywhere):
    location = anywhere("o")
    with leave_nonce(open_objects(location)) as nonce, leave_nonce(open_objects(location)):
        check_nonce(open_objects(location), nonce)  # two drivers do not disturb each other
        with pytest.raises(StorageError, match="not the same place on every node"):
            check_nonce(open_objects(anywhere("another disk")), nonce)
    with pytest.raises(ArithmeticError), leave_nonce(open_objects(location)):
        raise ArithmeticError
    assert not list(open_objects(location).list("_fieldmill"))


def test_read_only_schemes_are_refused():
    with pytest.raises(ValueError, match="listed or written over https"):
        open_objects(Location(url="https://example.org/x"))
