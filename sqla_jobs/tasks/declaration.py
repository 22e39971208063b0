"""The declaration of a task: its name, signature and options, checked once."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from functools import cached_property, partial
from types import NoneType
from typing import TYPE_CHECKING, Annotated, Any, cast

from pydantic import AfterValidator, ConfigDict, InstanceOf, PlainValidator, SkipValidation, with_config
from pydantic_core import from_json, to_jsonable_python
from typing_extensions import TypedDict

from sqla_jobs.errors import ArgumentsError, ConfigurationError, DeclarationError, Undecryptable
from sqla_jobs.models.types import MAX_ATTEMPTS
from sqla_jobs.rules.fitting import Takes
from sqla_jobs.rules.keys import KeyOf
from sqla_jobs.rules.limits import ConcurrencyLimit, Gate, Limit, RateLimit, gates_of
from sqla_jobs.rules.redaction import HIDDEN, NOTHING, Secrets, is_erased, parse, token_of
from sqla_jobs.rules.retention import NO_RETENTION, OwnRetention, TaskRetention, own_retention
from sqla_jobs.rules.retry import DEFAULT_POLICY, RetryPolicy, check_policy
from sqla_jobs.rules.unique import Unique
from sqla_jobs.rules.value_checks import INSTANT, MAX_ID, check_name
from sqla_jobs.tasks.arguments import Codec, decode_result, encode_result, refuse_ordered
from sqla_jobs.tasks.encryption import Encryption, codec_of, value_codec
from sqla_jobs.tasks.entities import entity_of
from sqla_jobs.tasks.key_ring import KeyRing
from sqla_jobs.tasks.options import MaxAttempts, MaxLost, Priority, QueueName, as_timedelta, checked, seconds
from sqla_jobs.tasks.secret_type import holds_secret
from sqla_jobs.tasks.signature import Signature, inspect_target
from sqla_jobs.tasks.unique import UniqueRule, declared_rule

if TYPE_CHECKING:
    from sqla_jobs.models.columns import JobMixin
    from sqla_jobs.tasks.task import Task

    _AnyTask = Task[..., Any, Any]
else:
    _AnyTask = Any

log: logging.Logger = logging.getLogger("sqla_jobs")

RESULT = "return"
"""The place to which the secrets of a task's result belong. No argument has this name."""

_TaskName = Annotated[str, AfterValidator(partial(check_name, "a task name"))]
_Limit = InstanceOf[ConcurrencyLimit] | InstanceOf[RateLimit]


@with_config(ConfigDict(strict=True, extra="forbid", arbitrary_types_allowed=True))
class TaskOptions(TypedDict, total=False):
    """The options of a task, given to `jobs.task`."""

    name: _TaskName
    """The name stored with each job; by default the name of the function."""
    queue: QueueName
    """The queue of the task's jobs, by default `default`."""
    priority: Priority
    """The priority of the task's jobs, from -10 to 10; lower numbers run first. By default 0."""
    max_attempts: MaxAttempts
    """The maximum number of attempts, from 1 to 1,000,000; by default 25. Attempts lost to crashes count, unless
    `max_lost` is given."""
    max_lost: MaxLost
    """The number of lost runs in a row, from 1 to 1,000, after which a job ends as `failed`. With it, an attempt lost
    to a crash does not count toward `max_attempts`. By default it does."""
    timeout: Annotated[float | timedelta | None, seconds("timeout", INSTANT)]
    """The time limit of one attempt, as a timedelta or in seconds. By default, only the worker's timeout applies."""
    retry: Annotated[RetryPolicy, PlainValidator(check_policy)]
    """The policy after an exception: a tenacity `Retrying`, or a function of the error and the number of the attempt
    that returns the time until the next attempt, or None for no retry. By default, waits grow up to an hour."""
    aliases: Sequence[_TaskName]
    """Former names of the task, under which jobs may still be waiting."""
    sensitive: Sequence[str]
    """Arguments that no log, error, command or page shows."""
    limits: _Limit | Sequence[_Limit]
    """Limits on the jobs that run simultaneously, or start in a period, across all workers. A job starts only if all of
    its limits allow it."""
    fair_by: SkipValidation[KeyOf]
    """An argument, several arguments, or a function of them. The values take turns, however many jobs each one has."""
    unique: InstanceOf[Unique] | None
    """The policy that allows at most one live job for each key, and that handles an enqueue whose key is taken."""
    delay: Annotated[float | timedelta | None, as_timedelta("delay")]
    """The time from the enqueue of a job until it is due, as a timedelta or in seconds. `options(delay=…)` and
    `options(run_at=…)` override it. The delay does not apply to jobs of schedules, retries and `on_failure` jobs."""
    on_failure: SkipValidation[_AnyTask]
    """A task to enqueue in the transaction that stores a job's final failure. The task takes the id of the failed
    job."""
    lazy: bool
    """If True, a run's transaction begins only at the first use of its session. By default False."""
    retention: SkipValidation[timedelta | float | TaskRetention | None]
    """How long ended jobs of the task are kept; it overrides the worker's retention. The value is a timedelta, a number
    of seconds, None for ever, or a mapping from states to such values. `{"succeeded": "erase"}` erases a job's
    arguments and result once it succeeds."""


