"""Hosts for workers. Each has a network namespace with a virtual cable or, if that is not possible, only a proxy."""

from __future__ import annotations

import os
import shutil
import subprocess
from abc import ABC, abstractmethod
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack
from typing import Self

from benchmarks.proxy import Proxy


class Host(AbstractContextManager["Host"], ABC):
    """A host on which workers run. Its workers reach the server only through `proxy`."""

    def __init__(self, number: int, proxy: Proxy) -> None:
        self.name = f"host-{'ab'[number]}"
        self.proxy = proxy
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        self._stack.enter_context(self.proxy)
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    @property
    @abstractmethod
    def prefix(self) -> list[str]:
        """The prefix that makes a command run on this host."""

    @abstractmethod
    def partition(self) -> None:
        """Lose every packet between this host and the server. Connections are neither closed nor refused."""

    @abstractmethod
    def heal(self) -> None:
        """Let packets through again."""


HostMaker = Callable[[int, tuple[str, int]], Host]
"""A function that creates host number 0 or 1, in front of the server at the given address."""


class ProxiedHost(Host):
    """A host on this machine's own loopback interface. During a partition, its proxy forwards nothing."""

    def __init__(self, number: int, server: tuple[str, int]) -> None:
        super().__init__(number, Proxy(server))

    @property
    def prefix(self) -> list[str]:
        return []

    def partition(self) -> None:
        self.proxy.stall()

    def heal(self) -> None:
        self.proxy.go_on()


class NamespaceHost(Host):
    """A network namespace behind a pair of virtual interfaces. A partition takes down the outer interface.

    The addresses are from 198.18.0.0/15, which is reserved for network tests (RFC 2544). Each host uses four
    addresses, chosen by the program's pid, so that two programs do not collide.
    """

    def __init__(self, number: int, server: tuple[str, int]) -> None:
        base = (os.getpid() % 16_000 * 2 + number) * 4
        network = f"198.{18 + (base >> 16)}.{base >> 8 & 255}"
        self._outside, self._inside = f"{network}.{base % 256 + 1}", f"{network}.{base % 256 + 2}"
        self._namespace = f"torture-{os.getpid()}-{number}"
        self._cable = f"tort{os.getpid() % 10_000_000}-{number}"
        super().__init__(number, Proxy(server, listen=self._outside))

    def __enter__(self) -> Self:
        with ExitStack() as undo:
            _ip("netns", "add", self._namespace)
            undo.callback(self._remove)
            _ip("link", "add", self._cable, "type", "veth", "peer", "name", "eth0", "netns", self._namespace)
            _ip("addr", "add", f"{self._outside}/30", "dev", self._cable)
            _ip("link", "set", self._cable, "up")
            _ip("-n", self._namespace, "addr", "add", f"{self._inside}/30", "dev", "eth0")
            _ip("-n", self._namespace, "link", "set", "eth0", "up")
            _ip("-n", self._namespace, "link", "set", "lo", "up")
            undo.enter_context(self.proxy)
            self._stack = undo.pop_all()
        return self

    @property
    def prefix(self) -> list[str]:
        return ["ip", "netns", "exec", self._namespace]

    def partition(self) -> None:
        _ip("link", "set", self._cable, "down")

    def heal(self) -> None:
        _ip("link", "set", self._cable, "up")

    def _remove(self) -> None:
        _ip("netns", "del", self._namespace)  # this also deletes the cable


def can_make_namespaces() -> bool:
    """Try to create a network namespace with virtual interfaces. Return whether this program may do that."""
    if os.geteuid() != 0 or shutil.which("ip") is None:
        return False
    name = f"torture-{os.getpid()}-probe"
    cable = f"tort{os.getpid() % 10_000_000}-p"
    if _tried("netns", "add", name):
        return False
    made = not _tried("link", "add", cable, "type", "veth", "peer", "name", "eth0", "netns", name)
    entered = not subprocess.run(["ip", "netns", "exec", name, "true"], check=False, capture_output=True).returncode
    _ip("netns", "del", name)
    return made and entered


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True)


def _tried(*arguments: str) -> int:
    return subprocess.run(["ip", *arguments], check=False, capture_output=True).returncode
