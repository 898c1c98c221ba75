"""When a run has learnt what it can: it ends after some validations without a better held-out loss.

The state is the best loss, its step, and how many validations came since; a checkpoint keeps it. No torch here.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from gristmill.base.config import check_range


@dataclass(frozen=True)
class PatienceConfig:
    """Early stopping. The best checkpoint by validation is kept, whatever its age."""

    validations: int = 0
    """The run ends after so many in a row without a better held-out loss. 0: only at the end of its budget."""
    better_by: float = 0.0
    """A loss is better where it is below the best one by more than this, in nats per token."""

    def __post_init__(self) -> None:
        check_range("patience.validations", self.validations)
        check_range("patience.better_by", self.better_by)


class Patience:
    def __init__(self, config: PatienceConfig) -> None:
        self.config = config
        self.best: float | None = None
        self.best_step, self.waited = 0, 0

    def judge(self, step: int, loss: float | None) -> bool:
        """Note a validation; answers whether it is the best so far. A loss that is not finite is none. Nothing is noted
        where patience is off."""
        if not self.config.validations:
            return False
        enough = math.inf if self.best is None else self.best - self.config.better_by
        if loss is not None and math.isfinite(loss) and loss < enough:
            self.best, self.best_step, self.waited = loss, step, 0
            return True
        self.waited += 1
        return False

    @property
    def reason(self) -> str | None:
        """Why the run ends now; None: it goes on."""
        if not self.config.validations or self.waited < self.config.validations:
            return None
        best = "there was none" if self.best is None else f"the best was {self.best:.4f} at step {self.best_step:,}"
        return f"no better held-out loss in {self.waited} validations; {best}"

    def state(self) -> dict[str, Any]:
        return {"best": self.best, "best_step": self.best_step, "waited": self.waited}

    def load_state(self, state: Mapping[str, Any]) -> None:
        self.best = state.get("best")
        self.best_step, self.waited = state.get("best_step", 0), state.get("waited", 0)
