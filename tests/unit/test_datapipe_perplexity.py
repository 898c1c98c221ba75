"""Sentences, training and scoring: against plain Python, from every kind of input, on odd text, and what is refused."""

from __future__ import annotations

import gzip
import json
import time
import unicodedata
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import sentencepiece
from hypothesis import given, settings
from hypothesis import strategies as st

from gristmill.base.errors import GristmillError, UsageError
from gristmill.datapipe.filters.perplexity import PerplexityConfig, PerplexityModel, ccnet_lines
from gristmill.datapipe.perplexity.sentences import sentences
from gristmill.datapipe.perplexity.train import TrainConfig, about_path, train, train_on
from gristmill.datapipe.text.characters import DIGIT, IDEOGRAPH, LETTER, NEWLINE, tables

TEXT = (
    "The cat sat on the mat. The dog sat on the log.\nA cat and a dog saw the man on the mat, and the man saw them.\n"
)
SALAD = "mat the on dog log a saw them sat cat . , man and the the on"


def plain_lines(text: str) -> list[str]:
    """The rules of sentences(), one character after the other."""
    classes, folded = tables()
    lines: list[list[str]] = [[]]
    joins = False
    for character in unicodedata.normalize("NFC", text):
        kind, category = classes[ord(character)], unicodedata.category(character)
        written = "0" if category == "Nd" else chr(folded[ord(character)])
        if character == "\ufffd" or (kind not in (LETTER, DIGIT, IDEOGRAPH) and category[0] not in "PS"):
            if kind == NEWLINE:
                lines.append([])
            joins = False
        elif kind in (LETTER, DIGIT) and joins:
            lines[-1][-1] += written
        else:
            lines[-1].append(written)
            joins = kind in (LETTER, DIGIT)
    return [" ".join(line) + "\n" for line in lines if line]


@settings(max_examples=300)
@given(
    st.lists(
        st.one_of(st.text(max_size=40), st.text("aB1٣ é\u0308ıİⱥȺ漢ไท,.!\n\r\u2028\t\0😀\u200c", max_size=40)),
        max_size=5,
    )
)
def test_sentences_are_those_of_a_plain_reading(texts: list[str]) -> None:
    found = sentences(pa.array(texts, pa.string()))
    lines = found.lines().to_pylist()
    for document, text in enumerate(texts):
        expected = plain_lines(text)
        assert lines[found.offsets[document] : found.offsets[document + 1]] == expected
        assert found.words[document] == sum(len(line.split()) for line in expected)
    words, last = found.split()
    assert "".join(words.to_pylist()) == "".join(lines).replace("\n", " ") and last.sum() == len(lines)


@settings(max_examples=200)
@given(st.lists(st.binary(max_size=60), min_size=1, max_size=4))
def test_any_bytes_become_utf8(blobs: list[bytes]) -> None:
    offsets = np.cumsum([0, *map(len, blobs)]).astype(np.int64)
    column = pa.LargeStringArray.from_buffers(len(blobs), pa.py_buffer(offsets), pa.py_buffer(b"".join(blobs) or b"\0"))
    found = sentences(column)
    assert len("".join(found.lines().to_pylist()).split()) == found.words.sum()


@pytest.mark.parametrize("unit", ["a", "é\u0308", "!", "\n", "a\n", "漢", "Ⱥ"])
def test_splitting_takes_time_linear_in_bytes(unit: str) -> None:
    def seconds(size: int) -> float:
        texts = pa.array([unit * size])
        start = time.process_time()
        sentences(texts)
        return time.process_time() - start

    seconds(10)
    assert seconds(3_200_000) < 64 * max(0.05, seconds(200_000))


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model") / "m.arpa"
    train_on([pa.array([TEXT] * 3)], path, TrainConfig(order=3, prune=(0,)))
    return path


def test_what_reads_like_the_training_text_surprises_less(model: Path) -> None:
    texts = [TEXT, SALAD, "zzz qqq www", "", "\0 \n", None]
    got = PerplexityModel(PerplexityConfig(str(model))).measure(pa.chunked_array([texts[:2], texts[2:]]))
    same, salad, foreign, *nothing = got["log_perplexity"].to_pylist()
    assert 0 < same < min(salad, foreign) and nothing == [None] * 3
    assert got["words"].to_pylist() == [32, 17, 3, 0, 0, 0]
    empty = PerplexityModel(PerplexityConfig(str(model))).measure(pa.array([], pa.string()))
    assert [len(column) for column in empty.values()] == [0, 0]


def test_an_impossible_word_is_its_own_documents_affair(tmp_path: Path) -> None:
    (tmp_path / "m.arpa").write_text(
        "\\data\\\nngram 1=4\nngram 2=1\n\n\\1-grams:\n-inf\t<unk>\n-99\t<s>\n-0.5\t</s>\n-1\tcat\n\n"
        "\\2-grams:\n-0.3\tcat </s>\n\n\\end\\\n"
    )
    perplexity = PerplexityModel(PerplexityConfig(str(tmp_path / "m.arpa")))
    texts = ["cat", "dog", "", "cat cat\ncat", "dog dog\ncat", None, "cat"]
    with np.errstate(all="raise"):
        got = perplexity.measure(pa.array(texts))["log_perplexity"].to_pylist()
    assert [value is None for value in got] == [False, True, True, False, True, True, False]
    assert got == [perplexity.measure(pa.array([text], pa.string()))["log_perplexity"][0].as_py() for text in texts]


