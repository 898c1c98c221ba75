"""Manifests that somebody made by hand: each gives a dataset, or one line that names what is wrong."""

from __future__ import annotations

import copy
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.support.handmade_shards import (
    Value,
    content_id,
    edit,
    good,
    put,
    put_top,
    refused,
    root,
    source_path,
    source_value,
)

from gristmill.base import files
from gristmill.base.errors import DataError, GristmillError
from gristmill.shards import holdings, manifest
from gristmill.shards.mixture import Mixture
from gristmill.shards.reader import Dataset, open_dataset
from gristmill.shards.resolve import plan

__all__ = ["good", "root"]  # fixtures


def use(dataset: Dataset) -> None:
    """What a manifest alone decides."""
    holdings.table("x", holdings.about(dataset))
    for pack in ("concat", "bestfit"):
        for length in (16, 1024):
            try:
                plan(Mixture("m", {"*": 1}), dataset, length, tokens=4096, pack=pack).touched()
            except GristmillError as error:
                assert "\n" not in str(error)


def nested(depth: int) -> list[Any]:
    value: list[Any] = []
    for _ in range(depth):
        value = [value]
    return value


SHARD_CHANGES: list[tuple[Value, str]] = [
    ({"token_count": 10**30}, "less than or equal|less than 4294967296"),
    ({"token_count": 2**32}, "less than 4294967296"),
    ({"token_count": 0}, "greater than or equal to 1"),
    ({"token_count": True}, "valid integer"),
    ({"token_count": "7"}, "valid integer"),
    ({"document_count": 0}, "greater than or equal to 1"),
    ({"document_count": 10**6}, "cannot be 1000000 documents"),
    ({"document_count": 2}, "cannot be the ends of 2 documents"),
    ({"max_id": 50_000}, "outside the vocabulary"),
    ({"max_id": 2**63}, "less than or equal to 9223372036854775807"),
    ({"packed": {"256": 10**30}}, "less than or equal to 9223372036854775807"),
    ({"packed": {"256": 5000}}, "cannot make 5000 rows of 256 tokens"),
    ({"packed": {"256": 0}}, "cannot make 0 rows of 256 tokens"),
    ({"packed": {"16x": 1}}, "should match pattern"),
    ({"packed": {"0": 1}}, "should match pattern"),
    ({"packed": {"١٦": 1}}, "should match pattern"),
    ({"packed": {"9999999": 1}}, "cannot make 1 rows of 9999999"),
    ({"packed": {str(n): 1 for n in range(300, 340)}}, "at most 32"),
    ({"continues": True}, "continues no document"),
    ({"continues": 1}, "valid boolean"),
    ({"key_low": "f" * 16}, "is above key_high"),
    ({"key_high": "f" * 16}, "keys come before|keys of valid"),
    ({"key_low": "F" * 16}, "should match pattern"),
    ({"loss": {"path": "x", "bytes": 3, "sha256": "0" * 64}}, "x: 3 bytes for"),
    ({"new\n\x1b[31m": 1}, r"train\.0\.new\\n\\x1b\[31m: "),
]


@pytest.mark.parametrize(("change", "match"), SHARD_CHANGES, ids=lambda value: str(value)[:30])
def test_a_shard_that_cannot_be_is_refused(root: Path, change: Value, match: str) -> None:
    edit(root, lambda value: value["train"][0].update(change))
    refused(root, match)


def test_shards_must_follow_on_each_other(good: Path, root: Path) -> None:
    _path, value = source_value(good)
    train, valid = value["train"], value["valid"]
    first = next(i for i, shard in enumerate(train) if shard["key_low"] != train[0]["key_low"])
    cases: list[tuple[Value, str]] = [
        (
            {"train": [train[first], *train[:first]]},
            "its keys come before those of train shard 0|continues no document",
        ),
        ({"train": [*train, train[-1]]}, "its keys come before|continues no document"),
        ({"train": valid, "valid": []}, "holds keys of valid"),
        ({"train": [], "valid": train}, "holds keys of train"),
        ({"valid": [{**valid[0], "continues": True}]}, "continues no document"),
    ]
    for change, match in cases:
        edit(root, lambda old, change=change: old.update(value | change))
        refused(root, match)


@pytest.mark.parametrize(
    ("path", "match"),
    [
        ("tokens/000/a\nb", "printable"),
        ("tokens/\u202egnp.exe", "printable"),
        ("tokens/a\u00a0b", "printable"),
        ("tokens/\U000e0fff", "printable"),  # no character yet: a terminal may do anything with it
        ("", "at least 1 character"),
        ("x" * 201, "at most 200"),
        ("ü" * 101, "more than 200 bytes"),
        ("../x", "unsafe path"),
        ("tokens/000/\0", "printable"),
    ],
)
def test_paths_that_break_messages_or_file_systems_are_refused(root: Path, path: str, match: str) -> None:
    edit(root, lambda value: value["train"][0]["tokens"].update(path=path))
    refused(root, match)


