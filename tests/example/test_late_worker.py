"""The example's guard: a worker that slept past its lock comes back, and what it writes is refused."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]


def feed(version: str) -> bytes:
    item = f"<item><guid>{version}</guid><title>{version}</title></item>"
    return f'<rss version="2.0"><channel><title>{version}</title>{item}</channel></rss>'.encode()


class News(ThreadingHTTPServer):
    """Serves a feed that has changed since it was first asked for; the first answer is long on its way."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.asked = threading.Semaphore(0)
        self.first = True
        self.go_on = threading.Event()
        self.url = f"http://127.0.0.1:{self.server_address[1]}/news.xml"


class Handler(BaseHTTPRequestHandler):
    server: News

    def do_GET(self) -> None:
        body = feed("old" if self.server.first else "new")
        wait, self.server.first = self.server.first, False
        self.server.asked.release()
        if wait:
            assert self.server.go_on.wait(60)
        self.send_response(200)
        self.send_header("Content-Type", "application/rss+xml")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def news() -> Iterator[News]:
    with News() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    found = {key: value for key, value in os.environ.items() if not key.startswith(("ATOMICLOCK", "IMPORT_FEED"))}
    found |= {"PYTHONPATH": str(ROOT / "src"), "IMPORT_FEED_STATE": str(tmp_path)}
    manage = [sys.executable, str(ROOT / "examples" / "import_feed" / "manage.py"), "migrate", "-v", "0"]
    subprocess.run(manage, env=found, check=True, timeout=60)
    return found


def worker(url: str, environment: dict[str, str]) -> subprocess.Popen[str]:
    script = [sys.executable, str(HERE / "import_once.py"), url]
    return subprocess.Popen(script, env=environment, stdout=subprocess.PIPE, text=True)


def said(process: subprocess.Popen[str]) -> dict[str, Any]:
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 0
    return dict(json.loads(output))


def test_a_worker_that_slept_past_its_lock_cannot_overwrite_the_import_of_the_next(
    news: News, environment: dict[str, str]
) -> None:
    late = worker(news.url, environment)
    try:
        assert news.asked.acquire(timeout=30), "it has the lock, and waits for the feed"
        late.send_signal(signal.SIGSTOP)
        next_one = said(worker(news.url, environment))
        assert (next_one["url"], next_one["error"]) == (news.url, None)
        assert next_one["row"] == ["new", 1, "", True]
        news.go_on.set()
        late.send_signal(signal.SIGCONT)
        came_late = said(late)
    finally:
        late.kill()
        late.wait()
    assert came_late["url"] is None
    assert came_late["error"][0] == "StaleFence"
    assert came_late["row"] == next_one["row"]
    assert came_late["entries"] == next_one["entries"] == ["new"]
