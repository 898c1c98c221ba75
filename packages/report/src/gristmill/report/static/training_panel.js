// The panel about training: where runs stand, their curves, routers, alarms, and what the models wrote meanwhile.

function panelTraining(data) {
  return trainingParts(data, "", data.runs.map((run) => run.name));
}

// prefix: of the questions, "" on the page of a run and "folder_" on that over several. While the same runs are shown
// their places stay, and only what they hold is drawn again: nobody's zoom, slider or crosshair is taken away.
const trainingPlaces = new Map();

function trainingParts(data, prefix, names) {
  const kept = trainingPlaces.get(prefix);
  if (kept && kept.names === names.join("\n")) {
    kept.show(data);
    return kept.parts;
  }
  const place = h("div", { class: "standing" }), texts = h("div", { class: "written" }), shown = new Map();
  const put = (where, what, draw) => {
    if (JSON.stringify(what) === shown.get(where)) return;
    shown.set(where, JSON.stringify(what));
    steady(where, () => where.replaceChildren(...[draw(what)].flat(Infinity).filter(Boolean)));
  };
  const show = (told) => {
    put(place, told.runs.map(({ samples, router, ...rest }) => rest), standing);
    put(texts, told.runs.map(({ name, samples }) => ({ name, samples })), written);
  };
  show(data);
  followers.set(place, async () => { const told = await ask(`${prefix}trainings`); if (told && here(told)) show(told); });
  const parts = [place, curveParts(prefix, names), routerParts(prefix), texts];
  trainingPlaces.set(prefix, { names: names.join("\n"), show, parts });
  return parts;
}

function standing(runs) {
  const colors = colorsOf(runs.map((run) => run.name)), color = (run) => colors(run.name);
  const validated = runs.filter((run) => run.validation), sources = [...new Set(validated.flatMap((run) => Object.keys(run.validation.by_source)))];
  return [
    runs.filter((run) => run.alarms).map(alarmTable),
    table("Training runs", [
      { head: "run", class: "name", cell: (run) => [s("svg", { width: 11, height: 11, "aria-hidden": "true" }, s("rect", { class: `fill-${color(run)}`, width: 11, height: 11, rx: 2 })), " ", run.name], value: (run) => run.name },
      { head: "state", cell: (run) => h("span", { class: `state ${run.card.status || ""}` }, run.card.status || "–"), value: (run) => run.card.status },
      { head: "parameters", number: true, cell: (run) => short(run.card.parameters), value: (run) => run.card.parameters },
      { head: "active", number: true, cell: (run) => short(run.card.active_parameters), value: (run) => run.card.active_parameters },
      { head: "steps", number: true, cell: (run) => count(run.steps?.last_step) + (known(run.card.steps) ? ` of ${count(run.card.steps)}` : ""), value: (run) => run.steps?.last_step },
      { head: "tokens", number: true, cell: (run) => count(run.steps?.last_tokens ?? run.card.tokens), value: (run) => run.steps?.last_tokens ?? run.card.tokens },
      { head: "tokens/s, median", number: true, cell: (run) => count(run.steps?.tokens_per_second), value: (run) => run.steps?.tokens_per_second },
      { head: "time", number: true, cell: (run) => duration(run.card.seconds), value: (run) => run.card.seconds },
      ...costColumns(runs),
      { head: "train loss, running mean", number: true, cell: (run) => decimal(run.steps?.loss), value: (run) => run.steps?.loss },
      { head: "own validation, bits/byte", number: true, cell: (run) => decimal(run.validation?.bits_per_byte), value: (run) => run.validation?.bits_per_byte },
      { head: "evaluation, bits/byte", number: true, cell: (run) => decimal(run.evaluation?.bits_per_byte), value: (run) => run.evaluation?.bits_per_byte },
    ], runs),
    !runs.some((run) => known(run.cost.cost)) && h("p", { class: "note" }, "No cost so far: it is told where a run is given --price-per-hour."),
    sources.length > 0 && figure("Last validation by source, bits per byte (fewer is better), each run on its own documents. “Did filtering help?” compares the runs on the same ones.",
      table("Last validation by source", [
        { head: "source", class: "name", cell: (source) => source },
        ...validated.flatMap((run) => [
          { head: run.name, number: true, cell: (source) => decimal(run.validation.by_source[source]?.bits_per_byte), value: (source) => run.validation.by_source[source]?.bits_per_byte },
          { head: "documents", number: true, cell: (source) => count(run.validation.by_source[source]?.documents), value: (source) => run.validation.by_source[source]?.documents },
        ]),
      ], sources, { class: "slim" })),
  ];
}

