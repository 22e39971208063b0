"""The keys with which an application's secrets are encrypted."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from sqla_jobs.errors import ConfigurationError, Undecryptable

if TYPE_CHECKING:
    from cryptography.fernet import MultiFernet

EncryptionKeys = Sequence[str] | Callable[[], Sequence[str]]
"""The keys of a ring, or a function that returns them. The first key encrypts, and each of them decrypts."""
VARIABLE = "SQLA_JOBS_KEYS"
"""The environment variable with the keys, separated by commas."""
_MAKE = 'python -c "from cryptography.fernet import Fernet; print(Fernet.generate_key().decode())"'
_INSTALL = "encryption needs the package cryptography: install sqla-jobs[encryption]"
_MISSING = f"there is no key: set {VARIABLE}, or give Jobs(…, encryption_keys=…)"


@dataclass(frozen=True, slots=True, repr=False)
class _Ciphers:
    """What is made of one state of the keys: ciphers, or the fault that prevents them."""

    given: str | tuple[Any, ...]
    fault: str = ""
    to_encrypt: str = ""
    """The end of the message about the fault, for who encrypts. A new key does not help who decrypts."""
    all: MultiFernet | None = None


def _made(given: str | tuple[Any, ...], source: str) -> _Ciphers:
    """Make ciphers of keys. A fault is returned: a traceback of an error here would have keys in its frames."""
    try:
        from cryptography.fernet import Fernet, MultiFernet
    except ImportError:
        return _Ciphers(given, _INSTALL)
    keys = [key for key in map(str.strip, given.split(",")) if key] if isinstance(given, str) else given
    ciphers: list[Fernet] = []
    for key in keys:
        try:
            ciphers.append(Fernet(key))
        except Exception:  # noqa: BLE001 - ValueError, TypeError and others, by the kind of nonsense
            number = len(ciphers) + 1
            return _Ciphers(given, f"key {number} of {source} is not a Fernet key", f". This makes one: {_MAKE}")
    if not ciphers:
        return _Ciphers(
            given, _MISSING, f", in each process that enqueues or runs encrypted tasks. This makes a key: {_MAKE}"
        )
    return _Ciphers(given, all=MultiFernet(ciphers))


class KeyRing:
    """The keys of an application, which are asked for at each use. No error and no `repr` contains a key."""

    def __init__(self, keys: EncryptionKeys | None) -> None:
        is_list = isinstance(keys, Sequence) and not isinstance(keys, str | bytes)
        if not (keys is None or callable(keys) or is_list):
            raise ConfigurationError(
                f"encryption_keys must be a list of keys, or a function that returns one, got a {type(keys).__name__}"
            )
        self._keys: Any = keys if keys is None or callable(keys) else tuple(keys)
        self._made: _Ciphers | None = None

    def check(self) -> None:
        """Raise `ConfigurationError` if the extra is missing, or a key that code gives is malformed."""
        if find_spec("cryptography") is None:
            raise ConfigurationError(_INSTALL)
        if isinstance(self._keys, tuple):
            self.require()

    def check_start(self) -> None:
        """Raise `ConfigurationError` if a key is malformed. Keys may be missing."""
        if self._ciphers().given:
            self.require()

    def require(self) -> MultiFernet:
        """Return the ciphers. Raises `ConfigurationError` if there are none."""
        ciphers = self._ciphers()
        if ciphers.all is None:
            raise ConfigurationError(ciphers.fault + ciphers.to_encrypt)
        return ciphers.all

    def encrypt(self, data: bytes) -> str:
        """Return the token of `data`, encrypted with the first key. Raises `ConfigurationError`."""
        return self.require().encrypt(data).decode()

    def decrypt(self, token: str) -> bytes:
        """Return the data of a token. Raises `Undecryptable`."""
        ciphers = self._ciphers()
        if ciphers.all is not None:
            try:
                return ciphers.all.decrypt(token)
            except Exception:  # noqa: BLE001, S110 - InvalidToken, which is imported only with the keys
                pass
        if ciphers.fault:
            remedy = f"{ciphers.fault}; only the key that encrypted it decrypts it, a new one does not"
        else:
            remedy = f"this process lacks its key: add that to {VARIABLE} or encryption_keys=, after the first key"
        raise Undecryptable(f"a stored value is encrypted, and {remedy}")

    def _ciphers(self) -> _Ciphers:
        keys = self._keys
        if callable(keys):
            try:
                found: Any = keys()
                keys = (found,) if isinstance(found, str | bytes) else tuple(found)
            except Exception as error:  # noqa: BLE001 - any, of the application's function; its text may show a key
                return _Ciphers((), f"the function encryption_keys raised {type(error).__name__}, or returned no list")
        given: str | tuple[Any, ...] = os.environ.get(VARIABLE, "") if keys is None else keys
        ciphers = self._made
        if ciphers is None or ciphers.given != given:
            ciphers = self._made = _made(given, VARIABLE if keys is None else "encryption_keys")
        return ciphers
