"""Translates the errors of object stores and disks, because their own texts may quote signed URLs.

An error of one object becomes an OSError. An error of its whole store becomes StoreUnreachable: the images are not the
cause.
"""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager

from obstore.exceptions import AlreadyExistsError, BaseError, PermissionDeniedError, UnauthenticatedError

from jobs.util.job_errors import StoreUnreachable
from saliency_core.errors import InvalidRequestError

OBSTORE_ERRORS = (BaseError, OSError, ValueError)
"""The exceptions of obstore's functions, including its writers (an OSError without a number)."""

CREDENTIAL_ERRORS = {
    "ExpiredToken": "the credentials have expired: renew them",
    "ExpiredTokenException": "the credentials have expired: renew them",
    "TokenRefreshRequired": "the credentials have expired: renew them",
    "InvalidToken": "the credentials are not valid: renew them",
    "InvalidAccessKeyId": "the store has no such access key: check the credentials",
    "SignatureDoesNotMatch": "the secret key is not that of the access key: check the credentials",
    "AuthenticationFailed": "the store does not accept the credentials: check or renew them",
    "AccountIsDisabled": "the account is disabled",
    "RequestTimeTooSkewed": "the clock of this machine and that of the store differ: set it",
    "RequestExpired": "the clock of this machine and that of the store differ: set it",
}
"""Error codes that concern the credentials or the clock, not the object."""
RETRY_STATUSES = frozenset({408, 425, 429})
"""Those statuses from 400 to 499 after which a retry may succeed."""
MACHINE_ERRNOS = frozenset(
    {errno.ENOTCONN, errno.ETIMEDOUT, errno.EHOSTDOWN, errno.EHOSTUNREACH, errno.EMFILE, errno.ENFILE, errno.ENOMEM}
)
"""Errors of a lost mount, or of a process at its limits. The local file that cannot be opened is not the cause."""
_DISK = {
    errno.ENOSPC: "no space is left on its device: free some, and run the same command again",
    errno.EDQUOT: "its disk quota is used up: free some or have it raised, and run the same command again",
    errno.EFBIG: "its device, or `ulimit -f`, takes no file so large: raise it, or take a smaller --unit-size",
    errno.EROFS: "its device is mounted read-only: mount it for writing, and run the same command again",
}
_CREDENTIALS = re.compile(r"performing \w+ https?://(169\.254\.|metadata\.|sts\.|oauth2\.|login\.)")
"""Matches a request for credentials, not for an object."""


class NotAFile(OSError):
    """A directory, a device, a pipe, or a key that cannot be requested. Retries are useless."""


@contextmanager
def translated_errors(uri: str) -> Iterator[None]:
    """Translates exceptions of obstore over ``uri`` into OSError or StoreUnreachable, without the store's own text."""
    try:
        yield
    except InvalidRequestError:  # a ValueError of this program
        raise
    except OBSTORE_ERRORS as error:
        if isinstance(error, OSError) and error.filename == uri:
            raise  # translated already
        raise translate_error(error, uri) from None


def translate_error(error: Exception, uri: str) -> OSError | StoreUnreachable:
    """Returns an exception of obstore as OSError or StoreUnreachable."""
    text, status, code = str(error), status_of(error), _code(error)
    if isinstance(error, FileNotFoundError):
        return FileNotFoundError(errno.ENOENT, "no such object", uri)
    if isinstance(error, AlreadyExistsError):
        return FileExistsError(errno.EEXIST, "is there already", uri)
    if code in CREDENTIAL_ERRORS:
        return StoreUnreachable(f"{uri}: {CREDENTIAL_ERRORS[code]} ({code}).")
    if isinstance(error, UnauthenticatedError):
        return StoreUnreachable(
            f"{uri}: the store does not accept the credentials ({status or 401}): check or renew them."
        )
    if _CREDENTIALS.search(text):
        return StoreUnreachable(
            f"{uri}: no credentials were found: the environment has none, and this machine's own service for them gave "
            "none."
        )
    number = _disk_errno(error)
    if number is not None:
        return OSError(number, _DISK.get(number, os.strerror(number)), uri)
    if isinstance(error, PermissionDeniedError):
        detail = f" ({code})" if code else ""
        return PermissionError(errno.EACCES, f"access denied{detail}: check the store's credentials", uri)
    if is_transient(error):
        return StoreUnreachable(
            f"{uri}: the store failed, and went on failing ({_describe_failure(text, status, code)})."
        )
    if odd_key := _describe_odd_key(text):
        return NotAFile(errno.EIO, odd_key, uri)
    return OSError(errno.EIO, _describe_wrong_address(text) or _describe_answer(status, code, error), uri)


def is_transient(error: Exception) -> bool:
    """Whether a retry may succeed: the store did not answer, or answered that it cannot for now."""
    if isinstance(error, FileNotFoundError | AlreadyExistsError | PermissionDeniedError | UnauthenticatedError):
        return False
    text, status = str(error), status_of(error)
    if not text.startswith("Generic ") or _disk_errno(error) is not None or _describe_wrong_address(text):
        return False
    return status is None or status >= 500 or status in RETRY_STATUSES


def status_of(error: Exception) -> int | None:
    """Returns the HTTP status of the answer; None if the store did not answer."""
    match = re.search(r"status code: (\d+)", str(error))
    return int(match[1]) if match else None


def _code(error: Exception) -> str | None:
    match = re.search(r"<Code>(\w+)</Code>", str(error))
    return match[1] if match else None


def _disk_errno(error: Exception) -> int | None:
    """Returns the errno of a disk. Remote errors have such numbers too, for their sockets."""
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno
    match = re.search(r"\(os error (\d+)\)", str(error)) if "LocalFileSystem" in str(error) else None
    return int(match[1]) if match else None


def _describe_odd_key(text: str) -> str | None:
    if "empty path segment" not in text and "illegal character" not in text:
        return None
    match = re.search(r'path: "((?:[^"\\]|\\.)*)"', text)
    key = f" {match[1]}" if match else ""
    return (
        f"the key{key} has an empty segment (`//`), `.`, `..` or a control character, and cannot be requested: "
        "rename it"
    )


def _describe_wrong_address(text: str) -> str | None:
    if odd_key := _describe_odd_key(text):
        return odd_key
    if "BadScheme" in text:
        return "the store's endpoint is http, not https: allow that with AWS_ALLOW_HTTP=true (GOOGLE_…, AZURE_…)"
    if "incorrectly configured region" in text:
        return "the bucket is in another region: set AWS_REGION"
    return None


def _describe_answer(status: int | None, code: str | None, error: Exception) -> str:
    details = " ".join(str(detail) for detail in (status, code) if detail)
    return f"the object store answered with an error ({details or type(error).__name__})"


def _describe_failure(text: str, status: int | None, code: str | None) -> str:
    if status is not None:
        return f"it answered {status}{f' {code}' if code else ''}"
    causes = {
        "ConnectionRefused": "connection refused",
        "dns error": "its name cannot be resolved",
        "Timeout": "no answer in time",
        "ConnectionReset": "connection reset",
        "IncompleteMessage": "connection closed",
        "UnexpectedEof": "connection closed",
        "Body": "the answer was cut off",
    }
    return next((words for name, words in causes.items() if name in text), "no connection")
