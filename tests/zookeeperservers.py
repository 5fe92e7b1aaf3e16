"""Real ZooKeeper servers for the tests: one alone, and an ensemble of three."""

from __future__ import annotations

import functools
import os
import re
import shutil
import socket
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kazoo.client import KazooClient
from kazoo.handlers.threading import KazooTimeoutError

from .servers import HOST, PATIENCE, Server, ServerError, free_port, wait_until

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["Ensemble", "ZookeeperServer", "started"]

# Where Debian keeps the libraries of its Java programs.
DEBIAN = Path("/usr/share/java")

# The first one names those that it needs, and their places, in its manifest; before ZooKeeper 3.8
# not the second. Without the third, which writes to stderr, nothing would be logged.
JARS = ("zookeeper.jar", "slf4j-api.jar", "slf4j-simple.jar")

# For a server that lives for seconds, and has little in memory.
JAVA_OPTIONS = (
    *("-Xmx256m", "-XX:TieredStopAtLevel=1", "-XX:+UseSerialGC", "-Xshare:auto"),
    # It would keep them in files of /tmp, which a kill leaves there.
    "-XX:-UsePerfData",
    "-Dorg.slf4j.simpleLogger.defaultLogLevel=warn",
    "-Dorg.slf4j.simpleLogger.showDateTime=true",
    "-Dorg.slf4j.simpleLogger.dateTimeFormat=HH:mm:ss.SSS",
    # Of another logger, which is not there.
    "-Dzookeeper.jmx.log4j.disable=true",
    # Names and passwords are decoded by it.
    "-Dfile.encoding=UTF-8",
)

# As Server's. The process that is killed may still make a file.
GUARD = 'read -r line; kill -KILL "$1"; rm -rf "$2" || { sleep 1; rm -rf "$2"; }'

# After that, a server that was asked before it has read its data leaves the connection open.
NOT_SERVING = b"This ZooKeeper instance is not currently serving requests\n"


@functools.cache
def _program() -> list[str]:
    """Return the beginning of the command line."""
    java = shutil.which("java")
    jars = [DEBIAN / name for name in JARS]
    missing = [str(jar) for jar in jars if not jar.exists()]
    if java is None or missing:
        missing = [*(["java on the PATH"] if java is None else []), *missing]
        raise ServerError(
            f"ZooKeeper needs {', '.join(missing)}: `make test` installs the packages, or do so"
            " yourself: apt-get install libzookeeper-java default-jre-headless"
        )
    return [java, *JAVA_OPTIONS, "-cp", ":".join(map(str, jars))]


@contextmanager
def started(client: KazooClient) -> Iterator[KazooClient]:
    """Start the client, and at the end stop and close it."""
    client.start(PATIENCE)
    try:
        yield client
    finally:
        client.stop()
        client.close()