def test_two_files_never_share_a_path(good: Path, root: Path) -> None:
    train = source_value(good)[1]["train"]
    edit(root, lambda value: value["train"][1]["tokens"].update(path=train[0]["tokens"]["path"]))
    refused(root, "is listed twice")
    edit(root, lambda value: value["train"][1]["tokens"].update(path=train[0]["tokens"]["path"] + "/x"))
    refused(root, "as a file, and as a folder")
    path = source_path(root)
    edit(root, lambda value: value["train"][1]["tokens"].update(path=path.name))
    refused(root, "lists itself")


def test_sources_never_share_a_folder(root: Path) -> None:
    top = json.loads((root / "manifest.json").read_text())
    file = {"bytes": 1, "sha256": "0" * 64}
    cases: list[tuple[Value, str]] = [
        ({"sources": {"a": top["sources"]["plain"], "b": top["sources"]["plain"]}}, "is listed twice"),
        ({"sources": {n: {"path": f"s/{n}.json", "sha256": "0" * 64} for n in "ab"}}, "a folder of its own"),
        ({"sources": {"a": {"path": "a.json", "sha256": "0" * 64}}}, "a folder of its own"),
        (
            {"sources": {n: {"path": f"{f}/m.json", "sha256": "0" * 64} for n, f in (("a", "s"), ("b", "s/x/y"))}},
            "inside the folder of source a",
        ),
        ({"mixtures": [{"path": "sources/plain/tokens/x.toml", **file}]}, "inside the folder of source plain"),
        ({"tokenizer_file": {"path": "sources/chat/x.json", **file}}, "inside the folder of source chat"),
        ({"sources": {"a\n": top["sources"]["plain"]}}, "should match pattern"),
    ]
    for change, match in cases:
        put_top(root, top | change)
        refused(root, match)


@pytest.mark.parametrize(
    ("text", "match"),
    [
        (r'"\ud800"', "not JSON.*surrogates"),
        ("[" * 5000 + "]" * 5000, "nested too deeply"),
        ("[" * 980 + "]" * 980, "nested too deeply"),
        ("NaN", "NaN is no number"),
        ("-Infinity", "-Infinity is no number"),
        ("1e999", "not JSON.*[Oo]ut of range"),
        ("1" * 5000, "not JSON"),
        ('{"x": 1,}', "not JSON"),
        ('"\udcff"', "not JSON"),
    ],
    ids=lambda text: text[:12].encode("ascii", "replace").decode(),
)
def test_json_that_is_none_is_refused(root: Path, text: str, match: str) -> None:
    _path, value = source_value(root)
    value["recipe"] = {"x": "HERE"}
    value["content_id"] = content_id(value)
    put(root, json.dumps(value).replace('"HERE"', text).encode("utf-8", "surrogateescape"))
    refused(root, match)
    (root / "manifest.json").write_bytes(text.encode("utf-8", "surrogateescape"))
    refused(root, "not JSON|nested too deeply|must be a JSON object")


@pytest.mark.parametrize("said", [nested(900), "x" * 10_000, "a\nb\x1b[31m", "\ud800", None, 1])
def test_another_format_is_named_on_one_line(root: Path, said: Any) -> None:
    edit(root, lambda value: value.update(format=said))
    refused(root, "format is .* update gristmill-shards|nested too deeply|surrogates")


# -- any manifest whatever --------------------------------------------------------------------------------------------

NUMBERS = [-1, 0, 1, 2, 7, 100, 2**16, 2**31, 2**32 - 1, 2**32, 2**63 - 1, 2**63, 10**30, 10**400]
TEXTS = ["", "\ud800", "a\nb", "0" * 16, "f" * 16, "0" * 64, "../x", "/etc/passwd", "ü" * 150, "16", "u32", "é\0"]
JUNK = st.one_of(
    st.sampled_from([None, True, False, [], {}, *NUMBERS, *TEXTS]),
    st.integers(),
    st.floats(),
    st.text(max_size=20),
    st.dictionaries(st.text(max_size=3), st.integers() | st.none(), max_size=3),
    st.lists(st.integers() | st.text(max_size=3), max_size=3),
)


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path, *(place for key, item in items for place in places(item, (*path, key)))][not path :]


