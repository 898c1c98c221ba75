"""Scoring as nodes of the DAG: heads for each rubric, thresholds, scores by source, other scorers, drift."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from gristmill.base.errors import DataError
from gristmill.base.files import atomic_path, read_json, write_json
from gristmill.datapipe.workflow.stage import Inputs, Resources, Stage, Step, read_part
from gristmill.scorer.config import CalibrationConfig, ScoringConfig, TrainConfig
from gristmill.scorer.rubric import Rubric
from gristmill.scorer.scoring.others import Ensemble, Other
from nodes import model_files


class Heads(Step):
    """heads/NAME: probe and judge distilled from the grades on a rubric, with thresholds calibrated on other labels.

    rubrics: by source; "" is for all others. These heads are for the sources that `rubric` is for. features: a folder
    that keeps what the backbone made of the labels' text; no output, it only saves time.
    """

    version = 5

    def __init__(
        self, backbone: Path, rubric: Rubric, rubrics: Mapping[str, Rubric], training: TrainConfig,
        calibration: CalibrationConfig, scoring: ScoringConfig, features: Path,
    ) -> None:  # fmt: skip
        self.name, self.folder = heads_of(rubric), f"heads/{rubric.name}"
        self.requires = ("sample", "labels")
        self._backbone, self._rubric, self._training, self._calibration = backbone, rubric, training, calibration
        self._scoring, self._features, self._rubrics = scoring, features, rubrics
        routes = {source: other.name for source, other in rubrics.items()}
        self.config = {
            "rubric": rubric.sha, "routes": routes, "training": training, "calibration": calibration,
            "scoring": (scoring.dtype, scoring.attention, scoring.device),
        }  # fmt: skip
        self.resources = _resources(training.threads, training.device)
        self.libraries = ("scipy", "tokenizers", "torch", "transformers")

    def files(self) -> Sequence[Path]:
        return model_files(self._backbone)

    def run(self, inputs: Inputs, out: Path) -> dict[str, float]:
        from gristmill.scorer.heads.distil import train_bundle
        from gristmill.scorer.heads.thresholds import calibrate_bundle
        from gristmill.scorer.tables import graded_with

        graded = inputs.folders["labels"]
        labels = graded_with(read_part(graded / "labels.parquet"), self._rubric)
        audit = read_json(graded / "audit.json") if (graded / "audit.json").exists() else None  # of repeated gradings
        bundle = train_bundle(labels, self._rubric, self._backbone, out, self._training, self._features, audit)
        unlabelled = pq.ParquetFile(inputs.folders["sample"] / "unlabelled.parquet").read()
        own = [
            self._rubrics.get(source, self._rubrics[""]) == self._rubric for source in unlabelled["source"].to_pylist()
        ]
        unlabelled = unlabelled.filter(pa.array(own, pa.bool_()))
        whole = read_part(graded / "documents.parquet")
        result = calibrate_bundle(out, self._backbone, labels, unlabelled, self._calibration, self._scoring, whole)
        failed = sum(status != "ok" for status in labels["status"].to_pylist())
        return {
            "labels": len(labels), "failed_grades": failed, "judge": int(bundle.judge is not None),
            "certified": int(result["mode"] == "certified"),
        }  # fmt: skip


def heads_of(rubric: Rubric) -> str:
    """The name of the node that trains a rubric's heads."""
    return f"heads_{rubric.name}"


class Thresholds(Step):
    """thresholds/: calibration.json with the groups of all heads, each source's from the heads that score it."""

    name, folder, version = "thresholds", "thresholds", 2

    def __init__(self, routes: Mapping[str, str]) -> None:
        self._routes = routes
        self.requires = tuple(dict.fromkeys(routes.values()))
        self.config = {"routes": routes}

    def run(self, inputs: Inputs, out: Path) -> dict[str, float]:
        from gristmill.scorer.heads.files import check_files, read_calibration
        from gristmill.scorer.scoring.decide import thresholds

        groups: dict[str, Any] = {}
        for source, node in sorted(self._routes.items()):  # "" first: the others stand above it
            check_files(inputs.folders[node])
            found = read_calibration(inputs.folders[node]) or {}
            groups |= found["groups"] if not source else {source: thresholds(found, source)}
        write_json(out / "calibration.json", {"groups": groups})
        return {"groups": len(groups)}


