"""What a message shows of URLs and clients, in which there may be passwords.

>>> hidden("redis://ann:sesame@localhost:6379/0?password=sesame#sesame")
'redis://***@localhost:6379/0?password=***#***'
>>> kind_of("redis://ann:sesame@localhost"), kind_of(None), kind_of({}.items())
('a str', 'None', 'a dict_items')
"""

from __future__ import annotations

__all__ = ["hidden", "kind_of"]

_HIDDEN = "***"


def hidden(url: str) -> str:
    """Return a URL without what may be secret: the user, the password, and values of the query.

    It need not be a valid one: the slash or the question mark in a password that was not escaped
    does not end it here.

    """
    scheme, mark, rest = url.rpartition("://") if url.count("://") == 1 else ("", "", url)
    _, at, rest = rest.rpartition("@")
    place, question, query = rest.partition("?")
    if question:
        query, number, _ = query.partition("#")
        parts = [part.partition("=") for part in query.split("&")]
        query = "&".join(f"{name}={_HIDDEN}" if equals else _HIDDEN for name, equals, _ in parts)
    else:
        place, number, _ = place.partition("#")
    return "".join(
        [
            scheme + mark,
            _HIDDEN + at if at else "",
            place + question + query,
            number + _HIDDEN if number else "",
        ]
    )


def kind_of(value: object) -> str:
    """Return the type of what was given in place of a client, say: its repr may show a password."""
    if value is None:
        return "None"
    name = type(value).__qualname__
    return f"{'an' if name[:1].lower() in 'aeiou' else 'a'} {name}"
