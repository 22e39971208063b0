"""Encryption of what a task's jobs store: arguments, results, errors, progress and steps."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, cast

from pydantic_core import from_json, to_json

from sqla_jobs.errors import ArgumentsError, ConfigurationError, DeclarationError, Undecryptable
from sqla_jobs.rules.outcomes import Failure
from sqla_jobs.rules.redaction import ENCRYPTED, token_of
from sqla_jobs.tasks.arguments import Codec, encode_result
from sqla_jobs.tasks.signature import Signature
from sqla_jobs.tasks.values import ValueCodec

if TYPE_CHECKING:
    from cryptography.fernet import Fernet, MultiFernet

    from sqla_jobs.rules.keys import KeyOf

EncryptionKeys = Sequence[str] | Callable[[], Sequence[str]]
"""The keys of a ring, or a function that returns them. The first key encrypts, and each of them decrypts."""
VARIABLE = "SQLA_JOBS_KEYS"
"""The environment variable with the keys, separated by commas."""
_MAKE = 'python -c "from cryptography.fernet import Fernet; print(Fernet.generate_key().decode())"'
_INSTALL = "encryption needs the package cryptography: install sqla-jobs[encryption]"
_MISSING = f"there is no key: set {VARIABLE}, or give Jobs(…, encryption_keys=…)"
_OPENING = f'{{"{ENCRYPTED}":'.encode()
_ENCRYPTED = re.compile(rf'\{{"{re.escape(ENCRYPTED)}": ?"([\w=-]+)"\}}')
"""An encrypted value in JSON. Inside a JSON text its quotes would be escaped, so none is found there."""


@dataclass(frozen=True, slots=True, repr=False)
class _Ciphers:
    """What is made of one state of the keys: ciphers, or the fault that prevents them."""

    given: str | tuple[Any, ...]
    fault: str = ""
    to_encrypt: str = ""
    """The end of the message about the fault, for who encrypts. A new key does not help who decrypts."""
    first: Fernet | None = None
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
    return _Ciphers(given, first=ciphers[0], all=MultiFernet(ciphers))


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

    def check_start(self, used: Iterable[Encryption | None]) -> None:
        """Raise `ConfigurationError` if any encryption is used, and a key is malformed. Keys may be missing."""
        if any(used) and self._ciphers().given:
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

    def is_newest(self, token: str) -> bool:
        """Return whether a token is encrypted with the first key."""
        first = self._ciphers().first
        try:
            if first is not None:
                first.decrypt(token)
        except Exception:  # noqa: BLE001 - InvalidToken
            return False
        return first is not None

    def text(self, text: str) -> str:
        """Return the token of `text` as a JSON object, for columns of JSON and of text."""
        return f'{{"{ENCRYPTED}":"{self.encrypt(text.encode())}"}}'

    def opened(self, stored: str) -> str:
        """Decrypt all encrypted values in JSON, or a text that is encrypted as a whole. Raises `Undecryptable`."""
        return _ENCRYPTED.sub(lambda found: self.decrypt(found[1]).decode(), stored)

    def value(self, stored: Any) -> Any:
        """Return a value decoded from JSON, decrypted. One that is not encrypted is returned as it is."""
        return stored if (token := token_of(stored)) is None else from_json(self.decrypt(token))

    def decrypted(self, stored: Any) -> Any:
        """Return the value of a column, decrypted: a text, a JSON value, or arguments by name."""
        if isinstance(stored, str):
            return self.opened(stored) if _ENCRYPTED.fullmatch(stored) else stored
        if isinstance(stored, dict) and token_of(stored) is None:
            return {name: self.value(value) for name, value in cast("dict[str, Any]", stored).items()}
        return self.value(stored)

    def rotated(self, stored: str) -> tuple[str, int]:
        """Encrypt what older keys have encrypted with the first key. Return the number of unreadable values, too."""
        unreadable = 0

        def rotate(found: re.Match[str]) -> str:
            nonlocal unreadable
            if self.is_newest(found[1]):
                return found[0]
            try:
                return self.text(self.decrypt(found[1]).decode())
            except Undecryptable:
                unreadable += 1
                return found[0]

        return _ENCRYPTED.sub(rotate, stored), unreadable

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


class Encryption:
    """The encryption of one task's jobs."""

    def __init__(self, ring: KeyRing, names: frozenset[str], *, writes: bool) -> None:
        """Prepare. `names` are the encrypted arguments. Unless `writes`, nothing is encrypted, only decrypted."""
        self.ring = ring
        self.names = names
        self._writes = writes

    def text(self, text: str) -> str:
        """Return a text, or the text of a JSON value, as it is stored. Raises `ConfigurationError`."""
        return self.ring.text(text) if self._writes else text

    def arguments(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """Return arguments, given as JSON values, as they are stored. Raises `ConfigurationError`."""
        found = [name for name in self.names if name in values]
        return {**values, **{name: {ENCRYPTED: self.ring.encrypt(to_json(values[name]))} for name in found}}

    def encode_result(self, value: Any) -> str | None:
        """Encode a task's result like `encode_result`, and encrypt it."""
        encoded = encode_result(value)
        return None if encoded is None else self.text(encoded)

    def failure(self, failure: Failure) -> Failure:
        """Return a failure with its stored form. Its texts stay readable for logs and handlers in this process."""
        if not self._writes:
            return failure
        try:
            traceback = None if failure.traceback is None else self.text(failure.traceback)
            stored = Failure(failure.type, self.text(failure.message), traceback)
        except ConfigurationError as error:
            stored = Failure(failure.type, f"(withheld: it could not be encrypted, since {error})")
        return replace(failure, stored=stored)

    def readable(self, stored: object) -> object:
        """Return arguments, decoded or as JSON text, decrypted as far as this process can."""
        try:
            return self.ring.opened(stored) if isinstance(stored, str) else self.ring.decrypted(stored)
        except Undecryptable:
            return stored

    def refuse_in_schedule(self, names: Iterable[str]) -> None:
        """Raise `ArgumentsError` if one of the arguments is encrypted."""
        if found := sorted(self.names.intersection(names)):
            raise ArgumentsError(
                f"the argument {found[0]!r} is encrypted, which a schedule cannot hold: have the schedule give the key "
                "of a row, and load the secret in the task"
            )

    def key(self, what: str, key: KeyOf | None, parameters: Iterable[str]) -> KeyOf | None:
        """Return a key for unique jobs or limits, where a function gets only the arguments that are not encrypted.

        Raises `DeclarationError` if none of those is left, or if the key names another one. None names all arguments.
        """
        if callable(key):
            encrypted = self.names if self.names >= {*parameters} else frozenset[str]()
        else:
            encrypted = self.names if key is None else self.names & ({key} if isinstance(key, str) else {*key})
        if encrypted:
            raise DeclarationError(
                f"{what} is made of {', '.join(sorted(encrypted))}, which is encrypted, differently each time: make it "
                "of an argument that is not secret, such as the key of a row"
            )
        if not callable(key):
            return key
        return lambda args: key({name: args[name] for name in args if name not in self.names})


def declared_encryption(
    task: str, given: object, names: frozenset[str], ring: KeyRing, parameters: Iterable[str]
) -> Encryption | None:
    """Return the encryption for a task's option `encrypted=`. Raises `DeclarationError` and `ConfigurationError`."""
    if given is None or given is False:
        return None
    try:
        ring.check()
    except ConfigurationError as error:
        raise DeclarationError(f"{task}: {error}") from None
    return Encryption(ring, frozenset(parameters) if given is True else names, writes=given is True or bool(names))


class EncryptingCodec(Codec):
    """Encrypts some of a task's arguments, each as a JSON object with its token."""

    def __init__(self, task: str, signature: Signature, sensitive: frozenset[str], encryption: Encryption) -> None:
        super().__init__(task, signature, sensitive)
        self._encryption = encryption

    def _encoded(self, values: Mapping[str, Any]) -> tuple[bytes, dict[str, Any]]:
        encoded, stored = super()._encoded(values)
        if _OPENING in encoded:
            raise ArgumentsError(
                f"{self._task}: no value may be an object with the one name {ENCRYPTED!r}, as stored ones are"
            )
        if self._encryption.names.isdisjoint(stored):
            return encoded, stored
        stored = self._encryption.arguments(stored)
        return to_json(stored), stored

    def encode_without_rows(self, values: Mapping[str, Any]) -> bytes:
        self._encryption.refuse_in_schedule(values)
        return super().encode_without_rows(values)

    @property
    def read(self) -> Callable[[str], dict[str, Any]]:
        validate, opened = super().read, self._encryption.ring.opened
        return lambda stored: validate(opened(stored))

    def decode(self, stored: str) -> dict[str, Any]:
        return super().decode(self._encryption.ring.opened(stored))

    @property
    def digest(self) -> str:
        """A hash of the argument types, different from that of a task that does not decrypt."""
        return f"{super().digest}e"


class EncryptingValueCodec(ValueCodec):
    """Encrypts the results of steps, and decrypts these and the payloads of signals."""

    def __init__(self, what: str, expected: Any, encryption: Encryption) -> None:
        super().__init__(what, expected)
        self._encryption = encryption

    def encode(self, value: Any) -> str:
        return self._encryption.text(super().encode(value))

    def decode(self, text: str | None, **options: Any) -> Any:
        return super().decode(text if text is None else self._encryption.ring.opened(text), **options)
