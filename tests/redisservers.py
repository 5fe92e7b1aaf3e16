"""Real Redis servers for the tests: plain, with TLS, with a password, and replicas."""

from __future__ import annotations

import functools
import re
import shutil
import socket
import subprocess
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import redis

from .servers import HOST, PATIENCE, Server, ServerError, free_port, wait_until

__all__ = ["Certificates", "RedisServer", "wait_until_linked"]


@functools.cache
def _binary() -> tuple[str, int]:
    """Return the path of the server's program, and its major version."""
    for name in ("redis-server", "valkey-server"):
        path = shutil.which(name)
        if path is not None:
            said = subprocess.run([path, "--version"], capture_output=True, text=True, check=True)
            version = re.search(r"\bv=(\d+)\.", said.stdout)
            if version is None:
                raise ServerError(f"{path} --version does not say its version: {said.stdout}")
            return path, int(version[1])
    raise ServerError(
        "neither redis-server nor valkey-server is on the PATH: `make test` installs the package"
        " redis-server, or do so yourself: apt-get install redis-server"
    )


class Certificates:
    """An authority of our own and a server's certificate by it, in files in `folder`."""

    def __init__(self, folder: Path) -> None:
        self.authority = folder / "authority.pem"
        self.certificate = folder / "server.pem"
        self.key = folder / "server.key"
        authority_key = folder / "authority.key"
        request = folder / "server.request"
        extensions = folder / "server.extensions"
        new_key: list[str | Path] = [
            "-newkey",
            "ec",
            "-pkeyopt",
            "ec_paramgen_curve:prime256v1",
            "-nodes",
        ]
        # Python 3.13 asks for both of the extensions that are named here.
        extensions.write_text(
            f"subjectAltName = IP:{HOST}, DNS:localhost\nauthorityKeyIdentifier = keyid\n"
        )
        self._openssl(
            *("req", "-x509", *new_key, "-days", "2", "-subj", "/CN=authority of the tests"),
            *("-addext", "keyUsage = critical, keyCertSign"),
            *("-keyout", authority_key, "-out", self.authority),
        )
        self._openssl(
            *("req", *new_key, "-subj", "/CN=localhost", "-keyout", self.key, "-out", request)
        )
        self._openssl(
            *("x509", "-req", "-in", request, "-days", "2", "-extfile", extensions),
            *("-CA", self.authority, "-CAkey", authority_key, "-set_serial", "1"),
            *("-out", self.certificate),
        )

    @staticmethod
    def _openssl(*arguments: str | Path) -> None:
        done = subprocess.run(["openssl", *arguments], capture_output=True, text=True)
        if done.returncode != 0:
            raise ServerError(f"openssl {' '.join(map(str, arguments))}: {done.stderr}")


