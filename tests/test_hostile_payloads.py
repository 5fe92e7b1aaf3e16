"""Payloads that others wrote: each harms its own key at most, and nothing of it is executed.

docs/internals.rst, rules 6.1 and 6.2.
"""

from __future__ import annotations

import base64
import json
import pickle
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from durabledict import (
    CompressedEncoding,
    DecodingError,
    JSONEncoding,
    NoOpEncoding,
    PickleEncoding,
    RestrictedPickleEncoding,
    SignedEncoding,
    SqliteDict,
    coder,
)

from .hostile import DEEP, BrokenRepr, Canary, damaged, hostile_pickles, put_row

relaxed = settings(
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
thorough = settings(relaxed, max_examples=5000)

KEYSPACE, KEY = "settings", "theme"

#: Those that run nothing of a payload that they refuse.
SAFE: dict[str, Any] = {
    "restricted": RestrictedPickleEncoding(allow=[Path]),
    "json": JSONEncoding,
    "none": NoOpEncoding,
    "signed": SignedEncoding("secret"),
    "signed json": SignedEncoding("secret", JSONEncoding),
    "compressed, signed": CompressedEncoding(SignedEncoding("secret"), minimum=0),
    "signed, compressed": SignedEncoding("secret", CompressedEncoding(minimum=0)),
    "compressed, restricted": CompressedEncoding(RestrictedPickleEncoding(), maximum=100_000),
}

BENIGN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=8,
)


@pytest.fixture
def canary() -> Iterator[Canary]:
    with Canary() as made:
        yield made


def payloads() -> st.SearchStrategy[bytes | str]:
    """What anybody may have written: noise, hostile pickles, and good payloads with damage."""
    good = st.sampled_from(list(SAFE.values())).flatmap(
        lambda encoding: BENIGN.map(
            lambda value: (
                coder.encode(encoding, KEYSPACE, KEY, value)
                if encoding is not NoOpEncoding
                else b""
            )
        )
    )
    raw = st.binary(max_size=60) | st.builds(_prefixed, st.binary(max_size=40))
    return st.one_of(
        raw,
        st.text(max_size=40),
        good.flatmap(damaged),
        hostile_pickles(),
        hostile_pickles().flatmap(damaged),
        hostile_pickles().map(lambda payload: b"\x01" + bytes(32) + payload),
        hostile_pickles().map(lambda payload: b"\x02" + zlib.compress(payload)),
        hostile_pickles().map(lambda payload: b"\x03" + payload),
        hostile_pickles().map(base64.encodebytes),
        hostile_pickles().map(lambda payload: base64.b64encode(payload).decode()),
    )


def _prefixed(rest: bytes) -> bytes:
    return b"\x80\x05" + rest.replace(b"r", b"q") + b"."


def _is_harmless(payload: bytes | str) -> bool:
    # LONG_BINPUT and its like have an unpickler reserve memory, which is said in the docs.
    return not (isinstance(payload, bytes) and b"r" in payload and payload[:1] == b"\x80")


def decoded_or_refused(encoding: Any, payload: Any) -> bool:
    """Decode as a dict does; tell whether that gave a value. No other error than its own."""
    refused = None
    try:
        coder.decode(encoding, None, KEYSPACE, KEY, payload)
    except DecodingError as error:
        refused = str(error)
    assert refused is None or repr(KEY) in refused
    return refused is None


@pytest.mark.parametrize("name", SAFE)
@given(payload=payloads())
@example(payload="[" * DEEP)
@example(payload="9" * 5000)
@example(payload=b"\x80\x05)" + b"\x85" * DEEP + b".")
@example(payload=b"")
@relaxed
def test_whatever_is_stored_is_a_value_or_a_decoding_error(
    canary: Canary, name: str, payload: bytes | str
) -> None:
    decoded_or_refused(SAFE[name], payload)
    assert not canary.sang()


@pytest.mark.long
@pytest.mark.parametrize("name", SAFE)
@given(payload=payloads())
@thorough
def test_the_same_with_many_examples(canary: Canary, name: str, payload: bytes | str) -> None:
    decoded_or_refused(SAFE[name], payload)
    assert not canary.sang()


