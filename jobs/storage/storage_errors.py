"""What object stores and disks raise, in our words: their own texts may quote signed URLs.

What is wrong with one object is an OSError. What is wrong with its whole store is StoreUnreachable: no image is to
blame.
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
"""What obstore's functions raise, its writers (an OSError without a number) among them."""

CREDENTIAL_ERRORS = {
    "ExpiredToken": "the credentials have expired: renew them",
    "ExpiredTokenException": "the credentials have expired: renew them",
    "TokenRefreshRequired": "the credentials have expired: renew them",
    "InvalidToken": "the credentials are not valid: renew them",
    "InvalidAccessKeyId": "the store does not know the access key: check the credentials",
    "SignatureDoesNotMatch": "the secret key is not that of the access key: check the credentials",
    "AuthenticationFailed": "the store does not accept the credentials: check or renew them",
    "AccountIsDisabled": "the account is disabled",
    "RequestTimeTooSkewed": "the clock of this machine and that of the store differ: set it",
    "RequestExpired": "the clock of this machine and that of the store differ: set it",
}
"""Refusals that are of the asker, not of the object."""
RETRY_STATUSES = frozenset({408, 425, 429})
"""Of the statuses from 400 to 499, those that ask for another try."""
MACHINE_ERRNOS = frozenset(
    {errno.ENOTCONN, errno.ETIMEDOUT, errno.EHOSTDOWN, errno.EHOSTUNREACH, errno.EMFILE, errno.ENFILE, errno.ENOMEM}
)
"""A mount that is gone, or a process at its limits: a local file that cannot be opened so is not to blame."""
_DISK = {
    errno.ENOSPC: "no space is left on its device: free some, and run the same command again",
    errno.EDQUOT: "its disk quota is used up: free some or have it raised, and run the same command again",
    errno.EFBIG: "its device, or `ulimit -f`, takes no file so large: raise it, or take a smaller --unit-size",
    errno.EROFS: "its device is mounted read-only: mount it for writing, and run the same command again",
}
_CREDENTIALS = re.compile(r"performing \w+ https?://(169\.254\.|metadata\.|sts\.|oauth2\.|login\.)")
"""A request for credentials, not for an object."""


class NotAFile(OSError):
    """A directory, a device, a pipe, or a key that cannot be asked for: nothing under that name can ever be read."""


@contextmanager
def translated_errors(uri: str) -> Iterator[None]:
    """Turns what obstore raises over ``uri`` into an OSError or StoreUnreachable, without the store's own text."""
    try:
        yield
    except InvalidRequestError:  # a ValueError, and ours
        raise
    except OBSTORE_ERRORS as error:
        if isinstance(error, OSError) and error.filename == uri:
            raise  # told already
        raise translate_error(error, uri) from None


def translate_error(error: Exception, uri: str) -> OSError | StoreUnreachable:
    """``error``, which obstore raised, as ours."""
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
            f"{uri}: no credentials could be had: there are none in the environment, and this machine's own service "
            "for them gave none."
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
    """Whether a later try may end otherwise: the store did not answer, or answered that it cannot for now."""
    if isinstance(error, FileNotFoundError | AlreadyExistsError | PermissionDeniedError | UnauthenticatedError):
        return False
    text, status = str(error), status_of(error)
    if not text.startswith("Generic ") or _disk_errno(error) is not None or _describe_wrong_address(text):
        return False
    return status is None or status >= 500 or status in RETRY_STATUSES


def status_of(error: Exception) -> int | None:
    """The HTTP status that the store answered with; None where it did not answer."""
    match = re.search(r"status code: (\d+)", str(error))
    return int(match[1]) if match else None


def _code(error: Exception) -> str | None:
    match = re.search(r"<Code>(\w+)</Code>", str(error))
    return match[1] if match else None


def _disk_errno(error: Exception) -> int | None:
    """Remote errors have such numbers too, of their sockets."""
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
        f"the key{key} has an empty segment (`//`), `.`, `..` or a control character, and cannot be asked for: "
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