class ZookeeperServer(Server):
    """A server of its own, with `settings`, which are lines of zoo.cfg: `"jute.maxbuffer=100"`.

    `java` are options of the program java: `"-Dreadonlymode.enabled=true"`. Unless it is told to
    `force_sync`, it does not wait for the disk: what is written survives the death of its process,
    but not that of the machine.

    It takes sessions of 0.4 s to 120 s. It counts in ticks of 0.2 s, of which a session that is
    not renewed may get one more.

    A client that connects while it starts, before it has read its data, gets no answer: it gives
    up after the timeout of its session, and tries again. For a test that restarts the server, that
    is to be short: `client(timeout=3)`. Not shorter: kazoo also gives a connection up when a ping
    is not answered within a third of the timeout less up to 0.4 s.

    """

    guard = GUARD

    def __init__(
        self,
        *settings: str,
        port: int | None = None,
        force_sync: bool = False,
        java: Sequence[str] = (),
    ) -> None:
        super().__init__("zookeeper", port)
        self.settings = settings
        self.force_sync = force_sync
        self.java = java
        self.data = self.folder / "data"
        self.paused = False

    def configuration(self) -> list[str]:
        """Return the lines of zoo.cfg; of two with the same name, the second one holds."""
        return [
            f"dataDir={self.data}",
            f"clientPort={self.port}",
            f"clientPortAddress={HOST}",
            "tickTime=200",
            "minSessionTimeout=400",
            "maxSessionTimeout=120000",
            "maxClientCnxns=0",
            "admin.enableServer=false",
            "4lw.commands.whitelist=*",
            f"forceSync={'yes' if self.force_sync else 'no'}",
            *self.settings,
        ]

    def command(self) -> list[str]:
        main = "org.apache.zookeeper.server.quorum.QuorumPeerMain"
        return [*_program(), *self.java, main, str(self.folder / "zoo.cfg")]

    def process_options(self) -> dict[str, Any]:
        # Else the log would say in the language of the user that a port is taken.
        return {"env": {**os.environ, "LC_ALL": "C.UTF-8"}}

    def _spawn(self) -> None:
        lines = self.configuration()
        (self.folder / "zoo.cfg").write_text("".join(f"{line}\n" for line in lines))
        super()._spawn()

    @property
    def ended(self) -> bool:
        """Return whether it has ended by itself."""
        return self._process is not None and not self.running

    def kill(self) -> None:
        super().kill()
        self.paused = False

    def pause(self) -> None:
        super().pause()
        self.paused = True

    def resume(self) -> None:
        super().resume()
        self.paused = False

    def four_letter(self, word: str, patience: float = PATIENCE) -> str:
        """Return what it answers to one of the four-letter words, as `srvr`."""
        answer = bytearray()
        with socket.create_connection((HOST, self.port), patience) as connection:
            connection.sendall(word.encode())
            while answer != NOT_SERVING and (chunk := connection.recv(1 << 16)):
                answer += chunk
        return answer.decode()

    def _is_ours(self) -> bool:
        """Return whether it is this process that has the port; one in another folder may."""
        environment = self.four_letter("envi", patience=1).splitlines()
        return f"user.dir={self.folder.resolve()}" in environment

    def answers(self) -> bool:
        try:
            return self.mode(patience=1) is not None and self._is_ours()
        except OSError:
            return False

    def mode(self, patience: float = PATIENCE) -> str | None:
        """Return `standalone`, `leader`, `follower` or `read-only`; None when it does not serve.

        A follower may say that it is one for a moment after the end of its leader.

        """
        found = re.search(r"^Mode: (\S+)$", self.four_letter("srvr", patience), re.MULTILINE)
        return found[1] if found is not None else None

    def stats(self) -> dict[str, str]:
        """Return what `mntr` says: `{"zk_znode_count": "5", "zk_avg_latency": "0.0"}`."""
        lines = self.four_letter("mntr").splitlines()
        return dict(line.split("\t", 1) for line in lines if "\t" in line)

    def packets_received(self) -> int:
        """Return how many requests it got; also pings, and the four-letter words, as this one.

        To count what a client sends, a `ZookeeperProxy` is better.

        """
        return int(self.stats()["zk_packets_received"])

    def outstanding(self) -> int:
        """Return how many requests it has not answered yet."""
        return int(self.stats()["zk_outstanding_requests"])

    def watches(self) -> int:
        """Return how many watches the clients of this server have set."""
        # Not by `wchs`, which leaves out those of children.
        return int(self.stats()["zk_watch_count"])

    def connections(self) -> int:
        """Return how many connections it has that belong to a session."""
        return self.four_letter("cons").count(",sid=0x")

    def sessions(self) -> set[int]:
        """Return the sessions that there are; those of an ensemble only its leader knows all."""
        said, separator, _ = self.four_letter("dump").partition("ephemeral nodes dump")
        if not separator:
            raise ServerError(f"dump: {said}")
        return {int(number, 16) for number in re.findall(r"\b0x[0-9a-f]+", said)}

    @property
    def hosts(self) -> str:
        return f"{HOST}:{self.port}"

    # The options are those of kazoo, and too many to repeat.
    def client(self, *, chroot: str = "", **options: Any) -> KazooClient:
        """Return a new client, which is not started; to be stopped and closed by the caller."""
        return KazooClient(**{"hosts": self.hosts + chroot, **options})

    def expire(self, client: KazooClient) -> None:
        """End the session of that client, as that of one of which nothing is heard any more.

        Its connection is cut. It hears that the session has expired when it connects again.

        """
        _expire(client, self.hosts, self)


def _expire(client: KazooClient, hosts: str, keeper: ZookeeperServer) -> None:
    identity = client.client_id
    if identity is None:
        raise ServerError("the client is not connected: it has no session that could expire")

    def expired() -> bool:
        # Whoever takes a session over cuts the connection that had it. Should the client be quick
        # to connect again, it takes the session back before it is closed: then once more. It may
        # even be before the start is over.
        try:
            with started(KazooClient(hosts=hosts, timeout=PATIENCE, client_id=identity)):
                pass
        except KazooTimeoutError:
            return False
        return identity[0] not in keeper.sessions()

    wait_until(expired, f"session {identity[0]:#x} has expired")


