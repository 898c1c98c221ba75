"""The README.md of a heads/ folder, written from its numbers alone: nothing in it is typed by hand.

summary() is the same in short, for the terminal.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from gristmill.scorer.backbone.staged import BackboneIdentity
from gristmill.scorer.config import TrainConfig
from gristmill.scorer.heads.calibration import ALL
from gristmill.scorer.markdown import name, number, share, table
from gristmill.scorer.rubric import Rubric

REPORTED = ("audit", "select")  # the split that nothing was chosen on comes first


def card(
    backbone: BackboneIdentity,
    config: TrainConfig,
    rubric: Rubric,
    metrics: Mapping[str, Any],
    calibration: Mapping[str, Any] | None,
) -> str:
    """Markdown: what it grades, on what, how well against the baselines, and what its thresholds promise."""
    training = metrics.get("training", {})
    probe, judge = config.chosen_taps
    revision = f" at revision `{backbone.revision}`" if backbone.revision else ""
    lines = [
        f"# Quality heads: rubric `{rubric.name}`",
        "",
        f"Backbone `{name(backbone.name)}`{revision} ({backbone.architecture}, {backbone.layers} layers, width "
        f"{backbone.width}), fingerprint `{backbone.fingerprint[:16]}`. Probe after block {probe}, judge after block "
        f"{judge}, both before the final norm; up to {config.windows} windows of {config.window_tokens} tokens from "
        f"beginning to end; {config.dtype} backbone, float32 heads. Rubric sha `{rubric.sha[:16]}`.",
        "",
        f"Judge: {training.get('reason', 'unknown')}.",
        "",
        *table(
            ["dimension", "scale", "better", "weight", "question"],
            [[d.name, f"{d.min}-{d.max}", d.direction, f"{d.weight:g}", name(d.question)] for d in rubric.dimensions],
        ),
    ]
    for split, report in _splits(metrics):
        lines += ["", f"## Split `{split}`: {report['documents']} documents", "", *_verdict(split, report), ""]
        lines += _predictors(report)
        head = report["verdict"]["head"]
        lines += ["", f"Per dimension, {head}:", "", *_dimensions(report, head, rubric.names)]
        lines += ["", f"Where, {head} (keeping as large a share as the oracle of each source):", ""]
        lines += _slices(report, head)
        lines += _reliability(report, head)
        lines += _warnings(report, head)
    lines += _sweep(metrics.get("sweep"))
    lines += _exits(metrics.get("exits"))
    lines += ["", "## Thresholds", "", *_thresholds(calibration), ""]
    lines += [
        "Numbers describe the label sample as it is mixed; intervals are 95%, by bootstrap over hosts or documents. "
        "The grades are one oracle's: nothing here says what that oracle misses, nor what text does for training.",
    ]
    return "\n".join(lines) + "\n"


def summary(metrics: Mapping[str, Any]) -> str:
    """What train-heads prints: the heads beside the baselines, whether they beat them, and what exits would spare."""
    split, report = next(iter(_splits(metrics)), ("", None))
    if report is None:
        return "No document of split select or audit has a grade: nothing is measured."
    head = report["verdict"]["head"]
    dimensions = [key for key in report["predictors"][head] if key != "quality"]
    lines = [f"Split {split}, {report['documents']} documents:", "", *_predictors(report), ""]
    lines += [f"Per dimension, {head}:", "", *_dimensions(report, head, dimensions), ""]
    lines += [*_verdict(split, report), *_exits(metrics.get("exits"), heading=False)]
    return "\n".join(lines)


def _splits(metrics: Mapping[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    found = metrics.get("splits", {})
    ordered = [*(name for name in REPORTED if name in found), *(name for name in found if name not in REPORTED)]
    return [(split, found[split]) for split in ordered]


def _verdict(split: str, report: Mapping[str, Any]) -> list[str]:
    head, against = report["verdict"]["head"], report["verdict"]["against"]
    lines = [f"On split {split} the {head} orders documents by quality with a Spearman of "
             f"{_value(report['predictors'][head]['quality'], 'spearman')}."]  # fmt: skip
    for other, found in against.items():
        interval, difference = found["difference_ci95"], found["difference"]
        if difference is None:
            continue
        if interval is None or interval[0] <= 0 <= interval[1]:
            word = "does not clearly differ from"
        else:
            word = "beats" if difference > 0 else "LOSES TO"
        lines.append(f"It {word} {name(other)}: {difference:+.2f}{_interval(interval)}.")
    return [" ".join(lines)]


def _predictors(report: Mapping[str, Any]) -> list[str]:
    rows = []
    for predictor, targets in report["predictors"].items():
        quality, decision = targets["quality"], report["decision"].get(predictor, {})
        within = quality.get("within_source", {})
        rows.append(
            [
                name(predictor), _value(quality, "spearman"), _value(quality, "mae", 3), number(quality.get("bias"), 3),
                f"{_value(within, 'mean')} / {number(within.get('worst'))}", _value(decision, "auroc"),
                _value(decision, "auprc"), share(decision.get("precision")), number(decision.get("lift")),
            ]
        )  # fmt: skip
    header = [
        "predictor", "quality Spearman", "MAE", "bias", "within source, mean / worst", "keep AUROC", "keep AUPRC",
        "precision", "lift",
    ]  # fmt: skip
    return table(header, rows)


def _dimensions(report: Mapping[str, Any], head: str, names: Sequence[str]) -> list[str]:
    ceilings = report.get("ceiling", {})
    rows = []
    for dimension in names:
        values = report["predictors"][head].get(dimension, {"n": 0})
        ceiling = ceilings.get(dimension, {}).get("ceiling")
        reached = values["spearman"] / ceiling if ceiling and values.get("spearman") is not None else None
        rows.append(
            [
                dimension, str(values["n"]), _value(values, "spearman"), number(values.get("pearson")),
                _value(values, "qwk"), number(values.get("mae")), number(values.get("rmse")),
                number(values.get("bias")), share(reached),
            ]
        )  # fmt: skip
    header = ["dimension", "n", "Spearman", "Pearson", "QWK", "MAE", "RMSE", "bias", "of the noise ceiling"]
    if not ceilings:
        header, rows = header[:-1], [row[:-1] for row in rows]
    return table(header, rows)


def _slices(report: Mapping[str, Any], head: str) -> list[str]:
    kept, rows = report["decision"].get(head, {}).get("by", {}), []
    for kind, values in report["slices"].items():
        for value, predictors in values.items():
            own, decided = predictors.get(head, {"n": 0}), kept.get(kind, {}).get(value, {})
            rows.append(
                [
                    kind, name(value) or "(none)", str(own["n"]), _value(own, "spearman"), number(own.get("mae"), 3),
                    number(own.get("bias"), 3), share(decided.get("keep_rate")), share(decided.get("kept_tokens")),
                ]
            )  # fmt: skip
    header = ["by", "", "n", "Spearman", "MAE", "bias", "documents kept", "tokens kept"]
    return table(header, rows)


def _reliability(report: Mapping[str, Any], head: str) -> list[str]:
    found = report["reliability"].get(head)
    if not found:
        return []
    lines = ["", f"Calibration error of the predicted quality: {_value(found['quality'], 'ece', 3)}."]
    rows = [
        [dimension, level, _value(one, "brier", 3), number(one["base"], 3), _value(one, "ece", 3)]
        for dimension, levels in (found.get("levels") or {}).items()
        for level, one in (levels or {}).items()
    ]
    header = ["dimension", "level", "Brier score of P(grade >= level)", "of its frequency alone", "ECE"]
    return [*lines, "", *table(header, rows)] if rows else lines


def _warnings(report: Mapping[str, Any], head: str) -> list[str]:
    lines = []
    partial = report["bias"]["length"][head]["quality"]
    if partial["partial"] is not None:
        lines.append(
            f"Length: Spearman of the score with log length, the oracle's grade given, is {_value(partial, 'partial')}."
        )
    for target, values in report["predictors"][head].items():
        if flat := values.get("within_source", {}).get("flat"):
            sources = ", ".join(name(source) for source in flat)
            lines.append(f"Hardly told apart on {target} (spread under a tenth of the scale): {sources}.")
    for grader, pairs in report["bias"]["redundant"].items():
        lines += [f"Halo, {grader}: {pair.replace(' ', ' and ')} rank documents alike." for pair in pairs]
    return [line for text in lines for line in ("", text)]


def _sweep(sweep: Mapping[str, Any] | None) -> list[str]:
    if sweep is None:
        return []
    rows = [
        [str(row["tap"]), number(row["spearman"], 3), number(row["auc"], 3), share(row.get("exit_rate"), 1),
         share(row.get("saved"), 1), share(row.get("saved_full"), 1)]
        for row in sweep["taps"]
    ]  # fmt: skip
    header = ["block", "Spearman", "AUC of good", "exits", "saved", "saved of the full backbone"]
    return [
        "",
        "## Where to read",
        "",
        f"Mean pools and ridge, out of fold, {sweep['documents']} documents; exits that lose {sweep['false_drop']:.0%} "
        f"of the good documents in expectation. Chosen: probe {sweep['probe']}, judge {sweep['judge']}.",
        "",
        *table(header, rows),
    ]


def _exits(exits: Mapping[str, Any] | None, heading: bool = True) -> list[str]:
    split = next((split for split in REPORTED if split in (exits or {}).get("splits", {})), None)
    if exits is None or split is None:
        return []
    if exits["probe"] == exits["judge"]:
        full = 1 - exits["probe"] / exits["layers"]
        text = f"Without a judge nothing exits early; {full:.0%} of the full backbone is never run."
        return ["", "## Early exits", "", text] if heading else [text]
    rows = [
        [f"{float(budget):.0%}", share(one["exit_rate"], 1), share(one["saved"], 1), share(one["saved_full"], 1)]
        for budget, one in exits["splits"][split]["expected"].items()
    ]
    header = ["good documents lost, expected", "exits", "compute saved", "of the full backbone"]
    text = (
        f"Exits after block {exits['probe']} instead of {exits['judge']}, as ranks within sources, on split {split} "
        f"({exits['splits'][split]['n_good']} good documents):"
    )
    return [*(["", "## Early exits"] if heading else []), "", text, "", *table(header, rows)]


def curve_table(exits: Mapping[str, Any]) -> list[str]:
    """The curve of evaluate_exits() at every fifth tau, for each split, as lines of Markdown."""
    lines: list[str] = []
    for split, curve in exits["splits"].items():
        keys = ("exit_rate", "false_drop", "false_drop_upper", "false_drop_judge", "saved", "saved_full")
        columns = [curve[key] or [None] * len(curve["tau"]) for key in keys]
        rows = [
            [number(tau, 3), *(share(value, 1) for value in values)]
            for tau, *values in list(zip(curve["tau"], *columns))[::5]
        ]
        header = [
            "tau (rank)", "exits", "false drops, oracle", "at most (95%)", "false drops, judge", "saved",
            "of the full backbone",
        ]  # fmt: skip
        lines += [f"Split {split}, probe {exits['probe']}, judge {exits['judge']}:", "", *table(header, rows), ""]
    return lines[:-1]


def _thresholds(calibration: Mapping[str, Any] | None) -> list[str]:
    if calibration is None:
        return ["Not calibrated: nothing exits early and no keep threshold is proposed."]
    return [promise(calibration), "", *threshold_table(calibration), *_weights(calibration)]


def threshold_table(calibration: Mapping[str, Any]) -> list[str]:
    """Thresholds by source, with the false drops seen and their upper bounds, as lines of Markdown."""
    rows = []
    for source, group in calibration["groups"].items():
        drops = [_drops(group[who]) for who in ("oracle", "judge")]
        certified = "all" if source == ALL else "pooled" if group["drop_parent"] else "own labels"
        if not group["graded"]:
            certified = "no labels, no exits"
        elif calibration["mode"] != "certified":
            certified = "UNCERTIFIED"
        low, high = group["keep_ci95"]
        rows.append(
            [
                name(source) or "(none)", str(group["n"]), number(group["tau_drop"], 3), certified,
                share(group["exit_rate"], 1), *drops, number(group["tau_keep"], 3), share(group["target"]),
                f"{group['keep_rate']:.1%} ({low:.1%} to {high:.1%})" + (", of all" if group["parent"] else ""),
            ]
        )  # fmt: skip
    header = [
        "source", "n", "tau_drop (probe)", "by", "exits", "false drops, oracle", "false drops, judge",
        "tau_keep (quality)", "target", "keeps",
    ]  # fmt: skip
    return table(header, rows)


def promise(calibration: Mapping[str, Any]) -> str:
    """What tau_drop is sure not to lose, in a paragraph."""
    if calibration["mode"] != "certified" or calibration["fd_upper"] is None:
        partly = "" if calibration["whole"] else " The probe read only the part of them that the oracle was shown."
        return (
            f"tau_drop is UNCERTIFIED, expected mode: {calibration['max_false_drop']:.1%} of good documents lost in "
            f"expectation only ({calibration['n_good']} good documents).{partly}"
        )
    together = (
        f"all {calibration['certificates']} bounds hold at once (Bonferroni)"
        if calibration["bounds"] == "bonferroni"
        else "each bound holds for itself, not all at once"
    )
    pool = calibration["pool"]
    alone = calibration["certificates"] - bool(pool)
    over = [f"of {alone} {'source' if alone == 1 else 'sources'}, each by its own labels"] if alone else []
    if pool and pool["sources"]:
        sources = ", ".join(name(source) or "(none)" for source in pool["sources"])
        over.append(f"of {sources} {'together, ' if len(pool['sources']) > 1 else ''}by the labels of the pool")
    mixed = " It is no promise for any one source of the pool." if pool and len(pool["sources"]) > 1 else ""
    return (
        f"tau_drop is certified: at most {calibration['max_false_drop']:.1%} of good documents exit early, with "
        f"{calibration['confidence']:.0%} confidence, {'; and '.join(over)}; {together}. Greatest upper bound found "
        f"{calibration['fd_upper']:.2%}, fewest good documents of a bound {calibration['n_good']}.{mixed} The bounds "
        f"are over the documents that the labels were drawn from, read as they are scored: labels were drawn again, "
        f"evenly by their weights. Good is what the oracle would keep; the judge's column counts what the judge would "
        f"keep. tau_keep counts {calibration['keep_by']}."
    )


def _weights(calibration: Mapping[str, Any]) -> list[str]:
    weights = calibration.get("weights")
    if not weights:
        return []
    told = ", ".join(f"{dimension} {weight:.2f}" for dimension, weight in weights.items())
    return ["", f"Weights of the quality, fitted to the oracle's overall grade: {told}."]


def _drops(found: Mapping[str, Any] | None) -> str:
    if not found or not found["n"]:
        return "-"
    return f"{found['errors']} of {found['n']} (at most {found['upper']:.1%})"


def _value(values: Mapping[str, Any], key: str, digits: int = 2) -> str:
    return number(values.get(key), digits) + _interval(values.get(f"{key}_ci95"), digits)


def _interval(interval: Sequence[float] | None, digits: int = 2) -> str:
    return f" ({interval[0]:.{digits}f} to {interval[1]:.{digits}f})" if interval else ""