@given(payload=st.binary(max_size=60) | BENIGN.map(PickleEncoding.encode).flatmap(damaged))
@relaxed
def test_what_is_no_pickle_is_a_decoding_error(payload: bytes) -> None:
    if _is_harmless(payload):
        decoded_or_refused(PickleEncoding, payload)


def test_the_canary_sings_where_pickles_are_trusted(canary: Canary) -> None:
    """Or the tests above would show nothing."""
    decoded_or_refused(PickleEncoding, canary.payload())
    assert canary.sang()


# Depth and size


@pytest.mark.parametrize(
    "closing",
    [
        pytest.param(b"N\x86", id="TUPLE2"),
        pytest.param(b"\x85", id="TUPLE1"),
        pytest.param(b"NN\x87", id="TUPLE3"),
        pytest.param(b"\x85\x94", id="remembered"),
    ],
)
@pytest.mark.parametrize("ending", [b"\x8f(", b"}"], ids=["set", "dict"])
def test_a_tuple_that_is_too_deep_to_be_hashed_is_refused(
    tmp_path: Path, closing: bytes, ending: bytes
) -> None:
    """Python hashes it by recursion in C, and the whole process ends."""
    begin, end = (b"\x8f(", b"\x90.") if ending == b"\x8f(" else (b"}", b"Ns.")
    payload = b"\x80\x05" + begin + b")" + closing * 1_000_000 + end
    put_row(tmp_path / "d.sqlite", "deep", payload)
    put_row(tmp_path / "d.sqlite", "good", PickleEncoding.encode((1, 2)))
    with SqliteDict[str, Any](tmp_path / "d.sqlite", encoding=RestrictedPickleEncoding()) as d:
        assert d == {"good": (1, 2)}
        assert "deep" in str(d.undecodable["deep"])


def test_tuples_of_the_tuple_opcode_are_counted_too() -> None:
    deep = b"\x80\x05" + b"(" * 20_000 + b")" + b"t" * 20_000 + b"."
    with pytest.raises(DecodingError, match="deep"):
        RestrictedPickleEncoding().decode(deep)


def test_a_deep_tuple_beside_a_shallow_one_is_deep() -> None:
    deep = b"\x80\x05)" + b"N\x85\x86" * 20_000 + b"."
    with pytest.raises(DecodingError, match="deep"):
        RestrictedPickleEncoding().decode(deep)


class Box(NamedTuple):
    inside: Any


def test_tuples_within_objects_that_are_tuples_are_counted_too() -> None:
    name = b"\x8c%c%b\x8c\x03Box\x93" % (len(__name__), __name__.encode())
    # What was made last, in a Box of its own, and so on.
    level = b"q\x010h\x00h\x01\x85R"
    deep = b"\x80\x05" + name + b"q\x000N" + level * 6_000 + b"."
    with pytest.raises(DecodingError, match="deep"):
        RestrictedPickleEncoding(allow=[Box]).decode(deep)


def test_many_tuples_that_are_not_deep_are_loaded() -> None:
    value = [(number, (number, str(number))) for number in range(20_000)]
    assert RestrictedPickleEncoding().decode(pickle.dumps(value, 5)) == value


@pytest.mark.parametrize("kind", ["list", "dict", "json list", "json dict"])
def test_a_value_that_is_deeper_than_the_stack_harms_nobody_else(tmp_path: Path, kind: str) -> None:
    encoding: Any = JSONEncoding if "json" in kind else RestrictedPickleEncoding()
    payload: Any = {
        "list": b"\x80\x05" + b"]" * DEEP + b"a" * (DEEP - 1) + b".",
        "dict": b"\x80\x05" + b"}N" * DEEP + b"Ns" + b"s" * (DEEP - 1) + b".",
        "json list": "[" * DEEP + "]" * DEEP,
        "json dict": '{"":' * DEEP + "1" + "}" * DEEP,
    }[kind]
    put_row(tmp_path / "d.sqlite", "deep", payload)
    put_row(tmp_path / "d.sqlite", "good", coder.encode(encoding, "default", "good", [1]))
    with SqliteDict[str, Any](tmp_path / "d.sqlite", encoding=encoding) as d:
        heard: list[Any] = []
        d.on_change(lambda key, old, new: heard.append(key))
        assert d["good"] == [1]
        assert "good" in repr(d) or "RecursionError" in repr(d)
        put_row(tmp_path / "d.sqlite", "good", coder.encode(encoding, "default", "good", [2]))
        assert d["good"] == [2]
        d.sync(force=True)
        del d["deep"]
        assert d == {"good": [2]}
        assert "good" in heard


