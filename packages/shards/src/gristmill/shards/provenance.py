"""A training token led back to its document, with the text around it.

Documents are not to be trusted: nothing that they hold reaches a terminal unescaped.
"""

from __future__ import annotations

import itertools
from typing import Any

from gristmill.base.terminal import shown as shown
from gristmill.shards import metadata
from gristmill.shards.reader import Dataset
from gristmill.shards.tokenizer import load_tokenizer

AROUND = 24  # tokens shown on each side


def explain(dataset: Dataset, source: str, token: int) -> dict[str, Any]:
    """Of the source's train token number `token`: where it is, its document's metadata, and the text around it if the
    dataset carries its tokenizer (`before`, `text`, `after`).

    Raises:
        UsageError: no such token.
        DataError: a file that is missing or not what its manifest says.
    """
    split = dataset.sources[source].split("train")
    place = split.locate(token)
    tokens, ends = split.tokens(place.shard), split.ends(place.shard)
    start, stop = int(ends[place.row - 1]) if place.row else 0, int(ends[place.row])
    bounds = (max(place.offset - AROUND, start), place.offset, place.offset + 1, min(place.offset + 1 + AROUND, stop))
    answer = {
        "source": source,
        "token_offset": token,
        "token_id": int(tokens[place.offset]),
        "shard": split.shards[place.shard].tokens.path,
        "offset_in_shard": place.offset,
        "offset_in_document": place.offset_in_document,
        **_text(dataset, [tokens[low:high].tolist() for low, high in itertools.pairwise(bounds)]),
    }
    entry = split.shards[place.shard]
    row = metadata.read_row(split.path(source, entry.meta), entry.document_count, place.row)
    return answer | {f"meta.{name}" if name in answer else name: value for name, value in row.items()}


def _text(dataset: Dataset, parts: list[list[int]]) -> dict[str, str]:
    path = dataset.tokenizer_path
    if path is None:
        return {}
    texts = load_tokenizer(path).decode_batch(parts, skip_special_tokens=False)
    return dict(zip(("before", "text", "after"), texts))
