"""The `scorer` command, from oracle grades to scores and decisions."""

from __future__ import annotations

from gristmill.base import cli
from gristmill.scorer.commands import evaluate, heads, oracle, scores


def main() -> None:
    commands = {
        "label": oracle.label,
        "audit-oracle": oracle.audit_oracle,
        "train-heads": heads.train_heads,
        "calibrate": heads.calibrate,
        "score": scores.score,
        "decide": scores.decide,
        "eval": evaluate.evaluate,
        "inspect": heads.inspect,
        "selftest": heads.selftest,
        "push": heads.push,
        "pull": heads.pull,
    }
    typed = {name: cli.typed(function, f"scorer {name}") for name, function in commands.items()}
    cli.main("scorer", typed, "Oracle grades distilled into a probe and a judge on a frozen backbone.")
