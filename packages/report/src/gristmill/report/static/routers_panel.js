// Where the routers sent tokens: every layer and expert at a step, one layer's experts over time, and the logits.

const routerViews = new Map();

function routerParts(prefix) {
  if (!routerViews.has(prefix)) routerViews.set(prefix, { step: null, run: null, layer: null });
  const view = routerViews.get(prefix), served = isServed();
  const maps = h("div", {}), over = h("div", {}), slider = h("div", {}), place = h("div", { class: "routers answer" }, h("h3", {}, "Routers at a step"), heatLegend(), slider, maps, over);
  let last = "", shown = "", reach = "";

  async function showMaps() {
    const answer = await ask(`${prefix}training_routers`, { step: view.step }, `${prefix}routers`);
    if (!answer) return;
    place.hidden = Boolean(answer.missing); // a model without experts
    if (JSON.stringify(answer) === last) return;
    last = JSON.stringify(answer);
    if (here(answer)) drawSlider(answer.runs);
    maps.replaceChildren(...[here(answer) ? drawn(() => h("div", { class: "columns" }, answer.runs.map(routerMap))) : absent(answer)].flat(Infinity).filter(Boolean));
  }

  // Kept while it is dragged; a run that goes on only moves its end.
  function drawSlider(runs) {
    const first = Math.min(...runs.map((run) => run.first_step)), end = Math.max(...runs.map((run) => run.last_step));
    if (!served || `${first} ${end}` === reach) return;
    reach = `${first} ${end}`;
    const range = slider.querySelector("input[type=range]");
    if (range) {
      for (const input of slider.querySelectorAll("input")) input.max = end;
      if (view.step === null) slider.querySelectorAll("input").forEach((input) => { input.value = end; });
      return;
    }
    const choose = (value, other) => { view.step = value >= Number(other.max) ? null : value; other.value = value; showMaps().then(showOver); };
    const drag = h("input", { type: "range", min: first, max: end, step: 1, class: "router-step", "aria-label": "step", oninput: (event) => choose(Number(event.target.value), exact) });
    const exact = h("input", { type: "number", min: first, max: end, step: 1, class: "router-step-number", "aria-label": "step, as a number", onchange: (event) => choose(Number(event.target.value), drag) });
    drag.value = exact.value = view.step ?? end;
    slider.replaceChildren(h("div", { class: "what-if" }, h("label", {}, "Step", drag), exact, h("span", { class: "note" }, "at the right end it follows the run")));
  }

  async function showOver() {
    const answer = await ask(`${prefix}training_experts`, { training: view.run, layer: view.layer }, `${prefix}experts`);
    if (!answer || JSON.stringify([answer, last]) === shown) return;
    shown = JSON.stringify([answer, last]);
    if (answer.missing) return over.replaceChildren();
    steady(over, () => over.replaceChildren(...[here(answer) ? drawn(() => expertsOver(answer)) : absent(answer)].flat(Infinity).filter(Boolean)));
  }

  function expertsOver(told) {
    const runs = JSON.parse(last || "{}").runs || [];
    const pick = (more) => { Object.assign(view, { run: told.name, layer: told.layer }, more); showOver(); };
    return [
      h("h3", {}, "One run’s experts over time, and its logits"),
      served && h("div", { class: "choices" },
        runs.length > 1 && choice("Run", runs.map((run) => [run.name, run.name]), told.name, (run) => pick({ run, layer: null })),
        h("label", { class: "choice" }, h("span", { class: "choice-label" }, "Layer"), h("select", { class: "router-layer", onchange: (event) => pick({ layer: Number(event.target.value) }) },
          told.layers.map((layer) => h("option", { value: layer, selected: layer === told.layer }, `layer ${layer}`))))),
      figure(`Load of the ${count(told.experts)} experts of layer ${told.layer}, run ${told.name}: × the even share. Each column is one step as it was: ${count(told.steps.length)} of ${count(told.of_steps)} steps, evenly spaced. The curve of the busiest expert above is over all steps.`,
        heatGrid({ rows: told.experts, columns: told.steps.length, width: 880, tall: clamp(260 / told.experts, 3, 18), value: (row, column) => told.multiple[column][row], rowName: (row) => String(row), columnName: (column) => short(told.steps[column]),
          told: (row, column) => `step ${count(told.steps[column])}, layer ${told.layer}, expert ${row}: ${decimal(told.multiple[column][row], 3)} × the even share (${percent(told.multiple[column][row] / told.experts)} of assignments)`,
          yLabel: "expert", xLabel: "step", label: `Load of layer ${told.layer}’s experts over time` })),
      runs.filter((run) => run.name === told.name && run.logits).map(logitFigure),
    ];
  }

  showMaps().then(showOver).then(() => { place.dataset.answered = "true"; });
  followers.set(place, () => showMaps().then(showOver));
  return place;
}

