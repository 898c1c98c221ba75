// All runs at a folder, each leading to its page; their trainings overlaid, and where their settings differ.

// The page over runs has sections of its own: each is drawn again when what it shows changes.
const folderSections = (listed) => (!listed.missing && !listed.error ? { runs: listed, overlay: { trainings: listed.trainings }, settings: { trainings: listed.trainings }, compared: {} } : { runs: listed });

function panelRuns(data) {
  const state = (row) => row.error || row.status || "";
  const kept = (row, part, whole) => (known(row[part]) ? `${count(row[part])} of ${count(row[whole])}` : known(row[whole]) ? `– of ${count(row[whole])}` : "–");
  const columns = [
    { head: "run", class: "name", cell: (row) => h("a", { href: `/run/${row.key.split("/").map(encodeURIComponent).join("/")}` }, row.key), value: (row) => row.key },
    { head: "kind", cell: (row) => (row.trainings ? `${row.kind}, ${count(row.trainings)} training${row.trainings === 1 ? "" : "s"}` : row.kind) },
    { head: "state", cell: (row) => (row.error ? h("span", { class: "error-text" }, row.error) : h("span", { class: `state ${row.status || ""}` }, row.status || "–")), value: state },
    { head: "started", cell: (row) => (row.started_at ? time(row.started_at) : "–"), value: (row) => row.started_at },
    { head: "documents kept", number: true, cell: (row) => kept(row, "documents_kept", "documents"), value: (row) => row.documents_kept, of: "documents" },
    { head: "tokens kept", number: true, cell: (row) => kept(row, "tokens_kept", "tokens"), value: (row) => row.tokens_kept, of: "tokens" },
    { head: "steps", number: true, cell: (row) => (known(row.step) ? count(row.step) + (known(row.steps) ? ` of ${count(row.steps)}` : "") : "–"), value: (row) => row.step, of: "step" },
    { head: "tokens trained on", number: true, cell: (row) => count(row.trained), value: (row) => row.trained, of: "trained" },
    { head: "loss of the last step", number: true, cell: (row) => decimal(row.loss), value: (row) => row.loss, of: "loss" },
    { head: "bits per byte", number: true, cell: (row) => (known(row.bits_per_byte) ? [decimal(row.bits_per_byte), h("span", { class: "note" }, ` ${row.measured}`)] : "–"), value: (row) => row.bits_per_byte, of: "bits_per_byte" },
    { head: "cost so far", number: true, cell: (row) => decimal(row.cost, 3), value: (row) => row.cost, of: "cost" },
  ];
  return [
    h("p", { class: "lead" }, `n = ${count(data.runs.length)} runs. Own validation is each run's last one, on its own held-out documents; an evaluation is what trainer eval found.`),
    table("Runs", columns.filter((column) => !column.of || data.runs.some((row) => known(row[column.of]))), data.runs),
  ];
}

function panelOverlay(data) {
  if (!data.trainings.length) return h("p", { class: "absent" }, "No run here has trained a model.");
  return [curveParts("folder_", data.trainings), bandParts("folder_"), routerParts("folder_")];
}

function panelSettings() {
  const place = answered("folder_settings", {}, (told) => [
    h("p", { class: "lead" }, `${count(told.rows.length + told.more)} setting${told.rows.length + told.more === 1 ? " differs" : "s differ"} among ${count(told.names.length)} trainings, ${count(told.same)} are the same in all; output folders are left out.${told.more ? ` The first ${count(told.rows.length)} are shown.` : ""}`),
    table("Settings that differ", [
      { head: "setting", class: "name", cell: (row) => h("code", {}, row.setting), value: (row) => row.setting },
      ...told.names.map((name, index) => ({ head: name, cell: (row) => row.values[index] ?? "–" })),
    ], told.rows),
  ]);
  return place;
}

const panelCompared = () => answered("folder_compared", {}, (told) => comparisonParts(told, null));
