"""Which stages measure the text: language and heuristics always, every other where the policy reads what it finds.

How a thing is measured belongs to the policy ([measure.heuristics.c4] terminal = false); where this machine keeps
models and lists belongs to the command line (--perplexity.model FILE).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, is_dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import pyarrow as pa

from gristmill.base.config import from_mapping, nearest
from gristmill.base.errors import GristmillError, UsageError
from gristmill.datapipe.contamination.eval_sets import BUNDLED, EvalSetsConfig
from gristmill.datapipe.contamination.search import ContaminationConfig
from gristmill.datapipe.dedup.semantic import SemanticConfig
from gristmill.datapipe.dedup.substrings import SubstringConfig
from gristmill.datapipe.filters.classifier import ClassifierConfig
from gristmill.datapipe.filters.code import CodeConfig
from gristmill.datapipe.filters.heuristics import HeuristicsConfig
from gristmill.datapipe.filters.language import LanguageConfig
from gristmill.datapipe.filters.perplexity import PerplexityConfig
from gristmill.datapipe.filters.toxicity import ToxicityConfig
from gristmill.datapipe.filters.url import UrlConfig
from gristmill.datapipe.outliers import Outliers
from gristmill.datapipe.policy import Policy, Rule, check_type
from gristmill.datapipe.stages.contamination import Contamination
from gristmill.datapipe.stages.duplicates import NearConfig
from gristmill.datapipe.stages.measure import (
    Classifier,
    Code,
    Heuristics,
    Language,
    Markup,
    Perplexity,
    Personal,
    PersonalConfig,
    Toxicity,
    Url,
)
from gristmill.datapipe.stages.repeats import UnitConfig
from gristmill.datapipe.text import spans
from gristmill.datapipe.workflow.stage import Node, Stage
from nodes import Classify

T = TypeVar("T")
OTHERS = ("documents", "tokens", "scores", "outliers")
"""What rules may read besides, and whose columns are known elsewhere."""
FROM_POLICY: dict[str, type] = {
    "heuristics": HeuristicsConfig, "pii": PersonalConfig, "code": CodeConfig, "near": NearConfig, "lines": UnitConfig,
    "paragraphs": UnitConfig, "substrings": SubstringConfig, "semantic": SemanticConfig,
    "contamination": ContaminationConfig,
}  # fmt: skip
_SHARE = pa.float32()
_CLUSTER = [("cluster", pa.int64()), ("size", pa.int32())]
_LIKE = pa.schema([*_CLUSTER, ("similarity", _SHARE)])
_CUT = pa.schema([("cut", spans.TYPE), ("number", pa.int32()), ("share", _SHARE)])
DUPLICATES = {
    "exact": pa.schema(_CLUSTER), "same_url": pa.schema(_CLUSTER), "near": _LIKE, "semantic": _LIKE, "lines": _CUT,
    "paragraphs": _CUT, "substrings": _CUT, "known": pa.schema([("similarity", _SHARE), ("document", pa.string())]),
}  # fmt: skip
"""What the nodes of duplicates.py find."""


@dataclass(frozen=True)
class ModelConfigs:
    """The stages' models and lists, as command-line options."""

    language: LanguageConfig = field(default_factory=LanguageConfig)
    url: UrlConfig = field(default_factory=UrlConfig)
    toxicity: ToxicityConfig = field(default_factory=ToxicityConfig)
    perplexity: PerplexityConfig = field(default_factory=PerplexityConfig)
    classifier: ClassifierConfig = field(default_factory=ClassifierConfig)
    contamination: EvalSetsConfig = field(default_factory=EvalSetsConfig)


