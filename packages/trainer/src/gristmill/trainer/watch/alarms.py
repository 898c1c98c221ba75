"""When a run goes wrong: numbers that are not finite, a spike of the loss, a router that collapses, experts that die.

One idea: what is wrong follows from plain numbers and a small state, which checkpoints keep; what to do about it is the
configuration's. No torch here, so that --help is quick.
"""

from __future__ import annotations

import math
import statistics
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, get_args, get_type_hints

from gristmill.base.config import check_range
from gristmill.base.errors import UsageError

ORDER = ("warn", "skip", "roll_back", "stop")  # of several alarms at once, the strictest is followed
FEWEST = 20  # losses; before there are so many, nothing is said of the next one
DEVIATION = 1.4826  # of a normal distribution: the standard deviation over the median absolute one


@dataclass(frozen=True)
class AlarmConfig:
    """What to do where a run goes wrong. warn: say so. skip: the weights do not move by that step. roll_back: weights,
    optimiser and alarms go back to the newest checkpoint from before it began, the data goes on. stop: end the run."""

    not_finite: Literal["skip", "roll_back", "stop"] = "stop"
    """A loss or a gradient whose norm is not finite. It never moves the weights."""
    loss_spike: Literal["off", "warn", "skip", "roll_back", "stop"] = "warn"
    """A loss far above those of the steps before."""
    router_collapse: Literal["off", "warn", "roll_back", "stop"] = "warn"
    """A layer in which the same few experts get nearly everything. Another batch would not mend it, so not skip."""
    dead_experts: Literal["off", "warn", "stop"] = "warn"
    """An expert that gets nearly nothing. It died slowly: neither a batch less nor older weights bring it back."""
    window: int = 100
    """Steps whose losses tell what is usual, and among which acts are counted (`most`)."""
    spike: float = 8.0
    """A loss is a spike where it is above their median by so many deviations (of the median absolute deviation, as that
    of a normal distribution), and by a hundredth of the median at least."""
    collapse: float = 0.1
    """A layer has collapsed where of its experts beyond the top_k that each token has, less than this share is in use:
    exp(entropy of the load) - top_k, over experts - top_k."""
    collapse_steps: int = 20
    """Steps in a row."""
    dead: float = 0.01
    """An expert is dead below this share of an even load."""
    dead_steps: int = 100
    """Steps in a row."""
    most: int = 10
    """More steps skipped or rolled back than this, among the last `window`, stop the run."""

    def __post_init__(self) -> None:
        for name, kind in get_type_hints(AlarmConfig).items():
            if (choices := get_args(kind)) and getattr(self, name) not in choices:
                raise UsageError(f"alarms.{name}: {getattr(self, name)!r} makes no sense; one of {', '.join(choices)}")
        check_range("alarms.window", self.window, FEWEST)
        for name in ("spike", "most"):
            check_range(f"alarms.{name}", getattr(self, name))
        for name in ("collapse", "dead"):
            check_range(f"alarms.{name}", getattr(self, name), 0, 1)
        for name in ("collapse_steps", "dead_steps"):
            check_range(f"alarms.{name}", getattr(self, name), 1)

    @property
    def rolls_back(self) -> bool:
        return "roll_back" in (self.not_finite, self.loss_spike, self.router_collapse)

    @property
    def reach(self) -> int:
        """Steps, up to the one that tells of it, through which a run that rolls back may have gone wrong."""
        return self.collapse_steps if self.router_collapse == "roll_back" else 1


class Alert(NamedTuple):
    alarm: str  # the setting's name
    policy: str
    since: int  # the first step that was wrong
    told: str


