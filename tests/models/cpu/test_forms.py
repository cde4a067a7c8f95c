import json
from pathlib import Path

import torch

from genpipe.hardware import INSTRUCTION_SETS
from genpipe.models.cpu import forms
from genpipe.models.cpu.forms import PACKABLE, PLAIN, Forms, forms_for


def test_the_table_that_ships_is_sound() -> None:
    table = json.loads(forms.TABLE.read_text())
    assert list(table) == list(INSTRUCTION_SETS)  # from the widest on
    for rows in table.values():
        assert rows.keys() <= {"bfloat16", "float32"}
        for row in rows.values():
            assert row.keys() - {"winograd_from", "patches", "fused_gelu"} == {
                "packed",
                "phases",
                "winograd",
                "winograd4",
                "blocked",
                "measured",
            }
            assert set(row["packed"]) <= set(PACKABLE)
            assert all(isinstance(row[form], bool) for form in ("phases", "winograd"))
            assert all(row.get(form) is None or row[form] > 0 for form in ("winograd4", "patches"))
            assert row["measured"].strip()
            assert all(int(width) > 0 and keys > 0 for width, keys in row["blocked"].items())


def test_what_the_table_lacks_is_plain(tmp_path: Path) -> None:
    row = {"packed": ["linear"], "phases": True, "winograd": True, "blocked": {"64": 512, "256": 1024}}
    table = tmp_path / "forms.json"
    table.write_text(json.dumps({"some": {"bfloat16": row}}))
    expected = Forms(packed=("linear",), phases=True, winograd=True, blocked={64: 512, 256: 1024})
    assert forms_for("some", torch.bfloat16, table=table) == expected
    assert forms_for("some", torch.float32, table=table) == PLAIN
    assert forms_for("other", torch.bfloat16, table=table) == PLAIN


def test_a_set_without_a_row_takes_that_of_the_next_narrower(tmp_path: Path) -> None:
    table = tmp_path / "forms.json"
    rows = {"wide": {"bfloat16": {"phases": True}}, "middle": {}, "narrow": {"float32": {"winograd4": 64}}}
    table.write_text(json.dumps(rows))
    for name in rows:
        assert forms_for(name, torch.float32, table=table) == Forms(winograd4=64)
        assert (forms_for(name, torch.bfloat16, table=table) == PLAIN) == (name != "wide")


def test_every_processor_with_avx2_multiplies_less_in_fp32() -> None:
    rows = {name: forms_for(name, torch.float32) for name in INSTRUCTION_SETS}
    assert all(row.winograd and row.packed for row in rows.values()) and rows["avx2"].winograd4
    assert rows["avx512"] == rows["avx2"]
    assert forms_for("avx2", torch.bfloat16) == PLAIN


def test_blocks_are_looked_up_by_the_width_of_the_heads() -> None:
    found = Forms(blocked={256: 1024, 64: 512})
    assert [found.blocked_from(width) for width in (1, 64, 65, 256, 257)] == [512, 512, 1024, 1024, None]
    assert PLAIN.blocked_from(64) is None
