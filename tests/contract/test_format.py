"""docs/format.md, run as it is written: its reader reads what the writer writes, with nothing of ours on the way."""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from gristmill.base import files
from gristmill.shards import manifest as manifests
from gristmill.shards.manifest import TokenizerInfo
from gristmill.shards.reader import open_dataset
from gristmill.shards.writer import SourceSpec, write_manifest, write_source

DOCUMENT = (Path(__file__).parents[2] / "docs" / "format.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```python\n(.*?)^```$", DOCUMENT, re.MULTILINE | re.DOTALL)
(READER,) = [block for block in BLOCKS if "class Split" in block]
(BY_HAND,) = [block for block in BLOCKS if "class Split" not in block and "np.memmap" in block]
DUMP = """
import sys
split = Split(*sys.argv[1:])
total = int(split.ends[-1]) if len(split.ends) else 0
places = range(0, total, 7)
print(json.dumps([[d.tolist() for d in split.documents()], [split.document_of(t) for t in places]]))
assert not [name for name in sys.modules if name.startswith(("gristmill", "pyarrow"))]
"""


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("dataset")
    draw = np.random.default_rng(0)
    for name, count, longest, masked in (("plain", 80, 90, False), ("long", 9, 900, False), ("chat", 30, 60, True)):
        tokens = [draw.integers(1, 70_000, n).tolist() for n in draw.integers(0, longest, count)]
        rows = {"id": [f"é{i}" for i in range(count)], "tokens": tokens, "file": ["f"] * count, "row": range(count)}
        rows |= {"loss": [[i % 2 for i in range(len(ids))] for ids in tokens]} if masked else {}
        about = TokenizerInfo(name="t", sha256="0" * 64, vocab_size=70_000, eos_id=0)
        spec = SourceSpec(name, about, "ß", 0.2, {"é": ["\u2028", 0.1, 1e300, None, True]}, licence="Ünknown")
        write_source(root, spec, [pa.table(rows)], shard_tokens=250, ramp=(100,))
    write_manifest(root)
    return root


