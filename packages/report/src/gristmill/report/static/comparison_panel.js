// Which training did better on held-out documents, and arms of several seeds at equal tokens.

const outcome = (row) => (row.winner !== null ? `${row.winner} better` : row.clear ? "too few documents" : "no clear difference");
const setName = (name) => (name === "all" ? "all held-out documents" : words(name));

function panelComparison(data, state, change, all) {
  const told = all.overview.verdict;
  return [
    told && h("p", { class: "lead" }, h("b", {}, `On ${setName(told.first.name)}: ${outcome(told.first)}. `), told.others.map((one) => `${outcome(one)} on ${one.sets.map(words).join(", ")}`).join("; "), told.others.length > 0 && "."),
    comparisonParts(data, ""),
  ];
}

// prefix: of the questions about trainings; null where their bands stand elsewhere.
function comparisonParts(data, prefix) {
  const seeds = data.seeds > 1 ? `${count(data.seeds)} models of each side, from as many seeds,` : "Both models";
  return [
    h("p", { class: "lead" }, `${known(data.budget_tokens) ? `${seeds} saw ${count(data.budget_tokens)} tokens` : "The models saw different numbers of tokens"} and were measured on the same documents; fewer bits per byte is better.`),
    [data, ...(data.others || [])].map((pair) => pairFigure(pair, data.seeds)),
    data.note && h("p", { class: "note" }, data.note),
    prefix !== null && bandParts(prefix),
  ];
}

function pairFigure(data, seeds) {
  return [
    figure(`Difference in bits per byte, ${data.a} minus ${data.b}, with 95 % confidence intervals from a paired bootstrap over documents${seeds > 1 ? ` and ${count(seeds)} seeds` : ", one seed each"}. An interval that crosses zero shows no difference.`,
      intervalChart({ rows: data.sets.map((row) => ({ name: setName(row.name), low: row.ci95[0], middle: row.difference, high: row.ci95[1],
        class: row.winner === null ? "undecided" : row.winner === data.a ? "won-a" : "won-b",
        note: outcome(row),
        text: `${row.name}: ${signed(row.difference)} bits per byte, 95 % interval ${signed(row.ci95[0])} to ${signed(row.ci95[1])}` })),
        xLabel: `bits per byte, ${data.a} − ${data.b}`, left: `${data.a} better`, right: `${data.b} better` })),
    table(`Comparison by evaluation set, ${data.a} and ${data.b}`, [
      { head: "evaluation set", class: "name", cell: (row) => setName(row.name) },
      { head: "documents", number: true, cell: (row) => count(row.documents), value: (row) => row.documents },
      { head: `${data.a}, bits/byte`, number: true, cell: (row) => decimal(row.a_bits_per_byte), value: (row) => row.a_bits_per_byte },
      { head: `${data.b}, bits/byte`, number: true, cell: (row) => decimal(row.b_bits_per_byte), value: (row) => row.b_bits_per_byte },
      { head: "difference", number: true, cell: (row) => signed(row.difference), value: (row) => row.difference },
      { head: "in percent", number: true, cell: (row) => signed((100 * row.difference) / row.b_bits_per_byte, 2) + THIN + "%", value: (row) => (100 * row.difference) / row.b_bits_per_byte },
      { head: "95 % interval", number: true, cell: (row) => `${signed(row.ci95[0])} to ${signed(row.ci95[1])}` },
      { head: "verdict", cell: outcome },
    ], data.sets),
  ];
}

function bandParts(prefix) {
  const place = answered(`${prefix}training_bands`, {}, bandFigures);
  followers.set(place, () => place.dispatchEvent(new Event("run-changed")));
  return place;
}

// Trainings NAME-seed0, NAME-seed1, ... are one arm. Nothing is drawn where none has a second seed.
function bandFigures(told) {
  const arms = told.arms.map((arm, index) => ({ ...arm, color: index % 8 })), sown = arms.filter((arm) => arm.seeds > 1);
  if (!sown.length) return h("p", { class: "note" }, `One seed each (${arms.map((arm) => arm.name).join(", ")}), so there is no band over seeds; trainer compare --mixtures trains several.`);
  const numbers = arms.map((arm) => `${arm.name} n = ${arm.seeds}`).join(", ");
  const curve = (arm, key) => ({ name: `${arm.name} (n = ${arm.seeds})`, color: arm.color, x: arm[key].x, y: arm[key].mean, dots: key === "held_out", band: arm[key].low && { low: arm[key].low, high: arm[key].high } });
  const drawing = (key, yLabel, caption) => {
    const series = arms.map((arm) => curve(arm, key)).filter((one) => one.x.length);
    return series.length > 0 && figure([caption, ` Line: mean over seeds at equal tokens; band: its 95 % interval by Student’s t over seeds (${numbers}; none where n = 1).`], legend(series.map((one) => [one.color, one.name])),
      curveChart({ series, width: 880, height: 250, xLabel: "tokens seen", yLabel, together: crosshair(null) }));
  };
  const same = new Set(arms.map((arm) => arm.validates_on)), unit = SMALLER[arms[0].unit] || "loss";
  return [
    h("h3", {}, "Arms at equal tokens"),
    drawing("held_out", unit, `Held-out ${unit} during training, ${same.size === 1 && !same.has(null) ? "all on the same documents." : "each arm on the held-out split of its own data: other documents, so the height of two lines says little, their course more. What stands above is measured on the same documents."}`),
    drawing("loss", "loss, nats per token", "Training loss, running mean, each arm on its own text."),
  ];
}