class Alarms:
    """Asked twice a step: accept() before the weights move, judge() afterwards."""

    def __init__(self, config: AlarmConfig, top_k: int) -> None:
        self.config, self.top_k = config, top_k
        self.losses: deque[float] = deque(maxlen=config.window)
        self.collapsed: list[int] = []  # of each layer, the steps in a row
        self.idle: list[list[int]] = []  # of each expert
        self.acted: list[int] = []  # steps skipped or rolled back

    def accept(self, nll: float, grad_norm: float) -> bool:
        """Whether a step of this loss may move the weights. Changes nothing."""
        alarm, _ = self._loss(nll, grad_norm)
        return alarm is None or getattr(self.config, alarm) == "warn"

    def judge(self, step: int, nll: float, grad_norm: float, loads: Sequence[Sequence[float]]) -> list[Alert]:
        """What is wrong after a step, the strictest first; `loads` are shares by layer and expert."""
        alerts = []
        alarm, told = self._loss(nll, grad_norm)
        if alarm is not None:
            alerts.append(Alert(alarm, getattr(self.config, alarm), step, told))
        if math.isfinite(nll):
            self.losses.append(nll)
        alerts += [*self._collapses(step, loads), *self._deaths(step, loads)]
        alerts.sort(key=lambda alert: -ORDER.index(alert.policy))
        if alerts and alerts[0].policy in ("skip", "roll_back"):
            self.acted = [before for before in self.acted if before > step - self.config.window] + [step]
            if len(self.acted) > self.config.most:
                told = f"{alerts[0].told}; {len(self.acted)} of the last {self.config.window} steps were given up so"
                alerts[0] = alerts[0]._replace(policy="stop", told=told)
        return alerts

    def state(self) -> dict[str, Any]:
        """For a checkpoint; JSON spells floats exactly."""
        return {
            "losses": list(self.losses),
            "collapsed": list(self.collapsed),
            "idle": [list(row) for row in self.idle],
            "acted": list(self.acted),
        }

    def load_state(self, state: Mapping[str, Any]) -> None:
        self.losses = deque(state.get("losses", ()), maxlen=self.config.window)
        self.collapsed = list(state.get("collapsed", ()))
        self.idle = [list(row) for row in state.get("idle", ())]
        self.acted = list(state.get("acted", ()))

    def _loss(self, nll: float, grad_norm: float) -> tuple[str | None, str]:
        """(the alarm that a loss raises, what to tell)."""
        if not (math.isfinite(nll) and math.isfinite(grad_norm)):
            return "not_finite", f"loss {nll}, gradient norm {grad_norm}"
        if self.config.loss_spike == "off" or len(self.losses) < FEWEST:
            return None, ""
        usual = statistics.median(self.losses)
        spread = DEVIATION * statistics.median(abs(loss - usual) for loss in self.losses)
        if nll - usual <= max(self.config.spike * spread, 0.01 * abs(usual)):  # 0.01: losses that hardly vary
            return None, ""
        return "loss_spike", f"loss {nll:.4f}, where the last {len(self.losses)} had {usual:.4f} +- {spread:.4f}"

    def _collapses(self, step: int, loads: Sequence[Sequence[float]]) -> list[Alert]:
        """Told once, when it has lasted."""
        policy, wanted = self.config.router_collapse, self.config.collapse_steps
        if policy == "off":
            return []
        counts = self.collapsed or [0] * len(loads)
        self.collapsed = [count + 1 if self._is_collapsed(load) else 0 for count, load in zip(counts, loads)]
        layers = [layer for layer, count in enumerate(self.collapsed) if count == wanted]
        told = f"{_named('layer', layers)} with experts: the same few get nearly everything, {wanted} steps long"
        return [Alert("router_collapse", policy, step - wanted + 1, told)] if layers else []

    def _is_collapsed(self, load: Sequence[float]) -> bool:
        beyond = len(load) - self.top_k
        in_use = math.exp(-sum(share * math.log(share) for share in load if share > 0))
        return beyond > 0 and (in_use - self.top_k) / beyond < self.config.collapse

    def _deaths(self, step: int, loads: Sequence[Sequence[float]]) -> list[Alert]:
        """Told once of each expert, when it has lasted."""
        policy, wanted = self.config.dead_experts, self.config.dead_steps
        if policy == "off":
            return []
        counts = self.idle or [[0] * len(load) for load in loads]
        self.idle = [
            [count + 1 if share * len(load) < self.config.dead else 0 for count, share in zip(row, load)]
            for row, load in zip(counts, loads)
        ]
        dead = {layer: [e for e, count in enumerate(row) if count == wanted] for layer, row in enumerate(self.idle)}
        told = "; ".join(f"layer {layer}: {_named('expert', own)}" for layer, own in dead.items() if own)
        told = f"{told}: nearly no token in {wanted} steps (counting layers that have experts)"
        return [Alert("dead_experts", policy, step - wanted + 1, told)] if any(dead.values()) else []


def _named(what: str, numbers: Sequence[int]) -> str:
    return f"{what}{'' if len(numbers) == 1 else 's'} {', '.join(map(str, numbers))}"
