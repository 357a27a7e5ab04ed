from __future__ import annotations

from pathlib import Path

import pytest

from holdfast.errors import ArgumentError, NotFound, RefusedFile
from holdfast.runs.layout import container_name, inside, parse_leftover, parse_step, step_name


@pytest.mark.parametrize("step", [0, 1, 1000, 99_999_999, 100_000_000, 2**63 - 1])
def test_step_names_round_trip(step: int) -> None:
    assert parse_step(step_name(step)) == step


def test_step_names_sort_as_numbers_up_to_eight_digits() -> None:
    assert step_name(1000) == "step-00001000"
    assert step_name(123_456_789) == "step-123456789"


@pytest.mark.parametrize("step", [-1, 2**63])
def test_a_step_past_its_bounds_is_refused(step: int) -> None:
    with pytest.raises(ArgumentError, match=f"step {step} is not between 0 and"):
        step_name(step)
    with pytest.raises(ArgumentError, match=r"^step -1 is not between 0 and 9223372036854775807$"):
        step_name(-1)


@pytest.mark.parametrize(
    "name",
    [
        "step-1000",
        "step-000001000",
        "step-0000100a",
        "xstep-00001000",
        "step-00001000 ",
        "step-\u0660\u0660\u0660\u0660\u0661\u0660\u0660\u0660",
        "step--0001000",
    ],
)
def test_names_that_are_no_step(name: str) -> None:
    assert parse_step(name) is None


def test_leftovers() -> None:
    assert parse_leftover(".step-00002000.partial") == 2000
    assert parse_leftover(".step-00002000.deleting") == 2000
    assert parse_leftover("step-00002000") is None
    assert parse_leftover(".run.json.123.partial") is None


def test_container_names_are_safe_and_differ_without_case() -> None:
    assert container_name("model", set()) == "model.safetensors"
    assert container_name("g", {"g.safetensors"}) == "g-2.safetensors"
    assert container_name("G", {"g.safetensors", "g-2.safetensors"}) == "G-3.safetensors"
    assert container_name("../../etc/passwd", set()) == "_._.._etc_passwd.safetensors"
    assert container_name("", set()) == "_.safetensors"
    assert container_name(0, set()) == "0.safetensors"
    assert len(container_name("x" * 999, set())) < 120


@pytest.mark.parametrize("name", ["../x", "a/b", ".hidden", "", "nul\0", "é", "x" * 201, "..", "a\nb"])
def test_a_name_that_leads_out_of_the_folder_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(RefusedFile, match="no plain name inside the folder"):
        inside(str(tmp_path), name)


def test_a_link_out_of_the_folder_is_refused_and_one_inside_is_not(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "secret").write_text("x")
    (tmp_path / "in" / "out").symlink_to(tmp_path / "secret")
    (tmp_path / "in" / "data").write_text("x")
    (tmp_path / "in" / "alias").symlink_to("data")
    with pytest.raises(RefusedFile, match="link out of its folder"):
        inside(str(tmp_path / "in"), "out")
    assert inside(str(tmp_path / "in"), "alias").endswith("alias")
    with pytest.raises(NotFound, match="missing from the checkpoint"):
        inside(str(tmp_path / "in"), "gone")
