"""URLs that users write, taken apart strictly, with their credentials kept where no message finds them."""

from __future__ import annotations

import base64
import posixpath
import re
from urllib.parse import quote, unquote, urljoin, urlsplit

import msgspec

from firebuild.errors import UsageError
from firebuild.events.text import neutralise

URL_LIMIT = 8192
_HOST = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._-]{0,251}[A-Za-z0-9])?")
_IPV6 = re.compile(r"[0-9A-Fa-f:.]{2,45}")
# Everything up to the last `@` before the path: a password may hold an `@` that nobody escaped.
_USERINFO = re.compile(r"(?P<scheme>[A-Za-z][A-Za-z0-9+.-]*)://(?P<login>[^/\s?#]*)@")
DEFAULT_PORTS = {"http": 80, "https": 443, "ssh": 22, "git": 9418}


class Login(msgspec.Struct, frozen=True):
    """A user and a password for one origin; both stay out of every representation."""

    user: str
    password: str = ""

    def __repr__(self) -> str:
        return "Login()"


class Url(msgspec.Struct, frozen=True):
    """A parsed URL. `host`: lower case, without brackets; `path`: as sent, percent-encoded; `query`: without its `?`."""

    scheme: str
    host: str
    port: int | None
    path: str
    query: str = ""
    login: Login | None = None

    @property
    def netloc(self) -> str:
        """Host and port as they stand in a URL, without credentials."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port is None else f"{host}:{self.port}"

    @property
    def effective_port(self) -> int:
        """The port that is connected to."""
        return self.port if self.port is not None else DEFAULT_PORTS[self.scheme]

    @property
    def origin(self) -> tuple[str, str, int]:
        """Scheme, host and port: credentials belong to one origin only."""
        return self.scheme, self.host, self.effective_port

    @property
    def text(self) -> str:
        """The URL without credentials."""
        return f"{self.scheme}://{self.netloc}{self.path}" + (f"?{self.query}" if self.query else "")

    @property
    def shown(self) -> str:
        """For messages and records: without credentials, and without the query, which may be a signature."""
        return f"{self.scheme}://{self.netloc}{self.path}" + ("?…" if self.query else "")

    @property
    def name(self) -> str:
        """The last component of the path, decoded, as BuildKit names what ADD fetches; `__unnamed__` if there is none."""
        name = posixpath.basename(posixpath.normpath(unquote(self.path or "/", errors="surrogateescape")))
        return name if name not in ("", ".", "..", "/") and "\0" not in name else "__unnamed__"

    def join(self, location: str) -> Url:
        """The URL that a relative reference or a Location header means. Raises UsageError."""
        return parse_url(urljoin(self.text, location.strip(" \t")), ("http", "https"))


def parse_url(text: str, schemes: tuple[str, ...]) -> Url:
    """A URL of one of `schemes`; a fragment is dropped. Raises UsageError, which never shows the credentials."""
    shown = redact_urls(neutralise(text[:200]))
    if len(text) > URL_LIMIT:
        raise UsageError(f"`{shown}…` is longer than {URL_LIMIT} characters")
    if any(not char.isprintable() or char in " \\" for char in text):
        raise UsageError(f"`{shown}` is not a URL: it holds a space, a backslash or a control character")
    try:
        parts = urlsplit(text)
        port = parts.port
    except ValueError as error:
        raise UsageError(f"`{shown}` is not a URL: {redact_urls(str(error))}") from None
    scheme = parts.scheme.lower()
    if scheme not in schemes:
        raise UsageError(f"`{shown}` is not a URL that begins with {' or '.join(f'{each}://' for each in schemes)}")
    userinfo, at, _ = parts.netloc.rpartition("@")
    login = None
    if at:
        user, _, password = userinfo.partition(":")
        login = Login(unquote(user), unquote(password)) if userinfo else None
        if login and any(ord(char) < 32 or ord(char) == 127 for char in login.user + login.password):
            raise UsageError(f"the credentials in `{shown}` hold a control character")
    if port == 0:
        raise UsageError(f"`{shown}` has the port 0")
    path = quote(parts.path, safe="/%:@!$&'()*+,;=~-._", errors="surrogateescape")
    query = quote(parts.query, safe="/%:@!$&'()*+,;=~-._?", errors="surrogateescape")
    return Url(scheme, parse_host(parts.hostname or "", shown), port, path, query, login)


def parse_host(host: str, shown: str) -> str:
    """A host name or address as a URL has it, in lower case. Raises UsageError."""
    if ":" in host:
        if _IPV6.fullmatch(host):
            return host.lower()
    else:
        try:
            host = host if host.isascii() else host.encode("idna").decode("ascii")
        except UnicodeError:
            host = ""
        if _HOST.fullmatch(host):
            return host.lower()
    raise UsageError(f"`{shown}` names no valid host")


def basic_credentials(url: Url) -> str:
    """The value of an Authorization header for the URL's login (RFC 7617)."""
    assert url.login is not None, "only a URL with a login has credentials"
    return "Basic " + base64.b64encode(f"{url.login.user}:{url.login.password}".encode()).decode()


def redact_urls(text: str) -> str:
    """`text` with the credentials of every URL in it taken away; the user of an ssh or git URL is no secret and stays."""

    def strip(match: re.Match[str]) -> str:
        scheme, login = match["scheme"], match["login"]
        if "http" in scheme.lower() or "ftp" in scheme.lower():
            return f"{scheme}://"
        return f"{scheme}://{login.partition(':')[0]}@"

    return _USERINFO.sub(strip, text)
