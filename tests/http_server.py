"""A real web server on this machine that can be told to misbehave, request by request."""

from __future__ import annotations

import threading
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


@dataclass
class Reply:
    """How to answer one request; what is left as it is follows the rules of HTTP.

    cut, stall: the connection is closed, or falls silent, after so many bytes of the body.
    """

    status: int | None = None
    headers: dict[str, str] = field(default_factory=dict)
    cut: int | None = None
    stall: int | None = None


@dataclass
class Site:
    """Files by path; `script` holds the replies to the next requests, in order; `log` what was asked and answered."""

    files: dict[str, bytes] = field(default_factory=dict)
    ranges: bool = True
    etag: str | None = '"1"'
    last_modified: str | None = None
    length: bool = True
    script: list[Reply] = field(default_factory=list)
    log: list[tuple[str, str | None, int]] = field(default_factory=list)
    base: str = ""
    over: threading.Event = field(default_factory=threading.Event)

    def url(self, path: str) -> str:
        return f"{self.base}/{path}"

    def asked(self) -> list[str | None]:
        """The Range header of each request so far."""
        return [wanted for _, wanted, _ in self.log]


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        site: Site = self.server.site
        self.close_connection = True
        reply = site.script.pop(0) if site.script else Reply()
        body = site.files.get(self.path.lstrip("/"))
        wanted = self.headers.get("Range")
        status, start, headers = 200, 0, {}
        if body is None:
            status, body = 404, b"not here"
        elif wanted and site.ranges:
            start = int(wanted.removeprefix("bytes=").removesuffix("-"))
            status = 206 if start < len(body) else 416
            headers["Content-Range"] = f"bytes {start}-{len(body) - 1}/{len(body)}"
            body = body[start:] if status == 206 else b""
        if reply.status:
            status = reply.status
        if site.etag:
            headers["ETag"] = site.etag
        if site.last_modified:
            headers["Last-Modified"] = site.last_modified
        if site.length:
            headers["Content-Length"] = str(len(body))
        else:
            headers["Transfer-Encoding"] = "chunked"
            body = b"%x\r\n%s\r\n0\r\n\r\n" % (len(body), body)
        site.log.append((self.path, wanted, status))
        self.send_response(status)
        for name, value in (headers | reply.headers).items():
            self.send_header(name, value)
        self.end_headers()
        end = reply.cut if reply.cut is not None else reply.stall
        self.wfile.write(body[:end])
        if reply.stall is not None:
            self.wfile.flush()
            site.over.wait(20)

    def log_message(self, *_: object) -> None:
        """Quiet: `Site.log` says more."""


@contextmanager
def serve(**settings: object):
    """A Site that answers at `site.base` until the block ends."""
    site = Site(**settings)
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    server.site = site
    site.base = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield site
    finally:
        site.over.set()
        server.shutdown()
        server.server_close()
        thread.join()
