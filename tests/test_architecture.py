"""What the code may import, and when."""

import ast
import graphlib
import json
import os
import subprocess
import sys
import tomllib
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path

import pytest

import genpipe
import genpipe.cli

ROOT = Path(__file__).parents[1]
HEAVY = {"torch", "diffusers", "transformers", "accelerate"}

# Dependencies point one way: what is in an area may import what is in it and in these, and nothing else of ours but
# `messages` and `checks`, which know nothing of the rest.
_LOW = {"blocks", "png", "models", "sampling", "request", "files", "images", "filenames", "metadata", "dialects"}
_LOW |= {
    "hardware",
    "processors",
    "checkpoints",
    "embedded",
    "sizes",
    "progress",
    "fields",
    "spec",
    "inputs",
    "seeds",
    "lora_tags",
    "fit",
    "signing",
    "settings",
    "imprint",
}
_PIPELINE = _LOW | {"prompts", "judge", "adapters", "pipeline"}
_ALL = _PIPELINE | {"scenes", "vision"}
ALLOWED: dict[str, set[str]] = {
    "messages": set(),
    "checks": set(),
    "blocks": set(),
    "vision": {"blocks", "files", "images", "hardware", "embedded", "progress"},
    # The judge says whether a picture shows what a prompt of the scenes' world asks for.
    "judge": {"vision", "blocks", "files", "images", "hardware", "scenes", "embedded", "progress"},
    "models": {"blocks"},
    "sampling": set(),
    "fields": set(),
    "spec": {"fields"},
    "inputs": {"images"},
    "request": {"fields", "inputs", "sampling"},
    "seeds": {"fields", "request"},
    "lora_tags": {"inputs"},
    "fit": {"fields", "inputs", "request"},
    "files": set(),
    "progress": set(),
    "moved": set(),
    "sizes": {"request"},
    "png": set(),
    "images": {"files", "moved", "png", "imprint"},
    "imprint": set(),
    "signing": {"imprint"},
    "settings": {"inputs"},
    "filenames": {"images"},
    "dialects": {"request", "fields", "sampling", "sizes"},
    "metadata": {"fields", "images", "imprint", "request", "spec", "dialects"},
    "hardware": {"processors"},
    "processors": set(),
    "embedded": set(),
    "checkpoints": {"models", "files", "request"},
    "scenes": {"images"},
    "prompts": {"models", "hardware"},
    # Other people's pipelines, behind the interface of `pipeline`.
    "adapters": {"checkpoints", "models", "images", "hardware", "request", "fields", "inputs", "spec", "fit"},
    "pipeline": _PIPELINE | {"scenes"},
    "training": _ALL,
    "workers": _PIPELINE,
    "render": _LOW | {"workers"},
    "client": {"fields", "images", "imprint", "inputs", "progress", "request", "seeds", "settings"},
    "server": _PIPELINE | {"scenes", "workers"},
    "cli": _ALL | {"training", "workers", "render", "server", "client"},
    "scripts": _ALL | {"training", "workers", "render", "server", "client", "cli"},
}
# The areas of the package that may import these; scripts and tests may import all of them.
GUESTS: dict[str, set[str]] = {
    "diffusers": {"sampling", "adapters"},
    "transformers": {"judge", "adapters"},
    "accelerate": {"training"},
    "c2pa": {"signing"},
    "cryptography": {"signing"},
}


def sources() -> Iterator[tuple[str, Path]]:
    for path in sorted([*(ROOT / "genpipe").rglob("*.py"), *(ROOT / "scripts").rglob("*.py")]):
        parts = path.relative_to(ROOT).with_suffix("").parts
        yield ".".join(parts[:-1] if parts[-1] == "__init__" else parts), path


@cache
def imports(module: str, path: Path) -> list[str]:
    """Every name that a file imports, at any depth, in full: "genpipe.models.unet.UNet"."""
    found: list[str] = []
    package = module if path.stem == "__init__" else module.rpartition(".")[0]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            origin = ".".join([*base, *([node.module] if node.module else [])])
            found += [f"{origin}.{alias.name}" for alias in node.names]
    return found


def area(name: str) -> str | None:
    """The row of `ALLOWED` that a full name is in; None for other people's names and for `genpipe` itself."""
    top, _, rest = name.partition(".")
    if top == "scripts":
        return top
    if top != "genpipe" or not rest or rest.split(".")[0] in {"__version__", "__main__"}:
        return None
    return genpipe._HOMES.get(rest, name).removeprefix("genpipe.").split(".")[0]


def test_dependencies_point_one_way():
    wrong = []
    for module, path in sources():
        own = area(module)
        if own is None:
            continue
        for name in imports(module, path):
            if (other := area(name)) is not None and other not in {own, "messages", "checks"} | ALLOWED[own]:
                wrong.append(f"{module} imports {name}")
    assert not wrong


