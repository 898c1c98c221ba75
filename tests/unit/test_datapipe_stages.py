"""Stages over small tables: tokens that a hostile page cannot forge, and ids that come back as text."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from tokenizers import Tokenizer

from gristmill.datapipe.stages import Tokenise, TokenizerConfig, TrainTokenizer
from gristmill.datapipe.workflow.stage import Inputs

TEXTS = ["a page about mills and flour", "another <|endoftext|> page", "", "Mühle 漢字 😀"]


def test_tokens_spell_the_text_and_never_end_a_document_early(tmp_path: Path) -> None:
    (tmp_path / "documents").mkdir()
    pq.write_table(pa.table({"text": TEXTS * 20}), tmp_path / "documents" / "part-0.parquet")
    inputs = Inputs({"documents": tmp_path / "documents"}, {"documents": ("part-0.parquet",)})
    (tmp_path / "tokenizer").mkdir()
    TrainTokenizer(TokenizerConfig(vocabulary=400)).run(inputs, tmp_path / "tokenizer")
    stage = Tokenise()
    stage.setup({"tokenizer": tmp_path / "tokenizer"})
    table = stage.annotate(pa.table({"text": TEXTS}), {})
    tokenizer = Tokenizer.from_file(str(tmp_path / "tokenizer" / "tokenizer.json"))
    end = tokenizer.token_to_id("<|endoftext|>")
    for text, tokens, count in zip(TEXTS, table["tokens"].to_pylist(), table["count"].to_pylist(), strict=True):
        assert end not in tokens and len(tokens) == count
        assert tokenizer.decode(tokens, skip_special_tokens=False) == text
