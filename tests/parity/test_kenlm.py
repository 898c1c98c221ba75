"""Our estimator against KenLM's lmplz, n-gram by n-gram, and our models as KenLM reads them.

golden/lmplz_*.arpa are lmplz's output (kenlm-ex 0.2.1, built from its sdist) for the sentences of CORPUS:
`lmplz -o 3` and `lmplz -o 4 --prune 0 0 1 1`, both with `--discount_fallback 0.5 1 1.5`. The last new word of CORPUS
occurs once on purpose: of the last n-gram in its order, lmplz counts the occurrences where the contexts were meant.
"""

from __future__ import annotations

import math
from pathlib import Path

import kenlm
import numpy as np
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gristmill.datapipe.filters.perplexity import PerplexityConfig, PerplexityModel
from gristmill.datapipe.perplexity.sentences import sentences
from gristmill.datapipe.perplexity.train import TrainConfig, train_on

GOLDEN = Path(__file__).parent / "golden"
CORPUS = """The miller takes the grain to the mill, and the mill makes flour.
The mill stands by the river. The river turns the wheel, and the wheel turns the stone.
The stone grinds the grain, and the miller takes the flour to the baker.
The baker makes bread, and the miller eats the bread of the baker.
When the river is low, the wheel stands still, and the miller takes the day off.
When the river is high, the wheel turns all day, and the stone grinds all night.
The grain of 2019 was good; the grain of 2020 was better; the bread of 2021 was best.
"Take the grain to the mill," says the baker. "Take the bread to the miller," says the miller.
The baker says the flour is too coarse. The miller says the baker is too slow.
And so the river, the wheel, the stone, the miller and the baker work all day and all night.
So it was, so it is, and so it will be. The mill makes flour.
The mill makes flour.
The baker makes bread.
It will be so as long as water flows.
"""
Entries = dict[str, tuple[float, float]]


def read_arpa(path: Path) -> Entries:
    """(log10 probability, log10 backoff) by n-gram."""
    entries: Entries = {}
    for line in path.read_text(encoding="utf-8").splitlines():
        if "\t" in line:
            probability, gram, *backoff = line.split("\t")
            entries[gram] = float(probability), float(backoff[0]) if backoff else 0.0
    return entries


@pytest.mark.parametrize(("name", "order", "prune"), [("order3", 3, (0,)), ("order4_pruned", 4, (0, 0, 1, 1))])
def test_probabilities_and_backoffs_are_those_of_lmplz(
    tmp_path: Path, name: str, order: int, prune: tuple[int, ...]
) -> None:
    train_on([pa.array([CORPUS])], tmp_path / "m.arpa", TrainConfig(order=order, prune=prune))
    ours, theirs = read_arpa(tmp_path / "m.arpa"), read_arpa(GOLDEN / f"lmplz_{name}.arpa")
    assert ours.keys() == theirs.keys()
    for gram, values in theirs.items():
        assert ours[gram] == pytest.approx(values, abs=2e-6), gram


def test_the_model_scores_alike_through_kenlm(tmp_path: Path) -> None:
    train_on([pa.array([CORPUS])], tmp_path / "m.arpa", TrainConfig(order=3, prune=(0,)))
    ours, theirs = kenlm.Model(str(tmp_path / "m.arpa")), kenlm.Model(str(GOLDEN / "lmplz_order3.arpa"))
    for line in ["the miller eats bread .", "the unheard of wheel", "0000 0000", ""]:
        assert ours.score(line) == pytest.approx(theirs.score(line), abs=1e-5)


def test_log_perplexity_is_kenlms_over_words_and_sentence_ends(tmp_path: Path) -> None:
    train_on([pa.array([CORPUS])], tmp_path / "m.arpa", TrainConfig(order=3))
    texts = [CORPUS[:300], "The baker\n\nsays: 42!", "nothing known hérè", "", " \n\t\n", None]
    got = PerplexityModel(PerplexityConfig(str(tmp_path / "m.arpa"))).measure(pa.array(texts, pa.string()))
    model = kenlm.Model(str(tmp_path / "m.arpa"))
    for row, text in enumerate(texts):
        lines = sentences(pa.array([text], pa.string())).lines().to_pylist()
        if not lines:
            assert got["log_perplexity"][row].as_py() is None and got["words"][row].as_py() == 0
            continue
        words = sum(len(line.split()) for line in lines)
        expected = -math.log(10) * sum(map(model.score, lines)) / (words + len(lines))
        assert got["log_perplexity"][row].as_py() == pytest.approx(expected, rel=1e-5)
        assert got["words"][row].as_py() == words
    assert got["words"].to_pylist()[1] == 6  # the baker | says : 00 !


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    corpus=st.lists(st.lists(st.sampled_from("abcdefg"), min_size=1, max_size=8), min_size=1, max_size=30),
    order=st.integers(2, 5),
    prune=st.sampled_from([(0,), (0, 0, 1), (0, 1), (0, 1, 1, 2)]),
    context=st.lists(st.sampled_from("abcdefgz"), max_size=4),
)
def test_chances_of_the_next_word_sum_to_one(tmp_path: Path, corpus, order, prune, context) -> None:
    text = "\n".join(" ".join(words) for words in corpus)
    train_on([pa.array([text])], tmp_path / "m.arpa", TrainConfig(order=order, prune=prune))
    config = kenlm.Config()
    config.show_progress, config.arpa_complain = False, kenlm.ARPALoadComplain.NONE
    model = kenlm.Model(str(tmp_path / "m.arpa"), config)
    state, after = kenlm.State(), kenlm.State()
    model.BeginSentenceWrite(state)
    for word in context:
        model.BaseScore(state, word, after)
        state, after = after, state
    words = {word for line in corpus for word in line} | {"</s>", "<unk>"}
    assert np.sum([10 ** model.BaseScore(state, word, after) for word in words]) == pytest.approx(1, abs=1e-4)
