"""What all importers share: the tokenizer, which kind a folder is of, and a dataset like any other."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from tests.support.byte_tokenizer import byte_tokenizer
from tests.support.foreign_shards import (
    DOCUMENTS,
    EOS,
    TOKENS,
    Documents,
    joined,
    small,
    tokenizer,
    without_eos,
    write_datatrove,
    write_llmc,
    write_megatron,
    write_nmoe,
)
from tokenizers import Tokenizer, models

from gristmill.base.errors import DataError, UsageError
from gristmill.shards.importers.api import find_inputs, import_source
from gristmill.shards.importers.command import import_
from gristmill.shards.reader import open_dataset
from gristmill.shards.tokenizer import load_tokenizer, tokenizer_info

__all__ = ["small", "tokenizer"]  # fixtures


def imported(root: Path, name: str = "s") -> dict[str, list[int]]:
    dataset = open_dataset(root)
    dataset.verify()
    source = dataset.sources[name]
    return {
        document.id: document.tokens[:-1].tolist()
        for split in ("train", "valid")
        for document in source.split(split).documents()
    }


# tokenizers


def test_the_end_of_document_is_named_known_or_asked_for(tmp_path: Path) -> None:
    path = byte_tokenizer(tmp_path / "gpt" / "tokenizer.json", ("<|stop|>", "</s>"))
    info = tokenizer_info(path)
    assert (info.name, info.vocab_size, info.eos_id) == ("gpt", 258, 257)
    assert tokenizer_info(path, "<|stop|>").eos_id == tokenizer_info(path, "256").eos_id == 256
    with pytest.raises(UsageError, match="has no token '<eos>'"):
        tokenizer_info(path, "<eos>")
    with pytest.raises(UsageError, match="id 258 is outside its vocabulary of 258"):
        tokenizer_info(path, "258")
    with pytest.raises(UsageError, match=r"name its own \(eos\)"):
        tokenizer_info(byte_tokenizer(tmp_path / "none.json", ("<|stop|>",)))


def test_a_vocabulary_with_holes_is_as_large_as_its_highest_id(tmp_path: Path) -> None:
    tokenizer = Tokenizer(models.WordLevel({"</s>": 0, "a": 70_000}, unk_token="a"))
    tokenizer.save(str(tmp_path / "t.json"))
    assert tokenizer_info(tmp_path / "t.json").vocab_size == 70_001
    assert tokenizer_info(tmp_path / "t.json").dtype == "u32"


def test_a_tokenizer_that_would_truncate_or_pad_does_neither(tmp_path: Path) -> None:
    path = byte_tokenizer(tmp_path / "t.json")
    tokenizer = Tokenizer.from_file(str(path))
    tokenizer.enable_truncation(4)
    tokenizer.enable_padding(length=8)
    tokenizer.save(str(path))
    assert [len(load_tokenizer(path).encode(text).ids) for text in ("ab", "abcdefghijkl")] == [2, 12]


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", '{"model": 3}', '{"model": {"type": "?"}}', '{"model": {}, "added_tokens": [3]}']
)
def test_what_is_no_tokenizer_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "t.json").write_text(text)
    with pytest.raises(DataError, match=r"t\.json: not "):
        load_tokenizer(tmp_path / "t.json")
    with pytest.raises(DataError, match="no such file"):
        load_tokenizer(tmp_path / "absent.json")


# all of it


def write_chat(path: Path) -> Path:
    path.write_text('{"prompt": "Hi", "completion": "Yo"}\n')
    return path


def test_kinds_are_told_from_the_files(tmp_path: Path, tokenizer: Path) -> None:
    for folder in ("m/deep", "d", "n", "c", ".hidden"):
        (tmp_path / folder).mkdir(parents=True)
    write_megatron(tmp_path / "m" / "deep" / "web.v1_document", DOCUMENTS)
    write_datatrove(tmp_path / "d" / "00000.ds", [[1]], loss=[[1]], metadata="x|2\n1\n1 T")
    write_nmoe(tmp_path / "n" / "a.npy", TOKENS, [(0, 4)])
    write_llmc(tmp_path / "n" / "b.bin", TOKENS)
    write_chat(tmp_path / "c" / "a.JSONL")
    assert find_inputs("auto", [tmp_path / "m"])[1].keys() == {"deep/web.v1_document.bin"}
    prefix = tmp_path / "m" / "deep" / "web.v1_document"
    for path in (prefix, Path(f"{prefix}.idx"), Path(f"{prefix}.bin")):
        assert find_inputs("auto", [path]) == ("megatron", {"web.v1_document.bin": Path(f"{prefix}.bin")})
    assert find_inputs("auto", [Path(f"{prefix}.idx"), Path(f"{prefix}.bin")])[1].keys() == {"web.v1_document.bin"}
    assert find_inputs("auto", [tmp_path / "d"]) == ("datatrove", {"00000.ds": tmp_path / "d" / "00000.ds"})
    assert find_inputs("auto", [tmp_path / "n"])[1].keys() == {"a.npy", "b.bin"}
    assert find_inputs("auto", [tmp_path / "c"])[0] == "chat"
    with pytest.raises(UsageError, match=r"several kinds: .*numpy.*chat"):
        find_inputs("auto", [tmp_path / "n", tmp_path / "c"])
    with pytest.raises(UsageError, match="no file there that can be imported"):
        find_inputs("auto", [tmp_path / ".hidden"])
    with pytest.raises(UsageError, match=r"absent: no such file"):
        find_inputs("auto", [tmp_path / "absent"])
    (tmp_path / "n" / "train.bin").write_bytes(np.array(TOKENS, "<u2").tobytes())
    with pytest.raises(UsageError, match=r"train\.bin: cannot tell what it is"):
        find_inputs("auto", [tmp_path / "n"])
    (tmp_path / "m" / "other").mkdir()
    other = write_megatron(tmp_path / "m" / "other" / "web.v1_document", DOCUMENTS)
    with pytest.raises(UsageError, match="have one name; give the folder that both are in"):
        find_inputs("auto", [prefix, other])
    assert len(find_inputs("auto", [tmp_path / "m"])[1]) == 2
    with pytest.raises(UsageError, match="is for flat arrays"):
        import_source("auto", [prefix], tmp_path / "out", "s", tokenizer, dtype="uint16")


def test_an_import_is_a_source_like_any_other(
    tmp_path: Path, tokenizer: Path, small: None, capsys: pytest.CaptureFixture[str]
) -> None:
    """Through the command: documents come back with their places, other sources stay, workers change nothing."""
    random = np.random.default_rng(5)
    documents = [[random.integers(0, 256, n).tolist(), [EOS]] for n in random.integers(0, 20, 60)]
    (tmp_path / "in").mkdir()
    write_megatron(tmp_path / "in" / "web", documents, 4)
    import_([tmp_path / "in"], tmp_path / "out", "web", tokenizer, valid_fraction=0.2, licence="MIT")
    import_([write_chat(tmp_path / "c.jsonl")], tmp_path / "out", "s", tokenizer)
    expected = without_eos(joined(documents))
    assert imported(tmp_path / "out", "web") == {f"web.bin:{row}": tokens for row, tokens in expected.items()}
    dataset = open_dataset(tmp_path / "out")
    assert set(dataset.sources) == {"web", "s"}
    manifest = dataset.sources["web"].manifest
    assert manifest.licence == "MIT"
    assert manifest.train and manifest.valid
    assert [entry["path"] for entry in manifest.inputs] == ["web.bin", "web.idx"]
    printed = capsys.readouterr().out
    assert f"web: {len(documents) - len(expected)} documents without a token left out" in printed
    assert "train tokens of" in printed and "valid tokens of" in printed
    other = import_source(
        "megatron", [tmp_path / "in"], tmp_path / "two", "web", tokenizer, valid_fraction=0.2, licence="MIT", workers=2
    )
    assert other.manifest == manifest


def test_ids_outside_the_vocabulary_are_refused_by_document(tmp_path: Path, tokenizer: Path) -> None:
    path = write_megatron(tmp_path / "web", [[[1, 2]], [[3, 257]]])
    with pytest.raises(DataError, match=r"web\.bin, row 1, .*token id 257 is outside the vocabulary of 257"):
        import_source("auto", [path], tmp_path / "out", "s", tokenizer)
    path = write_megatron(tmp_path / "web", [[[1, -2]]], 4)
    with pytest.raises(DataError, match=r"web\.bin, row 0, .*token id -2"):
        import_source("auto", [path], tmp_path / "out", "s", tokenizer)


@pytest.mark.parametrize("documents", [[], [[[EOS]], [[]]]], ids=["none", "empty"])
def test_no_document_at_all_is_refused(tmp_path: Path, tokenizer: Path, documents: list[Documents]) -> None:
    path = write_megatron(tmp_path / "web", documents)
    with pytest.raises(DataError, match="holds no document"):
        import_source("auto", [path], tmp_path / "out", "s", tokenizer)
