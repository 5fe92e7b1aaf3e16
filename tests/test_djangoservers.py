"""The servers that hold the rows and the stamps of Django models do what their tests need."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import psycopg
import pytest
from pymemcache.client.base import Client
from pymemcache.exceptions import MemcacheUnexpectedCloseError

from . import memcachedserver, not_measured, postgresserver
from .memcachedserver import MemcachedServer
from .postgresserver import PostgresServer
from .serverprocesses import is_refused, left_by_a_killed_process
from .servers import HOST, PATIENCE, Server, ServerError, free_port, wait_until

ROOT = Path(__file__).parent.parent

SERVERS = [MemcachedServer, PostgresServer]

Start = Callable[[], Server]


# Of the tools of the tests, which fail by themselves where they do not work.
pytestmark = pytest.mark.long


def is_alive(pid: int) -> bool:
    # What has ended may have to wait until the first process of the system collects it.
    return any(one == pid and state not in "ZX" for one, state, _ in postgresserver._processes())


def processes(server: Server) -> list[int]:
    return [server.pid, *(server._children() if isinstance(server, PostgresServer) else [])]


@pytest.mark.parametrize("make", SERVERS)
class TestEvery:
    def test_nothing_of_it_is_left(self, make: Start) -> None:
        with make() as server:
            pids, folder, port = processes(server), server.folder, server.port
            assert is_alive(server.pid)
            assert not is_refused(port)
        assert not any(map(is_alive, pids))
        assert not folder.exists()
        assert is_refused(port)

    @pytest.mark.parametrize("paused", [False, True])
    def test_nothing_of_it_is_left_when_the_process_of_the_tests_is_killed(
        self, make: type[Server], paused: bool
    ) -> None:
        folder, pids = left_by_a_killed_process(
            make,
            "from tests.test_djangoservers import processes",
            *(["server.pause()"] if paused else []),
            pids="processes(server)",
        )
        wait_until(lambda: not any(map(is_alive, pids)), "the server has ended")
        wait_until(lambda: not folder.exists(), "its folder is gone")

    def test_it_keeps_its_port(self, make: Start) -> None:
        with make() as server:
            port = server.port
            server.stop()
            assert not server.running
            assert is_refused(port)
            server.start()
            assert server.port == port
            server.restart()
            assert server.port == port
            assert not is_refused(port)

    def test_paused_it_can_be_killed(self, make: Start) -> None:
        with make() as server:
            server.pause()
            pids = processes(server)
            server.restart()
            assert not any(map(is_alive, pids))
            assert server.answers()

    def test_it_takes_another_port_when_one_is_taken(
        self, make: Start, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        with MemcachedServer() as first:
            ports = iter([first.port, free_port(), free_port()])
            monkeypatch.setattr("tests.servers.free_port", lambda: next(ports))
            with make() as second:
                assert second.port != first.port
                assert second.answers()

    def test_the_lack_of_a_server_is_an_error(
        self, make: Start, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        monkeypatch.setattr(shutil, "which", lambda _: None)
        monkeypatch.setattr(postgresserver, "DEBIAN", tmp_path)
        memcachedserver._binary.cache_clear()
        postgresserver._binaries.cache_clear()
        server = make()
        with (
            pytest.raises(ServerError, match=r"make test.*package (memcached|postgresql),"),
            server,
        ):
            pass
        assert not server.folder.exists()

    def test_the_child_of_a_fork_does_not_end_it(self, make: Start) -> None:
        with make() as server:
            pid = os.fork()
            if pid == 0:
                try:
                    server.close()
                finally:
                    os._exit(0)
            os.waitpid(pid, 0)
            assert server.running
            assert server.answers()
            assert server.folder.exists()


@pytest.fixture
def client(memcached_server: MemcachedServer) -> Iterator[Client]:
    memcached_server.flush()
    with closing(memcached_server.client()) as client:
        yield client


class TestMemcached:
    def test_a_client_waits_for_the_answers(self, client: Client) -> None:
        assert client.add("a", b"1") is True
        assert client.add("a", b"2") is False
        value, token = client.gets("a")
        assert value == b"1"
        assert client.cas("a", b"3", token) is True
        assert client.cas("a", b"4", token) is False
        assert client.get("a") == b"3"

    def test_the_options_of_a_client(self, memcached_server: MemcachedServer) -> None:
        with closing(memcached_server.client(key_prefix=b"x:", default_noreply=True)) as client:
            client.set("a", b"1")
            assert client.get("a") == b"1"
        with closing(memcached_server.client()) as client:
            assert client.get("x:a") == b"1"

    def test_it_counts(self, memcached_server: MemcachedServer, client: Client) -> None:
        before = memcached_server.stats()
        client.get("a")
        client.set("a", b"1")
        client.get("a")
        after = memcached_server.stats()
        counted = {
            name: value - old
            for name in ("cmd_get", "cmd_set", "get_hits", "get_misses")
            if isinstance(value := after[name], int) and isinstance(old := before[name], int)
        }
        assert counted == {"cmd_get": 2, "cmd_set": 1, "get_hits": 1, "get_misses": 1}
        assert after["pid"] == memcached_server.pid
        assert isinstance(after["version"], str)

    def test_flushed_it_is_empty(self, memcached_server: MemcachedServer, client: Client) -> None:
        client.set("a", b"1")
        memcached_server.flush()
        assert client.get("a") is None
        client.set("a", b"2")
        assert client.get("a") == b"2"

    def test_it_has_arguments(self) -> None:
        """Among them is the limit of its memory, beyond which it forgets."""
        with MemcachedServer("-m", "2") as server, closing(server.client()) as client:
            assert server.stats()["limit_maxbytes"] == 2 << 20
            for number in range(100):
                client.set(f"key-{number}", b"x" * 100_000)
            evictions = server.stats()["evictions"]
            assert isinstance(evictions, int)
            assert evictions > 0

    def test_started_again_it_is_empty(self) -> None:
        with MemcachedServer() as server, closing(server.client()) as client:
            client.set("a", b"1")
            server.kill()
            with pytest.raises((OSError, MemcacheUnexpectedCloseError)):
                client.get("a")
            with pytest.raises(ConnectionRefusedError):
                client.get("a")
            server.start()
            assert client.get("a") is None

    def test_paused_it_answers_nothing(self) -> None:
        with MemcachedServer() as server, closing(server.client(timeout=0.1)) as client:
            client.set("a", b"1")
            server.pause()
            with pytest.raises(TimeoutError):
                client.get("a")
            assert not server.answers()
            server.resume()
            with closing(server.client()) as patient:
                assert patient.get("a") == b"1"

    def test_it_shows_its_log_when_it_does_not_start(self) -> None:
        server = MemcachedServer("--no-such-option")
        with pytest.raises(ServerError, match=r"(?s)ended with status.*no-such-option"), server:
            pass
        assert not server.folder.exists()


def segments() -> set[str]:
    """Return the shared memory of the system that nobody uses."""
    lines = [line.split() for line in Path("/proc/sysvipc/shm").read_text().splitlines()]
    used = lines[0].index("nattch")
    return {line[1] for line in lines[1:] if line[used] == "0"}


@pytest.fixture
def database(postgres_server: PostgresServer) -> Iterator[str]:
    postgres_server.create_database("some database")
    yield "some database"
    postgres_server.drop_database("some database")


class TestPostgres:
    def test_its_databases(self, postgres_server: PostgresServer, database: str) -> None:
        assert postgres_server.sql("CREATE TABLE t (i int)", database) == []
        assert postgres_server.sql("INSERT INTO t VALUES (%s), (2)", database, [1]) == []
        assert postgres_server.sql("SELECT i FROM t ORDER BY i", database) == [(1,), (2,)]
        names = [name for (name,) in postgres_server.sql("SELECT datname FROM pg_database")]
        assert database in names

    def test_a_database_that_is_used_is_dropped(self, postgres_server: PostgresServer) -> None:
        postgres_server.create_database("used")
        with closing(postgres_server.connect("used")) as connection:
            postgres_server.drop_database("used")
            with pytest.raises(psycopg.OperationalError):
                connection.execute("SELECT 1")
        postgres_server.drop_database("used")

    def test_its_settings(self, postgres_server: PostgresServer) -> None:
        def setting(name: str, server: PostgresServer = postgres_server) -> object:
            return server.sql(f"SHOW {name}")[0][0]

        assert setting("fsync") == "off"
        assert setting("max_connections") == "300"
        assert setting("listen_addresses") == HOST
        assert setting("server_encoding") == "UTF8"
        assert setting("lc_collate") == "C"
        with PostgresServer(durable=True, work_mem="1MB") as server:
            assert setting("fsync", server) == "on"
            assert setting("work_mem", server) == "1MB"

    def test_what_django_needs(self, postgres_server: PostgresServer, database: str) -> None:
        program = (
            "import sys\n"
            "from django.conf import settings\n"
            "settings.configure(DATABASES={'default': eval(sys.argv[1])})\n"
            "from django.db import connection\n"
            "with connection.cursor() as cursor:\n"
            "    cursor.execute('SELECT current_database()')\n"
            "    print(cursor.fetchone()[0])\n"
            "connection.close()\n"
        )
        said = subprocess.run(
            [sys.executable, "-c", program, repr(postgres_server.django_settings(database))],
            env=not_measured(),
            stdout=subprocess.PIPE,
            text=True,
            check=True,
        )
        assert said.stdout.strip() == database

    def test_killed_it_starts_again_with_its_rows(self) -> None:
        unused = segments()
        with PostgresServer() as server, closing(server.connect(autocommit=True)) as connection:
            connection.execute("CREATE TABLE t (i int)")
            connection.execute("INSERT INTO t VALUES (1)")
            pids = processes(server)
            assert connection.info.backend_pid in pids
            server.kill()
            assert not any(map(is_alive, pids))
            assert is_refused(server.port)
            with pytest.raises(psycopg.OperationalError):
                connection.execute("INSERT INTO t VALUES (2)")
            server.start()
            assert server.sql("SELECT i FROM t") == [(1,)]
        assert segments() <= unused

    def test_a_backup_takes_the_place_of_its_data(self) -> None:
        with PostgresServer() as server:
            server.sql("CREATE TABLE rows (number INTEGER)")
            server.sql("INSERT INTO rows VALUES (1)")
            backup = server.folder / "backup"
            server.back_up(backup)
            server.sql("INSERT INTO rows VALUES (2)")
            server.kill()
            shutil.rmtree(server.data)
            backup.rename(server.data)
            server.start()
            assert server.sql("SELECT number FROM rows") == [(1,)]

    def test_its_own_process_killed_it_starts_again(self) -> None:
        """The others have to notice that, and to end, before it can."""
        unused = segments()
        with PostgresServer() as server:
            server.sql("CREATE TABLE t (i int)")
            for _ in range(3):
                pids = processes(server)
                os.kill(server.pid, signal.SIGKILL)
                server.restart()
                assert not any(map(is_alive, pids))
                assert server.sql("SELECT i FROM t") == []
        assert segments() <= unused

    def test_it_survives_the_death_of_a_connection_and_then_its_own(self) -> None:
        unused = segments()
        with PostgresServer() as server:
            with closing(server.connect()) as connection:
                os.kill(connection.info.backend_pid, signal.SIGKILL)
                with pytest.raises(psycopg.OperationalError):
                    connection.execute("SELECT 1")
            wait_until(server.answers, "it has recovered")
            server.kill()
            server.start()
            assert server.sql("SELECT 1") == [(1,)]
        assert segments() <= unused

    def test_stopped_it_leaves_no_client_connected(self) -> None:
        with PostgresServer() as server, closing(server.connect()) as connection:
            server.stop()
            assert not server.running
            with pytest.raises(psycopg.OperationalError):
                connection.execute("SELECT 1")

    def test_paused_it_answers_nothing(self) -> None:
        """Neither on a new connection nor on an old one."""
        with PostgresServer() as server, closing(server.connect()) as old:
            old.execute("SELECT 1")
            server.pause()
            with socket.create_connection((HOST, server.port), PATIENCE) as new:
                new.sendall(struct.pack("!ii", 8, 80877103))  # SSLRequest
                new.settimeout(0.1)
                with pytest.raises(TimeoutError):
                    new.recv(1)
            assert set(server._children().values()) == {"T"}
            old.pgconn.send_query(b"SELECT 2")
            old.pgconn.flush()
            with socket.socket(fileno=os.dup(old.fileno())) as answers:
                answers.settimeout(0.1)
                with pytest.raises(TimeoutError):
                    answers.recv(1, socket.MSG_PEEK)
                server.resume()
                answers.settimeout(PATIENCE)
                assert answers.recv(1, socket.MSG_PEEK) != b""
            assert server.sql("SELECT 3") == [(3,)]

    def test_it_shows_what_initdb_says(self, monkeypatch: pytest.MonkeyPatch) -> None:
        options = postgresserver._user_options()
        monkeypatch.setattr(postgresserver, "USER", "pg_reserved")
        monkeypatch.setattr(postgresserver, "_user_options", lambda: options)
        server = PostgresServer()
        with pytest.raises(ServerError, match=r'(?s)initdb.*status 1.*"pg_reserved"'), server:
            pass
        assert not server.folder.exists()

    def test_it_shows_its_log_when_it_does_not_start(self) -> None:
        server = PostgresServer(no_such_setting="1")
        with pytest.raises(ServerError, match=r"(?s)status 1.*no_such_setting"), server:
            pass
        assert not server.folder.exists()
