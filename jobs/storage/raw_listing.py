"""Lists a bucket without obstore's parser, for prefixes below which obstore cannot list.

obstore refuses a whole page if a key on it has an empty segment, `.`, `..` or a control character. Such keys cannot be
read, but they must not hide the others. obstore signs the requests for these pages, with its credentials, and this
module reads the answers. S3 and Google's XML interface have the same form. obstore cannot sign a list request to Azure.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from datetime import timedelta
from http.client import HTTPException
from time import monotonic, sleep
from typing import Any
from urllib.error import HTTPError
from urllib.parse import quote, unquote_plus, urlencode
from urllib.request import Request, urlopen
from xml.etree import ElementTree

import obstore
from obstore.store import GCSStore, ObjectStore, S3Store

from jobs.storage.retrying import FIRST_PAUSE, LONGEST_PAUSE, retry_seconds
from jobs.storage.storage_errors import OBSTORE_ERRORS, RETRY_STATUSES
from jobs.util.job_errors import StoreUnreachable

LARGEST_PAGE = 16 << 20  # bytes; a page has at most 1000 keys of 1 KB. A longer page is cut off: it does not parse
SIGNATURE_LIFETIME = timedelta(minutes=15)  # long enough for clocks that differ
_TRUE = ("1", "true", "on", "yes", "y")  # as obstore reads a switch


class NotListable(Exception):
    """The store's keys cannot be listed by this module."""


def list_raw_objects(store: Any, *, prefix: str, after: str, uri: str) -> Iterator[dict[str, Any]]:
    """Yields ``path``, ``size`` and ``e_tag`` of each key below ``prefix`` that sorts behind ``after``, in order.

    Raises NotListable, or StoreUnreachable with ``uri``.
    """
    page = {"list-type": "2", "encoding-type": "url", "prefix": prefix} | ({"start-after": after} if after else {})
    while True:
        answer = _request_page(store, page, uri)
        plain = unquote_plus if answer.findtext("{*}EncodingType") == "url" else str
        for entry in answer.iterfind("{*}Contents"):
            key = plain(entry.findtext("{*}Key") or "")
            yield {
                "path": key.removeprefix("/").removesuffix("/"),  # as obstore does
                "size": int(entry.findtext("{*}Size") or 0),
                "e_tag": entry.findtext("{*}ETag"),
            }
        token = answer.findtext("{*}NextContinuationToken")
        if not token:
            return
        page["continuation-token"] = token


def _request_page(store: Any, page: dict[str, str], uri: str) -> ElementTree.Element:
    until, pause = monotonic() + retry_seconds(), FIRST_PAUSE
    while True:
        try:
            with urlopen(_build_request(store, page), timeout=max(1.0, retry_seconds() / 3)) as answer:  # noqa: S310 - the user's endpoint
                listing = ElementTree.fromstring(answer.read(LARGEST_PAGE))  # noqa: S314 - the store's own
            if not listing.tag.endswith("ListBucketResult"):
                raise NotListable
            return listing
        except HTTPError as error:
            if error.code < 500 and error.code not in RETRY_STATUSES:
                raise NotListable from None
            trouble = f"it answered {error.code}"
        except ElementTree.ParseError:  # an unescaped control character
            raise NotListable from None
        except (OSError, HTTPException):
            trouble = "no connection"
        if monotonic() > until:
            raise StoreUnreachable(f"{uri}: the store failed, and went on failing ({trouble}).")
        sleep(pause)
        pause = min(LONGEST_PAUSE, 2 * pause)


def _build_request(store: Any, page: dict[str, str]) -> Request:
    query = urlencode(page, quote_via=quote, safe="")
    try:
        if store.prefix is None and isinstance(store, S3Store):
            return _build_s3_request(store, query)
        if store.prefix is None and isinstance(store, GCSStore):
            return _build_google_request(store, query)
    except OBSTORE_ERRORS:  # also credentials that may read but not sign
        raise NotListable from None
    raise NotListable


# The query is part of the endpoint, so that obstore signs it. The path, which obstore appends to the endpoint, becomes
# the value of a parameter that stores ignore.


def _build_s3_request(store: S3Store, query: str) -> Request:
    static = {"aws_access_key_id": "-", "aws_secret_access_key": "-"}  # so that no request for credentials is made
    place = _bucket_url(_with_settings(store, static))
    if _is_set("AWS_SKIP_SIGNATURE"):
        return Request(f"{place}?{query}")  # noqa: S310
    its_host = {"aws_endpoint_url_s3": f"{place}?{query}&x-id=", "aws_virtual_hosted_style_request": "true"}
    return Request(_sign(_with_settings(store, its_host)))  # noqa: S310


def _build_google_request(store: GCSStore, query: str) -> Request:
    token = os.environ.get("GOOGLE_BEARER_TOKEN")
    if token or _is_set("GOOGLE_SKIP_SIGNATURE"):
        place = os.environ.get("GOOGLE_BASE_URL", "https://storage.googleapis.com").rstrip("/")
        request = Request(f"{place}/{quote(store.config['bucket'], safe='')}?{query}")  # noqa: S310
        if token:
            request.add_unredirected_header("Authorization", f"Bearer {token}")
        return request
    return Request(_sign(_with_settings(store, {"google_base_url": f"{_bucket_url(store)}?{query}&x-id="})))  # noqa: S310


def _with_settings(store: Any, config: dict[str, str]) -> ObjectStore:
    """Returns a store of the same bucket with other settings."""
    options = {"client_options": store.client_options, "retry_config": store.retry_config}
    return type(store)(store.config["bucket"], config=config, **options)  # type: ignore[no-any-return]


def _bucket_url(store: Any) -> str:
    """Returns the URL of the bucket."""
    return _sign(store).partition("?")[0].rstrip("/")


def _sign(store: Any) -> str:
    return re.sub(
        "//[^/?]*@", "//", obstore.sign(store, "GET", "", SIGNATURE_LIFETIME), count=1
    )  # urlopen accepts no user info


def _is_set(variable: str) -> bool:
    return os.environ.get(variable, "").lower() in _TRUE
