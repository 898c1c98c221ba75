// The panel about training: how runs went, what they cost, alarms, norms, routers, and what the models wrote meanwhile.

function panelTraining(data) {
  const runs = data.runs.map((run, index) => ({ ...run, color: index % 8 }));
  const stepped = runs.filter((run) => run.steps), validated = runs.filter((run) => run.validation);
  const bits = validated.some((run) => run.validation.bits_per_byte.some(known)) ? "bits_per_byte" : "loss";
  const sources = [...new Set(validated.flatMap((run) => Object.keys(run.validation.by_source)))];
  return [
    runs.filter((run) => run.alarms).map(alarmTable),
    table("Training runs", [
      { head: "run", class: "name", cell: (run) => [s("svg", { width: 11, height: 11, "aria-hidden": "true" }, s("rect", { class: `fill-${run.color}`, width: 11, height: 11, rx: 2 })), " ", run.name] },
      { head: "state", cell: (run) => h("span", { class: `state ${run.card.status || ""}` }, run.card.status || "–") },
      { head: "parameters", number: true, cell: (run) => short(run.card.parameters) },
      { head: "active", number: true, cell: (run) => short(run.card.active_parameters) },
      { head: "steps", number: true, cell: (run) => count(run.steps?.last_step) + (known(run.card.steps) ? ` of ${count(run.card.steps)}` : "") },
      { head: "tokens", number: true, cell: (run) => count(run.steps?.last_tokens ?? run.card.tokens) },
      { head: "tokens/s", number: true, cell: (run) => count(run.steps?.tokens_per_second) },
      { head: "time", number: true, cell: (run) => duration(run.card.seconds) },
      ...costColumns(runs),
      { head: "train loss", number: true, cell: (run) => decimal(run.steps?.smooth.at(-1)) },
      { head: "own validation, bits/byte", number: true, cell: (run) => decimal(run.validation?.bits_per_byte.at(-1)) },
      { head: "evaluation, bits/byte", number: true, cell: (run) => decimal(run.evaluation?.bits_per_byte) },
    ], runs),
    h("div", { class: "columns" },
      stepped.length > 0 && figure("Training loss; the strong line is an exponential mean, the faint one each logged step.",
        legend(stepped.map((run) => [run.color, run.name])),
        lineChart({ series: stepped.map((run) => ({ name: run.name, color: run.color, x: run.steps.tokens, y: run.steps.smooth, faint: run.steps.loss })), xLabel: "tokens seen", yLabel: "loss, nats per token" })),
      validated.length > 0 && figure("Validation during training, on each run's own held-out split. These are other documents for each run: the lines show progress, not which run is better.",
        legend(validated.map((run) => [run.color, run.name])),
        lineChart({ series: validated.map((run) => ({ name: run.name, color: run.color, x: run.validation.tokens, y: run.validation[bits], dots: true })), xLabel: "tokens seen", yLabel: bits === "loss" ? "loss, nats per token" : "bits per byte" }))),
    sources.length > 0 && figure("Last validation by source, bits per byte (fewer is better), each run on its own documents. “Did filtering help?” compares the runs on the same ones.",
      table("Last validation by source", [
        { head: "source", class: "name", cell: (source) => source },
        ...validated.flatMap((run) => [
          { head: run.name, number: true, cell: (source) => decimal(run.validation.by_source[source]?.bits_per_byte) },
          { head: "documents", number: true, cell: (source) => count(run.validation.by_source[source]?.documents) },
        ]),
      ], sources, { class: "slim" })),
    runs.map((run) => [groupFigure(run, "norms", "Norm of the gradient before clipping", "norm"), groupFigure(run, "updates", "What an observed step added to the weights, over the weights (norms)", "relative update")]),
    runs.some((run) => run.router) && [
      h("h3", {}, "Routers"),
      heatLegend(),
      h("div", { class: "columns" }, runs.filter((run) => run.router).map((run) => figure(
        `Run ${run.name}, step ${count(run.router.step)}: the busiest expert has ${decimal(run.router.most, 3)} × its even share; ${run.router.starved ? `${count(run.router.starved)} ${run.router.starved === 1 ? "starves" : "starve"} (under a tenth of it)` : "none starves"}.${routerNotes(run.router)}`,
        heatMap({ load: run.router.load, names: run.router.layers })))),
      entropyFigure(runs.filter((run) => run.router && run.router.entropy.mean.some(known))),
      runs.filter((run) => run.router?.logits).map(logitFigure),
    ],
    runs.filter((run) => run.samples.length).map(samplesWritten),
  ];
}

