"""Addresses without the credentials in them: user info, signatures and tokens, which are never written anywhere.

A key of an object store may itself hold `?`, `@`, `=` and `#`, so only what is a credential is cut: what stands in
front of the host, and parameters with the names that stores and services give to their signatures and tokens.
"""

from __future__ import annotations

import re
from urllib.parse import unquote

READ_SCHEMES = ("file", "s3", "gs", "az")
_CONTAINERS = frozenset({"wasb", "wasbs", "abfs", "abfss", "adl"})
"""Schemes of Azure that name the container in front of the account: `wasbs://container@account/`."""

_SCHEME = (
    r"(?P<scheme>[A-Za-z][A-Za-z0-9+.-]{0,30}(?::|%3A)|(?<![^\s'\"(=,<\[{]))"  # or none, where an address may begin
)
# One slash is what is left of two when an address went through a path.
_SLASHES = r"(?P<slashes>(?:[/\\]|%2F){2,}|(?:(?<=https:)|(?<=http:)|(?<=ftp:)|(?<=s3:)|(?<=gs:)|(?<=az:))/)"
# {0}: what an address cannot hold. The second form is of a password that holds `/`, `?` or `#`: no port reads so.
# The lengths are bounded, or hostile names would take minutes.
_USER = r"(?P<user>[^{0}/?#\\]{{0,1000}}|[^{0}/?#\\:\[\]]{{0,1000}}:(?!\d*(?:[{0}/?#\\]|$))[^{0}]{{0,1000}})(?:@|%40)"
_PARAMETER = re.compile(r"(?P<mark>[?&;#]|%3F|%26|%3B)(?P<name>(?:(?!%3D|%26|%3F)[^=&;?#\s])+)(?:=|%3D)", re.I)
_NEXT = re.compile(r"&|%26|$", re.I)  # a value may hold all else
_SECRET = re.compile(
    r"(signature|token|secret|passw(or)?d|passphrase|credentials?|(api|access|secret|private|auth|session|subscription)key"
    r"|accesskeyid|authorization|jwt|hmac|sessionid|bearer|otp|passcode)$|^(sig|auth|pwd|pass|pw|hdn(ts|ea|tl)|gda)$"
)
_BESIDE = re.compile(
    r"^(x(amz|goog|oss|cos|obs|ms|bz).*|googleaccessid|keypairid|policy|expir(es|y)|exp|key"
    r"|s[eprstvis]|spr|srt|sip|sdd|ses|sk(e|s|t|v|oid|tid)|s[ac]?oid|suoid|scid)$"
)
"""What stands beside a signature and is of no use without it: its date, its end, what it allows."""
_LONG_SECRETS = frozenset({"key", "code", "ticket", "hash"})
LONG_KEY = 16
"""Characters from which such a parameter is a service's key: those have 30 and more."""


def scrubbed(address: str) -> str:
    """One address, or a path, without its credentials. What holds none comes back unchanged."""
    return _without_parameters(_USER_IN_ADDRESS.sub(_without_user, address))


def scrubbed_text(text: str) -> str:
    """A text without the credentials of the addresses in it, which end at white space."""
    if "@" not in text and "=" not in text and "%" not in text:
        return text
    text = _USER_IN_TEXT.sub(_without_user, text)
    return _ADDRESS_IN_TEXT.sub(lambda found: _without_parameters(found[0]), text)


def holds_credentials(address: str) -> bool:
    """Whether scrubbing would cut anything."""
    return scrubbed(address) != address


def plain_scheme(address: str) -> str:
    """An address whose scheme is read, with that scheme in lower case and without white space in front; others as
    they are."""
    found = re.match(rf"\s*({'|'.join(READ_SCHEMES)})://", address, re.I)
    return f"{found[1].lower()}://{address[found.end() :]}" if found else address


def _pattern(end: str) -> re.Pattern[str]:
    return re.compile(_SCHEME + _SLASHES + _USER.format(end), re.I)


_USER_IN_ADDRESS, _USER_IN_TEXT = _pattern(r"\0"), _pattern(r"\s")
_ADDRESS_IN_TEXT = re.compile(rf"{_SCHEME}{_SLASHES}\S+", re.I)


def _without_user(found: re.Match[str]) -> str:
    scheme, user = found["scheme"], unquote(found["user"])
    is_name = not scheme or unquote(scheme).rstrip(":").lower() in _CONTAINERS
    return found[0] if is_name and ":" not in user else f"{scheme}{found['slashes']}"


def _without_parameters(address: str) -> str:
    found = list(_PARAMETER.finditer(address))
    if not any(_is_secret(one) for one in found):
        return address
    rest, end, mark = "", 0, ""
    for one in found:
        if one.start() < end:  # within a value that was cut
            continue
        rest += address[end : one.start()]
        if _is_secret(one) or _BESIDE.search(_plain(one["name"])):
            end = _value_end(one)
            mark = mark or one["mark"]  # what follows takes its place
        else:
            rest += (mark or one["mark"]) + one[0].removeprefix(one["mark"])
            end, mark = one.end(), ""
    return rest + address[end:]


def _value_end(parameter: re.Match[str]) -> int:
    found = _NEXT.search(parameter.string, parameter.end())
    return len(parameter.string) if found is None else found.start()


def _is_secret(parameter: re.Match[str]) -> bool:
    name = _plain(parameter["name"])
    return bool(_SECRET.search(name)) or (name in _LONG_SECRETS and _value_end(parameter) - parameter.end() >= LONG_KEY)


def _plain(name: str) -> str:
    return re.sub(r"[-_.\s]", "", unquote(name)).lower()
