"""The README.md of an exported model, written from the run's own record: nothing in it is typed by hand."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from gristmill.trainer.model.config import ModelConfig
from gristmill.trainer.model.counts import Counts


def card(config: ModelConfig, counts: Counts, run: Mapping[str, Any], architecture: str, sequence: int) -> str:
    """Markdown under the Hub's front matter.

    Args:
        run: run.json.
        architecture: the class of transformers that loads it.
        sequence: the longest window that it was trained on, in tokens.
    """
    rows = [(part, counts.parts[part], counts.active_parts[part]) for part in counts.parts]
    rows.append(("all", counts.total, counts.active))
    lines = [
        "---", "library_name: transformers", "pipeline_tag: text-generation", "tags: [gristmill, mixture-of-experts]",
        "---", "",
        f"# {counts.total:,} parameters, {counts.active:,} active per token", "",
        f"`{architecture}`: {config.layers} layers of width {config.width}, {len(config.moe_layers)} of them with "
        f"{config.experts} experts of which a token meets {config.top_k}; {config.vocab:,} tokens in the vocabulary, "
        f"windows of {sequence:,}.", "",
        *_origin(run), "",
        "| part | parameters | active |", "|---|---:|---:|",
        *(f"| {part} | {total:,} | {active:,} |" for part, total, active in rows), "",
        "```python", "from transformers import AutoModelForCausalLM", "",
        'model = AutoModelForCausalLM.from_pretrained("FOLDER")', "```", "",
        "Written by `trainer export`. Nothing here was measured on a downstream task, and nothing keeps the model from "
        "saying what is false or harmful.",
    ]  # fmt: skip
    return "\n".join(lines) + "\n"


def _origin(run: Mapping[str, Any]) -> list[str]:
    """Where the weights come from: training here, or another folder of Hugging Face's."""
    if source := run.get("imported"):
        commit = f" at commit `{_code(source['commit'])}`" if source["commit"] else ""
        return [f"Its weights were imported from `{_code(source['place'])}`{commit}."]
    data = run["data"]
    begun = run.get("initialised_from")
    how = f"From the weights of `{_code(begun['place'])}` (sha256 `{begun['sha256'][:16]}`), trained" if begun else ""
    sources = ", ".join(f"`{_code(name)}`" for name in data["sources"])
    return [
        f"{how or 'Trained from scratch'} on {run['tokens']:,} tokens in {run['step']:,} steps: mixture "
        f"`{_code(data['mixture'])}` of {sources}, shards `{data['content_id'][:16]}`, seed {run['seed']}."
    ]


def _code(text: object) -> str:
    """What stands inside a code span: names come from elsewhere, and must not end it."""
    return str(text).replace("`", "'").replace("\n", " ")
