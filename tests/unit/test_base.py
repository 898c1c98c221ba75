"""The ground: files whole or absent, configuration that refuses what it does not know, errors of one line."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gristmill.base import cli, files
from gristmill.base.config import from_mapping, load, to_mapping
from gristmill.base.errors import DataError, PartialError, UsageError


@dataclass(frozen=True)
class Inner:
    width: int = 8
    names: tuple[str, ...] = ()


@dataclass(frozen=True)
class Outer:
    rate: float = 0.1
    inner: Inner = field(default_factory=Inner)
    rules: tuple[Inner, ...] = ()
    by_source: dict[str, Inner] = field(default_factory=dict)
    path: Path | None = None


def test_a_file_is_whole_or_absent(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "value.json"
    files.write_json(path, {"a": 1})
    with pytest.raises(RuntimeError), files.atomic_path(path) as temporary:
        temporary.write_text("half")
        raise RuntimeError("killed")
    assert files.read_json(path) == {"a": 1}
    assert [item.name for item in path.parent.iterdir()] == ["value.json"]
    with pytest.raises(ValueError, match="not JSON compliant"):
        files.write_json(path, float("nan"))


def test_a_folder_replaces_another(tmp_path: Path) -> None:
    for name in ("old", "new"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").write_text(name)
    files.replace_folder(tmp_path / "new", tmp_path / "old")
    assert (tmp_path / "old" / "file").read_text() == "new"
    assert [item.name for item in tmp_path.iterdir()] == ["old"]


def test_a_folder_hash_sees_names_and_content_but_not_dot_files(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("1")
    before = files.sha256_folder(tmp_path)
    (tmp_path / ".spool").write_text("scratch")
    assert files.sha256_folder(tmp_path) == before
    (tmp_path / "a").rename(tmp_path / "b")
    assert files.sha256_folder(tmp_path) != before


def test_fingerprints_refuse_what_they_cannot_spell() -> None:
    assert files.fingerprint({"b": (1, 2), "a": Path("x/y")}) == files.fingerprint({"a": "x/y", "b": [1, 2]})
    assert files.fingerprint(Inner()) != files.fingerprint(Inner(width=9))
    for value in (object(), {1: 2}, {1, 2}, b"bytes", lambda: 0):
        with pytest.raises(TypeError, match="cannot fingerprint"):
            files.fingerprint([value])
    with pytest.raises(ValueError, match="JSON compliant"):
        files.fingerprint(float("inf"))


@given(st.text(alphabet="ab./\\:\0", min_size=1, max_size=12))
def test_no_path_of_a_manifest_leaves_its_folder(relative: str) -> None:
    root = Path("/somewhere/root")
    try:
        joined = files.safe_join(root, relative)
    except DataError:
        return
    assert joined.is_relative_to(root) and ".." not in joined.parts and joined != root


def test_a_symlink_does_not_lead_out_either(tmp_path: Path) -> None:
    (tmp_path / "root").mkdir()
    (tmp_path / "root" / "link").symlink_to(tmp_path)
    with pytest.raises(DataError, match="leads out"):
        files.safe_join(tmp_path / "root", "link/secret")


def test_configuration_round_trips() -> None:
    config = Outer(0.5, Inner(4, ("x",)), (Inner(1),), {"web": Inner(2)}, Path("p"))
    assert from_mapping(Outer, to_mapping(config), "test") == config


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"rat": 1}, "unknown key 'rat'; did you mean 'rate'?"),
        ({"inner": {"widht": 1}}, "unknown key 'inner.widht'; did you mean 'width'?"),
        ({"rules": [{"width": 1}, {"name": "x"}]}, "unknown key 'rules[1].name'; did you mean 'names'?"),
        ({"by_source": {"web": {"wide": 1}}}, "unknown key 'by_source.web.wide'; did you mean 'width'?"),
        ({"inner": {"width": "many"}}, "inner.width: Input should be a valid integer"),
    ],
)
def test_a_wrong_key_or_type_is_named(values: dict, message: str) -> None:
    with pytest.raises(UsageError) as caught:
        from_mapping(Outer, values, "run.toml")
    assert message in str(caught.value) and str(caught.value).startswith("run.toml: ")


def test_toml_lies_under_the_command_line(tmp_path: Path) -> None:
    path = tmp_path / "run.toml"
    path.write_text('rate = 0.2\n[inner]\nwidth = 3\nnames = ["a"]\n')
    assert load(Outer, path).inner == Inner(3, ("a",))
    config = cli.parse_config(Outer, ["--config", str(path), "--inner.width", "5"], "test", "")
    assert (config.rate, config.inner) == (0.2, Inner(5, ("a",)))
    with pytest.raises(UsageError, match="no such file"):
        cli.parse_config(Outer, ["--config=/nowhere.toml"], "test", "")


def test_errors_are_one_line_and_exit_codes_mean_something(capsys: pytest.CaptureFixture[str]) -> None:
    def fail(error: BaseException) -> int:
        def command(_arguments: list[str]) -> None:
            raise error

        return cli.run("base", {"work": command}, "About.", ["work"])

    assert [fail(error) for error in (UsageError("u"), DataError("d"), PartialError("p"), KeyboardInterrupt())] == [
        2,
        3,
        4,
        130,
    ]
    told = capsys.readouterr()
    assert told.out == "" and len(told.err.splitlines()) == 4
    assert cli.run("base", {"work": lambda _arguments: None}, "About.", ["wrok"]) == 2
    assert "did you mean 'work'" in capsys.readouterr().err
    with pytest.raises(ZeroDivisionError):  # a bug keeps its traceback
        fail(ZeroDivisionError())
