import subprocess
import sys

import pytest

from genpipe.sampling.names import SAMPLERS, SOLVER_CLASSES, canonical_name, split_name


def test_canonical_names_are_those_the_documentation_lists() -> None:
    assert [name for name in SAMPLERS if split_name(name)[1] is None] == [
        *("pndm", "ddim", "euler", "euler_a", "heun", "dpmpp_2m", "dpmpp_2m_sde", "lcm", "flow_euler")
    ]
    assert {split_name(name)[0] for name in SAMPLERS if name.endswith("_karras")} == {
        *("euler", "heun", "dpmpp_2m", "dpmpp_2m_sde", "flow_euler")
    }
    assert all(canonical_name(name) == name for name in SAMPLERS)


@pytest.mark.parametrize(
    ("spelling", "name"),
    [
        ("Euler a", "euler_a"),
        ("Euler", "euler"),
        ("euler A", "euler_a"),
        ("DPM++ 2M", "dpmpp_2m"),
        ("DPM++ 2M Karras", "dpmpp_2m_karras"),
        ("dpm++ 2m sde karras", "dpmpp_2m_sde_karras"),
        ("DPM++ 2M SDE Exponential", "dpmpp_2m_sde_exponential"),
        ("Heun", "heun"),
        ("DDIM", "ddim"),
        ("PLMS", "pndm"),
        ("LCM", "lcm"),
        ("  DPM++_2M-Karras ", "dpmpp_2m_karras"),
        ("eulerdiscretescheduler", "euler"),
    ],
)
def test_other_spellings(spelling: str, name: str) -> None:
    assert canonical_name(spelling) == name


def test_diffusers_class_names() -> None:
    for solver, class_name in SOLVER_CLASSES.items():
        assert canonical_name(class_name) == ("dpmpp_2m" if solver == "dpmpp_2m_sde" else solver)
    assert canonical_name("UniPCMultistepScheduler") == "UniPCMultistepScheduler"


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("eulr", "did you mean euler"),
        ("dpmp_2m", "did you mean dpmpp_2m"),
        ("Euler a Karras", "did you mean euler_karras"),
        ("ddim_karras", "did you mean"),
        ("xyzzy", "choose one of pndm, ddim, euler"),
        ("", "choose one of"),
        ("unipcmultistepscheduler", "choose one of"),
        (None, "choose one of"),
    ],
)
def test_an_unknown_name_is_refused_in_one_line_with_the_near_ones(name: str, hint: str) -> None:
    with pytest.raises(ValueError) as error:
        canonical_name(name)
    assert str(error.value).startswith("unknown sampler") and hint in str(error.value)
    assert "\n" not in str(error.value)


def test_a_long_or_many_lined_name_still_makes_one_short_line() -> None:
    with pytest.raises(ValueError) as error:
        canonical_name("x\n" * 5000)
    assert "\n" not in str(error.value) and len(str(error.value)) < 600


def test_checking_a_name_imports_neither_torch_nor_diffusers() -> None:
    code = "import sys, genpipe.sampling.names; print({'torch', 'numpy', 'diffusers'} & set(sys.modules))"
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "set()"
