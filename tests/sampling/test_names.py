import subprocess
import sys

import pytest

from genpipe.sampling.names import SAMPLERS, SOLVERS, SPACINGS, canonical_name, split_name


def test_canonical_names_are_those_the_documentation_lists() -> None:
    assert [name for name in SAMPLERS if split_name(name)[1] is None] == [
        *("pndm", "ddim", "euler", "euler_a", "heun", "dpmpp_2m", "dpmpp_2m_sde", "dpmpp_2m_sde_heun", "dpmpp_3m_sde"),
        *("dpmpp_2s_a", "dpmpp_sde", "dpm2", "dpm2_a", "lms", "unipc", "deis", "ddpm", "lcm", "tcd", "flow_euler"),
    ]
    assert {split_name(name)[0] for name in SAMPLERS if name.endswith("_karras")} == {
        *("euler", "heun", "dpmpp_2m", "dpmpp_2m_sde", "dpmpp_2m_sde_heun", "dpmpp_3m_sde", "dpmpp_2s_a", "dpmpp_sde"),
        *("dpm2", "dpm2_a", "lms", "unipc", "deis", "flow_euler"),
    }
    assert all(canonical_name(name) == name for name in SAMPLERS)


# The samplers and schedule types of A1111's web UI 1.10, and the joint names that it had before 1.9.
A1111 = """DPM++ 2M|DPM++ SDE|DPM++ 2M SDE|DPM++ 2M SDE Heun|DPM++ 2S a|DPM++ 3M SDE|Euler a|Euler|LMS|Heun|DPM2|DPM2 a|
DDIM|PLMS|UniPC|LCM|DPM++ 2M Karras|DPM++ SDE Karras|DPM++ 2M SDE Exponential|DPM++ 2M SDE Karras|DPM++ 2M SDE Heun Karras|
DPM++ 2M SDE Heun Exponential|DPM++ 3M SDE Karras|DPM++ 3M SDE Exponential|DPM++ 2S a Karras|LMS Karras|DPM2 Karras|
DPM2 a Karras|DDPM|Heun Karras|Euler Karras|UniPC Karras|Euler SGM Uniform|DPM++ 2M Beta|DPM++ 2M Exponential"""


@pytest.mark.parametrize("name", A1111.replace("\n", "").split("|"))
def test_every_sampler_of_a1111s_menu_has_a_canonical_name_and_is_written_by_its_own(name: str) -> None:
    canonical = canonical_name(name)
    assert canonical in SAMPLERS
    solver, spacing = split_name(canonical)
    assert name == " ".join([str(SOLVERS[solver].a1111), *([SPACINGS[spacing].a1111] if spacing else [])])


@pytest.mark.parametrize(
    ("name", "nearest"),
    [
        ("DPM fast", "dpmpp_2m"),
        ("DPM adaptive", "dpmpp_2m"),
        ("Restart", "heun"),
        ("Restart Karras", "heun_karras"),
        ("DDIM CFG++", "ddim"),
        ("Euler KL Optimal", "euler_karras"),
        ("DPM++ 2M Align Your Steps", "dpmpp_2m_karras"),
    ],
)
def test_a_sampler_of_a1111_that_nothing_equals_is_refused_with_the_nearest(name: str, nearest: str) -> None:
    with pytest.raises(ValueError) as error:
        canonical_name(name)
    assert str(error.value) == f"the sampler {name!r} is neither in genpipe nor in diffusers: the nearest is {nearest}"


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
        ("Euler Simple", "euler_trailing"),
        ("Euler Uniform", "euler"),
        ("DPM++ 2M Polyexponential", "dpmpp_2m_exponential"),
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


def test_a_diffusers_class_is_called_by_our_name_for_it() -> None:
    for class_name, name in (
        ("PNDMScheduler", "pndm"),
        ("UniPCMultistepScheduler", "unipc"),
        ("unipcmultistepscheduler", "unipc"),
        ("DPMSolverMultistepScheduler", "dpmpp_2m"),
        ("KDPM2AncestralDiscreteScheduler", "dpm2_a"),
    ):
        assert canonical_name(class_name) == name
    # Two names of A1111's stand for this one, and none for that.
    for class_name in ("DPMSolverSinglestepScheduler", "SASolverScheduler"):
        assert canonical_name(class_name) == class_name


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("eulr", "did you mean euler"),
        ("dpmp_2m", "did you mean dpmpp_2m"),
        ("Euler a Karras", "did you mean euler_karras"),
        ("ddim_karras", "did you mean"),
        ("xyzzy", "choose one of pndm, ddim, euler"),
        ("", "choose one of"),
        ("sasolverscheduler", "choose one of"),
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
