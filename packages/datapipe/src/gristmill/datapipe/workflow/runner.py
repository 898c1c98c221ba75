"""Runs a DAG over a run folder: only what is missing or stale, each output whole or absent.

A piece of work (a partition of a stage, a bucket of a shuffle, a whole step) is keyed by the content of everything that
it depends on, so a re-run after any crash or edit does exactly the difference, and the bytes do not depend on workers
or interruptions.
"""

from __future__ import annotations

import shutil
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any

from gristmill.base.errors import GristmillError, PartialError
from gristmill.base.files import fingerprint
from gristmill.datapipe.ingest.ingest import Ingest, IngestJob, write_inputs
from gristmill.datapipe.ingest.reuse import is_read, rename
from gristmill.datapipe.ingest.splitting import LookJob, Range, Seen
from gristmill.datapipe.ingest.warc import NO_TEXT
from gristmill.datapipe.workflow.display import ANNOTATE, GATHER, LOOK, READ, SCATTER, STEP, Display, Phase
from gristmill.datapipe.workflow.executor import Executor, start
from gristmill.datapipe.workflow.jobs import GatherJob, ScatterJob, StageJob, StepJob
from gristmill.datapipe.workflow.keys import (
    WHOLE,
    Output,
    identity,
    known_size,
    output_of,
    pending,
    shuffle_keys,
    stage_keys,
    step_keys,
    step_output,
)
from gristmill.datapipe.workflow.ledger import Entry, Ledger
from gristmill.datapipe.workflow.lock import RunLock
from gristmill.datapipe.workflow.options import RunOptions
from gristmill.datapipe.workflow.plan import Planned, plan
from gristmill.datapipe.workflow.quarantine import listing
from gristmill.datapipe.workflow.record import NodeRecord, RunRecord, kind_of, plain_identity
from gristmill.datapipe.workflow.stage import Inputs, Node, Shuffle, Stage, Step


