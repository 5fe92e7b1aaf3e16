"""Python keys to the names of znodes, and back.

A key is stored under its own text (`durabledict.keys`), as 0.9 did, where ZooKeeper takes that for
a name. What it forbids is written as ``~name:`` and the text with the forbidden characters as the
``%XX`` of their UTF-8 bytes:

===============  =====================
key              name
===============  =====================
``'theme'``      ``theme``
``1``            ``~int:1``
``'a/b'``        ``~name:a%2Fb``
``'..'``         ``~name:%2E%2E``
``''``           ``~name:``
===============  =====================

A name is read as an escape only in the one form in which `encode_name` writes it, so that names
and keys are inverse in both directions: no two keys share a name, no two names a key.
"""

from __future__ import annotations

import re
from typing import Any
from urllib.parse import unquote_to_bytes

from .keys import decode_key, encode_key

__all__ = ["IS_FORBIDDEN", "OWN_NAME", "Place", "checked_path", "decode_name", "encode_name"]

TAG = "~name:"
#: How the escape of an escape begins, and where the text after its tilde does.
OF_AN_ESCAPE = "~name:%7Ename:"
AFTER_TILDE = len("~name:%7E")

#: What ZooKeeper takes in no name (PathUtils.validatePath counts in the units of UTF-16, so that
#: no character above U+FFFF is taken, either), and what stands for itself in no escape.
FORBIDDEN = "/\x00-\x1f\x7f-\x9f\ud800-\uf8ff\ufff0-\uffff\U00010000-\U0010ffff"
IS_FORBIDDEN = re.compile(f"[{FORBIDDEN}]")
IS_ESCAPED = re.compile(f"[{FORBIDDEN}%]")

#: Of a text that stands for itself: no escape, since it does not begin with a tilde, and no `..`.
IS_PLAIN = re.compile(r"[\w-][\w.:-]*", re.ASCII).fullmatch

#: Names that mean something else: the folder itself, the one above, none. And, directly under the
#: root, the folder of ZooKeeper's own.
NO_NAMES = frozenset({"", ".", ".."})
OWN_NAME = "zookeeper"


def encode_name(key: object, in_root: bool = False) -> str:
    """Return the name of the znode that holds `key`.

    >>> encode_name("theme"), encode_name(1), encode_name("a/b")
    ('theme', '~int:1', '~name:a%2Fb')

    :param in_root: the znode is directly under ZooKeeper's root
    :raises TypeError: a key of this type cannot be stored

    """
    text = encode_key(key)
    taken = not (IS_FORBIDDEN.search(text) or _is_no_name(text, in_root))
    if taken and _unescaped(text, in_root) is None:
        return text
    return _escaped(text, in_root)


def decode_name(name: str, in_root: bool = False) -> Any:
    """Return the key that a znode of this name holds; any name is that of some key.

    >>> decode_name("theme"), decode_name("~int:1"), decode_name("~name:a%2Fb")
    ('theme', 1, 'a/b')

    """
    text = _unescaped(name, in_root)
    return decode_key(name if text is None else text)


def _escaped(text: str, in_root: bool) -> str:
    if _is_no_name(text, in_root):
        return TAG + "".join(map(_percent, text))
    body = IS_ESCAPED.sub(_percent_match, text)
    # An escape of an escape grows with each level, so that no short name has many.
    return TAG + (_percent("~") + body[1:] if text.startswith(TAG) else body)


def _percent_match(match: re.Match[str]) -> str:
    return _percent(match.group())


def _percent(character: str) -> str:
    return "".join(f"%{byte:02X}" for byte in character.encode("utf-8"))


def _is_no_name(text: str, in_root: bool) -> bool:
    return text in NO_NAMES or (in_root and text == OWN_NAME)


def _unescaped(name: str, in_root: bool) -> str | None:
    """Return the text of an escape, or None where `encode_name` would not have written it."""
    outermost: str | None = None
    if IS_FORBIDDEN.search(name):
        return None
    while name.startswith(TAG):
        percents = name.count("%", AFTER_TILDE)
        if name.startswith(OF_AN_ESCAPE) and name.count("%25", AFTER_TILDE) == percents:
            # What is below says the same, but takes a minute for a name of a megabyte that has a
            # thousand levels, as anybody may write it.
            name = "~" + name[AFTER_TILDE:].replace("%25", "%")
            outermost = name if outermost is None else outermost
            continue
        try:
            text = unquote_to_bytes(name[len(TAG) :]).decode("utf-8")
        except UnicodeDecodeError:
            return None
        if _escaped(text, in_root) != name:
            return None
        outermost = text if outermost is None else outermost
        if IS_FORBIDDEN.search(text) or _is_no_name(text, in_root):
            return outermost
        # A text that ZooKeeper takes is escaped only if it reads as an escape itself.
        name = text
    return None


class Place:
    """The znode whose children are the entries of a dict: from keys to paths, and back.

    :param path: as the client takes it
    :param in_root: it is ZooKeeper's own root, not that of a chroot

    """

    def __init__(self, path: str, in_root: bool) -> None:
        self.path = path
        self.in_root = in_root
        self._prefix = path.rstrip("/") + "/"

    def name(self, key: Any) -> str:
        """Return the name of a key's znode."""
        if type(key) is str and IS_PLAIN(key) and not self.in_root:
            return key  # as `encode_name` says of nearly every key, after more questions
        return encode_name(key, self.in_root)

    def key(self, name: str) -> Any:
        """Return the key that a znode holds."""
        return decode_name(name, self.in_root) if name[:1] == "~" else name

    def path_of(self, name: str) -> str:
        """Return the path of the znode of that name."""
        return self._prefix + name

    def is_entry(self, name: str) -> bool:
        """Whether a child of this place is an entry, and not ZooKeeper's own."""
        return not (self.in_root and name == OWN_NAME)


def checked_path(keyspace: object) -> str:
    """Return the path that a keyspace is.

    :raises TypeError: it is no text
    :raises ValueError: no path that ZooKeeper takes

    """
    if not isinstance(keyspace, str):
        raise TypeError(f"keyspace={keyspace!r}: write a path, '/settings' say")
    parts = [part for part in keyspace.split("/") if part]
    if not keyspace:
        raise ValueError("keyspace='': write a path; '/' is all that ZooKeeper has")
    if not set(parts).isdisjoint((".", "..")) or any(map(IS_FORBIDDEN.search, parts)):
        raise ValueError(f"keyspace={keyspace!r} is no path that ZooKeeper takes")
    return "/" + "/".join(parts)