@dataclass(frozen=True, kw_only=True)
class Declaration:
    """A declared and checked task."""

    name: str
    signature: Signature
    codec: Codec
    policy: RetryPolicy
    timeout: float | None
    aliases: tuple[str, ...]
    sensitive: frozenset[str]
    """The arguments that are not shown: those declared as sensitive, and the encrypted ones."""
    secret: frozenset[str]
    """The arguments whose types hold `Encrypted`."""
    encryption: Encryption
    gates: tuple[Gate, ...]
    defaults: Mapping[str, Any]
    unique: UniqueRule | None
    lazy: bool
    retention: OwnRetention

    @cached_property
    def titled(self) -> str:
        """The name of the task and the place of its declaration, for error messages."""
        return f"{self.name} ({self.signature.place})"

    @property
    def begins_lazily(self) -> bool:
        """True for a lazy task without entities. Loading entities would begin the transaction earlier."""
        return self.lazy and not self.codec.entities

    def gates_of(self, stored: Mapping[str, Any]) -> list[str]:
        """Return the gates of a job with these stored arguments. Raises `ArgumentsError` if making a key fails."""
        if not self.gates:
            return []
        try:
            arguments = {**self.default_arguments, **self.opened(stored)}
            return [gate.of(arguments) for gate in self.gates]
        except Exception as error:
            kind = type(error).__name__
            raise ArgumentsError(f"{self.name}: the key of a limit cannot be made of the arguments ({kind})") from error

    @cached_property
    def make_gates(self) -> Callable[[Mapping[str, Any]], list[str]] | None:
        """The method `gates_of`, or None if the task has no gates."""
        return self.gates_of if self.gates else None

    def gates_of_row(self, args: str) -> list[str]:
        """Return a job's gates from its JSON arguments, which plain SQL may have written.

        If making a key fails, all keys are null.
        """
        try:
            return self.gates_of(from_json(args))
        except BaseException as error:  # noqa: BLE001 - SystemExit in a key function would end a thread of the worker
            log.debug("%s: the keys of its limits are taken as null: %s", self.name, type(error).__name__)
            return [gate.row if gate.key is None else gate.of_key(None) for gate in self.gates]

    def gates_beside(self, args: str, gates: Sequence[str]) -> list[str]:
        """Return the gates of a job that has some `gates` already: those that fit, or else those of its arguments."""
        made = self.gates_of_row(args)
        return [next(filter(one.fits, gates), new) for one, new in zip(self.gates, made, strict=True)]

    @cached_property
    def takes(self) -> Takes:
        """The arguments that this version of the task takes, for other processes."""
        parameters = self.signature.arguments.parameters.values()
        required = tuple(one.name for one in parameters if one.default is one.empty)
        optional = tuple(one.name for one in parameters if one.default is not one.empty)
        return Takes(required, optional, self.codec.digest)

    @cached_property
    def default_arguments(self) -> dict[str, Any]:
        """The default values of arguments, as JSON."""
        parameters = self.signature.arguments.parameters.values()
        defaults = {one.name: one.default for one in parameters if one.default is not one.empty}
        return {name: to_jsonable_python(value, fallback=repr) for name, value in defaults.items()}

    def result_of(self, job: JobMixin) -> Any:
        """Return the result of a succeeded job as a value of the task's return type.

        Raises `ArgumentsError` and `Undecryptable`.
        """
        if job.task not in (self.name, *self.aliases):
            raise ArgumentsError(f"job {job.id} is one of the task {job.task}, and this is {self.name}")
        expected = self.signature.result
        if is_erased(job.args) and expected not in (None, NoneType, Any):
            raise ArgumentsError(
                f"the result of job {job.id} ({self.name}) was erased, with its arguments: wait for its end by "
                "jobs.wait(job)"
            )
        try:
            return self.as_result(job.result)
        except Undecryptable as error:
            raise Undecryptable(f"the result of job {job.id} ({self.name}): {error}") from None

    def as_result(self, stored: Any) -> Any:
        """Return a stored result as a value of the task's return type.

        Raises `ArgumentsError` and `Undecryptable`.
        """
        if self._has_secret_result:
            stored = self.encryption.opened(stored, RESULT)
        return decode_result(self.name, stored, self.signature.result)

    @cached_property
    def _has_secret_result(self) -> bool:
        return holds_secret(self.signature.result)

    @cached_property
    def encode_result(self) -> Callable[[Any], str | None]:
        """The function that returns a result as JSON text, with its secrets encrypted, and None for None."""
        if not self._has_secret_result:
            return encode_result
        codec = value_codec(f"the result of {self.name}", self.signature.result, self.encryption, RESULT)
        return lambda value: None if value is None else codec.encode(value)

    def opened(self, stored: Mapping[str, Any]) -> Mapping[str, Any]:
        """Return stored arguments with the secrets decrypted.

        Raises `Undecryptable`, and `ArgumentsError` for what belongs elsewhere.
        """
        return self.encryption.arguments(self.secret, stored) if self.secret else stored

    def secrets(self, stored: object) -> Secrets:
        """Return the secrets in stored arguments, given decoded or as JSON text.

        If they are not a JSON object, the whole value is secret.
        """
        if not self.sensitive:
            return NOTHING
        values = parse(stored) if isinstance(stored, str) else stored
        if not isinstance(values, dict):
            return Secrets([values])
        with suppress(Undecryptable, ArgumentsError):  # what cannot be read cannot be repeated
            values = self.opened(values)
        found = [value for name, value in cast("dict[str, Any]", values).items() if name in self.sensitive]
        return Secrets(found, self.codec.field_names if self.codec.is_resolvable else ())

    def shown(self, arguments: Mapping[str, Any]) -> dict[str, Any]:
        """Return stored arguments without the sensitive values."""
        secrets = self.secrets(arguments)
        hidden = {name for name in self.sensitive if token_of(arguments.get(name)) is None}
        return {name: HIDDEN if name in hidden else secrets.json(value) for name, value in arguments.items()}


