"""genpipe tokens: the ids are those of transformers' tokenizer, the weights those of A1111's grammar."""

import re
from pathlib import Path

import pytest

from tests.cli.conftest import Run

ROW = re.compile(r" +(\d+)  (\S*) +(\S+)")


def rows(out: str) -> list[tuple[int, float, str]]:
    return [(int(m[1]), float(m[2] or 1), m[3]) for line in out.splitlines() if (m := ROW.fullmatch(line))]


def test_tokens_are_those_of_transformers(command: Run, tiny_checkpoint: Path) -> None:
    transformers = pytest.importorskip("transformers")
    theirs = transformers.CLIPTokenizer.from_pretrained(tiny_checkpoint / "tokenizer")
    status, out, err = command("tokens", "a (red:1.3) cat, [кот] zebra", "-m", tiny_checkpoint)
    assert (status, err) == (0, "") and "chunk 1 of 1: 14 of 14 tokens" in out
    text = "a red cat, кот zebra"
    assert [row[0] for row in rows(out)] == theirs(text, add_special_tokens=False).input_ids
    named = {text.rstrip("…"): weight for _, weight, text in rows(out) if len(text.rstrip("…")) > 1}
    assert named["red"] == 1.3 and named["cat"] == 1
    words = "".join(row[2] if row[2].endswith("…") else f"{row[2]} " for row in rows(out)).replace("…", "")
    assert words.split()[:3] == ["a", "red", "cat"]
    assert {row[1] for row in rows(out)} == {1.0, 1.3, 0.9091}


def test_steps_and_joined_prompts_are_apart(command: Run, tiny_checkpoint: Path) -> None:
    given = ["-m", tiny_checkpoint, "--steps", 10]
    status, out, _ = command("tokens", "[cat:red:0.3] AND sea :0.5", *given)
    heads = [line for line in out.splitlines() if not line.startswith(" ")]
    assert status == 0 and heads == [
        "steps 1 to 3 of 10",
        "prompt 1 of 2, weight 1: cat",
        "chunk 1 of 1: 1 of 14 tokens",
        "prompt 2 of 2, weight 0.5: sea",
        "chunk 1 of 1: 1 of 14 tokens",
        "steps 4 to 10 of 10",
        "prompt 1 of 2, weight 1: red",
        "chunk 1 of 1: 1 of 14 tokens",
        "prompt 2 of 2, weight 0.5: sea",
        "chunk 1 of 1: 1 of 14 tokens",
    ]


def test_plain_prompts_are_cut_and_say_where(command: Run, tiny_checkpoint: Path) -> None:
    status, out, _ = command("tokens", "a red cat " * 5 + "end", "--prompt-syntax", "plain", "-m", tiny_checkpoint)
    assert status == 0 and len(rows(out)) == 14 and "left out: 'cat end'" in out


def test_encoders_that_read_the_same_are_told_once(command: Run, tiny_xl_checkpoint: Path) -> None:
    status, out, _ = command("tokens", "a red cat", "-m", tiny_xl_checkpoint)
    assert status == 0 and len(rows(out)) == 3 and "text encoder" not in out


def test_the_embedded_model_says_in_which_words_it_reads(command: Run) -> None:
    status, out, _ = command("tokens", "a (big:1.2) пиратский корабль")
    assert status == 0 and out.startswith("read as: ") and "1.2" in out


@pytest.mark.parametrize("prompt", ["a (cat:1e9)", "a\udcff"])
def test_a_mistake_is_one_line(command: Run, tiny_checkpoint: Path, prompt: str) -> None:
    status, out, err = command("tokens", prompt, "-m", tiny_checkpoint)
    assert status == 2 and not out and err.count("\n") == 1
