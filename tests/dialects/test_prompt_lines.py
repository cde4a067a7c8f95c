"""Lines of A1111's "Prompts from file or textbox", as people write them."""

import random
import shlex
import time

import pytest

from genpipe.dialects.prompt_lines import options_of, read_prompt_line


@pytest.mark.parametrize(
    ("line", "values"),
    [
        ("--prompt a lion --negative_prompt snow, trees --steps 2", {"prompt": "a lion", "negative_prompt": "snow, trees", "steps": "2"}),
        ('--prompt "a lion" --seed -1', {"prompt": "a lion", "seed": "-1"}),
        ("--prompt 'a lion' --seed 7", {"prompt": "a lion", "seed": "7"}),
        ("--prompt a lion's den and a bear's --steps 2", {"prompt": "a lion's den and a bear's", "steps": "2"}),
        ("--prompt 'a lion's den' --steps 2", {"prompt": "a lion's den", "steps": "2"}),
        ("--prompt 'a' and 'b'", {"prompt": "'a' and 'b'"}),
        ('--prompt a 6" pipe --steps 2', {"prompt": 'a 6" pipe', "steps": "2"}),
        ('--prompt "a" in "red  snow"', {"prompt": "a in red  snow"}),
        ('--prompt "a --steps 3 b" --seed 3', {"prompt": "a --steps 3 b", "seed": "3"}),
        ('--prompt "a \\"tall\\" ship"', {"prompt": 'a "tall" ship'}),
        ("--prompt a \\(lion\\)", {"prompt": "a \\(lion\\)"}),
        ('--prompt "a \\(lion\\)"', {"prompt": "a \\(lion\\)"}),
        ('--prompt="a lion" --seed=7', {"prompt": "a lion", "seed": "7"}),
        ('--prompt ""', {"prompt": ""}),
        ("--prompt a lion -- roaring --Steps 3", {"prompt": "a lion -- roaring", "Steps": "3"}),
        ("a lion --steps 3", {"prompt": "a lion", "steps": "3"}),
        ("a well--known lion", {"prompt": "a well--known lion"}),
        ("--sampler_name DPM++ 2M Karras --prompt a", {"sampler_name": "DPM++ 2M Karras", "prompt": "a"}),
        ("--prompt a --styles x --tiling True", {"prompt": "a", "styles": "x", "tiling": "True"}),
    ],
)  # fmt: skip
def test_a_line_is_read(line, values):
    assert read_prompt_line(line) == values


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ('--prompt "a ship', "its quotes do not match: '\"a ship'"),
        ('--prompt "a ship --steps 20', "its quotes do not match"),
        ("--prompt a --steps", "--steps has no value"),
        ("--prompt --steps 3", "--prompt has no value"),
        ("--prompt a --step 3", "the option --step is unknown: did you mean --steps?"),
        ("--prompt a --zzzzzz 3", "the option --zzzzzz is unknown: known are arguments, "),
        ("--prompt a --prompt b", "--prompt is there twice"),
        ("a lion --prompt b", "--prompt is there twice"),
    ],
)
def test_a_line_that_cannot_be_read_says_why(line, reason):
    with pytest.raises(ValueError) as caught:
        read_prompt_line(line)
    assert reason in str(caught.value)


def test_options_are_named_outside_of_quotes_alone():
    assert options_of('a "b --steps 3" --ar 16:9 --v 5 x--y -- z') == ["ar", "v"]


def test_what_the_script_reads_is_read_as_it_reads_it():
    """The script splits as a shell does and joins the words of a prompt; so it is without apostrophes and backslashes."""
    rng = random.Random(0)
    words = ["a", "lion,", '"in  the"', "snow", '"two"', "5", "(red:1.2)"]
    for _ in range(500):
        prompt, negative = (" ".join(rng.choices(words, k=rng.randrange(1, 5))) for _ in range(2))
        line = f'--prompt {prompt} --steps 7 --negative_prompt {negative} --sampler_name "Euler a"'
        assert read_prompt_line(line) == {
            "prompt": " ".join(shlex.split(prompt)),
            "steps": "7",
            "negative_prompt": " ".join(shlex.split(negative)),
            "sampler_name": "Euler a",
        }


@pytest.mark.parametrize("piece", ['\\"', '"', " --a", "--prompt ", "'", '"a '])
def test_long_lines_take_no_longer_than_they_are(piece):
    started = time.process_time()
    try:
        read_prompt_line(f'--prompt "x {piece * (200_000 // len(piece))}')
    except ValueError as error:
        assert len(str(error)) < 600
    assert time.process_time() - started < 5
