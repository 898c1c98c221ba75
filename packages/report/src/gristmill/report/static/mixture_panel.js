// What trainings read of each source, against what their mixtures wanted.

function panelMixture() {
  return mixtureParts("");
}

function mixtureParts(prefix) {
  const place = answered(`${prefix}training_mixture`, {}, (told) => told.runs.map(mixtureOf));
  followers.set(place, () => place.dispatchEvent(new Event("run-changed")));
  return place;
}

function mixtureOf(run) {
  const share = (value, whole) => (known(value) ? percent(value, whole) : "–"), whole = total(run.sources.map((source) => source.wanted));
  const named = run.phases.length > 1 ? `${count(run.phases.length)} phases: ${run.phases.map((phase) => `${phase.name} from ${count(phase.from)} tokens`).join(", ")}. ` : "";
  const told = run.curve
    ? `Read is what each of its ${count(run.steps)} logged steps tells that it read. At no step was any source further than ${count(run.furthest)} tokens from its target.`
    : run.recorded
      ? `Only ${count(run.recorded)} of ${count(run.steps)} logged steps tell what they read of each source, so only what was planned is shown.`
      : "The steps of this run do not tell what they read of each source (it was trained before they did), so only what was planned is shown.";
  const column = (head, key, cell) => ({ head, number: true, cell: (source) => cell(source[key], source), value: (source) => source[key] });
  return [
    h("h3", {}, `${run.name}: mixture ${run.mixture}`),
    h("p", { class: "lead" }, `${count(run.tokens)} of ${count(run.budget)} tokens trained on. ${named}${told}`),
    table(`Mixture of ${run.name}`, [
      { head: "source", class: "name", cell: (source) => source.name },
      { head: "target share so far", number: true, cell: (source) => share(source.wanted, whole), value: (source) => source.wanted / (whole || 1) },
      ...(run.curve ? [
        { head: "realised share", number: true, cell: (source) => share(source.read, run.tokens), value: (source) => source.read / (run.tokens || 1) },
        column("tokens read", "read", count),
        { head: "off target, tokens", number: true, cell: (source) => signed(Math.round(source.read - source.wanted)), value: (source) => source.read - source.wanted },
        column("epochs so far", "epochs", (value) => fixed(value, 3)),
        column("never read yet, tokens", "left", count),
      ] : []),
      column("unique tokens", "unique", count),
      column("epochs at the end", "planned_epochs", (value) => fixed(value, 3)),
      column("left at the end, tokens", "planned_left", (value, source) => `${count(value)} (${percent(value, source.unique)})`),
    ], run.sources),
    run.curve && figure(`Share of each source along run ${run.name}. Strong: of all tokens so far; faint: of the last ${count(run.curve.recent_steps)} step${run.curve.recent_steps === 1 ? "" : "s"}; dashed: the target so far. n = ${count(run.steps)} steps${run.sources.length > 8 ? `; the 8 largest of ${count(run.sources.length)} sources` : ""}.`,
      mixtureChart(run)),
  ];
}

function mixtureChart(run) {
  const largest = run.sources.map((source, index) => ({ ...source, index })).sort((a, b) => b.planned - a.planned).slice(0, 8);
  const series = largest.flatMap((source, color) => {
    const y = (key) => run.curve[key][source.index].map((value) => 100 * value), x = run.curve.x;
    return [{ name: source.name, color, x, y: y("so_far"), faint: { x, y: y("recent") } }, { name: `${source.name}, target`, color, x, y: y("target"), dashed: true }];
  });
  return [legend(largest.map((source, color) => [color, source.name])),
    curveChart({ series, width: 880, height: 260, xLabel: "tokens seen", yLabel: "% of tokens", together: crosshair(null) })];
}
