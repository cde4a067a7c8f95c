"""Triton compiles each kernel for the devices that it is chosen on; no device is needed for that."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton")
PROGRAM = """
import json, sys
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from genpipe.models.cuda import group_norm, kernels

CONSTANTS = {
    "_moments": {"STEP": 120, "TILE": 32, "C": 128, "G": 32},
    "_normalise": {"TILE": 64, "C": 64, "PIECES": group_norm.PIECES},
    "_layer_norm": {"CHANNELS": 320, "TILE": 8, "C": 512, "SCALED": False},
    "_gated_gelu": {"TILE": 16, "C": 256},
    "_add": {"TILE": 64, "C": 64},
}
NUMBERS = {"sums": "*fp32", "eps": "fp32"} | dict.fromkeys(
    "rows channels stride has_before has_shift part groups per_group together pieces silu count".split(), "i32"
)
sizes = []
for name, constants in CONSTANTS.items():
    function = getattr(kernels if hasattr(kernels, name) else group_norm, name)
    for kind, capability in (("*bf16", 80), ("*bf16", 90), ("*fp16", 90)):
        types = {one: "constexpr" if one in constants else NUMBERS.get(one, kind) for one in function.arg_names}
        source = ASTSource(function, types, {(function.arg_names.index(one),): value for one, value in constants.items()})
        options = {"num_warps": kernels.WARPS}
        made = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)
        sizes.append(len(made.asm["cubin"]))
print(json.dumps(sizes))
"""


def test_kernels_compile_for_ampere_and_hopper(tmp_path: Path) -> None:
    environment = {**os.environ, "TRITON_INTERPRET": "0", "TRITON_CACHE_DIR": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", PROGRAM], check=False, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    sizes = json.loads(done.stdout)
    assert len(sizes) == 15 and min(sizes) > 1000