def declare(target: Callable[..., Any], options: TaskOptions, job_class: type[Any], keys: KeyRing) -> Declaration:
    """Check a task and its options. `job_class` is the class of the task's jobs, and `keys` encrypts what they store.

    Raises `DeclarationError` with the cause and the remedy.
    """
    signature, chosen = inspect_target(target), options.get("name")
    if signature.is_lambda and chosen is None:
        raise DeclarationError(f"{signature.place} is a lambda, which has no name of its own: give it a name=")
    if signature.is_closure and chosen is None:
        raise DeclarationError(
            f"{signature.qualname} is a closure, which a worker finds only if importing the application creates "
            "it: give it a name= of its own, or move it to the top of a module"
        )
    parameters = signature.arguments.parameters
    name = target.__name__ if chosen is None else chosen
    titled = f"{name!s:.60} ({signature.place})"
    given = checked(TaskOptions, {**options, "name": name}, titled, DeclarationError)
    aliases, sensitive = tuple(given.get("aliases", ())), frozenset(given.get("sensitive", ()))
    if missing := sensitive - parameters.keys():
        known = ", ".join(parameters) or "none"
        raise DeclarationError(
            f"{titled}: sensitive={sorted(missing)} names no argument of {signature.qualname}; it takes: {known}"
        )
    encryption, secret = Encryption(keys, (name, *aliases)), secret_arguments(signature)
    if secret or holds_secret(_resolved(lambda: signature.result)):
        try:
            keys.check()
        except ConfigurationError as error:
            raise DeclarationError(f"{titled}: {error}") from None
    sensitive |= secret
    codec = codec_of(name, signature, sensitive, encryption, secret)
    gates = gates_of(name, titled, _limits(given), given.get("fair_by"), parameters, sensitive)
    opened = partial(encryption.arguments, secret) if secret else None
    unique = declared_rule(name, given.get("unique"), parameters, sensitive, opened)
    _check_delay(titled, given.get("delay"), unique)
    if (follow_up := given.get("on_failure")) is not None:
        given["on_failure"] = _follow_up(titled, follow_up, job_class)
    of_jobs = ("queue", "priority", "max_attempts", "max_lost", "delay", "on_failure")
    _refuse_types(name, codec, signature)
    return Declaration(
        name=name,
        signature=signature,
        codec=codec,
        policy=given.get("retry", DEFAULT_POLICY),
        timeout=given.get("timeout"),
        aliases=aliases,
        sensitive=sensitive,
        secret=secret,
        encryption=encryption,
        gates=gates,
        defaults={"queue": "default", "priority": 0, "max_attempts": MAX_ATTEMPTS}
        | {option: given[option] for option in of_jobs if option in given},
        unique=unique,
        lazy=_lazy(titled, given.get("lazy", False), signature),
        retention=own_retention(titled, options["retention"]) if "retention" in options else NO_RETENTION,
    )


