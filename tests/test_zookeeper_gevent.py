"""ZookeeperDict under gevent: the client's greenlets in place of threads, and locks that yield.

In a process of its own, which is patched before anything else is imported.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from . import not_measured
from .servers import PATIENCE
from .zookeeperservers import ZookeeperServer

ROOT = Path(__file__).parent.parent

PROGRAM = """
from gevent import monkey; monkey.patch_all()
import logging, subprocess, sys, threading
import gevent
from kazoo.client import KazooClient
from kazoo.handlers.gevent import SequentialGeventHandler
from durabledict import ZookeeperDict
from durabledict.zookeeperclient import NotConnectedError
from durabledict.zookeeperthreads import OwnThreadError

hosts, path, patience = sys.argv[1], sys.argv[2], float(sys.argv[3])
gevent.spawn_later(patience, lambda: sys.exit("it hangs"))

def new_client(hosts=hosts):
    return KazooClient(hosts, handler=SequentialGeventHandler())

def until(condition):
    while not condition():
        gevent.sleep(0.001)

# Reads and writes, and those of another client.
client = new_client()
d, strict = ZookeeperDict(path, client), ZookeeperDict(path, new_client(), "strict")
d["a"] = 1
d.update(b=2, c=3)
assert d == strict == {"a": 1, "b": 2, "c": 3}
strict["a"] = 4
del strict["c"]
assert d.sync() is True
assert d == {"a": 4, "b": 2}
assert d.pop("b") == strict.compute("a", lambda value: value - 2) == 2
d.replace_all({"a": 1})

# A watch, which hears of another process.
heard = []
unsubscribe = d.on_change(lambda key, old, new: heard.append((key, new)))
watch = d.watch(interval=patience)
program = "import sys, durabledict; durabledict.open(sys.argv[1]).update(a=5, new=6)"
subprocess.run([sys.executable, "-c", program, f"zookeeper://{hosts}{path}"], check=True)
until(lambda: len(heard) == 2)
assert sorted(heard) == [("a", 5), ("new", 6)]
assert d == {"a": 5, "new": 6}
watch.stop()
unsubscribe()

# Several greenlets sync and write at once.
begun, when_ended = [], []
def work(number, d):
    begun.append(number)
    for turn in range(10):
        d.sync()
        d[number] = turn
        assert d[number] == turn
        d.compute("n", lambda n: n + 1, 0)
    when_ended.append(len(begun))
greenlets = [gevent.spawn(work, number, each) for number, each in enumerate([d, d, d, strict])]
gevent.joinall(greenlets, raise_error=True)
assert when_ended == [4] * 4  # While one waits, the others go on.
d.sync()
assert d["n"] == strict["n"] == 4 * 10
assert d == {**dict.fromkeys(range(4), 9), "n": 40, "a": 5, "new": 6}

# On a greenlet of the client's nothing can be waited for.
raised = []
def on_event(event):
    try:
        d.sync()
    except OwnThreadError as error:
        raised.append(error)
client.get(path + "/a", watch=on_event)
strict["a"] = 7
until(lambda: raised)

# A client that nobody answers, of which kazoo logs each attempt.
logging.disable()
try:
    ZookeeperDict(path, new_client("127.0.0.1:1"), timeout=0.05)
except NotConnectedError as error:
    assert "127.0.0.1:1" in str(error)
else:
    raise AssertionError

d.close()
strict.close()
assert d["n"] == 40
assert not client.connected
assert threading.enumerate() == [threading.main_thread()]
print("done")
"""


def test_in_a_patched_process(zookeeper_server: ZookeeperServer, zookeeper_path: str) -> None:
    done = subprocess.run(
        [
            *(sys.executable, "-W", "error", "-c", PROGRAM),
            *(zookeeper_server.hosts, zookeeper_path, str(PATIENCE)),
        ],
        cwd=ROOT,
        # gevent changes how a process ends and traces.
        env=not_measured(),
        capture_output=True,
        text=True,
        check=False,
        timeout=2 * PATIENCE,
    )
    assert (done.stdout, done.stderr, done.returncode) == ("done\n", "", 0)
