"""File names made of prompts and of what rows ask for: safe on every system, never outside their folder."""

import re
import sys
import unicodedata

from genpipe.images import FORMATS

# Names that Windows keeps for devices, with any suffix.
_RESERVED = re.compile(r"(con|prn|aux|nul|(com|lpt)\d)(\..*)?", re.IGNORECASE)
# A picture without a name of its own has its id for one.
_ID = re.compile(r"[0-9a-f]{32}\.\w+")
_BAD = re.compile(r'[\x00-\x1f\x7f<>:"|?*]')
# Disks count bytes, commonly to 255 a name; folders deeper than this are a mistake.
_BYTES, _DEPTH = 200, 8


def file_stem(prompt: str) -> str:
    """A file name, without suffix, for a prompt: "Pirate ship, at night!" gives "pirate-ship-at-night".

    Letters and digits of every script are kept, in at most 60 characters; "picture" stands for a prompt without any.
    """
    # What the system's file names cannot hold is dropped.
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


def safe_name(wish: str, suffix: str) -> str:
    """A path below the folder of pictures for the `file_name` of a row.

    "../../etc/passwd" gives "etc/passwd.png", "C:\\con" gives "C/_con.png".

    Args:
        wish: any text; a suffix of a picture's is kept.
        suffix: ".png", …, which is added where there is none.
    """
    text = wish.encode("utf-8", "ignore").decode()
    parts = [part for part in (_safe_part(part) for part in re.split(r"[/\\]", text)) if part] or ["picture"]
    *folders, last = parts[-_DEPTH:]
    stem, dot, ending = last.rpartition(".")
    if not dot or f".{ending.lower()}" not in FORMATS:
        stem, ending = last, suffix[1:]
    name = f"{_cut(stem)}.{ending}"
    if _ID.fullmatch(name):
        name = f"_{name}"
    return "/".join([*(_cut(folder) for folder in folders), name])


def numbered(name: str, number: int) -> str:
    """ "a/b.png", 2 → "a/b-2.png"."""
    stem, _, ending = name.rpartition(".")
    return f"{stem}-{number}.{ending}"


def _safe_part(part: str) -> str:
    # A leading dot hides a file; Windows drops dots and blanks at the end.
    part = _BAD.sub("", part).strip().lstrip(".").rstrip(". ").strip()
    return f"_{part}" if _RESERVED.fullmatch(part) else part


def _cut(part: str) -> str:
    return part.encode()[:_BYTES].decode(errors="ignore").rstrip(". ") or "picture"
