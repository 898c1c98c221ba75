"""Our fastText scoring against the fasttext library: the same labels and probabilities, for every loss and format."""

from __future__ import annotations

import random
import sysconfig
from pathlib import Path

import fasttext
import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gristmill.datapipe.filters.language import LanguageConfig, model_path
from gristmill.datapipe.models.fasttext import FastText

STDLIB = Path(sysconfig.get_paths()["stdlib"])
CLOSE = 1e-4
LANGUAGES = {
    "en": "All human beings are born free and equal in dignity and rights. They are endowed with reason.",
    "de": "Alle Menschen sind frei und gleich an Würde und Rechten geboren. Sie sind mit Vernunft begabt.",
    "fr": "Tous les êtres humains naissent libres et égaux en dignité et en droits. Ils sont doués de raison.",
    "ru": "Все люди рождаются свободными и равными в своём достоинстве и правах. Они наделены разумом.",
    "ja": "すべての人間は、生まれながらにして自由であり、かつ、尊厳と権利とについて平等である。",
    "ar": "يولد جميع الناس أحراراً متساوين في الكرامة والحقوق وقد وهبوا عقلاً وضميراً",
    "th": "มนุษย์ทั้งหลายเกิดมามีอิสระและเสมอภาคกันในเกียรติศักดิ์และสิทธิ",
    "el": "Όλοι οι άνθρωποι γεννιούνται ελεύθεροι και ίσοι στην αξιοπρέπεια και τα δικαιώματα.",
}


@pytest.fixture(scope="module")
def lid() -> tuple[FastText, fasttext.FastText._FastText]:
    path = model_path(LanguageConfig())
    return FastText(path), fasttext.load_model(str(path))


def assert_equal(ours: FastText, theirs: fasttext.FastText._FastText, texts: list[str]) -> None:
    """The two likeliest labels. The library ends a line at a literal </s>, and ours does not: it is taken out."""
    texts = [text.replace("</s>", "") for text in texts]
    scores = ours.score(pa.array(texts), ours.candidates(()))
    for row, text in enumerate(texts):
        labels, chances = theirs.predict(text.replace("\n", " "), k=2)
        if scores.label[row] < 0:
            assert not labels or not any(not word.startswith("__label__") for word in text.split()) or "\0" in text
            continue
        ranked = dict(zip((label.removeprefix("__label__") for label in labels), np.minimum(chances, 1), strict=True))
        top = ours.labels[scores.label[row]]
        assert scores.score[row] == pytest.approx(max(ranked.values()), abs=CLOSE), text
        if scores.score[row] - scores.second_score[row] > CLOSE:
            assert top == next(iter(ranked)), text
        if len(ranked) > 1:
            assert scores.second_score[row] == pytest.approx(min(ranked.values()), abs=CLOSE), text


def test_languages_are_told_as_by_the_library(lid) -> None:
    ours, theirs = lid
    assert_equal(ours, theirs, list(LANGUAGES.values()))
    scores = ours.score(pa.array(list(LANGUAGES.values())), ours.candidates(()))
    assert [ours.labels[label] for label in scores.label] == list(LANGUAGES)


def test_real_files_are_told_as_by_the_library(lid) -> None:
    texts = [path.read_text(encoding="utf-8", errors="replace") for path in sorted(STDLIB.glob("*.py"))[:60]]
    pages = sorted(Path(pa.__file__).parents[1].glob("*.dist-info/METADATA"))[:60]
    ours, theirs = lid
    assert_equal(ours, theirs, texts + [page.read_text(encoding="utf-8", errors="replace") for page in pages])


@settings(max_examples=300)
@given(st.lists(st.text(max_size=60), max_size=4))
def test_any_text_is_told_as_by_the_library(lid, texts: list[str]) -> None:
    ours, theirs = lid
    assert_equal(ours, theirs, texts)


@pytest.mark.parametrize("loss", ["softmax", "hs", "ns", "ova"])
@pytest.mark.parametrize("kind", ["bin", "ftz", "pruned"])
def test_trained_models_of_every_loss_and_format(tmp_path: Path, loss: str, kind: str) -> None:
    """Word pairs, character n-grams, all four losses; dense, product-quantised, and pruned to few n-grams."""
    rng = random.Random(loss + kind)
    words = ["".join(rng.choices("abcdeé漢", k=rng.randint(1, 6))) for _ in range(400)]
    lines = []
    for _ in range(1500):
        label = rng.randrange(5)
        lines.append(f"__label__{'abcde'[label]} {' '.join(rng.choices(words[label * 60 : label * 60 + 150], k=12))}")
    corpus = tmp_path / "train.txt"
    corpus.write_text("\n".join(lines), encoding="utf-8")
    theirs = fasttext.train_supervised(
        str(corpus), dim=12, epoch=3, wordNgrams=3, minn=2, maxn=4, bucket=3000, loss=loss, thread=1, verbose=0
    )
    if kind != "bin":
        theirs.quantize(cutoff=800 if kind == "pruned" else 0, qnorm=kind == "pruned", verbose=0)
    path = tmp_path / f"model.{'bin' if kind == 'bin' else 'ftz'}"
    theirs.save_model(str(path))
    theirs = fasttext.load_model(str(path))
    texts = [line.split(" ", 1)[1] for line in lines[:200]]
    unseen = ["".join(rng.choices("abcdeé漢xyz \n", k=80)) for _ in range(100)]
    assert_equal(FastText(path), theirs, texts + unseen)


def test_words_only_and_word_pairs_without_subwords(tmp_path: Path) -> None:
    corpus = tmp_path / "train.txt"
    corpus.write_text("__label__good fine clean prose here\n__label__bad spam spam buy now\n" * 50, encoding="utf-8")
    for pairs in (1, 2):
        theirs = fasttext.train_supervised(str(corpus), dim=5, wordNgrams=pairs, bucket=500, thread=1, verbose=0)
        theirs.save_model(str(tmp_path / "m.bin"))
        texts = [
            "fine prose",
            "buy spam now",
            "fine fine buy",
            "clean unknownword",
            "__label__good here",
            "now __label__",
        ]
        assert_equal(FastText(tmp_path / "m.bin"), fasttext.load_model(str(tmp_path / "m.bin")), texts)