function costColumns(runs) {
  const columns = [
    ["mfu", { head: "of peak FLOP/s", number: true, cell: (run) => percent(run.cost.mfu), value: (run) => run.cost.mfu }],
    ["memory_gb", { head: "memory at most", number: true, cell: (run) => (known(run.cost.memory_gb) ? `${decimal(run.cost.memory_gb, 3)} GB` : "–"), value: (run) => run.cost.memory_gb }],
    ["cost", { head: "cost so far, in the currency of --price-per-hour", number: true, cell: (run) => decimal(run.cost.cost, 3), value: (run) => run.cost.cost }],
  ];
  return columns.filter(([key]) => runs.some((run) => known(run.cost[key]))).map(([, column]) => column);
}

function alarmTable(run) {
  const more = run.alarms.count - run.alarms.shown.length;
  const layered = run.alarms.shown.some((alarm) => ["router_collapse", "dead_experts"].includes(alarm.alarm));
  return figure(`Alarms of run ${run.name}, the newest first${more > 0 ? `; ${count(more)} earlier ones are in events.jsonl` : ""}.${layered ? " Layers named there are counted from 0 among those that have experts." : ""}`,
    table(`Alarms of ${run.name}`, [
      { head: "step", number: true, cell: (alarm) => count(alarm.step), value: (alarm) => alarm.step },
      { head: "alarm", cell: (alarm) => h("b", {}, words(alarm.alarm)), value: (alarm) => alarm.alarm },
      { head: "what was done", cell: (alarm) => words(alarm.policy) },
      { head: "what was seen", class: "name", cell: (alarm) => alarm.told },
    ], run.alarms.shown, { at_once: 10 }));
}

function written(runs) {
  return runs.filter((run) => run.samples.length).map((run) => [
    h("h3", {}, `What ${run.name} wrote while it trained`),
    run.samples.map((one) => h("article", { class: "sample" },
      h("header", {}, one.prompt ? h("b", {}, `“${one.prompt}”`) : h("b", {}, "no prompt")),
      one.times.map((time) => [
        h("p", { class: "note" }, `after step ${count(time.step)}`),
        h("div", { class: "text", dir: "auto", tabindex: "0" }, time.text, time.cut && h("span", { class: "note" }, " …")),
      ]))),
  ]);
}

// Curves. What is chosen outlives a drawing of the section.
const curveViews = new Map();
const SMALLER = { loss: "loss, nats per token", bits_per_byte: "bits per byte" };