function routerMap(run) {
  const experts = Math.max(...run.experts);
  const unlike = new Set(run.experts).size > 1;
  return figure(`Run ${run.name}, step ${count(run.step)}: ${count(run.layers.length)} layers with experts, ${unlike ? `${Math.min(...run.experts)} to ${experts}` : experts} experts each. The busiest has ${decimal(run.most, 3)} × its even share; ${run.starved ? `${count(run.starved)} ${run.starved === 1 ? "starves" : "starve"} (under a tenth of it)` : "none starves"}.${routerNotes(run)}`,
    heatGrid({ rows: run.load.length, columns: experts, tall: clamp(386 / experts, 12, 20), value: (row, column) => (column < run.load[row].length ? run.load[row][column] * run.load[row].length : undefined), rowName: (row) => String(run.layers[row]), columnName: (column) => String(column),
      told: (row, column) => `layer ${run.layers[row]}, expert ${column}: ${percent(run.load[row][column])} of assignments, ${decimal(run.load[row][column] * run.load[row].length, 3)} × the even share`,
      yLabel: "layer", xLabel: "expert", label: `Router load of ${run.name} by layer and expert` }),
    layerTable(run));
}

function layerTable(run) {
  const told = [["entropy", "entropy / ln E", (value) => fixed(value, 3)], ["busiest", "busiest, × even", (value) => fixed(value, 2)], ["dead", "experts without a token", count], ["dropped", "dropped", (value) => percent(value)]].filter(([key]) => run.by_layer[key]);
  return told.length > 0 && h("details", { class: "more" }, h("summary", {}, "By layer"),
    table(`Routers of ${run.name} at step ${run.step}`, [
      { head: "layer", cell: (row) => String(run.layers[row]), value: (row) => run.layers[row] },
      { head: "experts", number: true, cell: (row) => count(run.experts[row]) },
      ...told.map(([key, head, format]) => ({ head, number: true, cell: (row) => format(run.by_layer[key][row]), value: (row) => run.by_layer[key][row] })),
    ], run.layers.map((_, row) => row), { class: "slim" }));
}

function routerNotes(router) {
  const dropped = known(router.dropped) && router.dropped > 0 ? ` ${percent(router.dropped)} of what was routed was dropped.` : "";
  const bias = known(router.bias_range) ? ` Balancing biases span up to ${decimal(router.bias_range, 3)}.` : "";
  return dropped + bias;
}

function logitFigure(run) {
  const { low, high, share, layers, step } = run.logits;
  return figure(`Logits of run ${run.name}’s routers at step ${count(step)}, by layer. A router that grows sure of itself spreads; what lies beyond the axis is in the outermost bars.`,
    h("div", { class: "multiples narrow" }, share.map((bins, layer) => {
      const wide = (high - low) / bins.length;
      return h("div", {}, h("h4", {}, `layer ${layers[layer]}`), histogramChart({
        bars: bins.map((value, index) => ({ from: low + index * wide, to: low + (index + 1) * wide, value: 100 * value, title: `${decimal(low + index * wide, 3)} to ${decimal(low + (index + 1) * wide, 3)}: ${percent(value)}` })),
        low, high, width: 212, height: 150, xLabel: "logit", yLabel: "% of logits" }));
    })));
}