def measuring_stages(policy: Policy, models: ModelConfigs) -> list[Node]:
    """The stages that find what the policy's rules and edits read.

    Raises:
        UsageError: the policy sets up what no stage measures, or reads what needs a model or sets that are not given.
    """
    setup = setups(policy)
    wanted = {"language", "heuristics", *policy.annotations(), *policy.edited_by()}
    if "outliers" in wanted:
        wanted.add("perplexity")
    for name, told in (("perplexity", " (datapipe train-perplexity makes one)"), ("classifier", "")):
        if name in wanted and not getattr(models, name).model:
            raise UsageError(f"policy {policy.name!r} reads {name}.*: give --{name}.model FILE{told}")
    if "contamination" in wanted and not models.contamination.sets:
        raise UsageError(
            f"policy {policy.name!r} reads contamination.*: give --contamination.sets FOLDER of *.jsonl, an index that "
            f"datapipe index-evals made, or `{BUNDLED}`"
        )
    stages: dict[str, Callable[[], Node]] = {
        "language": lambda: Language(absolute(models.language)),
        "heuristics": lambda: Heuristics(absolute(setup["heuristics"])),
        "url": lambda: Url(absolute(models.url)),
        "pii": lambda: Personal(setup["pii"]),
        "code": lambda: Code(setup["code"]),
        "markup": lambda: Markup(),
        "toxicity": lambda: _classifier("toxicity", models.toxicity) or Toxicity(absolute(models.toxicity)),
        "classifier": lambda: _classifier("classifier", models.classifier) or Classifier(absolute(models.classifier)),
        "perplexity": lambda: Perplexity(absolute(models.perplexity)),
        "outliers": lambda: Outliers(),
        "contamination": lambda: Contamination(models.contamination, setup["contamination"]),
    }
    made = [make() for name, make in stages.items() if name in wanted]
    check_columns(policy, {**DUPLICATES, **{stage.name: stage.writes() for stage in made if isinstance(stage, Stage)}})
    return made


def setups(policy: Policy) -> dict[str, Any]:
    """How the policy measures each annotation that it may set up.

    Raises:
        UsageError: it sets up what there is not, or to values that make no sense.
    """
    made: dict[str, Any] = {}
    for name in policy.measure:
        if name not in FROM_POLICY:
            raise UsageError(
                f"policy {policy.name!r}: measure.{name}: nothing to set up there{nearest(name, FROM_POLICY)}"
            )
    for name, kind in FROM_POLICY.items():
        made[name] = from_mapping(kind, policy.measure.get(name, {}), f"policy {policy.name!r}: measure.{name}")
    return made


def check_columns(policy: Policy, written: Mapping[str, pa.Schema | None]) -> None:
    """That the rules and edits read what is measured: told before days of measuring, not after.

    Raises:
        UsageError: nothing is measured under such a name, or it is of another kind than the rule or edit needs.
    """
    for reader in (*policy.rule, *policy.edit):
        annotation, _, name = (column := reader.column).partition(".")
        where = f"policy {policy.name!r}: {f'rule {reader.name!r}' if isinstance(reader, Rule) else 'edit'}"
        if annotation not in written and annotation not in OTHERS:
            raise UsageError(f"{where}: no stage measures {annotation!r}{nearest(annotation, [*written, *OTHERS])}")
        schema = written.get(annotation)
        if isinstance(reader, Rule) and reader.keep is not None:
            if schema is None or "cluster" not in schema.names:
                clustered = ", ".join(name for name, known in written.items() if known and "cluster" in known.names)
                raise UsageError(f"{where}: {annotation!r} has no clusters of which one could stay: {clustered} have")
            continue
        if schema is None:
            continue
        if name not in schema.names:
            raise UsageError(f"{where}: there is no {column}{nearest(name, schema.names)}")
        kind = schema.field(name).type
        if isinstance(reader, Rule):
            try:
                check_type(reader, kind)
            except GristmillError as error:
                raise UsageError(f"policy {policy.name!r}: {error}") from None
        elif kind != spans.TYPE:
            raise UsageError(f"{where}: {column} holds no spans that could be cut or masked")


def _classifier(name: str, config: ToxicityConfig | ClassifierConfig) -> Node | None:
    """A Hugging Face classifier where the model is a folder; else it is a fastText file."""
    folder = Path(config.model).absolute()
    if not config.model or not folder.is_dir():
        return None
    if replace(config, model="", label="") != type(config)(label=""):
        raise UsageError(f"--{name}: a Hugging Face classifier takes a label, and no other of these options")
    return Classify(name, folder, config.label)


FILES = ("model", "sentencepiece", "words", "domains", "addresses", "hard_words", "soft_words", "subwords")
"""Fields of configurations that name files."""


def absolute(config: T) -> T:
    """The configuration with the files that it names by their whole paths: workers may stand in another folder.

    Raises:
        UsageError: there is no such file.
    """
    changed: dict[str, Any] = {}
    for entry in fields(config):  # pyright: ignore[reportArgumentType]
        value = getattr(config, entry.name)
        if is_dataclass(value):
            changed[entry.name] = absolute(value)
        elif entry.name in FILES and value:
            changed[entry.name] = _found(value) if isinstance(value, str) else tuple(map(_found, value))
    return replace(config, **changed)  # pyright: ignore[reportArgumentType]


def _found(name: str) -> str:
    path = Path(name).absolute()
    if not path.is_file():
        raise UsageError(f"{path}: no such file")
    return str(path)