def mutate(value: Value, data: st.DataObject) -> None:
    place = data.draw(st.sampled_from(places(value)), "place")
    holder: Any = value
    for key in place[:-1]:
        holder = holder[key]
    key, action = place[-1], data.draw(st.sampled_from(["set", "set", "delete", "copy", "add", "nudge"]), "action")
    if action == "set":
        holder[key] = data.draw(JUNK, "value")
    elif action == "delete":
        del holder[key]
    elif action == "nudge" and isinstance(holder[key], int):
        holder[key] += data.draw(st.sampled_from([-4, -1, 1, 2, 4]), "by")
    elif action == "add" and isinstance(holder, dict):
        holder[data.draw(st.text(max_size=5) | st.sampled_from(TEXTS), "name")] = data.draw(JUNK, "value")
    else:  # another part of the manifest, where this one was
        other: Any = value
        for step in data.draw(st.sampled_from(places(value)), "other"):
            other = other[step]
        holder[key] = copy.deepcopy(other)


@settings(max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
@pytest.mark.parametrize("which", ["plain", "dataset"])
def test_any_manifest_gives_a_dataset_or_one_line(good: Path, root: Path, which: str, data: st.DataObject) -> None:
    shutil.copyfile(good / "manifest.json", root / "manifest.json")
    path, value = source_value(good)
    shutil.copyfile(path, root / path.relative_to(good))
    top = json.loads((good / "manifest.json").read_text())
    target = value if which == "plain" else top
    for _ in range(data.draw(st.integers(1, 3), "changes")):
        if places(target):
            mutate(target, data)
    if which == "plain":
        value["content_id"] = content_id(value)
        put(root, json.dumps(value).encode())
    else:
        put_top(root, top)
    try:
        dataset = open_dataset(root)
    except DataError as error:
        assert str(error).isprintable() and len(str(error)) < 1000
    else:
        use(dataset)


@settings(max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_bytes_give_a_dataset_or_one_line(good: Path, root: Path, data: st.DataObject) -> None:
    raw = bytearray(source_value(good)[0].read_bytes())
    at = data.draw(st.integers(0, len(raw) - 1))
    raw[at : at + data.draw(st.integers(0, 40))] = data.draw(st.binary(max_size=20))
    put(root, bytes(raw))
    try:
        open_dataset(root)
    except DataError as error:
        assert str(error).isprintable()


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=["Cs"])),
    lambda inner: st.lists(inner, max_size=3)
    | st.dictionaries(st.text(st.characters(exclude_categories=["Cs"]), max_size=4), inner, max_size=3),
    max_leaves=8,
)  # fmt: skip


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(recipe=st.dictionaries(st.text(st.characters(exclude_categories=["Cs"]), max_size=4), JSON, max_size=4))
def test_the_content_id_is_that_of_what_is_written(good: Path, tmp_path: Path, recipe: Value) -> None:
    known = manifest.read_source_manifest(source_value(good)[0])
    made = manifest.with_content_id(known.model_copy(update={"recipe": recipe}))
    data = manifest.manifest_bytes(made)
    assert made.content_id == json.loads(data)["content_id"] == content_id(json.loads(data))
    assert made.content_id == files.fingerprint(made.model_dump(mode="json", exclude={"content_id"}))
    (tmp_path / "manifest.json").write_bytes(data)
    assert manifest.read_source_manifest(tmp_path / "manifest.json") == made


def test_a_foreign_manifest_counts_as_it_is_written(root: Path) -> None:
    """Another writer leaves out what is absent, spells 0.0 as 0, and has its keys in another order."""

    def change(value: Value) -> None:
        for shard in (*value["train"], *value["valid"]):
            del shard["loss"], shard["packed"]
            if not shard["continues"]:
                del shard["continues"]
        del value["order"]["algorithm"]
        value["order"]["valid_fraction"] = 0
        value["valid"] = []
        for key in sorted(value, reverse=True):
            value[key] = value.pop(key)

    edit(root, change)
    dataset = open_dataset(root)
    _path, value = source_value(root)
    assert dataset.sources["plain"].manifest.content_id == value["content_id"]
    assert dataset.sources["plain"].manifest.order.valid_fraction == 0
    dataset.verify()
    use(dataset)
    top = json.loads((root / "manifest.json").read_text())
    del top["mixtures"], top["tokenizer_file"]
    put_top(root, top)
    assert open_dataset(root).manifest.mixtures == []


def test_a_name_that_others_gave_breaks_no_message(root: Path) -> None:
    edit(root, lambda value: value["tokenizer"].update(name="a\n\x1b[31m", sha256="1" * 64))
    refused(root, r"source plain was tokenised with a\\n\\x1b")
    edit(root, lambda value: value["tokenizer"].update(name="a\n\x1b[31m", sha256="0" * 64))
    edit(root, lambda value: value.update(licence="\u202eMIT\r"))
    text = holdings.table("x", holdings.about(open_dataset(root)))
    assert "\x1b" not in text and "\u202e" not in text and "\r" not in text
