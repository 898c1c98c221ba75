"""The shard inspector against what was packed: every byte of every document, and files that are damaged."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from tests.support.byte_tokenizer import byte_tokenizer
from tests.support.hostile_texts import ODD
from tests.support.training_shards import write_shards
from tokenizers import Tokenizer

from gristmill.report.asked import Asked, AskedWrong
from gristmill.report.live_run import LiveRun
from gristmill.report.questions import QUESTIONS, answer
from gristmill.report.run_folder import collect
from gristmill.report.shards.pieces import Vocabulary, runs
from gristmill.shards.reader import open_dataset
from gristmill.shards.tokenizer import load_tokenizer, tokenizer_info
from gristmill.shards.writer import SourceSpec, write_manifest, write_source

EOS = "<|endoftext|>"


def texts() -> dict[str, str]:
    """By id: odd characters of up to four bytes, a text that spells the end of a document, one longer than a shard."""
    draw = random.Random(5)
    found = {f"odd-{i}": text for i, text in enumerate(ODD)}
    found |= {f"mixed-{i}": "".join(draw.choices("aé字😀 \n\u202e</script>", k=draw.randrange(400))) for i in range(40)}
    return found | {"spelt": f"before {EOS} after", "long": "grain 小麦 " * 300}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """shards/bytes: a token a byte, small shards, a document over several; shards/words: a trained BPE."""
    folder = tmp_path_factory.mktemp("shards") / "run"
    root = folder / "shards" / "bytes"
    path = byte_tokenizer(folder / "tokenizer" / "tokenizer.json")
    tokenizer, about = load_tokenizer(path), tokenizer_info(path)
    for name, own in (("even", list(texts().items())[::2]), ("odd", list(texts().items())[1::2])):
        ids = [tokenizer.encode(text, add_special_tokens=False).ids for _, text in own]
        table = pa.table(
            {
                "id": [one for one, _ in own],
                "tokens": pa.array(ids, pa.list_(pa.uint16())),
                "file": [f"{name}.jsonl"] * len(own),
                "row": list(range(len(own))),
                "score": pa.array(np.linspace(0, 1, len(own)), pa.float32()),
            }
        )
        write_source(
            root, SourceSpec(name, about, salt="s", valid_fraction=0.1), [table], shard_tokens=2000, ramp=(500,)
        )
    write_manifest(root, [], path)
    words = folder / "shards" / "words"
    words.mkdir(parents=True)
    write_shards(words)
    write_manifest(words, [words / "both.toml"], words / "tokenizer.json")
    shutil.copytree(root, folder / "published")
    return folder


def asked(run: Path, name: str, **parameters: Any) -> dict[str, Any]:
    return answer(name, LiveRun(run), Asked({key: str(value) for key, value in parameters.items()}))


def windows(run: Path, size: int, **place: Any) -> Iterator[dict[str, Any]]:
    """Every window of a shard, one after the other."""
    live, at = LiveRun(run), 0
    while True:
        found = answer("shard_window", live, Asked({**place, "at": str(at), "size": str(size)}))
        yield found
        at += len(found["ids"])
        if at >= found["tokens"]:
            return


def content(one: dict[str, Any]) -> bytes:
    if "name" in one:
        return one["name"].encode()
    return bytes.fromhex(one["bytes"]) if "bytes" in one else one["text"].encode()


@pytest.mark.parametrize("size", [64, 1024])
def test_all_windows_together_are_the_documents_byte_for_byte(run: Path, size: int) -> None:
    held: dict[str, bytes] = {}
    listed = [(shard["split"], shard["number"], source) for source in ("even", "odd")
              for shard in asked(run, "shard_list", dataset="shards/bytes", source=source)["shards"]]  # fmt: skip
    assert len(listed) > 4
    for split, number, source in listed:
        place = {"dataset": "shards/bytes", "source": source, "split": split, "shard": str(number)}
        for found in windows(run, size, **place):
            assert [one["start"] for one in found["runs"]] == [0, *(one["end"] for one in found["runs"][:-1])]
            for one in found["runs"]:
                owner = next(d for d in found["documents"] if d["end"] > found["at"] + one["start"])
                assert found["at"] + one["end"] <= owner["end"]  # no run goes over a bound
                held[owner["id"]] = held.get(owner["id"], b"") + content(one)
    assert held == {name: text.encode() + EOS.encode() for name, text in texts().items()}


def test_text_is_told_in_the_shortest_runs_that_are_characters(run: Path) -> None:
    found = asked(run, "shard_window", dataset="shards/bytes", id="spelt")
    ends = [one for one in found["runs"] if one.get("name") == EOS]
    assert ends and found["documents"][0]["id"] == "spelt"
    own = "".join(one.get("text", "|") for one in found["runs"])
    assert own.startswith(f"before {EOS} after|")  # spelt out by its bytes, it is text; the end itself is not
    found = asked(run, "shard_window", dataset="shards/bytes", id="long", size=64)
    assert {one["text"]: one["end"] - one["start"] for one in found["runs"] if "text" in one}["小"] == 3
    start = next(one["start"] for one in found["runs"] if one.get("text") == "小")
    place = {key: found[key] for key in ("source", "split", "shard")}
    cut = asked(run, "shard_window", **place, dataset="shards/bytes", at=found["at"] + start + 1)
    assert [one["bytes"] for one in cut["runs"][:2]] == ["b0", "8f"] and cut["runs"][2]["text"] == "麦"


def test_documents_lead_back_and_are_found_again_wherever_they_are(run: Path) -> None:
    dataset = open_dataset(run / "shards" / "bytes")
    for name, source in dataset.sources.items():
        for split, own in source.splits.items():
            for i, shard in enumerate(own.shards):
                ends, meta = own.ends(i), own.meta(i).to_pylist()
                for row in {0, len(ends) // 2, len(ends) - 1}:
                    place = {"dataset": "shards/bytes", "source": name, "split": split, "shard": i}
                    start = int(ends[row - 1]) if row else 0
                    found = asked(run, "shard_window", **place, document=row + 1)
                    assert found["at"] == start and found["ids"] == own.tokens(i)[start : start + 256].tolist()
                    first = found["documents"][0]
                    assert (first["id"], first["end"]) == (meta[row]["id"], ends[row])
                    assert (first["file"], first["file_row"]) == (meta[row]["file"], meta[row]["row"])
                    assert first["values"]["score"] == pytest.approx(meta[row]["score"])
                    assert first["continues"] == (row == 0 and shard.continues)
                    if not first["continues"]:
                        again = asked(run, "shard_window", dataset="shards/bytes", source="even", id=first["id"])
                        assert [again[key] for key in ("source", "split", "shard", "at")] == [name, split, i, start]
    assert "nothing" in asked(run, "shard_window", dataset="shards/bytes", id="nothing")["nowhere"]


def test_a_trained_tokenizer_is_told_as_it_decodes_itself(run: Path) -> None:
    tokenizer = Tokenizer.from_file(str(run / "shards/words/tokenizer.json"))
    shown = list(windows(run, 256, dataset="shards/words"))
    own = b"".join(content(one) for found in shown for one in found["runs"] if "name" not in one)
    ids = [number for found in shown for number in found["ids"]]
    assert own.decode() == tokenizer.decode(ids, skip_special_tokens=True)


@pytest.mark.parametrize("kind", ["fallback", "unigram", "word pieces"])
def test_other_spellings(kind: str) -> None:
    if kind == "fallback":
        vocabulary = {"▁he": 0, "llo": 1, "<0xE2>": 2, "<0x82>": 3, "<0xAC>": 4, "<s>": 5}
        decoder = {"type": "Sequence", "decoders": [{"type": "Replace"}, {"type": "ByteFallback"}, {"type": "Fuse"}]}
        value = {
            "model": {"vocab": vocabulary},
            "decoder": decoder,
            "added_tokens": [{"id": 5, "content": "<s>", "special": True}],
        }
        told = runs([5, 0, 1, 2, 3, 4, 3, 9], {0}, Vocabulary(value))
        assert [one.get("text", one.get("name", one.get("bytes"))) for one in told] == [
            "<s>",
            " he",
            "llo",
            "€",
            "82",
            "?",
        ]
        assert told[3] == {"start": 3, "end": 6, "text": "€"}
        assert [one.get("bytes") for one in runs([2, 3, 4], {2}, Vocabulary(value))] == [
            "e2",
            "82",
            "ac",
        ]  # over a bound
    elif kind == "unigram":
        value = {"model": {"vocab": [["▁a", -1.0], ["b", -2.0]]}, "decoder": {"type": "Metaspace"}}
        assert [one["text"] for one in runs([0, 1], set(), Vocabulary(value))] == [" a", "b"]
    else:
        value = {"model": {"vocab": {"un": 0, "##do": 1}}, "decoder": {"type": "WordPiece"}}
        assert [one["text"] for one in runs([0, 1], set(), Vocabulary(value))] == [" un", "do"]


def test_facts_are_those_of_the_files(run: Path) -> None:
    own = open_dataset(run / "shards" / "bytes").sources["even"].splits["train"]
    found = asked(run, "shard_facts", dataset="shards/bytes", source="even", shard=0)
    lengths = np.diff(own.ends(0).astype(int), prepend=0)
    assert (found["shortest"], found["longest"], found["median"]) == (lengths.min(), lengths.max(), np.median(lengths))
    for bar in found["lengths"]:
        assert bar["count"] == ((lengths >= bar["from"]) & (lengths <= bar["to"])).sum()
    assert sum(bar["count"] for bar in found["lengths"]) == found["document_count"] == len(lengths)
    assert [file["fault"] for file in found["files"]] == [None] * 3
    card = next(one for one in collect(run).artifacts["artifacts"] if one["name"] == "bytes")
    dataset = open_dataset(run / "shards" / "bytes")
    for row in card["sources"]:
        splits = dataset.sources[row["name"]].splits
        assert row["documents"] == sum(split.document_count for split in splits.values())
        assert row["tokens"] == sum(split.token_count for split in splits.values())
    assert card["published"] and card["tokenizer"]["sha256"] == dataset.tokenizer.sha256
    assert collect(run).artifacts["datasets"] == ["shards/bytes", "shards/words", "published"]


def part_of(run: Path, part: str) -> Path:
    folder = run / "shards" / "bytes"
    manifest = folder / json.loads((folder / "manifest.json").read_text())["sources"]["even"]["path"]
    return manifest.parent / json.loads(manifest.read_text())["train"][0][part]["path"]


@pytest.mark.parametrize("part", ["tokens", "ends", "meta"])
@pytest.mark.parametrize("how", ["cut", "altered", "gone"])
def test_a_damaged_file_is_named(run: Path, tmp_path: Path, part: str, how: str) -> None:
    other = tmp_path / "run"
    shutil.copytree(run / "shards" / "bytes", other / "shards" / "bytes")
    path = part_of(other, part)
    data = bytearray(path.read_bytes())
    if how == "cut":
        path.write_bytes(data[:-3])
    elif how == "gone":
        path.unlink()
    else:
        data[40 if part == "ends" else -1] ^= 255
        path.write_bytes(data)
    place = {"dataset": "shards/bytes", "source": "even"}
    checked = {one["part"]: one for one in asked(other, "shard_check", **place)["files"]}
    assert [name for name, one in checked.items() if one["sha256"] != one["listed"]] == [part]
    if how != "altered":
        listed = asked(other, "shard_list", **place)
        assert listed["faulty"] == 1 and path.name in listed["faults"][0]
        fault = "missing" if how == "gone" else "truncated"
        assert fault in listed["faults"][0] and fault in checked[part]["fault"]
        assert path.name in asked(other, "shard_window", **place)["error"]
    elif part == "ends":
        assert "belongs to other tokens" in asked(other, "shard_window", **place)["error"]
    assert "runs" in asked(
        other, "shard_window", dataset="shards/bytes", source="odd"
    )  # another source is none the worse


@pytest.mark.parametrize(
    "path", ["../../../outside.json", "/etc/passwd", "sources/even/../../../../outside.json", "link/x"]
)
def test_a_manifest_that_leads_out_of_its_folder_is_refused(run: Path, tmp_path: Path, path: str) -> None:
    other = tmp_path / "run"
    shutil.copytree(run / "shards" / "bytes", other / "shards" / "bytes")
    (tmp_path / "outside.json").write_text("{}")
    (other / "shards/bytes/link").symlink_to(tmp_path, target_is_directory=True)
    where = other / "shards/bytes/manifest.json"
    manifest = json.loads(where.read_text())
    manifest["sources"]["even"]["path"] = path
    where.write_text(json.dumps(manifest))
    for name in ("shard_window", "shard_list", "shard_check", "shard_facts"):
        assert "unsafe path" in asked(other, name, source="even")["error"]
    assert "unsafe path" in collect(other).artifacts["error"]


def test_an_altered_manifest_or_tokenizer_is_not_believed(run: Path, tmp_path: Path) -> None:
    other = tmp_path / "run"
    shutil.copytree(run / "shards" / "bytes", other / "shards" / "bytes")
    tokenizer = other / "shards/bytes/tokenizer.json"
    tokenizer.write_text(tokenizer.read_text().replace(EOS, "<|endofbook|>"))
    found = asked(other, "shard_window", source="odd")
    assert found["runs"] is None and "tokenizer.json: altered" in found["undecoded"] and len(found["ids"]) == 256
    folder = other / "shards" / "bytes"
    path = folder / json.loads((folder / "manifest.json").read_text())["sources"]["odd"]["path"]
    path.write_text(path.read_text() + " ")
    assert f"{path.name}: altered" in asked(other, "shard_window", source="odd")["error"]
    assert "runs" in asked(other, "shard_window", source="even")


def test_places_that_do_not_exist_are_refused(run: Path, tmp_path: Path) -> None:
    wrong = [
        {"dataset": "../shards/bytes"}, {"source": "none"}, {"split": "test"}, {"shard": "99"}, {"shard": "-1"},
        {"size": "100000"}, {"at": "x"}, {"document": "100000"},
    ]  # fmt: skip
    for parameters in wrong:
        with pytest.raises(AskedWrong):
            QUESTIONS["shard_window"](LiveRun(run), Asked(parameters))
    last = asked(run, "shard_window", at=2**31)
    assert last["at"] == last["tokens"] - 1 and len(last["ids"]) == 1  # beyond the end is the last token
    (tmp_path / "run.json").write_text("{}")
    assert asked(tmp_path, "shard_window")["missing"] == "shards/<name>/manifest.json"
