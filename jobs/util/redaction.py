"""Removes credentials (user info, signatures and tokens) from addresses before anything is written.

A key of an object store may contain `?`, `@`, `=` and `#`, so only credentials are cut: the part in front of the host,
and parameters with the names that stores and services give to their signatures and tokens.
"""

from __future__ import annotations

import re
from urllib.parse import unquote

READ_SCHEMES = ("file", "s3", "gs", "az")
_CONTAINERS = frozenset({"wasb", "wasbs", "abfs", "abfss", "adl"})
"""Schemes of Azure that name the container in front of the account: `wasbs://container@account/`."""


def _or_encoded(sign: str) -> str:
    """Matches the sign, or its percent-encoding, also repeated: an address may stand in the query of another."""
    return rf"(?:{re.escape(sign)}|%(?:25){{0,3}}{ord(sign):02X})"


_AT, _COLON, _EQUALS = (_or_encoded(sign) for sign in "@:=")
_SCHEME = (
    rf"(?P<scheme>[A-Za-z][A-Za-z0-9+.-]{{0,30}}{_COLON}|(?<![^\s'\"(=,<\[{{]))"  # or none, where an address may begin
)
# A path with an address in it keeps one of its two slashes.
_SLASHES = (
    rf"(?P<slashes>(?:\\|{_or_encoded('/')}){{2,}}"
    r"|(?:(?<=https:)|(?<=http:)|(?<=ftp:)|(?<=s3:)|(?<=gs:)|(?<=az:))/)"
)
_FILE = r"\.(?:jpe?g|jpe|jfif|png|gif|webp|avif|jp2|bmp|tiff?|p[ngpb]m|tar|parquet|csv)"


def _user(end: str) -> str:
    """Returns the pattern of user info. ``end``: characters that no address contains. The lengths are bounded, because
    hostile names would take minutes."""
    name, query = rf"[^{end}/?#\\:\[\]]", r"(?<=[?&#;])[^=&@/]{1,100}=(?!@)"
    plain = rf"[^{end}/?#\\]{{0,1000}}"
    # A password that contains `/`, `?` or `#`, which a port does not.
    no_port = rf"{name}{{0,1000}}:(?!\d{{0,5}}(?:[{end}/?#\\]|$))[^{end}]{{0,1000}}"
    # A password that begins like a port, if a host follows the `@`, not a file, and not within a query.
    port = rf"(?:{name}{{2,1000}}:\d{{0,5}}|{name}?:\d{{1,5}})[/?#\\]"
    near = rf"(?=[^{end}@%]{{0,300}}[@%])"  # a quick check
    as_port = rf"{port}{near}(?:(?!{query})[^{end}]){{0,300}}(?={_AT}(?![^{end}/?#\\@]*{_FILE}(?:$|\W)))"
    return f"(?P<user>{plain}|{no_port}|{as_port}){_AT}"


# No host with a path follows a drive, or a name in front of a time of day.
_COPIED = re.compile(
    r"(?<![^\s'\"(=,<\[{])[^\s/\\:@'\"(=,<\[{]{1,100}:(?![/\\])\S{1,256}@"
    r"(?=(?:[A-Za-z0-9._-]{1,255}|\[[0-9A-Fa-f:.]{2,45}\]):(?:[/~:]|\d{1,5}/))"
)
"""The user and the password of an address of scp's, `user:password@host:/path`."""
_PAIR = rf"(?P<name>(?:(?!%(?:25){{0,3}}(?:3D|26|3F))[^=&;?#\s])+){_EQUALS}"
_PARAMETER = re.compile(rf"(?P<mark>[?&;#]|%(?:25){{0,3}}(?:3F|26|3B|23)){_PAIR}", re.I)
_INNER = re.compile(_PAIR, re.I)
_NEXT = re.compile(_or_encoded("&") + "|$", re.I)  # a value may contain all other characters
_QUOTE = rf"(?:\\?[\"']|{_or_encoded(chr(34))}|{_or_encoded(chr(39))})"
_MEMBER = re.compile(
    rf"(?P<quote>{_QUOTE})(?P<name>[\w.-]{{1,100}})(?P=quote)(?:\s|\+|%20)*+{_COLON}(?:\s|\+|%20)*+"
    rf"(?:(?P<open>{_QUOTE})(?P<text>(?:(?!(?P=open))(?:\\.|.)){{1,5000}})|(?!{_QUOTE})(?P<bare>[^\s\"',}}\]%&]{{1,5000}}))",
    re.I | re.S,
)
"""A member of a JSON object, within the query of an address."""
_SECRET = re.compile(
    r"(signature|token|secret|passw(or)?d|passphrase|credentials?|(api|access|secret|private|auth|session|subscription)key"
    r"|accesskeyid|authorization|jwt|hmac|sessionid|bearer|otp|passcode)$|^(sig|auth|pwd|pass|pw|hdn(ts|ea|tl)|gda)$"
)
_BESIDE = re.compile(
    r"^(x(amz|goog|oss|cos|obs|ms|bz).*|googleaccessid|keypairid|policy|expir(es|y)|exp|key"
    r"|s[eprstvis]|spr|srt|sip|sdd|ses|sk(e|s|t|v|oid|tid)|s[ac]?oid|suoid|scid)$"
)
"""Parameters beside a signature that are useless without it: its date, its expiry, its permissions."""
_LONG_SECRETS = frozenset({"key", "code", "ticket", "hash"})
LONG_KEY = 16
"""The length from which such a parameter counts as a service's key; those have 30 characters and more."""