def _check_delay(name: str, delay: timedelta | None, unique: UniqueRule | None) -> None:
    longest = None if unique is None else unique.policy.max_delay
    if delay is not None and longest is not None and delay > timedelta(seconds=longest):
        raise DeclarationError(
            f"{name}: delay={delay.total_seconds():g} is longer than max_delay={longest:g}, so the first replacement "
            "would make the job due earlier: make max_delay= at least as long"
        )


def _limits(given: Mapping[str, Any]) -> Sequence[Limit]:
    limits = given.get("limits", ())
    return [limits] if isinstance(limits, Limit) else limits


def _follow_up(name: str, task: Any, job_class: type[Any]) -> dict[str, Any]:
    """Return the data that jobs store about their `on_failure` task: enough to enqueue that task in SQL."""
    declaration = getattr(task, "_declaration", None)
    argument = _argument_for_an_id(declaration, job_class) if isinstance(declaration, Declaration) else None
    fits = argument is not None and hasattr(task, "options") and task._models.Job is job_class
    if declaration is None or not fits or declaration.unique is not None:
        raise DeclarationError(
            f"{name}: on_failure must be a task of the same jobs, without options(…) and without unique=, that takes "
            f"one argument, the id of the failed job, such as def tell(job_id: int); got {task!r:.80}"
        )
    stored = ("queue", "priority", "max_attempts", "max_lost")
    values = {option: declaration.defaults[option] for option in stored if option in declaration.defaults}
    if gates := [gate.row for gate in declaration.gates if gate.key is None]:
        values["gates"] = gates  # a claim adds those whose key is made of the failed job's id
    return {"task": declaration.name, "argument": argument, **values}


def _argument_for_an_id(declaration: Declaration, job_class: type[Any]) -> str | None:
    """Return the only required argument; None if there are more or none, or it is neither an int nor a job.

    A name in its annotation may be defined later.
    """
    required, _ = declaration.signature.by_name
    if len(required) != 1:
        return None
    [argument] = required
    try:
        declaration.codec.decode(json.dumps({argument: MAX_ID}))
        entity = declaration.codec.entities.get(argument)
    except ArgumentsError:
        return None
    except DeclarationError:
        return argument
    fits = entity is None or (entity.mapper.class_ is job_class and not entity.many)
    return argument if fits else None


def _lazy(name: str, lazy: bool, signature: Signature) -> bool:
    if lazy and not signature.wants_session:
        kind = "AsyncSession" if signature.is_coroutine else "Session"
        raise DeclarationError(
            f"{name}: lazy=True says when the transaction of its session begins, and it takes none: annotate its first "
            f"parameter as {kind}, or leave lazy out"
        )
    return lazy


def _refuse_types(task: str, codec: Codec, signature: Signature) -> None:
    """Refuse rows without a session, and types whose order would be lost.

    If a name is defined later, the first enqueue checks the arguments.
    """
    for name in signature.arguments.parameters:
        if (annotation := _resolved(partial(signature.annotation, name))) is None:
            continue
        if not entity_of(annotation):
            _refuse_ordered(f"{task}: argument {name!r}", annotation)
        elif not signature.wants_session:
            raise codec.entity_without_session(name)
    _refuse_ordered(f"{task}: the result", _resolved(lambda: signature.result))


def secret_arguments(signature: Signature) -> frozenset[str]:
    """Return the arguments whose types hold `Encrypted`, as far as their names are defined by now."""
    resolved = {name: _resolved(partial(signature.annotation, name)) for name in signature.arguments.parameters}
    return frozenset(name for name, annotation in resolved.items() if holds_secret(annotation))


def _resolved(annotation: Callable[[], Any]) -> Any:
    """Return the annotation; `None` if one of its names is defined later."""
    try:
        return annotation()
    except DeclarationError:
        return None


def _refuse_ordered(what: str, annotation: Any) -> None:
    try:
        refuse_ordered(annotation)
    except DeclarationError as error:
        raise DeclarationError(f"{what}: {error}") from None