def test_a_value_whose_repr_fails_does_not_break_that_of_the_dict(tmp_path: Path) -> None:
    with SqliteDict[str, Any](tmp_path / "d.sqlite") as d:
        d["broken"] = BrokenRepr()
        assert isinstance(repr(d), str)


@pytest.mark.parametrize("size", [10**7, 10**8])
def test_what_decompresses_to_more_than_the_maximum_is_refused(tmp_path: Path, size: int) -> None:
    stream = zlib.compressobj(9)
    block = bytes(10**6)
    bomb = b"".join(stream.compress(block) for _ in range(size // len(block))) + stream.flush()
    nested = zlib.compress(b"\x02" + bomb)
    encoding = CompressedEncoding(
        CompressedEncoding(RestrictedPickleEncoding(), maximum=10**6), maximum=10**6
    )
    put_row(tmp_path / "d.sqlite", "bomb", b"\x02" + bomb)
    put_row(tmp_path / "d.sqlite", "nested", b"\x02" + nested)
    put_row(tmp_path / "d.sqlite", "good", encoding.encode(1))
    with SqliteDict[str, Any](tmp_path / "d.sqlite", encoding=encoding) as d:
        assert d == {"good": 1}
        assert set(d.undecodable) == {"bomb", "nested"}


@pytest.mark.parametrize("text", ["1" + "0" * 5000, "[" + "9" * 100_000 + "]", "1e99999999"])
def test_huge_numbers_in_json_are_values_or_errors_of_their_key(tmp_path: Path, text: str) -> None:
    put_row(tmp_path / "d.sqlite", "huge", text)
    put_row(tmp_path / "d.sqlite", "good", "1")
    with SqliteDict[str, Any](tmp_path / "d.sqlite", encoding=JSONEncoding) as d:
        assert d["good"] == 1
        assert json.loads("1") == d.copy()["good"]


# Signatures


SEALS: dict[str, Any] = {
    "signed": lambda secret: SignedEncoding(secret),
    "compressed inside": lambda secret: SignedEncoding(secret, CompressedEncoding(minimum=0)),
    "compressed outside": lambda secret: CompressedEncoding(SignedEncoding(secret), minimum=0),
    "twice": lambda secret: SignedEncoding(secret, SignedEncoding("inner")),
}


def sealed(name: str, secret: str = "secret") -> Any:
    return SEALS[name](secret)


@pytest.mark.parametrize("name", SEALS)
@given(data=st.data())
@relaxed
def test_no_change_of_a_signed_payload_is_accepted(
    canary: Canary, name: str, data: st.DataObject
) -> None:
    genuine = sealed(name).bind(KEYSPACE, KEY).encode(canary)
    forged = data.draw(damaged(genuine))
    if name == "compressed outside" and _same_body(forged, genuine):
        return  # another compression of the very payload that was signed
    if forged != genuine:
        assert not decoded_or_refused(sealed(name), forged)
        assert not canary.sang()


def _same_body(one: bytes, other: bytes) -> bool:
    try:
        return _body(one) == _body(other)
    except zlib.error:
        return False


def _body(payload: bytes) -> bytes:
    return zlib.decompress(payload[1:]) if payload[:1] == b"\x02" else payload[1:]


@pytest.mark.parametrize("name", SEALS)
def test_every_bit_and_every_length_is_looked_at(canary: Canary, name: str) -> None:
    genuine = sealed(name).bind(KEYSPACE, KEY).encode(canary)
    forgeries = {genuine[:length] for length in range(len(genuine))}
    for place in range(len(genuine)):
        for bit in range(8):
            changed = bytearray(genuine)
            changed[place] ^= 1 << bit
            forgeries.add(bytes(changed))
    forgeries |= {genuine + b"\x00", genuine * 2, b"\x01" + genuine, genuine[1:]}
    for forged in forgeries:
        if name == "compressed outside" and _same_body(forged, genuine):
            continue
        assert not decoded_or_refused(sealed(name), forged), forged
    assert not canary.sang()
    assert decoded_or_refused(sealed(name), genuine)
    assert canary.sang()


@pytest.mark.parametrize("name", SEALS)
def test_what_was_signed_for_another_place_is_refused(canary: Canary, name: str) -> None:
    encoding = sealed(name)
    places: list[tuple[str, Any]] = [
        ("settings", "size"),
        ("setting", "stheme"),
        ("settingst", "heme"),
        ("", "settingstheme"),
        ("other", KEY),
        (KEY, KEYSPACE),
        (KEYSPACE, ("theme",)),
        (KEYSPACE, b"theme"),
    ]
    for place in places:
        assert not decoded_or_refused(encoding, encoding.bind(*place).encode(canary))
    # Unbound, and of another secret.
    assert not decoded_or_refused(encoding, encoding.encode(canary))
    other = sealed(name, "another").bind(KEYSPACE, KEY).encode(canary)
    assert not decoded_or_refused(encoding, other)
    assert not canary.sang()


@pytest.mark.parametrize("name", SEALS)
def test_a_weaker_form_of_a_signed_payload_is_refused(canary: Canary, name: str) -> None:
    """Unsigned, without the wrapper, with the digest of another algorithm, or with none."""
    import hashlib
    import hmac

    place = b"".join(
        len(part).to_bytes(8, "big") + part for part in (KEYSPACE.encode(), KEY.encode())
    )
    body = canary.payload()
    weaker = [body, b"\x03" + body, b"\x02" + zlib.compress(body), b"\x01" + body, b"\x01"]
    for algorithm in ("md5", "sha1", "sha224", "sha512", "blake2b", "sha3_256"):
        for signed in (place + body, b"\x01" + place + body, body):
            for digest in (
                hmac.new(b"secret", signed, algorithm).digest(),
                hashlib.new(algorithm, b"secret" + signed).digest(),
                hmac.new(b"", signed, algorithm).digest(),
            ):
                weaker.append(b"\x01" + digest + body)
                weaker.append(b"\x01" + digest[:32].ljust(32, b"\0") + body)
    weaker += [b"\x01" + bytes(32) + body, b"\x01" + hashlib.sha256(body).digest() + body]
    genuine = SignedEncoding("secret").bind(KEYSPACE, KEY).encode(canary)
    weaker.append(genuine[1 + 32 :])
    weaker.append(b"\x04" + genuine[1:])
    encoding = sealed(name)
    for payload in weaker:
        for form in (payload, b"\x03" + payload, b"\x02" + zlib.compress(payload)):
            assert not decoded_or_refused(encoding, form)
    assert not canary.sang()


@pytest.mark.parametrize("name", SEALS)
def test_a_signed_payload_that_was_copied_is_refused_by_the_dict(
    tmp_path: Path, canary: Canary, name: str
) -> None:
    path = tmp_path / "d.sqlite"
    encoding = sealed(name)
    with SqliteDict[Any, Any](path, "test", encoding=encoding) as d:
        d["admin"] = canary
        canary.silence()
        ((payload,),) = put_row.read(path, "test", "admin")
    for keyspace, key in (("live", "admin"), ("test", "other")):
        put_row(path, key, payload, keyspace)
    with (
        SqliteDict[Any, Any](path, "live", encoding=encoding) as live,
        SqliteDict[Any, Any](path, "test", encoding=encoding, autosync=False) as test,
    ):
        live["mine"] = 1
        assert live == {"mine": 1}
        assert list(live.undecodable) == ["admin"]
        assert list(test.undecodable) == ["other"]
