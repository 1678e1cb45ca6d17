"""The listing of an S3 bucket as the store gives it, for prefixes below which obstore cannot list.

A key with an empty segment, `.`, `..` or a control character is no path to obstore, which then refuses the whole page.
Such keys cannot be read, but they must not hide the others. Only the request for a page is made here, with the
credentials of the environment.
"""

from __future__ import annotations

import errno
import hashlib
import hmac
import os
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from http.client import HTTPException
from time import monotonic, sleep
from typing import Any
from urllib.error import HTTPError
from urllib.parse import quote, unquote_plus, urlsplit
from urllib.request import Request, urlopen
from xml.etree import ElementTree

from jobs.patience import LONGEST_PAUSE, patience
from jobs.stopped import Unreachable

_NOTHING = hashlib.sha256(b"").hexdigest()


def can_list() -> bool:
    """Whether the environment holds what a request needs."""
    return _is_set("AWS_SKIP_SIGNATURE") or all(
        os.environ.get(name) for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")
    )


def _is_set(variable: str) -> bool:
    return os.environ.get(variable, "").lower() in ("1", "true", "on", "yes", "y")


def s3_objects(bucket: str, *, prefix: str, after: str, uri: str) -> Iterator[dict[str, Any]]:
    """``path``, ``size`` and ``e_tag`` of each key below ``prefix`` that sorts behind ``after``, in order, whatever it
    holds. Raises OSError or Unreachable, of ``uri``."""
    page = {"list-type": "2", "encoding-type": "url", "prefix": prefix} | ({"start-after": after} if after else {})
    while True:
        answer = ElementTree.fromstring(_asked(bucket, page, uri))  # noqa: S314 - the store's own
        for found in answer.iterfind("{*}Contents"):
            key = unquote_plus(found.findtext("{*}Key") or "")
            yield {
                "path": key.removeprefix("/").removesuffix("/"),  # as obstore does
                "size": int(found.findtext("{*}Size") or 0),
                "e_tag": found.findtext("{*}ETag"),
            }
        token = answer.findtext("{*}NextContinuationToken")
        if answer.findtext("{*}IsTruncated") != "true" or token is None:
            return
        page["continuation-token"] = token


def _asked(bucket: str, query: Mapping[str, str], uri: str) -> bytes:
    until, pause = monotonic() + patience(), 0.1
    while True:
        try:
            with urlopen(_request(bucket, query), timeout=max(1.0, patience() / 3)) as answer:  # noqa: S310 - an endpoint of the user's
                return bytes(answer.read())
        except HTTPError as error:
            if error.code < 500 and error.code != 429:
                raise OSError(errno.EACCES, f"the store refused the listing ({error.code})", uri) from None
            trouble = f"it answered {error.code}"
        except (OSError, HTTPException):
            trouble = "no connection"
        if monotonic() > until:
            raise Unreachable(f"{uri}: the store failed, and went on failing ({trouble}).")
        sleep(pause)
        pause = min(LONGEST_PAUSE, 2 * pause)


def _request(bucket: str, query: Mapping[str, str]) -> Request:
    region = os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION") or "us-east-1"
    endpoint = urlsplit(_endpoint(region).rstrip("/"))
    hosted = _is_set("AWS_VIRTUAL_HOSTED_STYLE_REQUEST")
    path = (endpoint.path if hosted else f"{endpoint.path}/{bucket}") or "/"
    host = endpoint.netloc.rpartition("@")[2]
    asked = "&".join(f"{quote(name, safe='-_.~')}={quote(query[name], safe='-_.~')}" for name in sorted(query))
    headers = {} if _is_set("AWS_SKIP_SIGNATURE") else _signed(host, path, asked, region)
    return Request(f"{endpoint.scheme}://{host}{path}?{asked}", headers=headers)  # noqa: S310


def _endpoint(region: str) -> str:
    names = ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "AWS_ENDPOINT")
    return next((os.environ[name] for name in names if os.environ.get(name)), f"https://s3.{region}.amazonaws.com")


def _signed(host: str, path: str, query: str, region: str) -> dict[str, str]:
    """The headers of a request without a body: AWS's Signature Version 4."""
    now = datetime.now(UTC)
    date, scope = f"{now:%Y%m%dT%H%M%SZ}", f"{now:%Y%m%d}/{region}/s3/aws4_request"
    headers = {"host": host, "x-amz-content-sha256": _NOTHING, "x-amz-date": date}
    if token := os.environ.get("AWS_SESSION_TOKEN"):
        headers["x-amz-security-token"] = token
    lines = "".join(f"{name}:{headers[name]}\n" for name in sorted(headers))
    names = ";".join(sorted(headers))
    request = "\n".join(["GET", quote(path), query, lines, names, _NOTHING])
    text = "\n".join(["AWS4-HMAC-SHA256", date, scope, hashlib.sha256(request.encode()).hexdigest()])
    key = f"AWS4{os.environ['AWS_SECRET_ACCESS_KEY']}".encode()
    for part in scope.split("/"):
        key = hmac.digest(key, part.encode(), "sha256")
    signature = hmac.digest(key, text.encode(), "sha256").hex()
    headers["authorization"] = (
        f"AWS4-HMAC-SHA256 Credential={os.environ['AWS_ACCESS_KEY_ID']}/{scope}, SignedHeaders={names}, "
        f"Signature={signature}"
    )
    return headers
