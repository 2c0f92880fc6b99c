"""Serves the feeds of `feeds/` on 127.0.0.1, each with the manners of the servers one meets.

`python feedserver.py [PORT]` serves them until Ctrl-C.
"""

import hashlib
import socketserver
import sys
import threading
import time
from collections import Counter
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

FEEDS = Path(__file__).resolve().parent / "feeds"


@dataclass(frozen=True)
class Manners:
    """How one feed is served; times in seconds."""

    content_type: str
    kind: str
    delay: float = 0.4
    trickle: float = 0.0
    failures: int = 0
    validators: bool = True
    importable: bool = True


SERVED = {
    "rss091.xml": Manners("text/xml; charset=iso-8859-1", "RSS 0.91", delay=0.5),
    "rss10.rdf": Manners("application/rdf+xml; charset=utf-8", "RSS 1.0", delay=0.7),
    "rss20.xml": Manners("application/rss+xml; charset=utf-8", "RSS 2.0", delay=0.4),
    "atom.xml": Manners("application/atom+xml; charset=utf-8", "Atom", delay=0.6),
    "flaky.xml": Manners("application/atom+xml; charset=utf-8", "Atom, 500s", delay=0.3, failures=1),
    "slow.xml": Manners("application/rss+xml; charset=utf-8", "RSS 2.0, slow", trickle=3.0, validators=False),
    "broken.xml": Manners("application/rss+xml; charset=utf-8", "broken XML", delay=0.3, importable=False),
}
LAST_MODIFIED = "Fri, 06 Mar 2026 18:20:00 GMT"
TRICKLE_STEPS = 20


class Handler(BaseHTTPRequestHandler):
    """Answers one request for one feed."""

    server: "FeedServer"

    def do_GET(self) -> None:
        """The feed, as its Manners say."""
        name = self.path.lstrip("/").partition("?")[0]  # one feed may be known under several addresses
        manners = SERVED.get(name)
        if manners is None:
            self.send_error(404)
            return
        time.sleep(manners.delay * self.server.pace)
        if self.server.count(name) <= manners.failures:
            self.send_error(500)
            return
        body = self.server.bodies.get(name) or (FEEDS / name).read_bytes()
        etag = f'"{hashlib.sha256(body).hexdigest()[:16]}"'
        known = manners.validators and self.headers.get("If-None-Match") == etag
        self.send_response(304 if known else 200)
        self.send_header("Content-Type", manners.content_type)
        if manners.validators:
            self.send_header("ETag", etag)
            self.send_header("Last-Modified", LAST_MODIFIED)
        if not known:
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if not known:
            self._send(body, manners.trickle * self.server.pace)

    def _send(self, body: bytes, seconds: float) -> None:
        step = -(-len(body) // TRICKLE_STEPS) if seconds else len(body)
        for start in range(0, len(body), step):
            time.sleep(seconds / TRICKLE_STEPS)
            self.wfile.write(body[start : start + step])
            self.wfile.flush()

    def log_request(self, code: int | str = "-", *_: object) -> None:
        """Remember what was answered."""
        self.server.statuses.append((self.path.lstrip("/"), int(code)))

    def log_message(self, *_: object) -> None:
        """Say nothing: the terminal belongs to the progress bar."""


class FeedServer(ThreadingHTTPServer):
    """The server, in a thread of its own while used as a context manager; `pace` scales its Manners' times."""

    daemon_threads = True

    def __init__(self, port: int = 0, pace: float = 1.0) -> None:
        super().__init__(("127.0.0.1", port), Handler)
        self.pace = pace
        self._counts: Counter[str] = Counter()
        self._counting = threading.Lock()
        self.statuses: list[tuple[str, int]] = []
        self.bodies: dict[str, bytes] = {}
        """Feeds that have changed since they were read from their files."""

    def server_bind(self) -> None:
        """Bind without the reverse lookup of HTTPServer, which may ask a name server far away."""
        socketserver.TCPServer.server_bind(self)
        self.server_name, self.server_port = "127.0.0.1", int(self.server_address[1])

    def count(self, name: str) -> int:
        """How often `name` was asked for, this time included."""
        with self._counting:
            self._counts[name] += 1
            return self._counts[name]

    def url(self, name: str) -> str:
        """Where the feed `name` is."""
        return f"http://127.0.0.1:{self.server_port}/{name}"

    def handle_error(self, request: object, client_address: object) -> None:
        """A reader that hung up, such as a killed child, is no error of the server's; all else is."""
        if not isinstance(sys.exc_info()[1], ConnectionError):
            super().handle_error(request, client_address)  # type: ignore[arg-type]  # typeshed names both precisely

    def __enter__(self) -> "FeedServer":
        threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.1}, daemon=True).start()
        return self

    def __exit__(self, *exc: object) -> None:
        self.shutdown()
        self.server_close()


if __name__ == "__main__":
    with FeedServer(int(sys.argv[1]) if len(sys.argv) > 1 else 0) as server:
        for feed in SERVED:
            print(server.url(feed))
        try:
            threading.Event().wait()
        except KeyboardInterrupt:
            print("stopped")