@pytest.fixture(scope="module")
def narrow(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("narrow")
    about = TokenizerInfo(name="t", sha256="0" * 64, vocab_size=65_536, eos_id=65_535)
    rows = {"id": ["a", "b"], "tokens": [[1, 65_535, 2], [3]], "file": ["f", "f"], "row": [0, 1]}
    write_source(root, SourceSpec("plain", about), [pa.table(rows)])
    write_manifest(root)
    return root


def run(code: str, *arguments: object, expect: int = 0) -> str:
    done = subprocess.run(
        [sys.executable, "-I", "-c", code, *map(str, arguments)], capture_output=True, text=True, check=False
    )
    assert done.returncode == expect, done.stderr
    return done.stderr if expect else done.stdout


def test_the_reader_is_short_and_ours_is_not_in_it() -> None:
    assert len(READER.splitlines()) <= 50
    assert set(re.findall(r"^(?:import|from) (\w+)", READER, re.MULTILINE)) == {"hashlib", "json", "pathlib", "numpy"}
    assert len(BY_HAND.splitlines()) <= 15
    assert "gristmill" not in BY_HAND


@pytest.mark.parametrize("source", ["plain", "long", "chat"])
@pytest.mark.parametrize("split", ["train", "valid"])
def test_it_reads_what_we_read(root: Path, source: str, split: str) -> None:
    ours = open_dataset(root).sources[source].split(split)
    documents = [document.tokens.tolist() for document in ours.documents()]
    found, numbers = json.loads(run(READER + DUMP, root, source, split))
    assert found == documents
    order = {document.id: number for number, document in enumerate(ours.documents())}
    expected = []
    for token in range(0, ours.token_count, 7):
        place = ours.locate(token)
        expected.append(order[ours.meta(place.shard)["id"][place.row].as_py()])
    assert numbers == expected
    assert split == "valid" or any(shard.continues for shard in ours.shards) == (source == "long")


def test_it_reads_two_bytes_per_token(narrow: Path) -> None:
    found, _numbers = json.loads(run(READER + DUMP, narrow, "plain"))
    assert sorted(found) == [[1, 65_535, 2, 65_535], [3, 65_535]]


@pytest.mark.parametrize("kind", ["tokens", "ends", "manifest", "path"])
def test_it_refuses_what_was_altered(root: Path, tmp_path: Path, kind: str) -> None:
    copy = Path(shutil.copytree(root, tmp_path / "copy"))
    listed = files.read_json(copy / "manifest.json")["sources"]["plain"]["path"]
    path = copy / (listed if kind == "manifest" else f"sources/plain/{kind}")
    if kind == "path":
        value = files.read_json(copy / "manifest.json")
        value["sources"]["plain"]["path"] = "../outside.json"
        value["content_id"] = files.fingerprint({k: v for k, v in value.items() if k != "content_id"})
        files.write_json(copy / "manifest.json", value)
        (tmp_path / "outside.json").write_bytes((copy / listed).read_bytes())
    else:
        victim = path if path.is_file() else sorted(path.rglob("00001-*"))[0]
        data = bytearray(victim.read_bytes())
        data[-3] ^= 1
        victim.write_bytes(data)
    assert "outside the dataset, or altered" in run(READER + DUMP, copy, "plain", expect=1)


@pytest.mark.parametrize("source", ["plain", "chat"])
def test_one_shard_by_hand(root: Path, source: str) -> None:
    code = BY_HAND.replace('"/data/web"', repr(str(root))).replace('"wiki"', repr(source))
    assert code != BY_HAND
    split = open_dataset(root).sources[source].split("train")
    lines = run(code).splitlines()
    assert len(lines) == split.shards[0].document_count
    learnt = sum(int(line.split(", ")[1].removesuffix(" learnt")) for line in lines)
    loss, firsts = split.loss(0), np.concatenate([[0], split.ends(0)[:-1]])
    tokens = split.shards[0].token_count
    assert learnt == (tokens - len(lines) if loss is None else int(loss.sum()) - int(loss[firsts].sum()))


@pytest.mark.parametrize(
    "model", ["DatasetManifest", "SourceManifest", "ShardEntry", "TokenizerInfo", "OrderInfo", "FileEntry"]
)
def test_every_field_is_told(model: str) -> None:
    kind = getattr(manifests, model)
    fields = {field.name for field in dataclasses.fields(kind)} if dataclasses.is_dataclass(kind) else kind.model_fields
    told = set(re.findall(r"`(\w+)`", DOCUMENT.partition("## Manifests")[2].partition("### Content ids")[0]))
    assert set(fields) <= told


def test_metadata_columns_are_told(root: Path) -> None:
    schema = open_dataset(root).sources["plain"].split("train").meta(0).schema
    rows = dict(
        re.findall(r"^\| (`[\w`, ]+`) \| ([\w, ]+?)(?: or null)? \|", DOCUMENT.partition("## Order")[0], re.MULTILINE)
    )
    told = {
        name.strip("` "): kind.strip()
        for names, kinds in rows.items()
        for name, kind in zip(names.split(","), kinds.split(","))
    }
    found = {name: str(kind).replace("float", "float32") for name, kind in zip(schema.names, schema.types)}
    assert {name: told.get(name) for name in found} == found


def test_the_layout_is_what_is_written(root: Path) -> None:
    """Each file has a form that the page draws, and each form that is not optional is there."""
    drawn = re.findall(r"^(\S+) +(.*)$", DOCUMENT.partition("```\n")[2].partition("```")[0], re.MULTILINE)
    assert len(drawn) == 10
    forms = {path: re.escape(re.sub(r"-[0-9a-f]{8}\.", "-HASH.", path)) for path, _about in drawn}
    parts = {
        r"\.\.\.": ".+",
        "SOURCE": r"\w+",
        "NAME": r"\w+",
        "HASH": "[0-9a-f]{8}",
        "00000": r"\d{5}",
        "u16": "u(16|32)",
    }
    for part, pattern in parts.items():
        forms = {path: form.replace(part, pattern) for path, form in forms.items()}
    present = {path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_file()}
    present -= {f"sources/{source}/manifest.json" for source in ("plain", "long", "chat")}  # the writer's own
    assert [path for path in present if not any(re.fullmatch(form, path) for form in forms.values())] == []
    for path, about in drawn:
        assert "(optional)" in about or any(re.fullmatch(forms[path], there) for there in present), path


def test_row_lengths_are_told(root: Path) -> None:
    shard = open_dataset(root).sources["plain"].manifest.train[0]
    (row,) = re.findall(r"^\| `packed`.*$", DOCUMENT, re.MULTILINE)
    assert [number.replace(",", "") for number in re.findall(r"\d[\d,]+\d", row)] == list(shard.packed)


@pytest.mark.parametrize("source", ["", "plain", "long"])
def test_content_ids_are_as_told(root: Path, source: str) -> None:
    """The page's own line of Python, on what stands in the file."""
    (line,) = re.findall(r"^json\.dumps\(manifest, .*\)$", DOCUMENT, re.MULTILINE)
    path = root / "manifest.json"
    if source:
        path = root / files.read_json(path)["sources"][source]["path"]
    code = f"""
import hashlib, json, sys
manifest = json.loads(open(sys.argv[1], encoding="utf-8").read())
assert manifest.pop("content_id") == hashlib.sha256({line}.encode()).hexdigest()
"""
    run(code, path)
