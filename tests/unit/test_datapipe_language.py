"""Languages and fastText classifiers: labels, restrictions, mixing, odd text, and files that are refused."""

from __future__ import annotations

import time
from pathlib import Path

import fasttext
import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gristmill.base.errors import GristmillError
from gristmill.datapipe.filters.classifier import ClassifierConfig, FastTextClassifier
from gristmill.datapipe.filters.language import LanguageConfig, LanguageIdentifier, model_path
from gristmill.datapipe.models import fasttext as scoring
from gristmill.datapipe.models.fasttext import FastText

ENGLISH = "The committee met on Tuesday to discuss the new proposal, and nobody was surprised by what it found there.\n"
GERMAN = (
    "Der Ausschuss traf sich am Dienstag, um den neuen Vorschlag zu besprechen, und niemand war überrascht davon.\n"
)
CHANCES = ("score", "second_score", "mixing")


@pytest.fixture(scope="module")
def identifier() -> LanguageIdentifier:
    return LanguageIdentifier(LanguageConfig(paragraph_letters=60))


@pytest.fixture(scope="module")
def quality(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("quality")
    corpus = folder / "train.txt"
    corpus.write_text("__label__good fine clean prose here\n__label__bad spam spam buy now\n" * 50, encoding="utf-8")
    model = fasttext.train_supervised(
        str(corpus), dim=8, wordNgrams=2, bucket=1000, minn=2, maxn=3, thread=1, verbose=0
    )
    model.save_model(str(folder / "quality.bin"))
    return folder / "quality.bin"


def test_labels_scores_and_mixing(identifier: LanguageIdentifier) -> None:
    texts = [
        ENGLISH * 4,
        GERMAN * 4,
        ENGLISH * 3 + GERMAN,
        ENGLISH[33:85],
        "",
        " \n\t ",
        None,
        "漢字かな交じり文です。" * 12,
    ]
    got = {name: column.to_pylist() for name, column in identifier.measure(pa.array(texts)).items()}
    assert got["label"] == ["en", "de", "en", "en", None, None, None, "ja"]
    assert got["paragraphs"] == [4, 4, 4, 0, 0, 0, 0, 1]
    assert got["mixing"] == [0, 0, pytest.approx(0.25, abs=0.03), None, None, None, None, 0]
    assert [score is None for score in got["score"]] == [label is None for label in got["label"]]
    assert all(score > 0.8 for score in got["score"][:2]) and got["second"][2] == "de"
    assert all(first >= second for first, second in zip(got["score"], got["second_score"]) if first is not None)


def test_lines_are_gathered_into_paragraphs() -> None:
    wrapped = ENGLISH.replace(" ", "\n")
    for letters, paragraphs in ((80, 4), (200, 1), (0, 0)):
        config = LanguageConfig(paragraph_letters=letters)
        assert LanguageIdentifier(config).measure(pa.array([wrapped * 4]))["paragraphs"].to_pylist() == [paragraphs]


def test_labels_can_be_restricted_and_scores_stay_what_they_were() -> None:
    texts = pa.array([GERMAN, ENGLISH])
    free = LanguageIdentifier(LanguageConfig()).measure(texts)
    few = LanguageIdentifier(LanguageConfig(labels=("en", "fr"))).measure(texts)
    assert few["label"][1].as_py() == "en" and few["score"][1] == free["score"][1]
    assert few["label"][0].as_py() in ("en", "fr") and few["score"][0].as_py() < 0.1
    one = LanguageIdentifier(LanguageConfig(labels=("fr",))).measure(texts)
    assert one["label"].to_pylist() == ["fr", "fr"] and one["second"].to_pylist() == [None, None]
    with pytest.raises(GristmillError, match="no label 'eng'"):
        LanguageIdentifier(LanguageConfig(labels=("eng",)))


def test_only_so_many_characters_are_read() -> None:
    short = LanguageIdentifier(LanguageConfig(characters=len(GERMAN)))
    whole = short.measure(pa.array([GERMAN + ENGLISH * 20, GERMAN]))
    assert whole["score"][0] == whole["score"][1] and whole["label"].to_pylist() == ["de", "de"]


@settings(max_examples=200)
@given(st.lists(st.binary(max_size=120), min_size=1, max_size=4))
def test_any_bytes_give_values_or_nulls(identifier: LanguageIdentifier, blobs: list[bytes]) -> None:
    offsets = np.cumsum([0, *map(len, blobs)]).astype(np.int64)
    column = pa.LargeStringArray.from_buffers(len(blobs), pa.py_buffer(offsets), pa.py_buffer(b"".join(blobs) or b"\0"))
    got = identifier.measure(column)
    for name in CHANCES:
        assert all(value is None or 0 <= value <= 1 for value in got[name].to_pylist())


def test_neither_neighbours_nor_a_small_cache_change_anything(
    identifier: LanguageIdentifier, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts = [ENGLISH, GERMAN, " ".join(f"w{n}" for n in range(5000)), ENGLISH * 3, "x" * 200 + " " + GERMAN]
    together = identifier.measure(pa.chunked_array([texts[:2], texts[2:]]))
    monkeypatch.setattr(scoring, "CACHE_SLOTS", 1024)
    for row, text in enumerate(texts):
        alone = identifier.measure(pa.array(["drop me", text]).slice(1))
        for name, column in together.items():
            assert column[row] == alone[name][0]


@pytest.mark.parametrize("unit", ["a", "ab ", "漢", "\x80", "\n", "a\n", "<", "</s> ", "__label__en ", "é"])
def test_time_is_linear_in_bytes(identifier: LanguageIdentifier, unit: str) -> None:
    def seconds(size: int) -> float:
        raw = (unit.encode("latin-1") if unit == "\x80" else unit.encode()) * size
        offsets = np.array([0, len(raw)], np.int64)
        column = pa.LargeStringArray.from_buffers(1, pa.py_buffer(offsets), pa.py_buffer(raw))
        start = time.process_time()
        identifier.measure(column)
        return time.process_time() - start

    seconds(10)
    assert seconds(1_600_000) < 64 * max(0.05, seconds(100_000))


def test_a_classifier_gives_the_probability_of_its_label(quality: Path) -> None:
    texts = ["fine clean prose", "spam buy now", "", "clean spam"]
    good = FastTextClassifier(ClassifierConfig(str(quality), "good")).score(pa.array(texts)).to_pylist()
    bad = FastTextClassifier(ClassifierConfig(str(quality), "bad")).score(pa.array(texts)).to_pylist()
    assert good[0] > 0.5 > good[1] and good[2] is None
    assert [a + b for a, b in zip(good, bad) if a is not None] == pytest.approx([1, 1, 1], abs=1e-4)
    with pytest.raises(GristmillError, match="no label 'nice'; it has"):
        FastTextClassifier(ClassifierConfig(str(quality), "nice"))
    with pytest.raises(GristmillError, match="no such classifier"):
        FastTextClassifier(ClassifierConfig("nowhere.bin", "good"))


def test_files_that_are_no_supervised_model_are_refused(quality: Path, tmp_path: Path) -> None:
    words = tmp_path / "words.txt"
    words.write_text("some words in a row\n" * 100, encoding="utf-8")
    fasttext.train_unsupervised(str(words), dim=4, bucket=100, thread=1, verbose=0).save_model(str(tmp_path / "u.bin"))
    with pytest.raises(GristmillError, match="not a supervised model"):
        FastText(tmp_path / "u.bin")
    data = bytearray(quality.read_bytes())
    data[8 + 8 * 4 : 8 + 9 * 4] = bytes(4)  # buckets, the ninth setting
    (tmp_path / "none.bin").write_bytes(data)
    with pytest.raises(GristmillError, match="n-grams of 2 words and no buckets"):
        FastText(tmp_path / "none.bin")
    (tmp_path / "text.bin").write_bytes(b"not a model at all")
    with pytest.raises(GristmillError, match="not a fastText model"):
        FastText(tmp_path / "text.bin")
    (tmp_path / "empty.bin").write_bytes(b"")
    with pytest.raises(GristmillError, match="cannot be read"):
        FastText(tmp_path / "empty.bin")
    with pytest.raises(GristmillError, match="no such language model"):
        model_path(LanguageConfig(model="nowhere.bin"))


@pytest.mark.parametrize("kind", ["bin", "ftz"])
def test_a_truncated_or_damaged_model_never_crashes(quality: Path, tmp_path: Path, kind: str) -> None:
    """Cut anywhere it is refused; with any byte of its structure changed it is refused, or scores something."""
    data = quality.read_bytes() if kind == "bin" else model_path(LanguageConfig()).read_bytes()
    path = tmp_path / f"cut.{kind}"
    rng = np.random.default_rng(0)
    for size in [*range(0, 120, 7), *rng.integers(120, len(data), 25).tolist(), len(data) - 1]:
        path.write_bytes(data[:size])
        with pytest.raises(GristmillError, match=r"truncated|not a fastText model|cannot be read"):
            FastText(path)
    for place in [*range(8, 120), *rng.integers(120, len(data), 40).tolist()]:
        broken = bytearray(data)
        broken[place] ^= 1 << int(rng.integers(8))
        path.write_bytes(broken)
        try:
            model = FastText(path)
        except GristmillError:
            continue
        model.score(pa.array(["fine clean prose here, spam and more"]), model.candidates(()))
