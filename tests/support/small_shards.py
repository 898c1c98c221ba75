"""A dataset of three sources whose documents hold nothing but their own number: bounds can be seen in the tokens."""

import hashlib
from pathlib import Path

import numpy as np
import pyarrow as pa

from gristmill.shards.manifest import TokenizerInfo
from gristmill.shards.mixture import Mixture
from gristmill.shards.writer import SourceSpec, write_manifest, write_source

TOKENIZER = TokenizerInfo(name="ids", sha256=hashlib.sha256(b"ids").hexdigest(), vocab_size=50_000, eos_id=0)
DOCUMENTS = {"web": 400, "code": 150, "wiki": 60}
SIZES = {"shard_tokens": 8_000, "ramp": (1_000, 1_000, 2_000, 4_000)}
S = 32  # tokens of a sequence


def table(name: str, count: int, low: int = 5, high: int = 300) -> pa.Table:
    draw = np.random.default_rng(len(name))
    return pa.table(
        {
            "id": [f"{name}-{i}" for i in range(count)],
            "tokens": pa.array([[10 + i] * int(n) for i, n in enumerate(draw.integers(low, high, count))], U16_LIST),
            "file": [f"{name}.jsonl"] * count,
            "row": list(range(count)),
        }
    )


def write(root: Path) -> Path:
    for name, count in DOCUMENTS.items():
        spec = SourceSpec(name, TOKENIZER, salt="s", valid_fraction=0.05)
        write_source(root, spec, [table(name, count)], **SIZES)
    write_manifest(root)
    return root


def mixture(**changes) -> Mixture:
    return Mixture(**({"name": "test", "weights": {"web": 40, "code": 20, "wiki": 15}} | changes))


U16_LIST = pa.list_(pa.uint16())