class EnsembleServer(ZookeeperServer):
    """A member of an ensemble. `start` waits for its port only: without others it cannot serve."""

    # In no log. The files of the others name its ports: it is not for `start` to try others.
    clash = b"\0"

    def __init__(self, number: int, ports: Sequence[int], *settings: str, **options: Any) -> None:
        super().__init__(*settings, port=ports[0], **options)
        self.number = number
        self.member = f"server.{number}={HOST}:{ports[1]}:{ports[2]}"
        self.data.mkdir()
        (self.data / "myid").write_text(f"{number}\n")

    def answers(self) -> bool:
        try:
            return self._is_ours()
        except OSError:
            return False


class Ensemble:
    """Three servers with `settings` and `options` as those of a `ZookeeperServer`.

    They notice at once when one of them is killed; when one is paused, after 3 s.

    """

    size = 3  # One alone would be no ensemble: it runs as `standalone`.

    def __init__(self, *settings: str, **options: Any) -> None:
        self.settings = settings
        self.options = options
        self.servers: list[EnsembleServer] = []
        self._cleanup = ExitStack()

    def __enter__(self) -> Self:
        for attempts_left in (2, 1, 0):
            try:
                self._start()
            except BaseException as error:
                self._cleanup.close()
                # When another process has taken one of the ports, once more with others.
                if not attempts_left or Server.clash.decode() not in str(error):
                    raise
            else:
                break
        return self

    def __exit__(self, *_: object) -> None:
        self._cleanup.close()

    def _start(self) -> None:
        # For clients, for the followers of a leader, and for elections.
        ports: set[int] = set()
        while len(ports) < 3 * self.size:
            ports.add(free_port())
        self.servers = []
        for number in range(1, self.size + 1):
            own = [ports.pop() for _ in range(3)]
            server = EnsembleServer(number, own, *self.settings, **self.options)
            self._cleanup.callback(server.close)
            self.servers.append(server)
        shared = [
            # In ticks: 10 s for a follower to get all data, 3 s for any other answer.
            *("initLimit=50", "syncLimit=15"),
            # It would wait for a port that is taken.
            "electionPortBindRetry=1",
            *(server.member for server in self.servers),
        ]
        for server in self.servers:
            server.settings = (*shared, *server.settings)
        with ThreadPoolExecutor(self.size) as threads:
            list(threads.map(EnsembleServer.start, self.servers))
        self.wait_for_quorum()

    def _present(self) -> list[EnsembleServer]:
        """Return those that were neither killed nor paused."""
        for server in self.servers:
            if server.ended:
                raise ServerError(server._complaint("it ended"))
        return [server for server in self.servers if server.running and not server.paused]

    def mend(self) -> None:
        """Have all of them run again, those that were killed and those that were paused."""
        for server in self.servers:
            if server.paused:
                server.resume()
            server.start()
        self.wait_for_quorum()

    def wait_for_quorum(self) -> EnsembleServer:
        """Wait until of those neither killed nor paused one leads, and the others follow it.

        Return the one that leads.

        """
        leaders: list[EnsembleServer] = []

        def has_quorum() -> bool:
            present = self._present()
            try:
                modes = {server: server.mode(patience=1) for server in present}
                leaders[:] = [server for server in present if modes[server] == "leader"]
                followers = list(modes.values()).count("follower")
                if len(leaders) != 1 or followers != len(present) - 1:
                    return False
                # One that was paused may have been given up without knowing it.
                return int(leaders[0].stats()["zk_synced_followers"]) >= followers
            except (OSError, KeyError):
                return False

        wait_until(has_quorum, "one server leads, and the others follow")
        return leaders[0]

    def leader(self) -> EnsembleServer:
        """Return the one that leads, after a wait until there is one."""
        return self.wait_for_quorum()

    def followers(self) -> list[EnsembleServer]:
        """Return those that follow, after a wait until they do."""
        leader = self.wait_for_quorum()
        return [server for server in self._present() if server is not leader]

    @property
    def hosts(self) -> str:
        return ",".join(server.hosts for server in self.servers)

    def client(
        self, *, first: ZookeeperServer | None = None, chroot: str = "", **options: Any
    ) -> KazooClient:
        """Return a new client, which tries the servers in their order, but `first` first."""
        in_order = sorted(self.servers, key=lambda server: server is not first)
        hosts = ",".join(server.hosts for server in in_order)
        defaults = {"hosts": hosts + chroot, "randomize_hosts": False}
        return KazooClient(**{**defaults, **options})

    def expire(self, client: KazooClient) -> None:
        """End the session of that client: see `ZookeeperServer.expire`."""
        _expire(client, self.hosts, self.leader())
