"""A run's own chat template, for questions to its model."""

from __future__ import annotations

from pathlib import Path

from gristmill.base.errors import UsageError
from gristmill.shards.importers.chat_template import ChatTemplate
from gristmill.shards.importers.template_file import find_template
from gristmill.trainer.run_folder import TrainedModel


def load(run: Path, trained: TrainedModel) -> ChatTemplate:
    """
    Raises:
        UsageError: the run has no chat template, or no tokenizer.
    """
    template = find_template(run)
    if template is None or trained.tokenizer is None:
        raise UsageError(f"{run}: has no chat template; trainer finetune {run} --chat FILE teaches one")
    return ChatTemplate(template, trained.tokenizer, trained.eos)
