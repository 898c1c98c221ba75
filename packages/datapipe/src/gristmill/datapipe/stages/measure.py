"""Stages that measure each document: language, heuristics, and whatever else a policy asks about.

Each is a name, a configuration and one call of a kernel; what the columns mean stands with the kernel (filters/).
"""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pyarrow as pa

from gristmill.datapipe.arrow import compute as pc
from gristmill.datapipe.filters import code, markup, pii, secrets, toxicity, url
from gristmill.datapipe.filters.bad_words import words_path
from gristmill.datapipe.filters.classifier import ClassifierConfig, FastTextClassifier
from gristmill.datapipe.filters.heuristics import HeuristicsConfig, heuristics, schema
from gristmill.datapipe.filters.language import LanguageConfig, LanguageIdentifier, model_path
from gristmill.datapipe.filters.perplexity import PerplexityConfig, PerplexityModel
from gristmill.datapipe.text.buffers import batches, text_of
from gristmill.datapipe.workflow.stage import Stage

# Character classes come from Python's Unicode tables and normal forms from pyarrow's: another version, other words.
UNICODE = {"unicode": unicodedata.unidata_version}
Columns = Mapping[str, Any]
_TEXTS = ("text", "url", "meta", "id")
_NOTHING = pa.Table.from_arrays([pa.nulls(0, pa.string())] * len(_TEXTS), _TEXTS)  # pa.array would import pandas
_WORD, _SHARE, _COUNT, _FLAG = pa.string(), pa.float32(), pa.int32(), pa.bool_()


def by_batch(table: pa.Table, measure: Callable[[pa.Table], Columns]) -> pa.Table:
    """The columns of all rows, measured a few megabytes of text at a time."""
    found, start = [], 0
    for batch in batches(table["text"]):
        rows = table.slice(start, len(batch)).combine_chunks()
        found.append(pa.table(dict(measure(rows))))
        start += len(batch)
    if not found:  # a table without rows has the same columns
        one = pa.table({name: pa.array([""]) for name in table.column_names})
        return pa.table(dict(measure(one))).slice(0, 0)
    return pa.concat_tables(found)


class Language(Stage):
    """language: label, score, second, second_score, paragraphs, mixing."""

    name, folder, version = "language", "annotations/language", 2
    libraries = ()
    setup_is_small = True

    def __init__(self, config: LanguageConfig) -> None:
        self.config = {"language": replace(config, model=""), **UNICODE}  # the model counts by content, not by path
        self._language = config

    def files(self) -> Sequence[Path]:
        return (model_path(self._language),)

    def setup(self, folders: Mapping[str, Path]) -> None:
        self._identifier = LanguageIdentifier(self._language)

    def writes(self) -> pa.Schema:
        best = [("label", _WORD), ("score", _SHARE), ("second", _WORD), ("second_score", _SHARE)]
        return pa.schema([*best, ("paragraphs", _COUNT), ("mixing", _SHARE)])

    def annotate(self, table: pa.Table, previous: Mapping[str, pa.Table]) -> pa.Table:
        return pa.table(self._identifier.measure(table["text"]))


class Heuristics(Stage):
    """heuristics: lengths, and what the rules of Gopher, C4, FineWeb and OLMo 3 ask about; see filters.heuristics."""

    name, folder, version = "heuristics", "annotations/heuristics", 2
    libraries = ("pyarrow",)

    def __init__(self, config: HeuristicsConfig | None = None) -> None:
        self._heuristics = config or HeuristicsConfig()
        self.config = {"heuristics": self._heuristics, **UNICODE}

    def files(self) -> Sequence[Path]:
        return (words_path(self._heuristics.bad_words),) if "bad_words" in self._heuristics.families else ()

    def writes(self) -> pa.Schema:
        return schema(self._heuristics)

    def annotate(self, table: pa.Table, previous: Mapping[str, pa.Table]) -> pa.Table:
        return heuristics(table["text"], self._heuristics)


class Url(Stage):
    """url: host, and which block lists the address is on; see filters.url."""

    name, folder, version = "url", "annotations/url", 1
    columns, libraries = ("url",), ("tldextract",)

    def __init__(self, config: url.UrlConfig) -> None:
        self.config = {"bundled": config.bundled}  # the lists count by their content
        self._url = config

    def files(self) -> Sequence[Path]:
        return url.files(self._url)

    def setup(self, folders: Mapping[str, Path]) -> None:
        self._lists = url.load(self._url)

    def writes(self) -> pa.Schema:
        flags = [(name, _FLAG) for name in ("domain", "subdomain", "exact")]
        counts = [(name, _COUNT) for name in ("hard_words", "soft_words", "subwords")]
        return pa.schema([("host", _WORD), *flags, *counts])

    def annotate(self, table: pa.Table, previous: Mapping[str, pa.Table]) -> pa.Table:
        return pa.table(url.measure(table["url"], self._lists))


@dataclass(frozen=True)
class PersonalConfig:
    pii: pii.PiiConfig = field(default_factory=pii.PiiConfig)
    secrets: secrets.SecretsConfig = field(default_factory=secrets.SecretsConfig)


