"""What other systems' own writers write is read back exactly. Each is skipped where its package is not installed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.support.byte_tokenizer import byte_tokenizer

from gristmill.shards.importers.api import import_source
from gristmill.shards.reader import open_dataset
from gristmill.shards.writer import write_manifest

EOS = 256
TEXTS = ["Hello", "A second document.", "x", "été 🙂", "The last one\nhas two lines."]
DOCUMENTS = [list(text.encode()) for text in TEXTS]


@pytest.fixture
def tokenizer(tmp_path: Path) -> Path:
    return byte_tokenizer(tmp_path / "bytes" / "tokenizer.json")


def imported(folder: Path, out: Path, tokenizer: Path, **options: Any) -> dict[str, list[int]]:
    import_source("auto", [folder], out, "s", tokenizer, valid_fraction=0.3, **options)
    write_manifest(out, tokenizer=tokenizer)
    dataset = open_dataset(out)
    dataset.verify()
    source = dataset.sources["s"]
    return {d.id: d.tokens[:-1].tolist() for split in source.splits.values() for d in split.documents()}


@pytest.mark.parametrize("kind", [np.uint16, np.int32])
@pytest.mark.parametrize("multimodal", [False, True])
def test_megatron_core(tmp_path: Path, tokenizer: Path, kind: Any, multimodal: bool) -> None:
    peer = pytest.importorskip("megatron.core.datasets.indexed_dataset")
    import torch

    def build(name: str, documents: list[list[int]], merged: tuple[str, ...] = ()) -> None:
        builder = peer.IndexedDatasetBuilder(str(tmp_path / name) + ".bin", dtype=kind, multimodal=multimodal)
        for prefix in merged:
            builder.add_index(str(tmp_path / prefix))
        for i, document in enumerate(documents):
            if i % 2:  # one sequence, with EOD, as preprocess_data.py --append-eod
                builder.add_document([*document, EOS], [len(document) + 1], [0] if multimodal else None)
            else:  # a sequence for every sentence
                half = len(document) // 2
                builder.add_item(torch.tensor(document[:half]))
                builder.add_item(torch.tensor(document[half:]))
                builder.end_document()
        builder.finalize(str(tmp_path / name) + ".idx")

    (tmp_path / "in").mkdir()
    build("first", DOCUMENTS[:2])
    build("in/web_text_document", DOCUMENTS[2:], ("first",))
    peer_sees = peer.IndexedDataset(str(tmp_path / "in/web_text_document"), multimodal=multimodal)
    assert len(peer_sees.document_indices) == len(DOCUMENTS) + 1
    found = imported(tmp_path / "in", tmp_path / "out", tokenizer)
    assert found == {f"web_text_document.bin:{i}": document for i, document in enumerate(DOCUMENTS)}


@pytest.mark.parametrize("width", [2, 4])
def test_datatrove_files(tmp_path: Path, tokenizer: Path, width: int) -> None:
    peer = pytest.importorskip("datatrove.pipeline.tokens.tokenizer")
    file = peer.TokenizedFile(
        str(tmp_path / "in"), "00000_shuffled.ds", save_loss_metadata=True, save_final_metadata=True, token_size=width
    )
    for i, document in enumerate(DOCUMENTS):
        file.write([*document, EOS], np.arange(len(document) + 1) >= i)
    file.close()
    found = imported(tmp_path / "in", tmp_path / "out", tokenizer)
    assert found == {f"00000_shuffled.ds:{i}": document for i, document in enumerate(DOCUMENTS)}
    source = open_dataset(tmp_path / "out").sources["s"]
    for split in source.splits.values():
        for i, shard in enumerate(split.shards):
            assert shard.loss is not None
            mask = np.frombuffer((source.folder / shard.loss.path).read_bytes(), np.uint8)
            for row, loss in zip(split.meta(i)["row"].to_pylist(), np.split(mask, split.ends(i)[:-1])):
                assert loss[:-1].tolist() == (np.arange(len(DOCUMENTS[row])) >= row).astype(int).tolist()


def test_datatrove_pipeline_with_shuffling_and_merging(tmp_path: Path, tokenizer: Path) -> None:
    peer, data = pytest.importorskip("datatrove.pipeline.tokens"), pytest.importorskip("datatrove.data")
    step = peer.DocumentTokenizer(str(tmp_path / "parts"), str(tokenizer), eos_token="<|endoftext|>", seed=1)
    step.run((data.Document(text=text, id=str(i)) for i, text in enumerate(TEXTS)), rank=0, world_size=1)
    merger = peer.DocumentTokenizerMerger(
        str(tmp_path / "parts"), str(tmp_path / "in"), "merged", seed=2, progress=False
    )
    merger.run(None, rank=0, world_size=1)
    found = imported(tmp_path / "in", tmp_path / "out", tokenizer)
    assert sorted(found.values()) == sorted(DOCUMENTS)


@pytest.mark.parametrize("width", [2, 4])
def test_datatrove_as_megatron(tmp_path: Path, tokenizer: Path, width: int) -> None:
    peer = pytest.importorskip("datatrove.pipeline.tokens.megatron_tokenizer")
    (tmp_path / "in").mkdir()
    file = peer.MegatronTokenizedFile(str(tmp_path / "in"), "processed_00000_tokens", token_size=width)
    for document in DOCUMENTS:
        file.write([*document, EOS])
    file.close()
    found = imported(tmp_path / "in", tmp_path / "out", tokenizer)
    assert found == {f"processed_00000_tokens.bin:{i}": document for i, document in enumerate(DOCUMENTS)}


@pytest.mark.parametrize("kind", [np.uint16, np.uint32])
def test_olmo_core(tmp_path: Path, tokenizer: Path, kind: Any) -> None:
    peer = pytest.importorskip("olmo_core.data.utils")
    path = tmp_path / "in" / "part-0-00000.npy"
    path.parent.mkdir()
    stream = np.array([token for document in DOCUMENTS for token in [*document, EOS]], kind)
    stream.tofile(path)
    expected = {f"part-0-00000.npy:{i}": document for i, document in enumerate(DOCUMENTS)}
    assert imported(path.parent, tmp_path / "scanned", tokenizer, dtype=kind.__name__) == expected
    peer.write_document_indices(path, dtype=kind, eos_token_id=EOS)
    assert imported(path.parent, tmp_path / "indexed", tokenizer, dtype=kind.__name__) == expected