class RedisServer(Server):
    """A server that keeps nothing on disk, unless `arguments` (options of redis-server) say so.

    It listens on a port and on a unix socket; with `tls` on a second port also.

    """

    def __init__(
        self,
        *arguments: str,
        port: int | None = None,
        password: str | None = None,
        replica_of: RedisServer | None = None,
        tls: Certificates | None = None,
        cluster: bool = False,
    ) -> None:
        super().__init__("redis", port)
        self.arguments = arguments
        self.password = password
        self.replica_of = replica_of
        self.tls = tls
        self.tls_port = free_port()
        self.cluster = cluster
        self.unix = self.folder / "redis.sock"

    def choose_ports(self) -> None:
        # The nodes of a cluster talk to each other on a port of their own.
        self.port = free_port(10000) if self.cluster else free_port()
        self.tls_port = free_port()

    def command(self) -> list[str]:
        program, version = _binary()
        command = [program, "--port", str(self.port), "--bind", HOST, "--protected-mode", "no"]
        command += ["--unixsocket", str(self.unix), "--save", "", "--appendonly", "no"]
        # It would wait 5 s for more replicas before it serves the first one.
        command += ["--repl-diskless-sync-delay", "0"]
        if version >= 7:
            command += ["--enable-debug-command", "yes"]
        if self.password is not None:
            command += ["--requirepass", self.password, "--masterauth", self.password]
        if self.replica_of is not None:
            command += ["--replicaof", f"{HOST} {self.replica_of.port}"]
            if self.replica_of.password is not None:
                command += ["--masterauth", self.replica_of.password]
        if self.tls is not None:
            command += ["--tls-port", str(self.tls_port), "--tls-auth-clients", "no"]
            command += ["--tls-ca-cert-file", str(self.tls.authority)]
            command += ["--tls-cert-file", str(self.tls.certificate)]
            command += ["--tls-key-file", str(self.tls.key)]
        if self.cluster:
            command += ["--cluster-enabled", "yes", "--cluster-node-timeout", "15000"]
        return command + list(self.arguments)

    @property
    def _credentials(self) -> str:
        return f":{self.password}@" if self.password is not None else ""

    @property
    def url(self) -> str:
        return f"redis://{self._credentials}{HOST}:{self.port}/0"

    @property
    def unix_url(self) -> str:
        return f"unix://{self._credentials}{self.unix}?db=0"

    @property
    def tls_url(self) -> str:
        if self.tls is None:
            raise ServerError("the server was started without tls=Certificates(folder)")
        place = f"{self._credentials}{HOST}:{self.tls_port}"
        return f"rediss://{place}/0?ssl_ca_certs={self.tls.authority}"

    # The options are those of redis-py, and too many to repeat; so it is for all clients here.
    def client(self, **options: Any) -> redis.Redis:
        """Return a new client, which gives bytes; to be closed by the caller.

        Some releases of redis-py have a timeout of 5 s: so long a reply may be held in a test.

        """
        defaults = {"password": self.password, "socket_timeout": PATIENCE}
        return redis.Redis(host=HOST, port=self.port, **{**defaults, **options})

    def ask(self, command: str, patience: float = PATIENCE) -> bytes:
        """Send one command, of words without spaces, and return what it answers.

        Not by a client: that sends commands of its own, which would be counted, and would answer
        through the port also when another process has it.

        """
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(patience)
            connection.connect(str(self.unix))
            with connection.makefile("rwb") as stream:
                if self.password is not None:
                    stream.write(f"AUTH {self.password}\r\n".encode())
                    stream.flush()
                    stream.readline()
                stream.write(f"{command}\r\n".encode())
                stream.flush()
                answer = stream.readline()
                if answer.startswith(b"$"):
                    answer = stream.read(int(answer[1:]))
                return answer.rstrip()

    def answers(self) -> bool:
        try:
            # The default user may have been switched off: that is an answer, too.
            return self.ask("PING", patience=1).startswith((b"+PONG", b"-NOAUTH"))
        except OSError:
            return False

    def info(self, section: str) -> dict[str, str]:
        """Return a section of INFO as it is, without the types that a client gives it."""
        lines = self.ask(f"INFO {section}").decode().splitlines()
        return dict(line.split(":", 1) for line in lines if ":" in line)

    def replication(self) -> dict[str, str]:
        """Return what it says of that; nothing while it takes another role.

        Sentinel ends its connections then.

        """
        try:
            return self.info("replication")
        except OSError:
            return {}

    def commandstats(self) -> dict[str, int]:
        """Return how often every command was called, as `{"get": 2, "config|set": 1}`."""
        return {
            name.removeprefix("cmdstat_"): int(fields.split(",")[0].removeprefix("calls="))
            for name, fields in self.info("commandstats").items()
        }

    @contextmanager
    def counting(self) -> Iterator[Counter[str]]:
        """Give a Counter that at the end has the commands called meanwhile, but not our own.

        Those that a script calls are counted, too.

        """
        calls = Counter[str]()
        before = Counter(self.commandstats())
        yield calls
        before["info"] += 1
        if self.password is not None:
            before["auth"] += 1
        calls.update(Counter(self.commandstats()) - before)

    def flush(self) -> None:
        """Forget every key and every script."""
        for command in ("FLUSHALL", "SCRIPT FLUSH"):
            answer = self.ask(command)
            if answer != b"+OK":
                raise ServerError(f"{command}: {answer!r}")


def wait_until_linked(replica: RedisServer) -> None:
    """Wait until `replica` has what its primary has, and its primary knows that it does."""
    primary = replica.replica_of
    if primary is None:
        raise ServerError("the server was started without replica_of=primary")
    wait_until(
        lambda: (
            replica.replication().get("master_link_status") == "up"
            and any(
                f"port={replica.port},state=online" in value
                for value in primary.info("replication").values()
            )
        ),
        f"{replica.port} is linked as a replica of {primary.port}",
    )
