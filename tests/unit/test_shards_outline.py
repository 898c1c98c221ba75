"""The outline of a plan says what is read, and where each sequence comes from."""

import numpy as np
import pytest
from tests.support.small_shards import DOCUMENTS, S, mixture, write

from gristmill.shards import outline
from gristmill.shards.loader import Batches
from gristmill.shards.reader import Dataset, open_dataset
from gristmill.shards.resolve import plan


@pytest.fixture(scope="module")
def dataset(tmp_path_factory) -> Dataset:
    return open_dataset(write(tmp_path_factory.mktemp("dataset")))


@pytest.mark.parametrize("pack", ["concat", "bestfit"])
def test_a_sequence_leads_back_to_its_tokens(dataset: Dataset, pack) -> None:
    whole = plan(mixture(), dataset, S, tokens=60 * S, pack=pack)
    everything = {}
    for name in DOCUMENTS:
        split = dataset.sources[name].split("train")
        everything[name] = np.concatenate([split.tokens(i) for i in range(len(split.shards))])
    for batch in Batches(whole, dataset, 20 * S):
        for row, k in enumerate(batch.sequence_B.tolist()):
            found = outline.pieces(whole, dataset, k)
            text = np.concatenate([everything[p.source][p.token_offset : p.token_offset + p.tokens] for p in found])
            assert np.array_equal(batch.tokens_BS[row, 1 : len(text) + 1], text)
            assert len(text) == S or not batch.loss_mask_BS[row, len(text) :].any()


def test_the_outline_counts_files_and_bytes(dataset: Dataset) -> None:
    small, large = (outline.outline(plan(mixture(), dataset, S, tokens=n * S), dataset) for n in (20, 1000))
    assert small["bytes"] < large["bytes"] and small["tokens"] == 20 * S
    for row in large["sources"]:
        shards = dataset.sources[row["source"]].split("train").shards
        assert 0 < row["shards"] <= row["of_shards"] == len(shards)
        assert row["bytes"] <= sum(shard.tokens.bytes + shard.ends.bytes for shard in shards)
    text = outline.table(large)
    assert "mixture test" in text and all(name in text for name in DOCUMENTS)
