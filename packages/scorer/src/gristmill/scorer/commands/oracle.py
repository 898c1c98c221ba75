"""`scorer label` and `scorer audit-oracle`: from documents to grades, and how far to trust them."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from gristmill.base import cli
from gristmill.base.errors import DataError, UsageError

if TYPE_CHECKING:
    import pyarrow as pa

    from gristmill.scorer.audit.robustness import Oracle
    from gristmill.scorer.oracle.endpoint import EndpointEngine
    from gristmill.scorer.oracle.vllm import VLLMEngine
    from gristmill.scorer.rubric import Rubric


def label(
    input: Path,
    rubric: cli.Repeated,
    model: str,
    output: Path,
    engine: Literal["vllm", "endpoint"] = "vllm",
    url: str = "http://localhost:8000/v1",
    style: Literal["completion", "chat"] | None = None,
    sample: int = 0,
    uniform: float = 0.2,
    labelled: Path | None = None,
    scores: Path | None = None,
    tau: float | None = None,
    heads: Path | None = None,
    seed: int = 0,
    repeats: int = 1,
    temperature: float = 0.0,
    max_document_tokens: int = 256,
    windows: Literal["begin", "middle", "end", "spread"] = "begin",
    form: Literal["level", "json"] = "level",
    reason: int = 0,
    threads: int | None = None,
    tokenizer: Path | None = None,
    config: Path | None = None,
    replies: Path | None = None,
    budget_tokens: cli.Tokens = 0,
) -> int | None:
    """Have an oracle grade documents on a rubric.

    Writes Parquet: id, source, the exact text shown, weight, uniform (of the uniformly drawn part), split, flagged (it may
    be talking to its grader), one score per dimension, quality, status, reply, tokens and seconds. The same command
    again asks only what has no answer yet.

    Examples:
        scorer label --input docs.jsonl --rubric pipelines/rubrics/general.toml --model models/oracle --output labels.parquet
        scorer label --input docs.jsonl --rubric general.toml --engine endpoint --url http://localhost:8000/v1 --model oracle --output labels.parquet
        scorer label --input mixed.parquet --rubric general.toml --rubric code=code.toml --model models/oracle --output labels.parquet
        scorer label --input docs.jsonl --rubric general.toml --model models/oracle --sample 500 --labelled labels.parquet --scores scores.parquet --heads heads --output more.parquet

    Args:
        input: .jsonl, .jsonl.gz or .parquet with text, and id, source and content_type where known.
        rubric: FILE for all documents, or TYPE=FILE for those of a content_type (where the input has none, of a source).
        model: a folder (vllm) or the name that the endpoint serves.
        style: chat puts the prompt into the model's chat template. By default an endpoint is asked so, vllm is not.
        sample: grade so many documents, stratified by source, language (where the input has it) and length; 0 grades all.
        uniform: share of them that is drawn uniformly from all documents.
        labelled: labels of earlier rounds: not graded again, but written along, with the weights of all rounds together.
        scores: of the documents, by `scorer score`: half of the sample goes to those near the threshold,
        tau: which is this,
        heads: or the tau_keep of each source in this folder's calibration.
        repeats: gradings of each document of the splits select, certify and audit. Their mean is written; all of them go
            to OUTPUT.repeats.parquet, for `scorer audit-oracle --labels`.
        temperature: of the oracle's sampling; without one, repeats differ little.
        max_document_tokens: longer documents are trimmed to so many tokens of the oracle.
        form: level asks each dimension by itself, for one token; json asks all at once.
        reason: in json form, so many characters of reasons before the scores.
        tokenizer: folder with the endpoint model's tokenizer.json; without it tokens are estimated.
        config: TOML with more fields of VLLMConfig (max_model_len, max_num_seqs, tensor_parallel_size ...) or
            EndpointConfig (concurrency, requests_per_minute, tokens_per_minute, timeout ...).
        replies: folder that keeps every answer; OUTPUT.replies by default.
        budget_tokens: stop, with exit code 4, before this run has asked for more tokens than that; 0 has no limit.
    """  # noqa: E501 (commands stand on one line)
    import time

    from gristmill.base.config import to_mapping
    from gristmill.scorer.audit.reliability import mean_of_repeats
    from gristmill.scorer.labelling import label_sample, near
    from gristmill.scorer.oracle.grade import grade_by_type
    from gristmill.scorer.oracle.replies import Replies, StoredEngine
    from gristmill.scorer.sampling import SamplingConfig, join_rounds, sample_documents
    from gristmill.scorer.tables import (
        check_output,
        read_documents,
        read_parquet,
        rubrics_of,
        with_rubric,
        write_parquet,
    )

    check_output(output)
    if scores is None and (tau is not None or heads is not None):
        raise UsageError("--tau and --heads say where the threshold of --scores FILE is, and that is missing")
    rubrics = _rubrics(rubric)
    documents = read_documents(input)
    earlier = read_parquet(labelled) if labelled else None
    drawn = sample_documents(
        documents, sample or max(len(documents), 1), seed, labelled=earlier, config=SamplingConfig(uniform=uniform),
        near=near(documents, scores, tau, heads) if scores else None,
    )  # fmt: skip
    store = Replies(replies or output.with_name(f"{output.name}.replies"))
    oracle = _oracle(engine, model, url, style, threads, tokenizer, config)
    asking = StoredEngine(oracle, store, budget_tokens)
    started = time.monotonic()
    try:
        head = label_sample(
            documents, drawn, rubrics, repeats,
            lambda types, texts, again: grade_by_type(
                asking, rubrics, types, texts, max_document_tokens, windows, form=form, reason=reason, repeat=again,
                temperature=temperature,
            ),
        )  # fmt: skip
    finally:
        oracle.close()
        store.close()
    gradings, failed = len(head), sum(status != "ok" for status in head["status"].to_pylist())
    asked = list({own.sha: own for own in rubrics.values()}.values())
    if repeats > 1:
        write_parquet(with_rubric(head, *map(to_mapping, asked)), output.with_suffix(".repeats.parquet"))
        head = mean_of_repeats(head, asked)
    head = head.drop_columns(["repeat"])
    if earlier is not None:
        head = join_rounds(documents, drawn, head, earlier)
        asked += [own for own in rubrics_of(earlier, str(labelled)) if own.sha not in {known.sha for known in asked}]
    write_parquet(with_rubric(head, *map(to_mapping, asked)), output)
    flagged = sum(map(bool, head["flagged"].to_pylist()))
    print(f"{output}: {len(head)} labels, {flagged} of documents that may be talking to their grader (column flagged)")
    print(f"{gradings} documents graded, {failed} of them with a failure (null, see column status)")
    done, seconds = asking.counts, time.monotonic() - started
    each = f" ({done.tokens / done.asked:.0f} tokens and {seconds / done.asked:.3f} s each)" if done.asked else ""
    print(f"{done.asked} requests{each}, {done.stored} answers were in {store.folder} already")
    if done.failed:
        print(f"{done.failed} requests failed; the same command asks them again")


def audit_oracle(
    output: Path,
    rubric: str = "",
    input: Path | None = None,
    labels: Path | None = None,
    against: Path | None = None,
    model: str = "",
    engine: Literal["vllm", "endpoint"] = "vllm",
    url: str = "http://localhost:8000/v1",
    style: Literal["completion", "chat"] | None = None,
    tokenizer: Path | None = None,
    config: Path | None = None,
    other_model: str = "",
    other_engine: Literal["vllm", "endpoint"] = "vllm",
    other_url: str = "http://localhost:8000/v1",
    other_style: Literal["completion", "chat"] | None = None,
    other_tokenizer: Path | None = None,
    other_config: Path | None = None,
    threads: int | None = None,
    documents: int = 200,
    repeats: int = 2,
    permutations: int = 3,
    injections: int = 20,
    attacks: Path | None = None,
    max_document_tokens: int = 256,
    windows: Literal["begin", "middle", "end", "spread"] = "begin",
    form: Literal["level", "json"] = "level",
    reason: int = 0,
    temperature: float = 0.0,
    seed: int = 0,
    fail_shift: float | None = None,
) -> int | None:
    """Say how far an oracle's grades can be trusted: spread, biases, agreement, order, injections.

    Writes OUTPUT/audit.json (all numbers, with 95% intervals) and audit.md, and prints the latter. Grading A is a label
    file, or what a model says of documents; grading B, if any, is another of either kind, compared by id. A bad oracle
    is no failure of the audit: exit code 0, or 4 where an injection moves grades by more than --fail-shift.

    Examples:
        scorer audit-oracle --input docs.jsonl --rubric pipelines/rubrics/general.toml --model models/oracle --output audit
        scorer audit-oracle --labels a.parquet --against b.parquet --output audit
        scorer audit-oracle --labels a.parquet --other-model models/other --output audit
        scorer audit-oracle --input docs.jsonl --rubric general.toml --engine endpoint --model judge --fail-shift 0.5 --output audit

    Args:
        rubric: FILE, or the name of one that the labels were graded with; by default all of those.
        input: documents to grade; without it those of --labels, as they were shown.
        labels: grading A, as `scorer label` writes it; where it has documents twice, their reliability is found too.
        against: grading B, as such a file.
        model: the oracle that is asked again, in other orders and under attack; `scorer label` explains its flags.
        other_model: grades the same documents as B.
        documents: how many, drawn evenly over sources and lengths.
        repeats: gradings of each by the same requests.
        permutations: other orders of anchors and, in json form, dimensions.
        injections: documents to be attacked, in every way of --attacks.
        attacks: TOML in place of the injections.toml that comes with scorer.
        fail_shift: in levels, as a mean over documents and, by their weights, dimensions.
    """  # noqa: E501 (commands stand on one line)
    from gristmill.base.files import write_json, write_text
    from gristmill.scorer.audit.injections import load_attacks
    from gristmill.scorer.audit.report import report
    from gristmill.scorer.audit.robustness import worst_injection
    from gristmill.scorer.audit.run import FORMAT, AuditConfig, audit
    from gristmill.scorer.tables import graded_with, read_documents, read_parquet

    if labels is None and (input is None or not model):
        raise UsageError("give --labels FILE, or --input FILE with --model MODEL")
    if fail_shift is not None and not (model and injections):
        raise UsageError("--fail-shift needs --model, and --injections above 0")
    stored = read_parquet(labels) if labels else None
    other = read_parquet(against) if against else None
    given = read_documents(input) if input else None
    asking = (output / "replies", max_document_tokens, windows, form, reason, temperature)
    first = (engine, model, url, style, threads, tokenizer, config)
    second = (other_engine, other_model, other_url, other_style, threads, other_tokenizer, other_config)
    found = {
        own.name: audit(
            own, AuditConfig(repeats, permutations, injections, documents, seed), documents=given,
            labels=graded_with(stored, own) if stored is not None else None,
            against=graded_with(other, own) if other is not None else None,
            oracle=(lambda: _opened(*asking, *first)) if model else None,
            other=(lambda: _opened(*asking, *second)) if other_model else None,
            attacks=load_attacks(attacks) if attacks else None,
        )
        for own in _audited(stored, rubric, labels)
    }  # fmt: skip
    result = {"format": FORMAT, "rubrics": found}
    text = report(result)
    write_json(output / "audit.json", result)
    write_text(output / "audit.md", text)
    print(text, end="")
    if fail_shift is None:
        return 0
    worst = [one for part in found.values() if (one := worst_injection(part["injections"]))]
    if not worst:
        raise DataError("--fail-shift: no document under attack could be graded, so how far attacks move it is unknown")
    for one in worst:
        if one["shift"]["value"] > fail_shift:
            print(f"scorer: attack {one['name']!r} moves grades by {one['shift']['value']:.2f} levels", file=sys.stderr)
            return 4
    return 0


def _oracle(
    engine: str,
    model: str,
    url: str,
    style: str | None,
    threads: int | None,
    tokenizer: Path | None,
    config: Path | None = None,
) -> EndpointEngine | VLLMEngine:
    """The engine with the fields of its configuration from the TOML file `config`, under those that are given here."""
    from gristmill.base.config import from_mapping, load_toml

    flags = {"model": model, "style": style, "threads": threads, "tokenizer": tokenizer}
    settings = load_toml(config) if config else {}
    settings |= {name: value for name, value in flags.items() if value is not None}
    where = str(config or "scorer label")
    if engine == "endpoint":
        from gristmill.scorer.oracle.endpoint import EndpointConfig, EndpointEngine

        return EndpointEngine(from_mapping(EndpointConfig, {**settings, "url": url}, where))
    from gristmill.scorer.oracle.vllm import VLLMConfig, VLLMEngine

    return VLLMEngine(from_mapping(VLLMConfig, settings, where))


@contextmanager
def _opened(
    replies: Path, max_document_tokens: int, windows: Any, form: Any, reason: int, temperature: float, *flags: Any
) -> Iterator[Oracle]:
    from gristmill.scorer.audit.robustness import Oracle
    from gristmill.scorer.oracle.replies import Replies, StoredEngine

    engine, store = _oracle(*flags), Replies(replies)
    try:
        yield Oracle(StoredEngine(engine, store), max_document_tokens, windows, form, reason, temperature)
    finally:
        engine.close()
        store.close()


def _audited(stored: pa.Table | None, rubric: str, labels: Path | None) -> list[Rubric]:
    """The rubric that is named, or all that the labels carry."""
    from gristmill.scorer.rubric import load_rubric
    from gristmill.scorer.tables import rubrics_of

    carried = {} if stored is None else {own.name: own for own in rubrics_of(stored, str(labels))}
    if rubric:
        return [carried[rubric] if rubric in carried else load_rubric(Path(rubric))]
    if not carried:
        raise UsageError(f"--rubric FILE is missing{f': {labels} carries none' if labels else ''}")
    return list(carried.values())


def _rubrics(given: tuple[str, ...]) -> dict[str, Rubric]:
    """By content type, from TYPE=FILE; from FILE under "", for all other types."""
    from gristmill.scorer.rubric import load_rubric

    rubrics: dict[str, Rubric] = {}
    for item in given:
        kind, equals, path = item.partition("=")
        if not equals or Path(item).exists():
            kind, path = "", item
        if kind in rubrics:
            raise UsageError(f"--rubric {item}: there is one for {kind or 'all documents'} already")
        rubrics[kind] = load_rubric(Path(path))
    if not rubrics:
        raise UsageError("--rubric is missing: FILE, or TYPE=FILE once for each content type")
    if len({rubric.name for rubric in rubrics.values()}) < len({rubric.sha for rubric in rubrics.values()}):
        raise UsageError("--rubric: two rubrics of one name; labels of both could not be told apart by it")
    return rubrics
