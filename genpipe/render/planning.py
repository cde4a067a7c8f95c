"""From rows to images in the journal: settings resolved and checked, seeds, ids."""

import json
import warnings
from collections.abc import Iterable, Sequence
from itertools import islice
from typing import Any

from genpipe.fields import settings_of
from genpipe.filenames import safe_name
from genpipe.fit import ignored
from genpipe.inputs import LoraList
from genpipe.lora_tags import named_in
from genpipe.messages import Notice, one_line, quoted
from genpipe.render.identity import DERIVED_SEEDS, Identity, Ordinals, canonical_json, content_hash, derived_seed
from genpipe.render.journal import Journal, Planned
from genpipe.render.options import identity_settings
from genpipe.render.rows import Row
from genpipe.request import COUNT, MAX_PICTURES, MAX_SEED, SETTINGS, Request
from genpipe.workers.messages import Model
from genpipe.workers.settings import complete

_OWN = {"prompt", "seed", "n", "file_name", *SETTINGS}
# A row, checked: line, prompt, settings, identity, seeds, n, the hash its seeds come from (None: they are given), file
# name, other fields. A plain tuple, as there may be millions.
_Resolved = tuple[int, str, int, Identity, Sequence[int], int, bytes | None, str | None, str | None]
# Rows that are planned in one transaction.
WINDOW = 4096


