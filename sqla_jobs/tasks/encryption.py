"""The type of a secret, and its encryption in arguments, results, results of steps and payloads of signals."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import lru_cache
from typing import Any, ClassVar, cast

from pydantic_core import from_json, to_json

from sqla_jobs.errors import ArgumentsError
from sqla_jobs.rules.redaction import ENCRYPTED, token_of
from sqla_jobs.tasks.arguments import Codec
from sqla_jobs.tasks.key_ring import KeyRing
from sqla_jobs.tasks.secret_type import MARK, MARKED, PLAIN, holds_secret
from sqla_jobs.tasks.signature import Signature
from sqla_jobs.tasks.values import ValueCodec


class Encryption:
    """Encrypts the secrets that one task's jobs store, and decrypts them. A token is read only where it was written."""

    def __init__(self, ring: KeyRing, tasks: Sequence[str]) -> None:
        """Prepare. `tasks` are the task's name and its former names."""
        self._ring = ring
        self._tasks = tasks

    def sealed(self, marked: Any, where: str) -> Any:
        """Return JSON with tokens in place of marked secrets. Raises `ConfigurationError` if there is no key."""
        if isinstance(marked, list):
            return [self.sealed(value, where) for value in marked]
        if not isinstance(marked, dict):
            return marked
        if MARK in marked:
            return {ENCRYPTED: self._ring.encrypt(to_json([self._tasks[0], where, self.sealed(marked[MARK], where)]))}
        return {name: self.sealed(value, where) for name, value in cast("dict[str, Any]", marked).items()}

    def opened(self, stored: Any, where: str) -> Any:
        """Return JSON with secrets in place of tokens.

        Raises `Undecryptable`, and `ArgumentsError` for a token that was written for another task or another place.
        """
        if (token := token_of(stored)) is not None:
            task, place, value = from_json(self._ring.decrypt(token))
            if task not in self._tasks or place != where:
                raise ArgumentsError(
                    f"{self._tasks[0]}: {where!r} holds a secret that was encrypted for {place!r} of {task}: a secret "
                    "can be read only where it was written, so enqueue the job anew"
                )
            return self.opened(value, where)
        if isinstance(stored, list):
            return [self.opened(value, where) for value in stored]
        if isinstance(stored, dict):
            return {name: self.opened(value, where) for name, value in cast("dict[str, Any]", stored).items()}
        return stored

    def arguments(self, names: Iterable[str], stored: Mapping[str, Any]) -> dict[str, Any]:
        """Return stored arguments, with those of these names decrypted. Raises the errors of `opened`."""
        return {**stored, **{name: self.opened(stored[name], name) for name in names if name in stored}}


class EncryptingCodec(Codec):
    """A codec of arguments some of which hold secrets."""

    _context: ClassVar[str | None] = PLAIN

    def __init__(
        self, task: str, signature: Signature, sensitive: frozenset[str], encryption: Encryption, secret: frozenset[str]
    ) -> None:
        """Prepare. `secret` are the arguments whose types hold secrets."""
        super().__init__(task, signature, sensitive)
        self._encryption = encryption
        self._secret = secret

    def _as_stored(self, checked: dict[str, Any], encoded: bytes) -> tuple[bytes, dict[str, Any]]:
        if self._secret.isdisjoint(checked):
            return super()._as_stored(checked, encoded)
        marked = from_json(self._adapter.serializer.to_json(checked, round_trip=True, by_alias=True, context=MARKED))
        sealed = self._encryption.sealed
        stored = {name: sealed(value, name) if name in self._secret else value for name, value in marked.items()}
        return to_json(stored), stored

    def refuse_secrets(self, names: Iterable[str]) -> None:
        if found := sorted(self._secret.intersection(names)):
            raise ArgumentsError(
                f"{self._where(found[0])} is encrypted, which a schedule cannot hold: have the schedule give the key "
                "of a row, and load the secret in the task"
            )

    @property
    def read(self) -> Callable[[str], dict[str, Any]]:
        validate = super().read
        return lambda stored: validate(self._opened(stored))

    def decode(self, stored: str) -> dict[str, Any]:
        return super().decode(self._opened(stored))

    def _opened(self, stored: str) -> str:
        if not isinstance(values := from_json(stored), dict):
            return stored
        return to_json(self._encryption.arguments(self._secret, values)).decode()

    @property
    def digest(self) -> str:
        """A hash of the argument types, different from that of a task that does not decrypt."""
        return f"{super().digest}e"


def codec_of(
    task: str, signature: Signature, sensitive: frozenset[str], encryption: Encryption, secret: frozenset[str]
) -> Codec:
    """Return the codec of a task's arguments. `secret` are those whose types hold secrets."""
    if secret:
        return EncryptingCodec(task, signature, sensitive, encryption, secret)
    return Codec(task, signature, sensitive)


class EncryptingValueCodec(ValueCodec):
    """A codec of values that hold secrets."""

    _context: ClassVar[str | None] = PLAIN

    def __init__(self, what: str, expected: Any, encryption: Encryption, where: str) -> None:
        """Prepare. `where` names the place to which tokens belong."""
        super().__init__(what, expected)
        self._encryption = encryption
        self._where = where

    def encode(self, value: Any) -> str:
        super().encode(value)
        marked = self._dump(value, MARKED)
        return to_json(self._encryption.sealed(from_json(marked)["result"], self._where)).decode()

    def decode(self, text: str | None, **options: Any) -> Any:
        opened = None if text is None else to_json(self._encryption.opened(from_json(text), self._where)).decode()
        return super().decode(opened, **options)


def value_codec(what: str, expected: Any, encryption: Encryption, where: str) -> ValueCodec:
    """Return the codec of single values of a type. `where` names the place to which their tokens belong."""
    try:
        is_secret = _holds_secret(expected)
    except TypeError:  # the type cannot be hashed
        is_secret = holds_secret(expected)
    return EncryptingValueCodec(what, expected, encryption, where) if is_secret else ValueCodec(what, expected)


@lru_cache(maxsize=256)
def _holds_secret(expected: Any) -> bool:
    return holds_secret(expected)


def sealed_payload(encoded: str, encryption: Encryption | None, signal: str) -> str:
    """Return the payload of a signal, given as JSON with marked secrets, as it is stored.

    Raises `ArgumentsError` if there are secrets and no `encryption`, since the job's task is unknown.
    """
    if MARK not in encoded:
        return encoded
    if encryption is None:
        raise ArgumentsError(
            f"the payload of the signal {signal!r} holds a secret, which is encrypted for the job's task, and this "
            "program has no such task: send it from one that has"
        )
    return to_json(encryption.sealed(from_json(encoded), signal)).decode()