class Score(Stage):
    """scores: quality of each document that the rules so far keep, from the probe or, where it goes on, the judge;
    beside it what other scorers say of it, and all of them together.

    routes: the node of the heads by source; "" is for all others.
    """

    name, folder, version = "scores", "annotations/scores", 3
    columns, requires = ("text", "source"), ("survivors",)

    def __init__(
        self, backbone: Path, routes: Mapping[str, str], scoring: ScoringConfig, others: Sequence[Other] = (),
        ensemble: Ensemble = "none",
    ) -> None:  # fmt: skip
        self._backbone, self._routes, self._scoring = backbone, routes, scoring
        self._others = others
        self._ensemble: Ensemble = ensemble
        self.needs = (*dict.fromkeys(routes.values()), *(() if ensemble == "none" else (Reference.name,)))
        self.config = {
            "routes": routes, "scoring": scoring, "ensemble": ensemble,
            "others": [(other.name, other.kind, other.label) for other in others],
        }  # fmt: skip
        self.resources = _resources(scoring.threads, scoring.device)
        self.libraries = ("fasttext-community", "tokenizers", "torch", "transformers")

    def files(self) -> Sequence[Path]:
        return [*model_files(self._backbone), *(path for other in self._others for path in _files_of(other))]

    def setup(self, folders: Mapping[str, Path]) -> None:
        self._scorers = self.load(folders)
        if self._ensemble != "none":
            self._reference = _columns(read_part(folders[Reference.name] / "reference.parquet"))

    @property
    def together(self) -> list[str]:
        """The columns that an ensemble is made of."""
        return ["quality", *(other.name for other in self._others)]

    def load(self, folders: Mapping[str, Path]) -> Scorers:
        return Scorers(folders, self._backbone, self._routes, self._scoring, self._others)

    def annotate(self, table: pa.Table, previous: Mapping[str, pa.Table]) -> pa.Table:
        from gristmill.scorer.scoring.others import ensemble

        keep = previous["survivors"]["keep"].to_numpy(zero_copy_only=False)
        scores = self._scorers.score(table.filter(pa.array(keep)))
        if self._ensemble != "none":
            own = _columns(scores.select(self.together))
            together = ensemble(own, self._ensemble, self._reference).astype(np.float32)
            scores = scores.append_column("ensemble", pa.array(together, from_pandas=True))
        rows = np.where(keep, np.cumsum(keep) - 1, -1)  # null where the rules had dropped the document already
        return scores.take(pa.array(rows, mask=~keep))


class Reference(Step):
    """reference/: what all scorers say of the sample that calibration scored: an ensemble's ranks are ranks in it."""

    name, folder, version = "reference", "reference", 2

    def __init__(self, score: Score) -> None:
        self._score = score
        self._heads = tuple(name for name in score.needs if name != self.name)
        self.requires = ("sample", *self._heads)
        self.config, self.resources, self.libraries = score.config, score.resources, score.libraries

    def files(self) -> Sequence[Path]:
        return self._score.files()

    def run(self, inputs: Inputs, out: Path) -> dict[str, float]:
        scores = self._score.load(inputs.folders).score(read_part(inputs.folders["sample"] / "unlabelled.parquet"))
        table = scores.select(self._score.together)
        with atomic_path(out / "reference.parquet") as temporary:
            pq.write_table(table, temporary, compression="zstd")
        return {"documents": len(table)}


class Scorers:
    """The router over all heads, and the scorers of other makers, loaded."""

    def __init__(
        self, folders: Mapping[str, Path], backbone: Path, routes: Mapping[str, str], scoring: ScoringConfig,
        others: Sequence[Other],
    ) -> None:  # fmt: skip
        from gristmill.scorer.scoring.others import open_scorers
        from gristmill.scorer.scoring.router import Router

        self._router = Router.load({source: folders[node] for source, node in routes.items()}, backbone, scoring)
        dimensions = [name for scorer in self._router.scorers.values() for name in scorer.bundle.rubric.names]
        self._others = open_scorers(others, dimensions)

    def score(self, documents: pa.Table) -> pa.Table:
        texts = documents["text"].to_pylist()
        scores = self._router.score(texts, documents["source"].to_pylist())
        for name, other in self._others.items():
            scores = scores.append_column(name, pa.array(other.score(texts), pa.float32(), from_pandas=True))
        return scores


class Drift(Step):
    """drift/drift.json: whether each source's scores are distributed as when its thresholds were set.

    fail: end the run where one is not.
    """

    name, folder, version = "drift", "drift", 2

    def __init__(self, rubrics: Sequence[Rubric], fail: bool) -> None:
        self._heads = {rubric.name: heads_of(rubric) for rubric in rubrics}
        self.requires = ("documents", "scores", *self._heads.values())
        self.config = {"fail": fail}

    def run(self, inputs: Inputs, out: Path) -> dict[str, float]:
        from gristmill.scorer.heads.drift import check_drift
        from gristmill.scorer.heads.files import read_calibration

        table = inputs.table("documents", ("id", "source"))
        scores = inputs.table("scores", ("quality", "tokens", "rubric"))
        for name in scores.column_names:
            table = table.append_column(name, scores[name])
        found = []
        for name, node in self._heads.items():
            own = table.filter(pa.array([one == name for one in table["rubric"].to_pylist()], pa.bool_()))
            found += [(name, drift) for drift in check_drift(own, read_calibration(inputs.folders[node]) or {})]
        rows = [{"rubric": name, **vars(drift), "drifted": drift.drifted} for name, drift in found]
        write_json(out / "drift.json", {"sources": rows})
        drifted = [str(drift) for _, drift in found if drift.drifted]
        if drifted and self.config["fail"]:
            raise DataError(f"scores have drifted from the thresholds: {'; '.join(drifted)}; calibrate again")
        return {"sources": len(rows), "drifted": len(drifted)}


def _files_of(other: Other) -> Sequence[Path]:
    return model_files(other.path) if other.path.is_dir() else (other.path,)


def _columns(table: pa.Table) -> dict[str, np.ndarray]:
    return {name: table[name].cast(pa.float64()).to_numpy() for name in table.column_names}


def _resources(threads: int, device: str) -> Resources:
    return Resources(cpus=float(threads), gpus=float(device.startswith("cuda")))