def scrubbed(address: str) -> str:
    """Returns an address or a path without its credentials; unchanged if it has none."""
    return _without_secrets(_USER_IN_ADDRESS.sub(_without_user, _COPIED.sub("", address)))


def scrubbed_text(text: str) -> str:
    """Returns a text without the credentials of the addresses in it. An address ends at white space."""
    if "@" not in text and "=" not in text and "%" not in text and '":' not in text:
        return text
    text = _USER_IN_TEXT.sub(_without_user, _COPIED.sub("", text))
    return _ADDRESS_IN_TEXT.sub(lambda match: _without_secrets(match[0]), text)


def holds_credentials(address: str) -> bool:
    """Whether scrubbing would change the address."""
    return scrubbed(address) != address


def plain_scheme(address: str) -> str:
    """Returns an address with one of ``READ_SCHEMES`` in lower case, without white space in front; others unchanged."""
    match = re.match(rf"\s*({'|'.join(READ_SCHEMES)})://", address, re.I)
    return f"{match[1].lower()}://{address[match.end() :]}" if match else address


def _pattern(end: str) -> re.Pattern[str]:
    return re.compile(_SCHEME + _SLASHES + _user(end), re.I)


_USER_IN_ADDRESS, _USER_IN_TEXT = _pattern(r"\0"), _pattern(r"\s")
_ADDRESS_IN_TEXT = re.compile(rf"{_SCHEME}{_SLASHES}\S+", re.I)


def _without_user(match: re.Match[str]) -> str:
    scheme, user = match["scheme"], _decoded(match["user"])
    is_name = not scheme or _decoded(scheme).rstrip(":").lower() in _CONTAINERS
    return match[0] if is_name and ":" not in user else f"{scheme}{match['slashes']}"


def _without_secrets(address: str) -> str:
    return _without_parameters(_MEMBER.sub(_without_value, address))


def _without_value(member: re.Match[str]) -> str:
    value = "bare" if member["text"] is None else "text"
    name = _plain(member["name"])
    if not _SECRET.search(name) and not (name in _LONG_SECRETS and len(member[value]) >= LONG_KEY):
        return member[0]
    return member[0][: member.start(value) - member.start()]


def _without_parameters(address: str) -> str:
    parameters = list(_PARAMETER.finditer(address))
    if not any(_is_secret(parameter) for parameter in parameters):
        return address
    rest, end, mark = "", 0, ""
    for parameter in parameters:
        if parameter.start() < end:  # lies within a value that was cut
            continue
        rest += address[end : parameter.start()]
        if _is_secret(parameter) or _BESIDE.search(_plain(parameter["name"])):
            end = _value_end(parameter)
            mark = mark or parameter["mark"]  # the next parameter gets this mark
        else:
            rest += (mark or parameter["mark"]) + parameter[0].removeprefix(parameter["mark"])
            end, mark = parameter.end(), ""
    return rest + address[end:]


def _value_end(parameter: re.Match[str]) -> int:
    next_mark = _NEXT.search(parameter.string, parameter.end())
    return len(parameter.string) if next_mark is None else next_mark.start()


def _is_secret(parameter: re.Match[str]) -> bool:
    if _names_secret(parameter):
        return True
    inner = _INNER.match(parameter.string, parameter.end())  # a form in a parameter's value
    return inner is not None and _names_secret(inner)


def _names_secret(parameter: re.Match[str]) -> bool:
    name = _plain(parameter["name"])
    return bool(_SECRET.search(name)) or (name in _LONG_SECRETS and _value_end(parameter) - parameter.end() >= LONG_KEY)


def _plain(name: str) -> str:
    return re.sub(r"[-_.\s\[\]]", "", _decoded(name)).lower()


def _decoded(text: str) -> str:
    for _ in range(4):
        text = unquote(text)
    return text
