"""File names made of prompts and of what rows ask for: safe on every system, never outside their folder."""

import re
import sys
import unicodedata

from genpipe.images import FORMATS

# Names that Windows keeps for devices: with any suffix, with blanks before it, with superscript digits.
_RESERVED = re.compile(r"(con|prn|aux|nul|conin\$|conout\$|clock\$|(com|lpt)[\d¹²³])\s*(\..*)?", re.IGNORECASE)
# An image without a name of its own is named after its id.
_ID = re.compile(r"[0-9a-f]{32}\.\w+", re.IGNORECASE)
# What some system cannot hold, of ASCII; of the rest control and format characters, halves of pairs, ends of lines.
_BAD = {code: None for code in (*range(32), *map(ord, '<>:"|?*'), 127)}
_BAD_KINDS = frozenset({"Cc", "Cf", "Cs", "Zl", "Zp"})
_EDGES = re.compile(r"^[\s.]+|[\s.]+$")
# Disks count bytes, commonly up to 255 per name; folders deeper than this are a mistake.
_BYTES, _DEPTH = 200, 8


def file_stem(prompt: str) -> str:
    """Make a file name, without suffix, of a prompt: "Pirate ship, at night!" gives "pirate-ship-at-night".

    Letters and digits of every script are kept, in at most 60 characters; "picture" stands for a prompt without any.
    """
    # What the system's file names cannot hold is left out.
    encoding = sys.getfilesystemencoding()
    text = unicodedata.normalize("NFKC", prompt).lower().encode(encoding, "ignore").decode(encoding)
    kept = ""
    for character in text:
        kind = unicodedata.category(character)
        # A mark belongs to the letter before it; alone it is what is left of an emoji.
        if kind[0] in "LN" or (kind[0] == "M" and kept[-1:] not in ("", "-")):
            kept += character
        elif kind != "Cf" and character not in "'’":
            kept += "-"
    stem = re.sub("-+", "-", kept).strip("-")
    if len(stem) > 60:
        words = stem[:61].rpartition("-")[0]
        stem = words if len(words) > 30 else stem[:60]
    # Disks count bytes, commonly to 255.
    stem = stem.encode()[:200].decode(errors="ignore").strip("-")
    return f"picture-{stem}" if _RESERVED.fullmatch(stem) else stem or "picture"


def safe_name(wanted: str, suffix: str) -> str:
    """Make a path below the folder of images of the `file_name` of a row.

    "../../etc/passwd" gives "etc/passwd.png", "C:\\con" gives "C/_con.png", "a.png/b.png" gives "a_png/b.png": a folder is
    never named as an image might be. What is safe already stays as it is.

    Args:
        wanted: any text; the suffix of an image is kept.
        suffix: ".png", …, which is added where there is none.
    """
    encoding = sys.getfilesystemencoding()
    text = wanted.encode(encoding, "ignore").decode(encoding, "ignore")
    *folders, last = [part for part in map(_cleaned, re.split(r"[/\\]", text)) if part][-_DEPTH:] or ["picture"]
    stem, dot, ending = last.rpartition(".")
    if not dot or f".{ending.lower()}" not in FORMATS:
        stem, ending = last, suffix[1:]
    stem = _cut(stem)
    if _RESERVED.fullmatch(stem) or _ID.fullmatch(f"{stem}.{ending}"):
        stem = _cut(f"_{stem}")
    name = f"{stem}.{ending}"
    return "/".join([*map(_folder, folders), name])


def collision_key(path: str) -> str:
    """Give the text that two paths share where some disk takes them for one.

    Disks may ignore case (Windows, macOS) and whether accents are composed (macOS); Unicode 3.13, D145.
    """
    return unicodedata.normalize("NFD", unicodedata.normalize("NFD", path).casefold())


def numbered(name: str, number: int) -> str:
    """Add a number to a name that `safe_name` made: "a/b.png", 2 gives "a/b-2.png"."""
    folder, slash, last = name.rpartition("/")
    stem, _, ending = last.rpartition(".")
    tail = f"-{number}"
    return f"{folder}{slash}{_cut(stem, _BYTES - len(tail))}{tail}.{ending}"


def _cleaned(part: str) -> str:
    """Take from a part of a path what some system cannot hold, or what hides it."""
    kept = part.translate(_BAD)
    if not kept.isascii():
        kept = "".join(c for c in kept if unicodedata.category(c) not in _BAD_KINDS)
    # A leading dot hides a file; Windows leaves out dots and blanks at the end.
    return unicodedata.normalize("NFC", _EDGES.sub("", kept))


def _cut(part: str, length: int = _BYTES) -> str:
    return _EDGES.sub("", part.encode()[:length].decode(errors="ignore")) or "picture"


def _folder(part: str) -> str:
    part = _cut(part)
    if _RESERVED.fullmatch(part):
        part = _cut(f"_{part}")
    stem, dot, ending = part.rpartition(".")
    return f"{stem}_{ending}" if dot and f".{collision_key(ending)}" in FORMATS else part
