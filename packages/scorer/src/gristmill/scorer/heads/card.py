"""The README.md of a heads/ folder, written from its numbers alone: nothing in it is typed by hand."""

from __future__ import annotations

from typing import Any

from gristmill.scorer.backbone.staged import BackboneIdentity
from gristmill.scorer.config import TrainConfig
from gristmill.scorer.rubric import Rubric


def card(
    backbone: BackboneIdentity,
    config: TrainConfig,
    rubric: Rubric,
    metrics: dict[str, Any],
    calibration: dict[str, Any] | None,
) -> str:
    """Markdown: what it grades, on what, how well against the baselines, and what its thresholds promise."""
    training = metrics.get("training", {})
    lines = [
        f"# Quality heads: rubric `{rubric.name}`",
        "",
        f"Backbone `{backbone.name}` ({backbone.architecture}, {backbone.layers} layers, width {backbone.width}), "
        f"fingerprint `{backbone.fingerprint[:16]}`. Probe after block {config.taps[0]}, judge after block "
        f"{config.taps[1]}, both before the final norm; up to {config.windows} windows of "
        f"{config.window_tokens} tokens; {config.dtype} backbone, float32 heads.",
        "",
        f"Judge: {training.get('reason', 'unknown')}.",
        "",
        "| dimension | scale | better | weight | question |",
        "|---|---|---|---|---|",
        *(f"| {d.name} | {d.min}-{d.max} | {d.direction} | {d.weight:g} | {d.question} |" for d in rubric.dimensions),
    ]
    for split, report in metrics.get("splits", {}).items():
        lines += ["", f"## Split `{split}`: {report['documents']} documents", ""]
        lines += ["| predictor | quality Spearman (95% CI) | quality MAE | within-source Spearman, mean / worst |"]
        lines += ["|---|---|---|---|"]
        lines += [_row(name, values.get("quality", {})) for name, values in report["predictors"].items()]
        heads = [name for name in ("judge", "probe") if name in report["predictors"]]
        if heads:
            lines += ["", f"Per dimension, {heads[0]}:", "", "| dimension | n | Spearman (95% CI) | MAE | QWK |"]
            lines += ["|---|---|---|---|---|"]
            for name in rubric.names:
                values = report["predictors"][heads[0]][name]
                rho = _interval(values)
                lines += [
                    f"| {name} | {values['n']} | {rho} | {_number(values.get('mae'))} | {_number(values.get('qwk'))} |"
                ]
    lines += ["", "## Thresholds", ""]
    lines += _thresholds(calibration)
    lines += [
        "",
        "The bound on false drops holds for the mix of sources in the label sample, against this oracle's grades; it "
        "says nothing of what an oracle misses. Beating the source mean separates a quality score from a topic label.",
    ]
    return "\n".join(lines) + "\n"


def _thresholds(calibration: dict[str, Any] | None) -> list[str]:
    if calibration is None:
        return ["Not calibrated: nothing exits early and no keep threshold is proposed."]
    mode, bound = calibration["mode"], calibration["fd_upper"]
    promise = (
        f"certified: at most {calibration['max_false_drop']:.1%} of good documents exit early, with "
        f"{calibration['confidence']:.0%} confidence (upper bound found {bound:.2%}, {calibration['errors']} of "
        f"{calibration['n_good']} good documents)"
        if mode == "certified" and bound is not None
        else f"UNCERTIFIED, expected mode: {calibration['max_false_drop']:.1%} of good documents lost in expectation "
        f"only ({calibration['n_good']} good documents)"
    )
    rows = [
        f"| {name} | {group['n']} | {_number(group['tau_drop'])} | {group['exit_rate']:.1%} "
        f"| {_number(group['tau_keep'])} | {group['target']:.0%} | {group['keep_rate']:.1%} |"
        for name, group in calibration["groups"].items()
    ]
    header = [
        "| source | n | tau_drop (probe) | exits | tau_keep (quality) | target | keeps |",
        "|---|---|---|---|---|---|---|",
    ]
    return [f"tau_drop is {promise}.", "", *header, *rows]


def _row(name: str, values: dict[str, Any]) -> str:
    within = values.get("within_source", {})
    return (
        f"| {name} | {_interval(values)} | {_number(values.get('mae'))} | "
        f"{_number(within.get('mean'))} / {_number(within.get('worst'))} |"
    )


def _interval(values: dict[str, Any]) -> str:
    interval = values.get("spearman_ci95")
    return _number(values.get("spearman")) + (f" ({interval[0]:.2f} to {interval[1]:.2f})" if interval else "")


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"