class Personal(Stage):
    """pii: spans of e-mail and IP addresses, phone and card numbers, and keys; see filters.pii and filters.secrets."""

    name, folder, version = "pii", "annotations/pii", 1
    libraries = ("google-re2",)

    def __init__(self, config: PersonalConfig | None = None) -> None:
        self.config = self._personal = config or PersonalConfig()

    def writes(self) -> pa.Schema:
        return self.annotate(_NOTHING, {}).schema

    def annotate(self, table: pa.Table, previous: Mapping[str, pa.Table]) -> pa.Table:
        return by_batch(table, self._measure)

    def _measure(self, table: pa.Table) -> Columns:
        found = pii.measure(text_of(table["text"]), self._personal.pii)
        return {**found, **secrets.measure(table["text"], self._personal.secrets)}


# Where corpora of code keep the path of a file: The Stack, GitHub's BigQuery dump, OLMo.
_PATHS = r'"(?:path|file_path|max_stars_repo_path|repo_path|filename|file_name)": *"(?P<path>[^"\\]+)"'


class Code(Stage):
    """code: line lengths, generated and encoded parts, comments, whether Python parses; see filters.code.

    The language comes from the path in the document's meta, else from its URL, else from its id.
    """

    name, folder, version = "code", "annotations/code", 1
    columns = ("text", "meta", "url", "id")

    def __init__(self, config: code.CodeConfig | None = None) -> None:
        self._code = config or code.CodeConfig()
        self.config = {"code": self._code, **UNICODE}

    def writes(self) -> pa.Schema:
        return self.annotate(_NOTHING, {}).schema

    def annotate(self, table: pa.Table, previous: Mapping[str, pa.Table]) -> pa.Table:
        return by_batch(table, self._measure)

    def _measure(self, table: pa.Table) -> Columns:
        told = pc.struct_field(pc.extract_regex(table["meta"], _PATHS), "path")
        return code.measure(table["text"], pc.coalesce(told, table["url"], table["id"]), self._code)


class Markup(Stage):
    """markup: tags, TeX, wiki syntax, tables and lists, and what does not close; see filters.markup."""

    name, folder, version = "markup", "annotations/markup", 1
    config = UNICODE

    def writes(self) -> pa.Schema:
        return self.annotate(_NOTHING, {}).schema

    def annotate(self, table: pa.Table, previous: Mapping[str, pa.Table]) -> pa.Table:
        return by_batch(table, lambda rows: markup.measure(rows["text"]))


class Toxicity(Stage):
    """toxicity: score of the worst window of the text, and the mean of all; see filters.toxicity."""

    name, folder, version = "toxicity", "annotations/toxicity", 1

    def __init__(self, config: toxicity.ToxicityConfig) -> None:
        self.config = {"toxicity": replace(config, model=""), **UNICODE}  # a model counts by its content
        self.libraries = () if config.model else ("alt-profanity-check",)
        self._toxicity = config

    def files(self) -> Sequence[Path]:
        return (Path(self._toxicity.model),) if self._toxicity.model else ()

    def setup(self, folders: Mapping[str, Path]) -> None:
        self._model = toxicity.Toxicity(self._toxicity)

    def writes(self) -> pa.Schema:
        return pa.schema([("score", _SHARE), ("mean", _SHARE)])

    def annotate(self, table: pa.Table, previous: Mapping[str, pa.Table]) -> pa.Table:
        return pa.table(self._model.measure(table["text"]))


class Classifier(Stage):
    """classifier: score, the probability of one label of a fastText model, as quality or a topic."""

    name, folder, version = "classifier", "annotations/classifier", 1

    def __init__(self, config: ClassifierConfig) -> None:
        self.config = {"classifier": replace(config, model=""), **UNICODE}
        self._classifier = config

    def files(self) -> Sequence[Path]:
        return (Path(self._classifier.model),)

    def setup(self, folders: Mapping[str, Path]) -> None:
        self._model = FastTextClassifier(self._classifier)

    def writes(self) -> pa.Schema:
        return pa.schema([("score", _SHARE)])

    def annotate(self, table: pa.Table, previous: Mapping[str, pa.Table]) -> pa.Table:
        return pa.table({"score": self._model.score(table["text"])})


class Perplexity(Stage):
    """perplexity: log_perplexity, words; see filters.perplexity."""

    name, folder, version = "perplexity", "annotations/perplexity", 1
    libraries = ("kenlm-ex",)

    def __init__(self, config: PerplexityConfig) -> None:
        self.config = {"sentencepiece": bool(config.sentencepiece), **UNICODE}  # the models count by content
        self._perplexity = config

    def files(self) -> Sequence[Path]:
        return tuple(Path(path) for path in (self._perplexity.model, self._perplexity.sentencepiece) if path)

    def setup(self, folders: Mapping[str, Path]) -> None:
        self._model = PerplexityModel(self._perplexity)

    def writes(self) -> pa.Schema:
        return pa.schema([("log_perplexity", _SHARE), ("words", _COUNT)])

    def annotate(self, table: pa.Table, previous: Mapping[str, pa.Table]) -> pa.Table:
        return pa.table(self._model.measure(table["text"]))