function curveParts(prefix, names) {
  if (!curveViews.has(prefix)) curveViews.set(prefix, { axis: "tokens", from: null, to: null, log: false, all: false, hidden: new Set(), asked: null, run: null });
  const view = curveViews.get(prefix), served = isServed();
  const controls = h("div", { class: "choices" }), charts = h("div", {}), norms = h("div", {}), routers = h("div", {}), told = {}, drawnAs = {};
  const few = names.length <= 12 || !served; // more are asked for by name
  view.asked = few ? null : (view.asked || names.slice(0, 6)).filter((name) => names.includes(name));
  const asks = (group) => ({ group: group === "main" ? null : group, axis: view.axis === "tokens" ? null : view.axis, from: view.from, to: view.to,
    runs: few ? null : view.asked.join("\n") });
  const together = crosshair(served && ((from, to) => { Object.assign(view, { from, to }); change(); }));
  const color = colorsOf(names);

  async function group(key, place, draw) {
    const answer = await ask(`${prefix}training_curves`, asks(key), `${prefix}curves-${key}`);
    if (!answer || together.dragging) return;
    if (JSON.stringify(answer) === drawnAs[key]) return;
    drawnAs[key] = JSON.stringify(answer);
    told[key] = answer;
    show(key, place, draw);
  }
  function show(key, place, draw) {
    const answer = told[key];
    if (answer) steady(place, () => place.replaceChildren(...[here(answer) ? drawn(() => draw(answer)) : key === "main" && absent(answer)].flat(Infinity).filter(Boolean)));
  }
  const parts = [["main", charts, main], ["norms", norms, normCharts], ["routers", routers, routerCharts]];
  const change = () => { drawControls(); return Promise.all(parts.map(([key, place, draw]) => group(key, place, draw))); };
  const redraw = () => { drawControls(); parts.forEach(([key, place, draw]) => show(key, place, draw)); };

  function drawControls() {
    const field = (name, label) => h("label", {}, label, h("input", { type: "number", step: "any", value: known(view[name]) ? String(view[name]) : null, class: `zoom-${name}`,
      onchange: (event) => { view[name] = event.target.value === "" ? null : Number(event.target.value); change(); } }));
    const flip = (name) => {
      const now = few ? view.hidden : new Set(view.asked);
      now.has(name) ? now.delete(name) : now.add(name);
      if (few) return redraw();
      view.asked = names.filter((one) => now.has(one)).slice(0, 12);
      change();
    };
    steady(controls, () => controls.replaceChildren(...[
      names.length > 1 && toggles("Runs", names, color, few ? new Set(names.filter((name) => !view.hidden.has(name))) : new Set(view.asked), flip),
      served && choice("Over", Object.keys(X_LABELS).map((axis) => [axis, axis]), view.axis, (axis) => { Object.assign(view, { axis, from: null, to: null }); change(); }),
      choice("Scale", [[false, "linear"], [true, "logarithmic"]], view.log, (log) => { view.log = log; redraw(); }),
      choice("Height", [[false, "what is usual"], [true, "everything"]], view.all, (all) => { view.all = all; redraw(); }),
      served && h("div", { class: "window" }, field("from", `From, ${view.axis}`), field("to", "to"), h("button", { type: "button", onclick: () => { Object.assign(view, { from: null, to: null }); change(); } }, "Reset")),
    ].filter(Boolean)));
  }

  const visibleRuns = (answer) => answer.runs.filter((run) => !view.hidden.has(run.name));
  const reach = (answer, end, most) => { const ends = answer.runs.map((run) => run.reach?.[end]).filter(known); return ends.length ? most(...ends) : null; };
  const chart = (answer, series, yLabel, more = {}) => curveChart({ series, yLabel, xLabel: X_LABELS[answer.axis], log: view.log, all: view.all, together, from: view.from ?? reach(answer, 0, Math.min), to: view.to ?? reach(answer, 1, Math.max), ...more });
  const one = (run, key) => ({ name: run.name, color: color(run.name), ...run.series[key] });
  const has = (runs, key) => runs.some((run) => run.series[key]?.x.length);

  function main(answer) {
    const runs = visibleRuns(answer), marks = runs.flatMap((run) => run.marks.map((mark) => ({ ...mark, text: runs.length > 1 ? [run.name, mark.text].filter(Boolean).join(", ") : mark.text })));
    const shown = legend(runs.map((run) => [color(run.name), run.name]));
    const plain = (key, yLabel, caption) => has(runs, key) && figure(caption, chart(answer, runs.map((run) => one(run, key)), yLabel));
    const sources = [...new Set(runs.flatMap((run) => Object.keys(run.held_out.sources)))].sort(), units = [...new Set(runs.filter((run) => run.held_out.all.x.length).map((run) => run.held_out.unit))];
    const unit = SMALLER[units[0]] || "loss";
    const held = (run, series) => ({ name: run.name, color: color(run.name), dots: true, ...(run.held_out.unit === units[0] && series ? series : { x: [], y: [] }) });
    return [
      figure([`Training loss of ${runs.map((run) => `${run.name} (n = ${count(run.inside)} steps${run.inside < run.steps ? ` of ${count(run.steps)}` : ""})`).join(", ")}. Strong: a running mean over about ${[...new Set(runs.map((run) => count(run.span)))].join(" or ")} steps; faint: the steps themselves, of which ${count(answer.points)} points are drawn that keep every stretch’s least and greatest. `, eventLegend(runs), " Triangles at the edge mark values beyond it. The crosshair tells the mean, and in brackets the nearest step drawn."],
        shown, chart(answer, runs.map((run) => ({ ...one(run, "smooth"), faint: run.series.loss })), "loss, nats per token", { width: 880, height: 280, marks })),
      units.length > 0 && figure(`Held-out ${unit} during training, on each run's own held-out split${units.length > 1 ? " (of the runs that tell it in this unit)" : ""}. These are other documents for each run unless their data is the same: the lines show progress, not which run is better.`,
        shown.cloneNode(true), chart(answer, runs.map((run) => held(run, run.held_out.all)), unit, { width: 880, height: 220 })),
      sources.length > 1 && figure(`The same by source${sources.length > 24 ? `; the first 24 of ${count(sources.length)}` : ""}.`,
        h("div", { class: "multiples" }, sources.slice(0, 24).map((source) => h("div", {}, h("h4", {}, source), chart(answer, runs.map((run) => held(run, run.held_out.sources[source])), unit, { width: 290, height: 170 }))))),
      h("div", { class: "columns" },
        plain("learning_rate", "learning rate", "Learning rate of each step."),
        plain("grad_norm", "norm", "Norm of the gradient before clipping."),
        plain("tokens_per_second", "tokens per second", "Throughput of each step."),
        plain("mfu", "share of peak", "Share of the device’s peak FLOP/s that became training."),
        plain("memory_gb", "GB", "The most memory held at once so far."),
        plain("cost", "currency of --price-per-hour", "Cost so far.")),
    ];
  }

  function normCharts(answer) {
    const told = visibleRuns(answer).filter((run) => Object.values(run.series).some((one) => one.x.length));
    if (!told.length) return [];
    const run = told.find((each) => each.name === view.run) || told[0];
    const groups = (start) => Object.entries(run.series).filter(([name, one]) => name.startsWith(start) && one.x.length).map(([name, one], index) => ({ name: name.slice(start.length), color: index % 8, dots: start === "updates/", ...one }));
    const drawing = (start, yLabel, caption) => {
      const series = groups(start);
      return series.length > 0 && figure(caption, legend(series.map((each) => [each.color, each.name])), chart(answer, series, yLabel));
    };
    return [
      h("h3", {}, "By group of parameters"),
      told.length > 1 && choice("Run", told.map((each) => [each.name, each.name]), run.name, (name) => { view.run = name; redraw(); }),
      h("div", { class: "columns" },
        drawing("norms/", "norm", `Norm of the gradient before clipping, run ${run.name}.`),
        drawing("updates/", "relative update", `What an observed step added to the weights, over the weights (norms), run ${run.name}.`)),
    ];
  }

  function routerCharts(answer) {
    const runs = visibleRuns(answer).filter((run) => Object.values(run.series).some((each) => each.x.length));
    if (!runs.length) return [];
    const never = (key) => !runs.some((run) => run.series[key].y.some((value) => value > 0));
    const plain = (key, yLabel, caption, more = []) => has(runs, key) && figure(caption, chart(answer, [...runs.map((run) => one(run, key)), ...more], yLabel));
    return [
      h("h3", {}, "Routers over time"),
      legend(runs.map((run) => [color(run.name), run.name])),
      h("div", { class: "columns" },
        plain("entropy", "normalised entropy", "Entropy of a token’s expert probabilities, divided by the logarithm of the number of experts: 1 is undecided, 0 certain. Strong: mean of the layers; dashed: the lowest layer.",
          runs.map((run) => ({ ...one(run, "entropy_low"), name: `${run.name}, lowest layer`, dashed: true }))),
        plain("busiest", "× the even share", "Load of the busiest expert of any layer over its even share; 1 is even."),
        !never("dead") && plain("dead", "experts", "Experts that nothing was assigned to, over all layers."),
        !never("dropped") && plain("dropped", "share of assignments", "Assignments dropped for want of capacity, mean of the layers."),
        !never("bias_range") && plain("bias_range", "bias", "Span of the balancing biases, the widest layer."),
        plain("balance_loss", "balance loss", "Balance loss, mean of the layers."),
        plain("z_loss", "z loss", "Router z loss, mean of the layers.")),
      h("p", { class: "note" }, [has(runs, "dead") && never("dead") && "No step drawn here left an expert without a token.", has(runs, "dropped") && never("dropped") && "No assignment was dropped."].filter(Boolean).join(" ")),
    ];
  }

  const element = h("div", { class: "curves answer" }, controls, !served && h("p", { class: "note" }, "This file holds the whole runs, thinned; report open zooms into them."), charts, norms, routers);
  change().then(() => { element.dataset.answered = "true"; });
  followers.set(element, () => { if (!together.dragging) parts.forEach(([key, place, draw]) => group(key, place, draw)); });
  return element;
}

// How often each kind of event happened; of many not all are drawn.
function eventLegend(runs) {
  const times = (kind) => total(runs.map((run) => run.marks.find((mark) => mark.kind === kind)?.of));
  const kinds = Object.keys(MARKS).filter(times);
  return kinds.length > 0 && ["Vertical lines: ", kinds.map((kind, index) => [index ? ", " : "", s("svg", { width: 14, height: 10, "aria-hidden": "true" }, s("line", { class: `event ${kind}`, x1: 7, x2: 7, y1: 0, y2: 10 })), ` ${MARKS[kind]} (${count(times(kind))})`]), "."];
}
