"""Files of words that prompts take one line of: "a __colour__ cat", with a line of colour.txt in the folder."""

import difflib
import re
from pathlib import Path

from genpipe.messages import listed, quoted
from genpipe.prompts.alternatives import pick

# Characters that a prompt may grow to, and wildcards in the lines of wildcards.
MAX_LENGTH = 100_000
MAX_DEPTH = 50
_WILDCARD = re.compile(r"__((?:(?!__)[^\s,|{}()\[\]]){1,100})__")


def names_in(prompt: str) -> list[str]:
    """Name the wildcards of a prompt."""
    return [match[1] for match in _WILDCARD.finditer(prompt)]


class Wildcards:
    """The text files of a folder. A line is one choice; empty lines and those that begin with # are none.

    Raises:
        ValueError: there is no such folder.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        if not self.folder.is_dir():
            raise ValueError(f"--wildcards {quoted(folder)} is not a folder: give the one that holds the .txt files")
        self._lines: dict[str, list[str]] = {}

    def fill(self, prompt: str, seed: int, *, of: str = "prompt") -> str:
        """Write a prompt with a line of the file of each wildcard; the line may hold wildcards itself.

        Args:
            prompt: with names of files, without suffix, as in __colour__.
            seed: of the image. Each choice depends on it and on how many come before.
            of: which of the image's texts it is, so that prompt and negative prompt choose apart.

        Raises:
            ValueError: a file is missing, empty or not text, or its lines name itself in the end; or the prompt becomes
                longer than `MAX_LENGTH`.
        """
        pieces: list[str] = []
        length = chosen = 0
        # What is left to read, the next last: a text, where to go on in it, and the files that it comes from.
        left: list[tuple[str, int, tuple[str, ...]]] = [(prompt, 0, ())]
        while left:
            text, start, inside = left.pop()
            match = _WILDCARD.search(text, start)
            piece = text[start : None if match is None else match.start()]
            pieces.append(piece)
            length += len(piece)
            if match is None:
                continue
            left.append((text, match.end(), inside))
            name = match[1]
            if name in inside or len(inside) >= MAX_DEPTH:
                chain = " in ".join(f"__{each}__" for each in (name, *reversed(inside[-3:])))
                raise ValueError(f"the wildcard {chain} never ends: take it out of {inside[-1]}.txt")
            lines = self._read(name)
            left.append((lines[pick(len(lines), seed, f"wildcard of {of} {chosen}")], 0, (*inside, name)))
            chosen += 1
            if chosen > MAX_LENGTH or length > max(MAX_LENGTH, len(prompt)):
                raise ValueError(f"wildcards make the prompt longer than {MAX_LENGTH:,} characters: use fewer")
        return "".join(pieces)

    def _read(self, name: str) -> list[str]:
        if name in self._lines:
            return self._lines[name]
        if re.search(r"[/\\]|^\.", name):
            raise ValueError(f"the wildcard {quoted(name)} is a path: use the name of a .txt file in {self.folder}")
        path = self.folder / f"{name}.txt"
        try:
            text = path.read_text(encoding="utf-8-sig")
        except FileNotFoundError:
            known = sorted(each.stem for each in self.folder.glob("*.txt"))
            near = difflib.get_close_matches(name, known, n=1)
            hint = f"did you mean __{near[0]}__?" if near else f"there are {listed(known)}" if known else "it has none"
            raise ValueError(f"the wildcard __{name}__ has no file {path}: {hint}") from None
        except UnicodeDecodeError:
            raise ValueError(f"{path} is not text in UTF-8: save it as such") from None
        lines = [line.strip() for line in text.splitlines()]
        lines = [line for line in lines if line and not line.startswith("#")]
        if not lines:
            raise ValueError(f"{path} has no line to choose: write one choice per line")
        self._lines[name] = lines
        return lines