def test_the_import_rules_see_every_form_of_import(tmp_path):
    text = "import a.b\nfrom a import c\nfrom . import d\nfrom .e import f\nfrom ..g import h\ndef late(): import i"
    (tmp_path / "x.py").write_text(text)
    assert sorted(imports("p.q.x", tmp_path / "x.py")) == ["a.b", "a.c", "i", "p.g.h", "p.q.d", "p.q.e.f"]
    (tmp_path / "__init__.py").write_text("from .e import f")
    assert imports("p.q", tmp_path / "__init__.py") == ["p.q.e.f"]
    assert area("genpipe.blocks.conv3x3") == "blocks" and area("genpipe.vision.resnet") == "vision"
    assert area("genpipe.generate") == "pipeline" and area("torch.nn") is area("genpipe") is None


def homes() -> dict[str, str]:
    """Where the names that packages give from their `__init__.py` are defined."""
    found = {f"genpipe.{name}": home for name, home in genpipe._HOMES.items()}
    for path in (ROOT / "genpipe").rglob("__init__.py"):
        package = ".".join(path.parent.relative_to(ROOT).parts)
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and node.module:
                found |= {f"{package}.{alias.name}": node.module for alias in node.names}
    return found


def test_no_two_modules_import_each_other():
    known, defined = dict(sources()), homes()
    graph = {}
    for module, path in known.items():
        if path.stem != "__init__":
            names = {defined.get(name, name) for name in imports(module, path)}
            origins = {name if name in known else name.rpartition(".")[0] for name in names}
            graph[module] = {one for one in origins if one in known and known[one].stem != "__init__"}
    order = graphlib.TopologicalSorter(graph)
    order.prepare()  # raises CycleError, which names the circle


def test_files_stay_short_enough_to_hold_in_the_head():
    lines = {path: len(path.read_text(encoding="utf-8").splitlines()) for path in (ROOT / "genpipe").rglob("*.py")}
    assert len(lines) > 100 and {str(path): count for path, count in lines.items() if count > 350} == {}


def test_other_libraries_of_the_field_stay_in_their_corner():
    wrong = []
    for module, path in sources():
        for name in imports(module, path):
            guest = name.partition(".")[0]
            if guest in GUESTS and area(module) not in GUESTS[guest] | {"scripts"}:
                wrong.append(f"{module} imports {name}")
    assert not wrong


def loaded(*lines: str, arguments: Sequence[str] = ()) -> list[set[str]]:
    """Which heavy libraries a fresh interpreter holds after each of some lines of code."""
    script = "import json, sys\nfound = []\n"
    for line in lines:
        script += f"try: {line}\nexcept SystemExit: pass\nfound.append(list(sys.modules))\n"
    script += "print('\\n' + json.dumps(found))"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", script, *arguments], capture_output=True, text=True, env=environment, check=False
    )
    assert done.returncode == 0 and "Traceback" not in done.stderr, done.stderr
    return [HEAVY & set(held) for held in json.loads(done.stdout.splitlines()[-1])]


def test_importing_is_light():
    codes = (
        "import genpipe",
        "from genpipe import Request",
        "import genpipe.images",
        "from genpipe import Client",
        "import genpipe.server.serving",
    )
    assert {code: held for code, held in zip(codes, loaded(*codes), strict=True) if held} == {}


LIGHT = [
    *(
        "",
        "--help",
        "--version",
        "generate --help",
        "info --help",
        "models --help",
        "convert --help",
        "classify --help",
    ),
    *("render --help", "serve --help", "serve --host 0.0.0.0"),
    *("vision --help", "vision train --help", "vision train x --freeze features"),
    *("ship --nope", "ship --steps 0", "ship --seed x", "ship --sampler eulr", "ship --output missing/ship.png"),
    *("classify missing.png", "render missing.txt --out renders", "ship -n 2 -o a.png", "--from-image missing.png"),
]


def test_what_needs_no_network_loads_none():
    codes = [f"from genpipe.cli import main; main({arguments.split()!r})" for arguments in LIGHT]
    assert {arguments: held for arguments, held in zip(LIGHT, loaded(*codes), strict=True) if held} == {}


def test_info_reports_versions_without_loading_them():
    assert loaded("from genpipe.cli import main; main(['info'])") == [{"torch"}]


def test_drawing_loads_torch_alone(tiny_checkpoint, tmp_path):
    arguments = ["ship", "--model", str(tiny_checkpoint), "--steps", "1", "--outdir", str(tmp_path), "--quiet"]
    assert loaded("from genpipe.cli import main; assert main(sys.argv[1:]) == 0", arguments=arguments) == [{"torch"}]
    assert (tmp_path / "ship.png").is_file()


def test_the_module_is_the_command(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "100")
    with pytest.raises(SystemExit):
        genpipe.cli.main(["--help"])
    done = subprocess.run(
        [sys.executable, "-m", "genpipe", "--help"], capture_output=True, text=True, cwd=ROOT, check=True
    )
    assert done.stdout == capsys.readouterr().out != ""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["scripts"] == {"genpipe": "genpipe.cli:main"}


def test_the_top_level_holds_only_what_it_should():
    try:
        done = subprocess.run(["git", "ls-files", "-z"], capture_output=True, text=True, cwd=ROOT, check=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("not a git checkout")
    names = {name.split("/")[0] for name in done.stdout.split("\0") if name}
    kept = {name for name in names if not name.startswith(".")}
    assert kept <= {"genpipe", "scripts", "tests", "pyproject.toml", "README.md", "LICENSE", "NOTICE"}