class Planner:
    """Read rows into a journal.

    Args:
        model: its defaults apply where neither a row nor `settings` says something.
        identity: what else than prompt, seed and settings determines the images.
        settings: for rows that do not say otherwise.
        n: images per row, where it does not say.
        best_of: images that each is chosen from; seeds that are counted on stand so far apart.
        seeds: draw every row that names no seed with each of these.
        lora_dir: where LoRAs are that prompts name.
        suffix: of file names without one.
        strict: raise at the first row that cannot be drawn.
    """

    def __init__(
        self,
        journal: Journal,
        model: Model,
        *,
        identity: dict[str, Any],
        settings: dict[str, Any],
        n: int = 1,
        best_of: int = 1,
        seeds: Sequence[int] | None = None,
        lora_dir: str | None = None,
        suffix: str = ".png",
        strict: bool = False,
    ) -> None:
        self.journal, self.model = journal, model
        self._identity, self._settings, self._n, self._seeds = identity, settings, n, seeds
        self._suffix, self._strict, self._stride, self._lora_dir = suffix, strict, best_of, lora_dir
        self._warned: set[Notice] = set()
        self._known: dict[str, tuple[int, Identity]] = {}
        self.asked = self.rejected = 0

    def plan(self, rows: Iterable[Row], source: str | None = None) -> None:
        """Read the rows to their end; what cannot be drawn is noted in the journal with its reason.

        Raises:
            ValueError: with `strict`, at the first such row.
        """
        self.journal.begin_plan()
        self._ordinals = Ordinals()
        stream = iter(rows)
        while window := list(islice(stream, WINDOW)):
            with self.journal:
                self._plan_window(window)
        self.journal.end_plan(source)

    def _plan_window(self, rows: Sequence[Row]) -> None:
        resolved: list[_Resolved] = []
        for row in rows:
            try:
                if row.error:
                    raise ValueError(row.error)
                resolved.append(self._resolve(row))
            except ValueError as error:
                self._reject(row, str(error))
        ordinals = iter(self._ordinals.of([one[6] for one in resolved if one[6] is not None]))
        pictures: list[Planned] = []
        for line, prompt, settings, identity, seeds, n, content, asked_name, extra in resolved:
            if content is not None:
                first = derived_seed(content, next(ordinals))
                seeds = (first,) if n == 1 else [(first + k * self._stride) % DERIVED_SEEDS for k in range(n)]
            text = prompt.encode()
            for seed in seeds:
                pictures.append((identity.of(text, seed), line, settings, prompt, seed, asked_name, extra))
        self.asked += len(pictures)
        self.journal.add(pictures)

    def _resolve(self, row: Row) -> _Resolved:
        fields = row.fields
        prompt = fields.get("prompt")
        if type(prompt) is not str:
            raise ValueError("it has no prompt" if prompt is None else f"prompt must be text, not {quoted(prompt)}")
        try:
            content = prompt.encode()
        except UnicodeEncodeError:
            raise ValueError("prompt must be Unicode text: it holds half a surrogate pair") from None
        key, n = "", self._n
        seed = asked_name = extra = None
        prompt, named = named_in(prompt, self._lora_dir)
        given: dict[str, Any] = {}
        if len(fields) > 1 or named:
            given = {name: fields[name] for name in SETTINGS if name in fields}
            if named:
                others = LoraList().check("loras", given.get("loras", self._settings.get("loras", ())))
                given["loras"] = (*others, *named)
            key = repr(given) if given else ""
            seed, asked_name = fields.get("seed"), fields.get("file_name")
            n = _number(fields["n"]) if "n" in fields else n
            if others := fields.keys() - _OWN:
                extra = _carried({str(name): fields[name] for name in others})
            if asked_name is not None:
                if type(asked_name) is not str or not asked_name.strip():
                    raise ValueError(f"file_name must be text, not {quoted(asked_name)}")
                asked_name = safe_name(asked_name, self._suffix)
        settings, identity = self._known.get(key) or self._check(given, key)
        seeds: Sequence[int] = ()
        if seed is not None:
            first = _seed(seed)
            seeds = [(first + k * self._stride) % (MAX_SEED + 1) for k in range(n)]
        elif self._seeds is not None:
            if n != 1:
                raise ValueError(f"n is {n} where --seeds says which to draw: leave one of them out")
            seeds = self._seeds
        else:
            rest = f"{key}\0{asked_name}\0{extra}" if len(fields) > 1 else "\0None\0None"
            content = content_hash(b"%d %b%b" % (len(content), content, rest.encode("utf-8", "replace")))
            return row.line, prompt, settings, identity, seeds, n, content, asked_name, extra
        return row.line, prompt, settings, identity, seeds, n, None, asked_name, extra

    def _check(self, given: dict[str, Any], key: str) -> tuple[int, Identity]:
        """The settings of a row, complete: checked once for all rows that give the same."""
        settings = {name: value for name, value in {**self._settings, **given}.items() if value is not None}
        request = complete(settings, self.model)
        checked = {name: value for name, value in request.to_dict().items() if name in SETTINGS}
        for line in ignored([request], self.model.traits):
            if line not in self._warned:
                self._warned.add(line)
                warnings.warn(line, stacklevel=2)
        if len(self._known) > 10_000:
            self._known.clear()
        self._known[key] = self.journal.settings_number(checked), Identity(self._identity, identity_settings(checked))
        return self._known[key]

    def _reject(self, row: Row, reason: str) -> None:
        self.rejected += 1
        if self._strict:
            raise ValueError(f"line {row.line}: {reason}")
        self.journal.reject(row.line, one_line(reason), (row.text or _as_it_stands(row.fields))[:200])


def _carried(fields: dict[str, Any]) -> str:
    """Fields that are carried through, as JSON in UTF-8."""
    try:
        return canonical_json(fields).encode("utf-8", "replace").decode()
    except (TypeError, ValueError, RecursionError) as error:
        raise ValueError(f"its other fields are no JSON ({error})") from None


def _as_it_stands(fields: dict[str, Any]) -> str:
    try:
        return json.dumps(fields, default=quoted)
    except (TypeError, ValueError, RecursionError):
        return quoted(fields, 200)


def _seed(value: Any) -> int:
    if type(value) is int and 0 <= value <= MAX_SEED:
        return value
    return settings_of(Request)["seed"].kind.check("seed", value)


def _number(value: Any) -> int:
    if type(value) is int and 1 <= value <= MAX_PICTURES:
        return value
    return COUNT.check("n", value)
