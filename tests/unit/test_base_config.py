"""What a configuration's own sections refuse is told with the file that it stands in, as every other error is."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import pytest

from gristmill.base.config import check_range, from_mapping, load
from gristmill.base.errors import UsageError


@dataclass(frozen=True)
class Bands:
    rows: int = 8

    def __post_init__(self) -> None:
        check_range("bands.rows", self.rows, 1, 64)


@dataclass(frozen=True)
class Search:
    bands: Bands = field(default_factory=Bands)
    others: tuple[Bands, ...] = ()
    by_name: dict[str, Bands] = field(default_factory=dict)


@pytest.mark.parametrize(
    "values", [{"bands": {"rows": 0}}, {"others": [{"rows": 1}, {"rows": 65}]}, {"by_name": {"near": {"rows": -1}}}]
)
def test_what_a_section_refuses_is_told_with_its_file(values: dict) -> None:
    with pytest.raises(UsageError, match=r"^search\.toml: bands\.rows: -?\d+ is not from 1 to 64$"):
        from_mapping(Search, values, "search.toml")


def test_a_section_that_reads_another_mapping_is_told_once() -> None:
    @dataclass(frozen=True)
    class Preset:
        rows: int

        def __post_init__(self) -> None:
            from_mapping(Bands, {"rows": self.rows}, "search.toml: preset")

    with pytest.raises(UsageError) as caught:
        from_mapping(Preset, {"rows": 0}, "search.toml")
    assert str(caught.value) == "search.toml: preset: bands.rows: 0 is not from 1 to 64"


def test_a_file_is_named_and_what_it_may_hold_passes(tmp_path: Path) -> None:
    path = tmp_path / "search.toml"
    path.write_text("[bands]\nrows = 64\n")
    assert load(Search, path) == Search(Bands(64))
    path.write_text("[bands]\nrows = 99\n")
    with pytest.raises(UsageError) as caught:
        load(Search, path)
    assert str(caught.value).startswith(f"{path}: bands.rows: 99")
