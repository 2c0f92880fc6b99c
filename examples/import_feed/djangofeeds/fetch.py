"""Getting a feed over HTTP and reading it, with every failure as one FeedError."""

import calendar
import urllib.error
import urllib.request
from dataclasses import dataclass
from datetime import datetime, timezone
from http.client import HTTPException
from typing import Any
from urllib.parse import urlsplit
from xml.sax import SAXParseException

import feedparser

MAX_BYTES = 5_000_000
TIMEOUT = 15.0
USER_AGENT = "atomiclock-example/1.0 (+https://example.org/bot)"


class FeedError(Exception):
    """A feed could not be fetched or read; the text says why."""


@dataclass(frozen=True)
class Document:
    """What a server answered: a body of None means unchanged."""

    body: bytes | None
    etag: str
    modified: str
    content_type: str


@dataclass(frozen=True)
class Item:
    """One entry as read from a feed."""

    guid: str
    title: str
    link: str
    published: datetime | None


def fetch(url: str, *, etag: str = "", modified: str = "") -> Document:
    """The feed's bytes, or a Document without a body if the server says nothing changed."""
    if urlsplit(url).scheme not in ("http", "https"):
        raise FeedError(f"not an http or https address: {url}")
    headers = {"User-Agent": USER_AGENT, "If-None-Match": etag, "If-Modified-Since": modified}
    request = urllib.request.Request(url, headers={name: value for name, value in headers.items() if value})
    try:
        with urllib.request.urlopen(request, timeout=TIMEOUT) as response:
            body = response.read(MAX_BYTES + 1)
            kept = response.headers
    except urllib.error.HTTPError as error:
        error.close()
        if error.code == 304:
            return Document(None, etag, modified, "")
        raise FeedError(f"the server answered {error.code} {error.reason}") from error
    except (OSError, HTTPException) as error:
        raise FeedError(f"no answer: {error}") from error
    if len(body) > MAX_BYTES:
        raise FeedError(f"more than {MAX_BYTES} bytes")
    return Document(body, kept.get("ETag", ""), kept.get("Last-Modified", ""), kept.get("Content-Type", ""))


def parse(document: Document) -> tuple[str, list[Item]]:
    """The feed's title and its entries, each guid once; raises FeedError if that is not what it is."""
    parsed = feedparser.parse(document.body, response_headers={"content-type": document.content_type})
    problem = parsed.get("bozo_exception")
    # feedparser also sets this for things that do no harm, such as a charset that the server misnamed.
    if isinstance(problem, SAXParseException):
        raise FeedError(f"no well-formed XML: {problem.getMessage()}, line {problem.getLineNumber()}")
    if not parsed.version:
        raise FeedError("neither RSS nor Atom")
    items = {item.guid: item for item in map(_item, parsed.entries)}
    return parsed.feed.get("title", "")[:500], list(items.values())


def _item(entry: Any) -> Item:
    # RSS 0.91 and 1.0 know no guid: the link is the next best thing that stays the same.
    guid = entry.get("id") or entry.get("link") or entry.get("title", "")
    moment = entry.get("published_parsed") or entry.get("updated_parsed")
    published = datetime.fromtimestamp(calendar.timegm(moment), timezone.utc) if moment else None
    return Item(guid[:500], entry.get("title", "")[:500], entry.get("link", "")[:500], published)
