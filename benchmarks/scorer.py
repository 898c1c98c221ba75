"""The scorer: a backbone that is truly cut against running it whole, and how well heads tell damaged text from sound.

./dev bench scorer                 5,000 documents, five rounds of timing
./dev bench scorer --quick         300 documents, one round
./dev bench scorer --corpus DIR    documents of DIR/*.jsonl.gz (`text`) instead of what the installed packages carry

The backbone is SmolLM2-135M (30 blocks, bfloat16). Timed is the processor's time of one thread, 60% of the documents
exiting after block 12, tokenisation included: our Scorer against Hugging Face's whole model in the order of arrival,
the same with logits, and the scheme of running the probe's blocks and then all of them again for survivors.

Heads are trained on text with a known amount of damage (_scorer_text.py), and tested on documents of other packages
than they were trained on (folds by package). probe_auc and probe_rho are those of a bundle of a probe alone, at the tap
that the sweep found best. Compute saved is exit rate x (1 - k / K) with K the backbone's blocks; false drops are
certified at 95%, over the taps that were compared together, on documents that the heads were not trained on; web-like
is the same documents weighted so that seven of ten are badly damaged. Writes the curves to results/scorer.png too.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from sklearn.metrics import roc_auc_score

from _results import FOLDER, Row, publish, row
from _scorer_text import GOOD, RUBRIC, WORST, Damaged, damaged_documents
from _scorer_time import EXITS, long_texts, padding, parity, timing
from gristmill.base import cli
from gristmill.scorer.backbone.cache import FeatureCache, States
from gristmill.scorer.backbone.staged import BackboneIdentity, StagedBackbone, identify
from gristmill.scorer.backbone.states import Tokens, average_windows, flatten
from gristmill.scorer.config import CalibrationConfig, TrainConfig
from gristmill.scorer.heads.baselines import fasttext_quality
from gristmill.scorer.heads.bundle import Bundle
from gristmill.scorer.heads.calibration import drop_threshold, labels_needed
from gristmill.scorer.heads.exits import exit_curve
from gristmill.scorer.heads.labels import Labels
from gristmill.scorer.heads.metrics import spearman
from gristmill.scorer.heads.selftest import SelfTest
from gristmill.scorer.heads.sweep import candidates, folds, sweep
from gristmill.scorer.heads.training import predict, train_heads
from gristmill.scorer.scoring.scorer import Scorer

ROOT = Path(__file__).resolve().parents[1]
THREADS = 2  # of everything that is not timed
WEB_BAD = 0.7  # share of the web-like mix that is damaged by 3 or 4


@dataclass(frozen=True)
class Config:
    quick: bool = False
    """300 documents, one round."""
    corpus: Path | None = None
    """A folder of *.jsonl.gz with the field text."""


def main(arguments: list[str]) -> int:
    config = cli.parse_config(Config, arguments, "bench scorer", __doc__ or "")
    documents = damaged_documents(config.corpus, 300 if config.quick else 5000)
    model = _model()
    speed, keys = timing(model, long_texts(config.corpus), 1 if config.quick else 5)
    rows = [*speed, parity(keys), *padding(model, config.corpus, keys)]
    with tempfile.TemporaryDirectory(prefix="gristmill-bench-") as folder:
        heads = Heads.train(model, documents, Path(folder))
        rows += [*heads.quality(keys), *heads.savings(keys), heads.violations(keys), *heads.invariance(model, keys)]
        rows.append(heads.again(model, Path(folder)))
    inputs = {
        "corpus": config.corpus.name if config.corpus else "installed packages", "documents": len(documents),
        "good": sum(d.severity <= GOOD for d in documents), "groups": len({d.group for d in documents}),
        "model": model.name, "exits_timed": EXITS, "rounds": 1 if config.quick else 5,
    }  # fmt: skip
    publish("scorer", inputs, rows, keys)
    print(f"curves: {heads.picture()}")
    return 0


# Heads ----------------------------------------------------------------------------------------------------------------


@dataclass
class Heads:
    """Predictions of every document by heads that were trained on documents of other groups."""

    documents: list[Damaged]
    labels: Labels
    identity: BackboneIdentity
    taps: tuple[int, int]
    swept: dict[str, Any]
    scores: dict[int, np.ndarray]
    """By tap: quality [N] as an attention probe there predicts it, out of fold."""
    fasttext_N: np.ndarray
    documents_M: np.ndarray
    states: dict[int, States]

    @classmethod
    def train(cls, model: Path, documents: list[Damaged], folder: Path) -> Heads:
        torch.set_num_threads(THREADS)
        identity = identify(model)
        config = TrainConfig(threads=THREADS, judge=False)
        labels = Labels.of(_table(documents, ["fit"] * len(documents)), RUBRIC)
        rows, documents_M = flatten(
            Tokens(model, identity.first_token, config.window_tokens, config.windows)([d.text for d in documents])
        )
        cache = FeatureCache(
            folder, identity, config,
            lambda tap: StagedBackbone.load(model, (tap, tap), config.dtype, THREADS, identity),
        )  # fmt: skip
        taps = candidates(identity.layers)
        pools_MKW = cache.pools(rows, taps)
        tokens_M = np.array([len(row) - 1 for row in rows])
        pools_NV = average_windows(pools_MKW.flatten(1).double().numpy(), tokens_M, documents_M, len(documents))
        pools_NKW = torch.from_numpy(pools_NV).unflatten(1, pools_MKW.shape[1:])
        found = sweep(pools_NKW, taps, identity.layers, labels, RUBRIC, replace(config, judge=True))
        best = found.taps[1]
        compared = sorted({*[tap for tap in taps if tap < best][-3:], *found.taps})
        states = cache.states(rows, compared)
        scores = {tap: np.full(len(documents), np.nan) for tap in compared}
        fasttext_N = np.full(len(documents), np.nan)
        folds_N = folds(labels.groups)
        for fold in np.unique(folds_N):
            here = folds_N == fold
            splits = np.where(here, "audit", np.where(folds_N == (fold + 1) % 5, "select", "fit"))
            own = replace(labels, splits=splits.astype(object))
            for tap in compared:
                heads = train_heads(
                    states[tap], states[tap], documents_M, own, RUBRIC, replace(config, taps=(tap, tap))
                )
                predicted_ND = predict(heads.probe, states[tap], documents_M, len(documents), RUBRIC, config)
                scores[tap][here] = RUBRIC.quality(predicted_ND)[here]
            fit = own.take(splits != "audit")
            known = fasttext_quality(fit, [d.text for d, inside in zip(documents, here) if inside], RUBRIC)
            fasttext_N[here] = 0.0 if known is None else known
        return cls(
            documents,
            labels,
            identity,
            found.taps,
            found.report,
            scores,
            fasttext_N,
            documents_M,
            states,
        )

    @property
    def good_N(self) -> np.ndarray:
        return np.array([d.severity <= GOOD for d in self.documents])

    @property
    def web_N(self) -> np.ndarray:
        """Weights of the web-like mix."""
        bad_N = np.array([d.severity >= 3 for d in self.documents])
        return np.where(bad_N, WEB_BAD / bad_N.mean(), (1 - WEB_BAD) / (1 - bad_N.mean()))

    def quality(self, keys: dict[str, float]) -> list[Row]:
        truth_N = RUBRIC.quality(self.labels.scores_ND)
        names = np.array(self.labels.sources)
        means = {name: truth_N[names == name].mean() for name in set(names)}
        source_N = np.array([means[name] for name in names])
        best = self.scores[self.taps[1]]
        auc = {
            "a probe at the best tap": roc_auc_score(self.good_N, best),
            "a probe at the tap for exits": roc_auc_score(self.good_N, self.scores[self.taps[0]]),
            "fastText": roc_auc_score(self.good_N, self.fasttext_N),
            "the source's mean": roc_auc_score(self.good_N, source_N),
        }
        rho = spearman(truth_N, best) or 0.0
        keys |= {
            "probe_auc": float(auc["a probe at the best tap"]), "probe_rho": rho,
            "auc_over_fasttext": float(auc["a probe at the best tap"] - auc["fastText"]),
        }  # fmt: skip
        rows = [
            row(f"area under the ROC curve of {name}", [float(value)], "good against not")
            for name, value in auc.items()
        ]
        levels = 4 * (truth_N - best)
        rows += [
            row(f"Spearman of a probe after block {self.taps[1]} (of the sweep's best)", [rho], "with the damage"),
            row(
                f"Spearman of a probe after block {self.taps[0]}",
                [spearman(truth_N, self.scores[self.taps[0]]) or 0.0],
                "",
            ),
            row("Spearman of fastText", [spearman(truth_N, self.fasttext_N) or 0.0], ""),
            row("mean absolute error at the best tap", [float(np.abs(levels).mean())], "levels of 0-4"),
        ]
        rows += [
            row(f"sweep: mean pool after block {r['tap']}", [r["spearman"]], "Spearman") for r in self.swept["taps"]
        ]
        return rows

    def savings(self, keys: dict[str, float]) -> list[Row]:
        rows = []
        for bound in (0.01, 0.05):
            for mix, weights_N in (("web-like", self.web_N), ("as drawn", np.ones(len(self.documents)))):
                found = {tap: self._certified(tap, bound, weights_N) for tap in self.scores if tap < self.taps[1]}
                tap = max(found, key=lambda tap: found[tap] * (1 - tap / self.identity.layers))
                exits, K, J = found[tap], self.identity.layers, self.taps[1]
                label = f"{mix}, certified false drops at most {bound:.0%}"
                rows += [
                    row(f"saved, {label}: exits after block {tap}", [100 * exits * (1 - tap / K)], "% of the backbone"),
                    row("  documents that exit", [100 * exits], "%"),
                    row(f"  against running all to block {J}", [100 * exits * (1 - tap / J)], "%"),
                    row("  against the whole backbone", [100 * (1 - (tap + (1 - exits) * (J - tap)) / K)], "%"),
                ]
                keys[f"saved_percent_at_{round(100 * bound)}{'' if mix == 'web-like' else '_as_drawn'}"] = rows[
                    -4
                ].median
        return rows

    def _certified(self, tap: int, bound: float, weights_N: np.ndarray) -> float:
        """Exit rate in a mix, at the tau that is certified on the good documents; over all taps compared together. Of
        few documents (--quick), none may exit."""
        tests = sum(other < self.taps[1] for other in self.scores)
        config = CalibrationConfig(max_false_drop=bound, confidence=1 - 0.05 / tests)
        if self.good_N.sum() < labels_needed(config.max_false_drop, config.confidence):
            return 0.0
        score_N = self.scores[tap]
        drawn = np.random.default_rng(0).choice(len(score_N), 20_000, p=weights_N / weights_N.sum())
        tau = drop_threshold(score_N[self.good_N], score_N[drawn], config).tau_drop
        return 0.0 if tau is None else float(weights_N[score_N < tau].sum() / weights_N.sum())

    def violations(self, keys: dict[str, float], times: int = 200) -> Row:
        """Calibrations on good documents drawn with replacement from all, whose rate of false drops is the true one."""
        score_N, generator = self.scores[self.taps[0]], np.random.default_rng(0)
        good = score_N[self.good_N]
        rates = []
        for bound in (0.01, 0.05):
            config = CalibrationConfig(max_false_drop=bound)
            drawn = [generator.choice(good, 1049) for _ in range(times)]
            taus = [drop_threshold(sample, score_N, config).tau_drop for sample in drawn]
            rates.append(100 * float(np.mean([tau is not None and (good < tau).mean() > bound for tau in taus])))
        keys["bound_violations_percent"] = max(rates)
        return row(f"bounds broken over {times} calibrations, at 1% and at 5%", rates, "%")

    def invariance(self, model: Path, keys: dict[str, float]) -> list[Row]:
        """The largest change of a score from alone to in company, on the scale of 0-4."""
        tap = self.taps[1]
        own = self.states[tap]
        config = TrainConfig(taps=(tap, tap), judge=False, threads=THREADS)
        labels = replace(self.labels, splits=np.where(np.arange(len(self.labels)) % 5, "fit", "select").astype(object))
        probe = train_heads(own, own, self.documents_M, labels, RUBRIC, config).probe
        texts = [d.text for d in self.documents[:64]]
        found = []
        for dtype in ("float32", "bfloat16"):
            backbone = StagedBackbone.load(model, (tap, tap), dtype, THREADS, self.identity)
            selftest = SelfTest([], torch.empty(0), torch.empty(0), None)
            bundle = Bundle(self.identity, replace(config, dtype=dtype), RUBRIC, probe, None, selftest, "", {})
            tokens = Tokens(model, self.identity.first_token, config.window_tokens, config.windows)
            scorer = Scorer(bundle, backbone, tokens)
            alone = np.concatenate([scorer.score([text])["soundness"].to_numpy() for text in texts])
            together = scorer.score(texts)["soundness"].to_numpy()
            backwards = scorer.score(texts[::-1])["soundness"].to_numpy()[::-1]
            shift = np.maximum(np.abs(alone - together), np.abs(alone - backwards))
            found.append(row(f"change of a score with its company, {dtype}", [float(s) for s in shift], "of 0-4"))
        keys["batch_shift_bf16"] = found[1].max
        return found

    def again(self, model: Path, folder: Path) -> Row:
        """G18: labels into heads from cached features, metrics and baselines included; `scorer train-heads --cache`."""
        from gristmill.scorer.heads.distil import train_bundle

        own = self.documents[:2000]
        kinds = ("select", "audit", "fit", "fit", "fit")
        table = _table(own, [kinds[i % len(kinds)] for i in range(len(own))])
        config = TrainConfig(threads=THREADS)
        train_bundle(table, RUBRIC, model, folder / "heads", config, cache=folder / "features")
        started = time.monotonic()
        train_bundle(table, RUBRIC, model, folder / "heads", config, cache=folder / "features")
        return row(f"train-heads on {len(own):,} documents from cached features", [time.monotonic() - started], "s")

    def picture(self) -> Path:
        import matplotlib

        matplotlib.use("Agg")
        from matplotlib import pyplot

        figure, axes = pyplot.subplots(1, 2, figsize=(11, 4.2), sharey=True)
        for axis, mix, weights_N in zip(axes, ("web-like mix", "as drawn"), (self.web_N, np.ones(len(self.documents)))):
            for tap, score_N in self.scores.items():
                if tap < self.taps[1]:
                    curve = exit_curve(score_N, self.good_N, weights_N, points=400)
                    spared = 100 * curve["exit_rate"] * (1 - tap / self.identity.layers)
                    (line,) = axis.plot(100 * curve["false_drop"], spared, label=f"probe after block {tap}")
                    for bound in (0.01, 0.05):
                        exits = self._certified(tap, bound, weights_N)
                        axis.plot(
                            100 * bound, 100 * exits * (1 - tap / self.identity.layers), "o", color=line.get_color()
                        )
            axis.set(title=mix, xlabel="good documents dropped early, %", xlim=(0, 10), ylim=(0, 60))
            axis.grid(alpha=0.3)
        axes[0].set_ylabel(f"compute saved of {self.identity.layers} blocks, %")
        axes[1].legend(title="dots: certified at 95%")
        figure.tight_layout()
        path = FOLDER / "scorer.png"
        figure.savefig(path, dpi=120)
        return path


def _table(documents: Sequence[Damaged], splits: Sequence[str]) -> pa.Table:
    """A label table. Where a document is from stands as the host of its URL: what intervals and folds keep together."""
    return pa.table(
        {
            "id": [str(i) for i in range(len(documents))],
            "text": [d.text for d in documents],
            "source": [d.source for d in documents],
            "url": [f"https://{d.group}/" for d in documents],
            "split": list(splits),
            "soundness": [float(WORST - d.severity) for d in documents],
        }
    )


def _model() -> Path:
    sys.path.insert(0, str(ROOT / "pipelines"))
    from demo_models import smollm2  # pyright: ignore[reportMissingImports]

    return smollm2()


if __name__ == "__main__":
    sys.exit(cli.guarded("bench scorer", lambda: main(sys.argv[1:])))
