"""`RestrictedPickleEncoding`: pickles that load no class but those allowed.

What a hostile pickle can try, and what stands in its way:

It names a class or function that nobody allowed.
    Both unpicklers of the standard library ask `find_class`, which here gives out what is allowed
    and imports nothing else.
It names one by a number, an extension code of `copyreg`.
    The unpickler in C keeps those that were used before in a cache, and gives them out without
    asking. So where any code is registered, which is rare, it is not used at all.
It sets attributes of an allowed class or function, or of a member of an enumeration.
    They would be changed for the whole process. The opcode BUILD, which is there to set the state
    of a new object, does that. Only the unpickler written in Python lets us come between.

It holds a tuple in a tuple, some hundred thousand times.
    Python hashes a tuple by a recursion in C that nothing bounds, and the process ends. No pickler
    goes so deep. The unpickler in Python lets us count.

So C loads the payloads that name nothing that could be changed: numbers, text, containers, and
classes that are written in C, such as dates; and that have too few tuples to be deep. The unpickler
in Python loads the others, and takes several times as long.

Nothing bounds the memory that a payload takes while it is loaded: ten bytes can say "remember this
as number 400,000,000". Nor the time: a tuple that holds another one twice, and that the next one
twice, is hashed in a time that doubles with each level. Who has to expect that, signs.

"""

from __future__ import annotations

import copyreg
import enum
import functools
import importlib
import io
import operator
import pickle
import types
from _compat_pickle import IMPORT_MAPPING, NAME_MAPPING
from collections.abc import Callable, Iterable
from typing import Any, ClassVar

from .basicencodings import (
    PYTHON_2_PROTOCOL,
    BaseEncoding,
    PickleEncoding,
    load_pickle,
    pickle_in,
)
from .errors import DecodingError

__all__ = ("RestrictedPickleEncoding",)


class RestrictedPickleEncoding(BaseEncoding):
    """Stores what pickles, and loads no class but the built-in containers and those allowed.

    Writes what `PickleEncoding` writes. A payload that asks for anything else is refused before
    that is imported or called:

    >>> from uuid import UUID
    >>> payload = PickleEncoding.encode(UUID(int=1))
    >>> RestrictedPickleEncoding(allow=[UUID]).decode(payload)
    UUID('00000000-0000-0000-0000-000000000001')
    >>> RestrictedPickleEncoding().decode(payload)
    Traceback (most recent call last):
    durabledict.errors.DecodingError: not among the allowed classes: add 'uuid.UUID' to allow=[...]

    The constructor and `__setstate__` of an allowed class do run, with arguments from the payload.
    What a payload can make a reader allocate, and how long it can keep it busy, is not bounded.

    :param allow: classes, or their names as in ``"package.module.Class"``, which are imported
        when a payload needs them. A name allows exactly what it names, be it a function: allow
        only what may be called with any arguments
    :raises TypeError: if an item of `allow` is neither a class nor a name

    """

    immutable = PickleEncoding.immutable

    def __init__(self, allow: Iterable[type | str] = ()) -> None:
        if isinstance(allow, (str, type)):
            raise TypeError("allow must be a list of classes or names, not one of them")
        self._names: list[str] = []
        self._allowed: dict[str, type | None] = {  # None: to be imported
            _name(kind): kind for kind in (bytearray, complex, frozenset, set)
        }
        for item in allow:
            # To Python 3.10, `list[int]` is a class.
            if isinstance(item, type) and not isinstance(item, types.GenericAlias):
                self._names.append(_name(item))
                self._allowed[_name(item)] = item
            elif isinstance(item, str):
                self._names.append(item)
                self._allowed.setdefault(item, None)
            else:
                raise TypeError(f"allow must hold classes or their names, not {item!r}")

    def __repr__(self) -> str:
        return f"{type(self).__name__}(allow={self._names!r})"

    @staticmethod
    def encode(value: Any) -> bytes:
        """Return `value` as `PickleEncoding` does; what it holds is checked when it is loaded."""
        return PickleEncoding.encode(value)

    def decode(self, payload: bytes | str) -> Any:
        """Return the value that was pickled, made of allowed classes only.

        Payloads that hold no class written in Python are loaded at the speed of `PickleEncoding`;
        the others by slower code, which watches over what is done to the classes.

        :raises DecodingError: if the payload is no pickle, or asks for what is not allowed

        """
        return load_pickle(payload, self._loads)

    def recognizes(self, payload: bytes | str) -> bool:
        """Whether it is a pickle: one that is refused here is not for an old encoding to run."""
        try:
            pickle_in(payload)
        except DecodingError:
            return False
        return True

    def _loads(self, payload: bytes, *, encoding: str) -> Any:
        python_2 = len(payload) > 1 and payload[1] <= PYTHON_2_PROTOCOL
        find = functools.partial(self._find, python_2)
        try:
            if not (_extensions() or _may_be_deep(payload)):
                try:
                    return _FastUnpickler(find, payload, encoding).load()
                except _ChangeableError:
                    pass
            return _GuardedUnpickler(find, payload, encoding).load()
        except pickle.UnpicklingError as error:
            raise DecodingError(f"refused or damaged pickle: {error}") from error

    def _find(self, python_2: bool, module: str, name: str) -> Any:
        if python_2:
            renamed = (IMPORT_MAPPING.get(module, module), name)
            module, name = NAME_MAPPING.get((module, name), renamed)
        full_name = f"{module}.{name}"
        if full_name not in self._allowed and full_name in _ENUM_MEMBERS:
            return _ENUM_MEMBERS[full_name]
        if full_name not in self._allowed:
            raise DecodingError(f"not among the allowed classes: add {full_name!r} to allow=[...]")
        found = self._allowed[full_name]
        if found is None:
            return operator.attrgetter(name)(importlib.import_module(module))
        return found


