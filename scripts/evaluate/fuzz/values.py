"""Odd values, and ways to spoil what is sound: JSON, text, bytes."""

import copy
import json
from random import Random
from typing import Any

ODD: list[Any] = [
    *(None, True, False, 0, 1, -1, 2, 3, 7, 8, 64, 2**31, 2**63, 10**12, 10**30, 1.5, -0.0, 1e-300, 1e300),
    *(float("nan"), float("inf"), -float("inf"), "", " ", "a", "0", "8", "-1", "nan", "true", "None", "x" * 5000),
    *(
        "\x1b[31m\x07",
        "\0",
        "\ud800",
        "é",
        "e\u0301",
        "\u202e",
        "\n",
        "..",
        "../../x",
        "/etc/passwd",
        "<script>",
        "%s{}",
    ),
    *([], [1], [True], [None], [[1]], [1, 2], [10**9] * 2, [0.5] * 1000, ["a"], ["a", "b"], [[["x" * 3000]]]),
    *({}, {"content": 5}, {"content": "x"}, {"a": {"b": [1]}}, {"__class__": "x"}, {"1": {"content": "z"}}),
    *([{"id": 3}], [{"id": "a", "content": "b"}], {"x" * 3000: 1}),
]
WORDS = [
    *(
        "",
        " ",
        "-",
        "--",
        "---",
        "-1",
        "0",
        "1",
        "2",
        "7.0",
        "1e3",
        "nan",
        "inf",
        "1_000",
        "٣",
        "²",
        "0x10",
        "+5",
        " 4 ",
    ),
    *(
        "9" * 40,
        "9" * 5000,
        "-" * 300,
        "x" * 4000,
        "\x1b[2J",
        "\x07",
        "\u202e",
        "\udcff",
        "é",
        "корабль",
        "a\nb",
        "a\tb",
    ),
    *(
        ".",
        "..",
        "/",
        "./",
        "~",
        "a/b/c",
        "../../escaped.png",
        "/dev/null",
        "/proc/self/mem",
        "missing",
        "missing/a.png",
    ),
    *("ship.png", "ship.tiff", "%d.png", "{seed}.png", "%99d.png", "{index}{seed}.webp", "a" * 300 + ".png", "con.png"),
    *(
        "64x64",
        "0x0",
        "64",
        "8x99999999",
        "999999999x1",
        "x",
        "euler",
        "DPM++ 2M Karras",
        "eulr",
        "None",
        "True",
        "fp32",
    ),
    *("cpu", "cuda", "cuda:99999999999999999999", "cpu:0", "cpu:99999999999999999999", "meta", "owner/name", "a/b/c/d"),
    *(
        "http://127.0.0.1:9/x.safetensors",
        "file:///etc/passwd",
        "s3://bucket/x",
        "http://[::1",
        "http://a b/c",
        "-q",
        "--",
    ),
    *("0-3", "0-3,7", "5-1", "1-", "auto", "all", "main", "fp16", "png", "jpg", "gif", "ray", "local"),
]
# Bytes that mean something to some reader.
_BYTES = [
    *(
        b"",
        b"\0",
        b"\xff",
        b"\xff\xfe",
        b"\xef\xbb\xbf",
        b"\r",
        b"\n",
        b"\r\n",
        b"\x1b[31m",
        b'"',
        b"'",
        b"{",
        b"}",
        b"[",
        b"]",
    ),
    *(
        b",",
        b";",
        b":",
        b"\\",
        b"\\u",
        b"\\ud800",
        b"NaN",
        b"1e999",
        b"9" * 5000,
        b"null",
        b"\xed\xa0\x80",
        b"\xe2\x80\xa8",
    ),
    *(b"--", b"#", b"<", b"\x7f", b"\x80", b"\x00" * 64, b"\xff" * 64, b"[" * 3000, b"a" * 3000),
]


def odd(rng: Random) -> Any:
    """Return an odd JSON value; one in four is made of others."""
    if rng.random() < 0.75:
        return copy.deepcopy(rng.choice(ODD))
    size = rng.choice((1, 2, 3, 8))
    if rng.random() < 0.6:
        return [rng.choice(ODD) for _ in range(size)]
    return {str(rng.choice(ODD))[:50]: rng.choice(ODD) for _ in range(size)}


def spoiled(rng: Random, content: Any) -> Any:
    """Change a JSON value in one place, at whatever depth."""
    content = copy.deepcopy(content)
    places: list[tuple[Any, Any]] = []

    def walk(value: Any) -> None:
        items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
        for key, inner in list(items)[:200]:
            places.append((value, key))
            walk(inner)

    walk(content)
    if not places:
        return odd(rng)
    holder, key = rng.choice(places)
    what = rng.random()
    if what < 0.12:
        del holder[key]
    elif what < 0.2 and isinstance(holder, dict):
        holder[str(rng.choice(WORDS))] = odd(rng)
    elif what < 0.3 and isinstance(holder[key], int | float) and not isinstance(holder[key], bool):
        holder[key] = rng.choice(
            (holder[key] + 1, -holder[key], holder[key] * 10**9, holder[key] / 3, float(holder[key]))
        )
    else:
        holder[key] = odd(rng)
    return content


def as_json(content: Any) -> bytes:
    """Write JSON as lenient programs do: NaN and half surrogates are kept."""
    return json.dumps(content).encode()


def mutated(rng: Random, data: bytes) -> bytes:
    """Change bytes in up to four places: overwritten, inserted, cut out, repeated, or the end cut off."""
    for _ in range(rng.choice((1, 1, 2, 4))):
        at = rng.randrange(len(data) + 1)
        length = rng.choice((1, 1, 2, 4, 16, 200))
        what = rng.randrange(6)
        if what == 0:
            data = data[:at] + rng.randbytes(min(length, 16)) + data[at + length :]
        elif what == 1:
            data = data[:at] + rng.choice(_BYTES) + data[at:]
        elif what == 2:
            data = data[:at] + data[at + length :]
        elif what == 3:
            data = data[:at] + data[at : at + length] * rng.choice((2, 3, 50)) + data[at + length :]
        elif what == 4:
            data = data[:at]
        else:
            data = data[:at] + bytes([data[at] ^ 1 << rng.randrange(8)]) + data[at + 1 :] if at < len(data) else data
    return data


def word(rng: Random) -> str:
    """Return an odd word for a command line, without null bytes, which no command line can hold."""
    text = rng.choice(WORDS)
    if rng.random() < 0.15:
        text = text[:50] + rng.choice(WORDS)[:50]
    return text.replace("\0", "")