def test_every_kind_of_input_gives_the_same_model(tmp_path: Path) -> None:
    rows = [
        {"text": TEXT, "source": "wiki"},
        {"text": "spam " * 50, "source": "web"},
        {"text": SALAD, "source": "wiki"},
    ]
    config = TrainConfig(order=3, sources=("wiki",))
    train_on([pa.array([TEXT, SALAD])], tmp_path / "direct.arpa", config)
    lines = "".join(json.dumps(row) + "\n" for row in rows) + 'not json\n{"text": 7, "source": "wiki"}\n'
    (tmp_path / "a.jsonl").write_text(lines)
    (tmp_path / "b.jsonl.gz").write_bytes(gzip.compress(lines.encode()))
    (tmp_path / "run" / "documents").mkdir(parents=True)
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "run" / "documents" / "part-00000.parquet")
    for source in ("a.jsonl", "b.jsonl.gz", "run", "run/documents/part-00000.parquet"):
        about = train([str(tmp_path / source)], tmp_path / "m.arpa.gz", config)
        assert gzip.decompress((tmp_path / "m.arpa.gz").read_bytes()) == (tmp_path / "direct.arpa").read_bytes()
        assert about == json.loads(about_path(tmp_path / "m.arpa.gz").read_text()) and about["words"] == 32 + 17
    assert (
        PerplexityModel(PerplexityConfig(str(tmp_path / "m.arpa.gz"))).measure(pa.array([TEXT]))["words"][0].as_py()
        == 32
    )
    assert not [path for path in tmp_path.iterdir() if ".tmp" in path.name]


def test_pruning_and_the_limit_of_words(tmp_path: Path) -> None:
    whole = train_on([pa.array([TEXT])], tmp_path / "m.arpa", TrainConfig(order=4, prune=(0,)))
    pruned = train_on([pa.array([TEXT])], tmp_path / "m.arpa", TrainConfig(order=4, prune=(0, 0, 1)))
    assert whole["ngrams"][:2] == pruned["ngrams"][:2] and pruned["ngrams"][3] < whole["ngrams"][3]
    limited = train_on([pa.array([TEXT])] * 50, tmp_path / "m.arpa", TrainConfig(order=2, max_words=60))
    assert limited["words"] == 2 * 32


def test_text_for_ccnets_models_is_split_by_sentencepiece(model: Path, tmp_path: Path) -> None:
    assert ccnet_lines("Ça «Va» 42!\n\n\x07 Zürich—２\t\n") == ['ca "va" 00!', "zurich - 0"]
    sentencepiece.SentencePieceTrainer.train(  # type: ignore[attr-defined]
        sentence_iterator=iter(TEXT.split("\n") * 20), model_prefix=str(tmp_path / "sp"), vocab_size=28, minloglevel=2
    )
    pieces = sentencepiece.SentencePieceProcessor(model_file=str(tmp_path / "sp.model"))
    got = PerplexityModel(PerplexityConfig(str(model), str(tmp_path / "sp.model"))).measure(pa.array([TEXT, "", None]))
    assert got["words"].to_pylist() == [sum(map(len, pieces.encode(ccnet_lines(TEXT), out_type=str))), 0, 0]
    assert got["log_perplexity"][0].as_py() > 0 and got["log_perplexity"].to_pylist()[1:] == [None, None]


def never_read() -> Iterator[pa.Array]:
    pytest.fail("read before the settings were checked")
    yield


def test_an_output_that_cannot_be_is_refused_before_reading(tmp_path: Path) -> None:
    for name in ("m.arpa", "n.arpa.json"):
        (tmp_path / name).mkdir()
    (tmp_path / "file").touch()
    for output in ("m.arpa", "n.arpa", "file/m.arpa"):
        with pytest.raises(UsageError, match=f"{output}.*cannot be written"):
            train_on(never_read(), tmp_path / output, TrainConfig())


def test_what_cannot_be_used_is_refused(model: Path, tmp_path: Path) -> None:
    for config, told in (
        (TrainConfig(order=7), "order 7"),
        (TrainConfig(prune=(1, 1)), "must begin with 0"),
        (TrainConfig(prune=(0, 2, 1)), "never fall"),
        (TrainConfig(max_words=0), "max-words 0"),
        (TrainConfig(max_words=-1), "max-words -1"),
    ):
        with pytest.raises(UsageError, match=told):
            train_on(never_read(), tmp_path / "m.arpa", config)
    with pytest.raises(UsageError, match=r"must end in \.arpa"):
        train_on(never_read(), tmp_path / "m.bin", TrainConfig())
    with pytest.raises(UsageError, match="no words to train on"):
        train_on([pa.array(["", " \n"])], tmp_path / "m.arpa", TrainConfig())
    assert not list(tmp_path.iterdir())
    with pytest.raises(GristmillError, match="no such model"):
        PerplexityModel(PerplexityConfig(str(tmp_path / "nowhere.arpa")))
    (tmp_path / "broken.arpa").write_bytes(model.read_bytes()[:300])
    with pytest.raises(GristmillError, match="KenLM cannot read it"):
        PerplexityModel(PerplexityConfig(str(tmp_path / "broken.arpa")))
    (tmp_path / "old.arpa").write_bytes(model.read_bytes())
    for about in ('{"splitting": 0}', "[1]", "{}", "no json"):
        about_path(tmp_path / "old.arpa").write_text(about)
        with pytest.raises(GristmillError, match=r"old\.arpa\.json: (does not say|not JSON)"):
            PerplexityModel(PerplexityConfig(str(tmp_path / "old.arpa")))
    for path in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(GristmillError, match="no such model"):
            PerplexityModel(PerplexityConfig(str(path)))
        with pytest.raises(GristmillError, match="SentencePiece cannot read it"):
            PerplexityModel(PerplexityConfig(str(model), str(path)))