def _member(kind: Any, name: Any) -> Any:
    """Stand in for `getattr`: a member of an enumeration, and nothing else."""
    if not isinstance(kind, enum.EnumMeta) or name not in kind.__members__:
        raise DecodingError(f"{name!r} of {kind!r} is no member of an enumeration")
    return kind.__members__[name]


def _union(one: Any, other: Any) -> Any:
    """Stand in for ``|``: of two members of one enumeration of flags, and nothing else."""
    if not isinstance(one, enum.Flag) or type(one) is not type(other):
        raise DecodingError(f"{one!r} and {other!r} are no flags of one enumeration")
    return one | other


#: What the first releases of Python 3.11 write a member of an (allowed) enumeration with.
_ENUM_MEMBERS: dict[str, Any] = {"builtins.getattr": _member, "_operator.or_": _union}


def _name(kind: type) -> str:
    return f"{kind.__module__}.{kind.__qualname__}"


def _extensions() -> dict[int, tuple[str, str]]:
    """Return the names behind the extension codes that are registered in this process."""
    extensions: dict[int, tuple[str, str]] = vars(copyreg)["_inverted_registry"]
    return extensions


#: A tuple that is deeper is refused: each level takes some hundred bytes of the stack.
MOST_DEPTH = 5_000


def _may_be_deep(payload: bytes) -> bool:
    """Whether so many bytes could be opcodes that make a tuple; they may be something else."""
    payload = bytes(payload)  # it may be a memoryview, which does not count
    some = sum(map(payload.count, (pickle.TUPLE1, pickle.TUPLE2, pickle.TUPLE3)))
    return some + min(payload.count(pickle.TUPLE), payload.count(pickle.MARK)) > MOST_DEPTH


#: CPython's ``Py_TPFLAGS_IMMUTABLETYPE``: the attributes of such a class cannot be set.
_IMMUTABLE_TYPE = 1 << 8

_Find = Callable[[str, str], Any]


class _ChangeableError(Exception):
    """The payload names something that it could also change."""


class _FastUnpickler(pickle.Unpickler):
    """Loads what cannot be changed; raises `_ChangeableError` at anything else."""

    def __init__(self, find: _Find, payload: bytes, encoding: str) -> None:
        super().__init__(io.BytesIO(payload), encoding=encoding)
        self._find = find

    def find_class(self, module: str, name: str, /) -> Any:
        found = self._find(module, name)
        if not (isinstance(found, type) and found.__flags__ & _IMMUTABLE_TYPE):
            raise _ChangeableError
        return found


class _GuardedUnpickler(pickle._Unpickler):
    """Loads whatever is allowed, and lets a payload change nothing that was there before it."""

    dispatch: ClassVar[Any] = dict(pickle._Unpickler.dispatch)
    stack: list[Any]

    def __init__(self, find: _Find, payload: bytes, encoding: str) -> None:
        super().__init__(io.BytesIO(payload), encoding=encoding)
        self._find = find
        self._found: dict[int, Any] = {}
        # By identity; with the tuple itself, so that it stays and no other one gets its place.
        self._depths: dict[int, tuple[int, Any]] = {}

    def find_class(self, module: str, name: str) -> Any:
        found = self._find(module, name)
        self._found[id(found)] = found
        return found

    def get_extension(self, code: int) -> None:
        if code not in _extensions():
            raise pickle.UnpicklingError(f"unregistered extension code {code}")
        self.stack.append(self.find_class(*_extensions()[code]))

    def _load_build(self) -> None:
        target = self.stack[-2]
        if id(target) in self._found or isinstance(target, (type, enum.Enum)):
            raise DecodingError(f"the payload would change {target!r}, which it did not make")
        _BUILD(self)

    dispatch[pickle.BUILD[0]] = _load_build

    def _look_at_depth(self) -> None:
        made = self.stack[-1]
        if isinstance(made, tuple):
            depths = self._depths
            within = [depths[id(item)][0] for item in made if id(item) in depths]
            depth = 1 + max(within, default=0)
            if depth > MOST_DEPTH:
                raise DecodingError(f"a tuple is nested more than {MOST_DEPTH} deep")
            depths[id(made)] = depth, made


_BUILD: Any = pickle._Unpickler.dispatch[pickle.BUILD[0]]


def _and_look(load: Callable[[Any], None]) -> Callable[[_GuardedUnpickler], None]:
    def load_and_look(unpickler: _GuardedUnpickler) -> None:
        load(unpickler)
        unpickler._look_at_depth()

    return load_and_look


# What makes a tuple, or an object of an allowed subclass of it.
for _opcode in (
    *(pickle.TUPLE, pickle.TUPLE1, pickle.TUPLE2, pickle.TUPLE3),
    *(pickle.REDUCE, pickle.NEWOBJ, pickle.NEWOBJ_EX, pickle.OBJ, pickle.INST),
):
    _GuardedUnpickler.dispatch[_opcode[0]] = _and_look(_GuardedUnpickler.dispatch[_opcode[0]])