class Runner:
    def __init__(
        self, folder: Path, ingest: Ingest, nodes: Sequence[Node], name: str = "run", workers: int = 2,
        options: RunOptions | None = None,
    ) -> None:  # fmt: skip
        """Raises UsageError where the options name a node that there is not, or a --timeout that is no duration."""
        self.folder = folder.absolute()  # workers may have another working folder
        self.ingest = ingest
        self.nodes = {node.name: node for node in nodes}
        self.name = name
        self.workers = workers
        self.outputs: dict[str, Output] = {}
        self._ran: set[str] = set()
        self._gave_way = False
        _check_dag(ingest, nodes)
        options = options or RunOptions()
        self._again, self._chosen = options.again(nodes), options.chosen(nodes)
        self._limit = options.limit(self.folder)

    def plan(self) -> list[Planned]:
        """What run() would do. Raises GristmillError where an input or a model file is not there."""
        nodes = [node for node in self.nodes.values() if node.name in self._chosen]
        return plan(self.folder, self.ingest, nodes, self._again)

    def run(self) -> dict[str, Output]:
        """Bring every node up to date.

        Raises:
            GristmillError: a partition or step failed (the others of its node finished first), or the folder is in use.
            PartialError: more input was quarantined, or more rows by one stage, than `ingest.max_bad_fraction` allows.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        self._executor: Executor | None = None
        self._executor_lock, self._remaking = threading.Lock(), threading.RLock()
        with RunLock(self.folder, self._give_way):
            self._ledger = Ledger(self.folder)
            self._record = RunRecord(self.folder, self.name, may_write=lambda: not self._gave_way)
            for node in (self.ingest, *self.nodes.values()):
                self._record.add(NodeRecord(node.name, kind_of(node), list(dict.fromkeys(node.dependencies))))
            self._ledger.write_outputs({"documents": "documents", **{n.name: n.folder for n in self.nodes.values()}})
            for name in self._again:
                self._ledger.prune(name, set())
                self._ledger.prune(f"{name}.scattered", set())
            self._record.write()
            with Display(self._record, self.workers) as self._display:
                try:
                    self._run_ingest()
                    self._run_nodes({name: node for name, node in self.nodes.items() if name in self._chosen})
                except BaseException as error:
                    self._display.finish("failed" if isinstance(error, Exception) else "interrupted")
                    raise
                finally:
                    self._ledger.flush()
                    if self._executor is not None:
                        self._executor.close()
                self._display.finish("done")
            return self.outputs

    def _give_way(self) -> None:
        """Another runner has taken the folder over, as this one stood still for long: nothing more may be written."""
        self._gave_way = True
        if self._executor is not None:
            self._executor.stop()

    def _refuse_if_taken_over(self) -> None:
        if self._gave_way:
            raise GristmillError(f"{self.folder}: another runner has taken this run over while this one stood still")

    # The DAG -----------------------------------------------------------------------------------------------------

    def _run_nodes(self, waiting: dict[str, Node]) -> None:
        if not self.workers:  # in the main thread, where a debugger and signal handlers are at home
            for node in waiting.values():
                self._finish(node, lambda node=node: self._run_node(node))
            return
        running: dict[Future[Output], Node] = {}
        failures: list[GristmillError] = []
        threads = ThreadPoolExecutor(max_workers=max(1, len(waiting)))
        try:
            while running or (waiting and not failures):
                # Each node starts as soon as what it depends on is done; Ray decides who gets the processors.
                for node in [node for node in waiting.values() if set(node.dependencies) <= set(self.outputs)]:
                    if not failures:
                        del waiting[node.name]
                        running[threads.submit(self._run_node, node)] = node
                for future in wait(running, return_when=FIRST_COMPLETED).done:
                    try:
                        self._finish(running.pop(future), future.result)
                    except GristmillError as error:
                        failures.append(error)
        except BaseException:  # Ctrl-C and SIGTERM: no thread may talk to Ray once it is shut down
            if self._executor is not None:
                self._executor.stop()
            raise
        finally:
            threads.shutdown(wait=True, cancel_futures=True)
        if failures:
            kinds = {type(error) for error in failures}
            kind = kinds.pop() if len(kinds) == 1 else GristmillError  # its exit code says what all of them are
            raise kind("; ".join(dict.fromkeys(map(str, failures))))

    def _finish(self, node: Node, result: Callable[[], Output]) -> None:
        try:
            self.outputs[node.name] = result()
        except GristmillError as error:
            self._set(node.name, status="failed", error=str(error))
            self._display.end(node.name, f"failed: {error}")
            raise
        finally:
            self._count_quarantine(self._ingested)

    def _run_node(self, node: Node) -> Output:
        started = time.monotonic()
        if isinstance(node, Stage):
            output = self._run_stage(node)
        elif isinstance(node, Shuffle):
            output = self._run_shuffle(node)
        elif isinstance(node, Step):
            output = self._run_step(node)
        else:
            raise TypeError(f"node {node.name!r} is neither a Stage, a Shuffle nor a Step")
        self._set(node.name, identity=plain_identity(identity(node, self._ledger)))
        if node.name in self._ran:
            seconds = time.monotonic() - started
            self._set(node.name, status="done", seconds=round(seconds, 2))
            bad = sum(output.quarantined.values())
            told = f"{bad:,} of {sum(output.rows.values()):,} rows quarantined, " if bad else ""
            self._display.end(node.name, f"{told}done in {seconds:.1f} s")
        else:
            self._set(node.name, status="cached")
        if isinstance(node, Stage):
            self._refuse_bad_stage(node, output)
        return output

    # Ingest ------------------------------------------------------------------------------------------------------

    def _run_ingest(self) -> None:
        ingest, folder, started = self.ingest, self.folder / "documents", time.monotonic()
        self._set(ingest.name, status="running")
        files = ingest.discover(self.folder)
        pieces = ingest.pieces(files, self._look_at(ingest.ranges(files)))
        over = {
            node.name: node.folder
            for node in self.nodes.values()
            if isinstance(node, Stage) and node.over == ingest.name
        }
        rename(self.folder, self._ledger, pieces, over)
        keys = {piece.key for piece in pieces}
        self._ledger.prune(ingest.name, keys)
        pending = [piece for piece in pieces if not is_read(self.folder, self._ledger, piece)]
        total, cached = len(pieces), len(pieces) - len(pending)
        self._set(ingest.name, partitions=total, partitions_done=cached, partitions_cached=cached)
        for piece in pending:
            self._ledger.forget(ingest.name, piece.key)
        if pending:
            known = [entry for piece in pieces if (entry := self._ledger.read(ingest.name, piece.key)) is not None]
            self._set(ingest.name, quarantined=sum(map(_quarantined, known)))
            job = IngestJob(ingest.config, folder, self.folder / "quarantine")
            self._map(ingest.name, job, pending, ingest, READ, cached)
        done = [entry for piece in pieces if (entry := self._ledger.read(ingest.name, piece.key)) is not None]
        parts = {part["name"]: part["sha256"] for entry in done for part in entry.counts["parts"]}
        rows = {part["name"]: part["rows"] for entry in done for part in entry.counts["parts"]}
        _remove_others(folder, set(parts))
        _remove_others(self.folder / "quarantine", {f"{key}.jsonl" for key in keys}, "*.jsonl")
        write_inputs(self.folder / "inputs.json", pieces, done)
        self._ingested = done
        self._count_quarantine(done)
        self.outputs[ingest.name] = Output(folder, fingerprint(parts), parts, rows)
        seconds = round(time.monotonic() - started, 2)
        counts = {"documents": sum(entry.rows for entry in done), "quarantined": sum(map(_quarantined, done))}
        self._set(ingest.name, quarantined=counts["quarantined"])
        if pending:
            told = f"{counts['documents']:,} documents, {counts['quarantined']:,} quarantined"
            self._set(ingest.name, status="done", counts=counts, seconds=seconds)
            self._display.end(ingest.name, f"{told}, done in {seconds:.1f} s")
        else:
            self._set(ingest.name, status="cached", counts=counts)
        self._refuse_too_much_quarantine(counts)

    def _look_at(self, ranges: Sequence[Range]) -> Seen:
        """Hash inputs, and count the lines of large ones, where that was not done before."""
        seen, failures = Seen(self.folder / "ledger" / "inputs.json"), []
        batches = seen.missing(ranges)
        if batches:
            executor = self._executor_on_demand()
            job: Any = LookJob(f"{self.ingest.name}: look")
            self._display.begin(self.ingest.name, LOOK, len(batches))
            for outcome in executor.map(job, batches, self.ingest.resources, self._limit):
                if outcome.error is None:
                    seen.learn(outcome.item, outcome.value)
                else:
                    failures.append(f"{self.ingest.name}: {outcome.error}")
                self._display.advance(self.ingest.name)
        seen.keep()
        if failures:
            raise GristmillError(failures[0] + (f" (and {len(failures) - 1} more)" if len(failures) > 1 else ""))
        return seen

    def _count_quarantine(self, ingested: Sequence[Entry]) -> None:
        """What could not be read, by reason, and what each stage could not handle, as far as is known."""
        by_reason = Counter[str]()
        for entry in ingested:
            by_reason.update(entry.counts["quarantined"])
        for name, record in self._record.nodes.items():
            if record.kind == "stage" and record.counts.get("quarantined"):
                by_reason[f"stage {name}"] = record.counts["quarantined"]
        total, documents = by_reason.total(), sum(entry.rows for entry in ingested)
        self._record.quarantine = {"total": total, "documents": documents, "by_reason": dict(sorted(by_reason.items()))}

    def _refuse_too_much_quarantine(self, counts: Mapping[str, int]) -> None:
        bad, total = counts["quarantined"], counts["quarantined"] + counts["documents"]
        if not total:
            raise GristmillError("no documents in the input files")
        bad -= self._record.quarantine["by_reason"].get(NO_TEXT, 0)  # many pages have none: nothing is wrong with them
        self._refuse_above_limit(bad, total, "input rows", self.folder / "quarantine", "mend the input")
        if not counts["documents"]:
            raise GristmillError(f"no documents: all {total:,} input rows are in {self.folder / 'quarantine'}")

    def _refuse_bad_stage(self, stage: Stage, output: Output) -> None:
        bad, total, reasons = sum(output.quarantined.values()), sum(output.rows.values()), self._quarantine(stage)
        self._refuse_above_limit(bad, total, f"rows of stage {stage.name!r}", reasons, "mend the stage, the input")

    def _refuse_above_limit(self, bad: int, total: int, rows: str, reasons: Path, mend: str) -> None:
        if bad and bad / total > self.ingest.max_bad_fraction:
            raise PartialError(
                f"{bad:,} of {total:,} {rows} ({bad / total:.2%}) were quarantined, more than "
                f"--max-bad-fraction {self.ingest.max_bad_fraction:g}; reasons in {reasons}; "
                f"{mend} or raise the limit, and run again: what is done is kept"
            )

    # Stages ------------------------------------------------------------------------------------------------------

    def _run_stage(self, stage: Stage) -> Output:
        folder, keys = self.folder / stage.folder, stage_keys(stage, identity(stage, self._ledger), self.outputs)
        over, required, needed = self.outputs[stage.over], self._folders(stage.requires), self._folders(stage.needs)
        job = StageJob(stage, over.folder, required, needed, folder, keys, self._quarantine(stage))
        left = pending(self._ledger, stage.name, keys, folder)
        self._begin(stage, len(keys), len(keys) - len(left))
        if left:
            self._ensure((stage.over, *stage.requires))
            known = [entry for part in keys.keys() - left if (entry := self._ledger.read(stage.name, part)) is not None]
            self._set(stage.name, quarantined=sum(map(_quarantined, known)))
        self._pieces(stage, job, left, ANNOTATE, len(keys) - len(left))
        output = self._partitioned(stage, keys)
        listed = {listing(self._quarantine(stage), part).name for part in output.quarantined}
        _remove_others(self._quarantine(stage), listed, "part-*.jsonl")
        bad = sum(output.quarantined.values())
        counts = {"documents": sum(output.rows.values()), **({"quarantined": bad} if bad else {})}
        self._set(stage.name, counts=counts, quarantined=bad)
        return output

    def _quarantine(self, stage: Stage) -> Path:
        """Where people read which documents the stage could not handle."""
        return self.folder / "quarantine" / stage.name

    def _folders(self, names: Iterable[str]) -> dict[str, Path]:
        return {name: self.outputs[name].folder for name in names}

    def _begin(self, node: Node, total: int, cached: int) -> None:
        self._set(node.name, partitions=total, partitions_done=cached, partitions_cached=cached, status="running")
        if cached < total:
            self._ran.add(node.name)

    def _pieces(
        self, node: Node, job: Any, pending: list[str], phase: Phase, cached: int, ledger: str = ""
    ) -> None:  # fmt: skip
        for piece in pending:
            self._ledger.forget(ledger or node.name, piece)
        if pending:
            self._map(node.name, job, pending, node, phase, cached, ledger)

    def _partitioned(self, node: Node, keys: Mapping[str, str]) -> Output:
        """The output of a node whose every piece is done; what is of no piece any more is removed."""
        folder = self.folder / node.folder
        _remove_others(folder, set(keys))
        self._ledger.prune(node.name, set(keys))
        return output_of(self._ledger, node, keys, folder)

    # Shuffles ----------------------------------------------------------------------------------------------------

    def _run_shuffle(self, shuffle: Shuffle, remake: bool = False) -> Output:
        """Scattered files are kept until every bucket is gathered: a run that was stopped goes on where it was."""
        name, folder, over = shuffle.name, self.folder / shuffle.folder, self.outputs[shuffle.over]
        scattered, scatter_ledger = self.folder / ".work" / "scattered" / name, f"{name}.scattered"
        keys = shuffle_keys(shuffle, identity(shuffle, self._ledger), self.outputs)
        may_be_gone = shuffle.disposable and not remake
        size, pieces, gather_keys, to_gather = known_size(self._ledger, scatter_ledger, keys.scatter), {}, {}, None
        if size is not None:
            pieces, gather_keys = keys.gather(size)
            to_gather = pending(self._ledger, name, gather_keys, folder, may_be_gone)
        if to_gather == []:
            self._begin(shuffle, len(pieces), len(pieces))
        else:
            self._ensure((shuffle.over, *shuffle.requires, *shuffle.beside))
            needed, required, beside = map(self._folders, (shuffle.needs, shuffle.requires, shuffle.beside))
            to_scatter, parts = pending(self._ledger, scatter_ledger, keys.scatter, scattered), len(keys.scatter)
            self._begin(shuffle, parts + len(pieces), done := parts - len(to_scatter))
            scatter = ScatterJob(
                shuffle, scattered, keys.scatter, keys.ranges, needed, over.folder, required, keys.starts
            )
            self._pieces(shuffle, scatter, to_scatter, SCATTER, done, scatter_ledger)
            pieces, gather_keys = keys.gather(known_size(self._ledger, scatter_ledger, keys.scatter) or 0)
            to_gather = pending(self._ledger, name, gather_keys, folder, may_be_gone)
            gather = GatherJob(
                shuffle, folder, gather_keys, keys.ranges, needed, scattered, tuple(over.parts), pieces, beside,
                keys.onto,
            )  # fmt: skip
            total = parts + len(pieces)
            cached = total - len(to_scatter) - len(to_gather)
            self._set(name, partitions=total, partitions_done=total - len(to_gather), partitions_cached=cached)
            self._pieces(shuffle, gather, to_gather, GATHER, len(pieces) - len(to_gather))
        self._ledger.prune(scatter_ledger, set(keys.scatter))
        shutil.rmtree(scattered, ignore_errors=True)
        output = self._partitioned(shuffle, gather_keys)
        counts: Counter[str] = Counter()
        for piece in gather_keys:
            if entry := self._ledger.read(name, piece):
                counts.update(entry.counts)
        self._set(name, counts=dict(counts))
        return output

    def _ensure(self, names: Iterable[str]) -> None:
        """Make disposable outputs again that are needed and gone; they come out as they were."""
        with self._remaking:
            for name in names:
                node = self.nodes.get(name)
                if isinstance(node, Shuffle) and node.disposable:
                    output = self.outputs[name]
                    if not all((output.folder / part).exists() for part in output.parts):
                        self._run_shuffle(node, remake=True)
                        self._set(name, status="done")

    def _map(
        self, name: str, job: Any, items: list[Any], node: Any, phase: Phase, cached: int, ledger: str = ""
    ) -> None:
        """Run `items`; write a ledger entry for each that succeeds, and raise after all of them if any failed."""
        failures: list[str] = []
        executor = self._executor_on_demand()
        self._display.begin(name, phase, cached + len(items), cached)
        for outcome in executor.map(job, items, node.resources, None if phase is STEP else self._limit):
            if outcome.error is not None:
                failures.append(f"{name}, {getattr(outcome.item, 'name', outcome.item)}: {outcome.error}")
                if outcome.detail:
                    self._display.say(outcome.detail)
                continue
            self._refuse_if_taken_over()
            entry = Entry(**outcome.value["entry"])
            self._ledger.write(ledger or name, getattr(outcome.item, "key", outcome.item), entry)
            self._record.nodes[name].partitions_done += 1
            bad = _quarantined(entry) if phase in (READ, ANNOTATE) else 0
            self._display.advance(name, outcome.value.get("rows", 0), bad)
        if failures:
            more = f" (and {len(failures) - 1} more partitions)" if len(failures) > 1 else ""
            raise GristmillError(failures[0] + more)

    # Steps -------------------------------------------------------------------------------------------------------

    def _run_step(self, step: Step) -> Output:
        folder, keys = self.folder / step.folder, step_keys(step, identity(step, self._ledger), self.outputs)
        key = keys[WHOLE]
        self._set(step.name, partitions=1, status="running")
        if not pending(self._ledger, step.name, keys, folder):
            self._set(step.name, partitions_done=1, partitions_cached=1)
        else:
            self._ensure(step.requires)
            self._ran.add(step.name)
            self._refuse_if_taken_over()
            self._ledger.forget(step.name, WHOLE)
            work = self.folder / ".work" / f"{step.name}-{key[:16]}"
            for other in work.parent.glob(f"{step.name}-*"):
                if other.name.rpartition("-")[0] == step.name and (other != work or not step.resumes):
                    shutil.rmtree(other)
            work.mkdir(parents=True, exist_ok=True)
            parts = {name: tuple(self.outputs[name].parts) for name in step.requires}
            inputs = Inputs(self._folders(step.requires), parts)
            job = StepJob(step, inputs, work, folder, key)
            self._map(step.name, job, [WHOLE], step, STEP, 0)
        if entry := self._ledger.read(step.name, WHOLE):
            self._set(step.name, counts=entry.counts)
        return step_output(self._ledger, step, folder)

    # Small things ------------------------------------------------------------------------------------------------

    def _executor_on_demand(self) -> Executor:
        """Ray takes seconds to start: a run with nothing to do never starts it."""
        with self._executor_lock:
            if self._executor is None:
                self._executor = start(self.workers, self._display.say)
            return self._executor

    def _set(self, name: str, **values: Any) -> None:
        for key, value in values.items():
            setattr(self._record.nodes[name], key, value)
        self._record.changed()


def _check_dag(ingest: Ingest, nodes: Sequence[Node]) -> None:
    known = {ingest.name}
    for node in nodes:
        missing = set(node.dependencies) - known
        if missing:
            raise GristmillError(f"node {node.name!r} depends on {sorted(missing)}, which no earlier node makes")
        if node.name in known:
            raise GristmillError(f"two nodes are named {node.name!r}")
        known.add(node.name)


def _quarantined(entry: Entry) -> int:
    """Rows of the input that are no documents, by reason; or those that a stage could not handle."""
    found = entry.counts.get("quarantined", 0)
    return sum(found.values()) if isinstance(found, dict) else found


def _remove_others(folder: Path, keep: set[str], pattern: str = "part-*.parquet") -> None:
    """Outputs of inputs that are gone would be taken for rows of this run; half-written files are of no use."""
    if folder.exists():
        for path in [path for path in folder.glob(pattern) if path.name not in keep] + list(folder.glob(".*.tmp-*")):
            path.unlink(missing_ok=True)