function routerNotes(router) {
  const dropped = known(router.dropped) && router.dropped > 0 ? ` ${percent(router.dropped)} of what was routed was dropped.` : "";
  const bias = known(router.bias_range) ? ` Balancing biases span up to ${decimal(router.bias_range, 3)}.` : "";
  return dropped + bias;
}

function entropyFigure(runs) {
  if (!runs.length) return null;
  const values = runs.flatMap((run) => run.router.entropy.low).filter(known);
  const low = Math.min(...values, 0.95);
  return figure("Entropy of a token’s expert probabilities, divided by that of even ones: 1 is undecided, 0 certain. Strong: mean of the layers; dashed: the lowest layer.",
    legend(runs.map((run) => [run.color, run.name])),
    lineChart({ width: 880, height: 230, yRange: [Math.max(low - 0.02, 0), 1], xLabel: "tokens seen", yLabel: "normalised entropy",
      series: runs.flatMap((run) => [
        { name: `${run.name}, mean`, color: run.color, x: run.router.entropy.tokens, y: run.router.entropy.mean },
        { name: `${run.name}, lowest layer`, color: run.color, x: run.router.entropy.tokens, y: run.router.entropy.low, dashed: true },
      ]) }));
}

function costColumns(runs) {
  const columns = [
    ["mfu", { head: "of peak FLOP/s", number: true, cell: (run) => percent(run.cost.mfu) }],
    ["memory_gb", { head: "memory at most", number: true, cell: (run) => (known(run.cost.memory_gb) ? `${decimal(run.cost.memory_gb, 3)} GB` : "–") }],
    ["cost", { head: "cost so far", number: true, cell: (run) => fixed(run.cost.cost, 2) }],
  ];
  return columns.filter(([key]) => runs.some((run) => known(run.cost[key]))).map(([, column]) => column);
}

function alarmTable(run) {
  const more = run.alarms.count - run.alarms.shown.length;
  return figure(`Alarms of run ${run.name}, the newest first${more > 0 ? `; ${count(more)} earlier ones are in events.jsonl` : ""}.`,
    table(`Alarms of ${run.name}`, [
      { head: "step", number: true, cell: (alarm) => count(alarm.step) },
      { head: "alarm", cell: (alarm) => h("b", {}, words(alarm.alarm)) },
      { head: "what was done", cell: (alarm) => words(alarm.policy) },
      { head: "what was seen", class: "name", cell: (alarm) => alarm.told },
    ], run.alarms.shown));
}

function groupFigure(run, key, title, yLabel) {
  if (!run[key]) return null;
  const groups = Object.entries(run[key].groups).map(([name, y], index) => ({ name, y, x: run[key].tokens, color: index % 8, dots: y.length < 60 }));
  return figure(`${title}, by group of parameters; run ${run.name}.`, legend(groups.map((one) => [one.color, one.name])),
    lineChart({ series: groups, width: 880, height: 230, xLabel: "tokens seen", yLabel }));
}

function logitFigure(run) {
  const { low, high, share, layers, step } = run.router.logits;
  return figure(`Logits of run ${run.name}’s routers at step ${count(step)}, by layer. A router that grows sure of itself spreads; what lies beyond the axis is in the outermost bars.`,
    h("div", { class: "multiples narrow" }, share.map((bins, layer) => {
      const wide = (high - low) / bins.length;
      return h("div", {}, h("h4", {}, `layer ${layers[layer]}`), histogramChart({
        bars: bins.map((value, index) => ({ from: low + index * wide, to: low + (index + 1) * wide, value: 100 * value, title: `${decimal(low + index * wide, 3)} to ${decimal(low + (index + 1) * wide, 3)}: ${percent(value)}` })),
        low, high, width: 212, height: 150, xLabel: "logit", yLabel: "% of logits" }));
    })));
}

function samplesWritten(run) {
  return [
    h("h3", {}, `What ${run.name} wrote while it trained`),
    run.samples.map((one) => h("article", { class: "sample" },
      h("header", {}, one.prompt ? h("b", {}, `“${one.prompt}”`) : h("b", {}, "no prompt")),
      one.times.map((time) => [
        h("p", { class: "note" }, `after step ${count(time.step)}`),
        h("div", { class: "text", dir: "auto", tabindex: "0" }, time.text, time.cut && h("span", { class: "note" }, " …")),
      ]))),
  ];
}
