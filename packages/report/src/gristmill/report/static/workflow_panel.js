// How the run goes: every stage with its state, progress and times, live while it works; and each of them by itself.

const STATES = { // state -> what it means, where the word alone does not say it
  waiting: "this run will come to it", running: "at work", cached: "nothing to do: its output was there already", done: "made by this run",
  earlier: "not looked at by this run; its output is of an earlier one", stale: "its output is of an earlier run, and something that it is made from was made again or is amiss since",
  interrupted: "the runner stopped while it was at work", failed: "see the error", "not run": "it has no output",
};
const STATE_NAMES = { running: "at work", earlier: "of an earlier run" };
const stateName = (state) => STATE_NAMES[state] || state;
const DOTS = [["done", "made by this run"], ["cached", "was there already"], ["running", "at work"], ["waiting", "waiting"], ["not run", "not run"], ["earlier", "of an earlier run"], ["stale", "stale"], ["interrupted", "interrupted"], ["failed", "failed"]];
const LOOK_EVERY = 2; // seconds between two looks at run.json, while a runner writes it

function panelStages(data, state, change) {
  const nodes = data.nodes;
  if (!nodes.length) return h("p", { class: "quiet" }, "run.json lists no stages yet.");
  const ordered = lanes(nodes), wide = Math.max(...ordered.map((row) => row.width));
  const whole = Math.max(data.seconds || 0, ...nodes.map((node) => (known(node.began) ? node.began + (node.seconds || 0) : 0)), 1e-9);
  return [
    h("p", { class: "lead" }, runSentence(data)),
    nodes.filter((node) => node.error).map((node) => h("p", { class: "absent failed" }, h("b", {}, node.name), " failed: ", h("code", { class: "error-text" }, node.error))),
    figure(["Every stage in the order in which it can run; lines lead from a stage to those that need it. A bar says when in the run, of ", duration(whole), ", the stage was at work. A stage’s name leads to its settings and the times of its pieces."],
      dots(nodes),
      table("Stages of the run", [
        { head: "", class: "graph", cell: (row) => laneCell(row, wide) },
        { head: "stage", class: "name", value: (row) => row.node.name, cell: (row) => h("button", { type: "button", class: "link", "aria-haspopup": "dialog", onclick: () => showStage(row.node, nodes) }, row.node.name) },
        { head: "state", value: (row) => stateName(row.node.state), cell: (row) => h("span", { class: `state ${row.node.state}`, title: STATES[row.node.state] }, stateName(row.node.state)) },
        { head: "pieces done", number: true, value: (row) => row.node.done, cell: (row) => progress(row.node) },
        { head: "when", class: "bar", cell: (row) => whenBar(row.node, whole, data) },
        { head: "time", number: true, unit: "s", value: (row) => row.node.seconds, cell: (row) => duration(row.node.seconds) },
        { head: "counted", class: "counts", cell: (row) => counted(row.node) },
      ], ordered, { class: "stages" })),
  ];
}

function dots(nodes) {
  const shown = DOTS.filter(([state]) => nodes.some((node) => node.state === state));
  return shown.length > 1 && h("p", { class: "legend" }, shown.map(([state, text]) =>
    h("span", {}, s("svg", { width: 14, height: 14, "aria-hidden": "true" }, s("circle", { class: `node ${state}`, cx: 7, cy: 7, r: 5 })), text)));
}

function runSentence(data) {
  const by = (...states) => data.nodes.filter((node) => states.includes(node.state)).length;
  const all = data.nodes.length, verbs = { running: "Running for", done: "Done in", failed: "Failed after", interrupted: "Interrupted after", died: "The runner died after" };
  const parts = [[by("done"), "made by this run"], [by("cached"), "cached"], [by("running"), "at work"], [by("waiting"), "waiting"], [by("earlier"), "not looked at"], [by("stale"), "stale"], [by("not run"), "not run"], [by("failed"), "failed"], [by("interrupted"), "interrupted"]].filter(([number]) => number > 0);
  return [
    h("b", {}, known(data.seconds) && verbs[data.status] ? `${verbs[data.status]} ${duration(data.seconds)}. ` : data.status ? `The run is ${data.status}. ` : ""),
    parts.length === 1 ? `Each of its ${count(all)} stages is ${parts[0][1]}.` : `Of ${count(all)} stages ${parts.map(([number, what]) => `${count(number)} ${number === 1 ? "is" : "are"} ${what}`).join(", ")}.`,
    data.status === "died" && ` It has written nothing since ${time(data.heard)}; the same command goes on from there.`,
  ];
}

// Done of all; of a stage that is half done also as a bar, and while it is at work how fast, and how long still.
function progress(node) {
  if (!node.partitions) return "–";
  const width = 84, x = (pieces) => ((pieces / node.partitions) * width).toFixed(1), half = ["running", "failed", "interrupted"].includes(node.state) && node.done < node.partitions && node.partitions > 1;
  const pace = [node.phase, known(node.rate) && `${decimal(node.rate, 3)} documents/s`, known(node.left) && `about ${duration(Math.round(node.left))} left`].filter(Boolean);
  return [
    half && s("svg", { class: "progress", width, height: 6, role: "img", "aria-label": percent(node.done, node.partitions) }, s("rect", { class: "bar-ground", width, height: 6 }),
      s("rect", { class: "fill-cached", width: x(node.cached), height: 6 }), s("rect", { class: "fill-made", x: x(node.cached), width: x(Math.max(node.done - node.cached, 0)), height: 6 })),
    `${count(node.done)} of ${count(node.partitions)}`, node.cached > 0 && node.cached < node.partitions && h("span", { class: "note" }, `, ${count(node.cached)} cached`),
    pace.length > 0 && h("span", { class: "note pace" }, pace.join(", ")),
  ];
}

// Where within the run a stage was at work. One that was not has no bar, whatever time it took in an earlier run.
function whenBar(node, whole, data) {
  const width = 150, x = (seconds) => (seconds / whole) * width;
  if (!known(node.began) || !["done", "running", "failed", "interrupted"].includes(node.state)) return null;
  const took = known(node.seconds) && node.state === "done" ? node.seconds : Math.max((data.seconds || 0) - node.began, 0);
  return s("svg", { class: "chart", width, height: 10, viewBox: `0 0 ${width} 10`, role: "img", "aria-label": `from ${duration(node.began)} for ${duration(took)}` },
    s("rect", { class: `fill-time ${node.state}`, x: Math.min(x(node.began), width - 1.5), width: Math.max(Math.min(x(took), width - x(node.began)), 1.5), height: 10, rx: 1 }, tip(`from ${duration(node.began)} to ${duration(node.began + took)} of the run`)));
}

function counted(node) {
  const counts = Object.entries(node.counts).filter(([, value]) => typeof value === "number");
  if (node.state === "running") return [node.documents > 0 && h("span", {}, `${count(node.documents)} documents so far`), node.quarantined > 0 && h("span", {}, `${count(node.quarantined)} quarantined`)];
  return counts.map(([name, value], index) => [index > 0 && " ", h("span", {}, `${decimal(value)} ${words(name)}`)]);
}

// As `git log --graph` does it: each line from a stage to one that needs it keeps a lane of its own until it arrives.
function lanes(nodes) {
  const byName = new Map(nodes.map((node) => [node.name, node]));
  const needs = new Map(nodes.map((node) => [node.name, (node.requires || []).filter((name) => byName.has(name) && name !== node.name)]));
  const ordered = [], placed = new Set();
  while (ordered.length < nodes.length) {
    const next = nodes.find((node) => !placed.has(node.name) && needs.get(node.name).every((name) => placed.has(name)))
      || nodes.find((node) => !placed.has(node.name)); // a circle cannot run, but must not hang the page
    if (!next) break;
    placed.add(next.name);
    ordered.push(next);
  }
  const above = new Map();
  for (const node of ordered) above.set(node.name, new Set(needs.get(node.name).flatMap((name) => [name, ...(above.get(name) || [])])));
  const direct = (node) => needs.get(node.name).filter((name) => !needs.get(node.name).some((other) => other !== name && above.get(other)?.has(name)));
  let held = []; // lane -> {child} of the edge that runs in it
  const free = () => { const lane = held.findIndex((edge) => !edge); return lane < 0 ? held.length : lane; };
  return ordered.map((node) => {
    const arriving = held.flatMap((edge, lane) => (edge && edge === node.name ? [lane] : []));
    const passing = held.flatMap((edge, lane) => (edge && edge !== node.name ? [lane] : []));
    for (const lane of arriving) held[lane] = null;
    const own = arriving.length ? arriving[0] : free();
    const leaving = [];
    for (const child of ordered.filter((other) => direct(other).includes(node.name))) {
      const lane = leaving.length === 0 ? own : free();
      held[lane] = child.name;
      leaving.push(lane);
    }
    return { node, own, arriving, passing, leaving, width: Math.max(own, held.length - 1, ...passing, 0) + 1 };
  });
}

// Drawn from the middle of the row up and down past its edges, so that rows of any height join.
function laneCell(row, wide) {
  const reach = 17, far = 2000, width = wide * 13 + 6, x = (lane) => 9 + lane * 13;
  const half = (lane, way) => `M${x(row.own)} 0C${x(row.own)} ${way * 8} ${x(lane)} ${way * 8} ${x(lane)} ${way * reach}V${way * far}`;
  return h("div", {},
    s("svg", { width, height: 1, "aria-hidden": "true" }),
    s("svg", { class: "lanes", width, "aria-hidden": "true" }, s("svg", { y: "50%", overflow: "visible" },
      row.passing.map((lane) => s("path", { class: "lane", d: `M${x(lane)} ${-far}V${far}` })),
      row.arriving.map((lane) => s("path", { class: "lane", d: half(lane, -1) })),
      row.leaving.map((lane) => s("path", { class: "lane", d: half(lane, 1) })),
      s("circle", { class: `node ${row.node.state}`, cx: x(row.own), cy: 0, r: 5 }))));
}

function showStage(node, nodes) {
  const feeds = nodes.filter((other) => other.requires.includes(node.name)).map((other) => other.name);
  const facts = [["state", h("span", { class: `state ${node.state}` }, stateName(node.state))], ["kind", node.kind], ["pieces", node.partitions ? `${count(node.done)} of ${count(node.partitions)}${node.cached ? `, ${count(node.cached)} cached` : ""}` : "–"], ["time", duration(node.seconds)], ["needs", node.requires.join(", ") || "nothing"], ["feeds", feeds.join(", ") || "nothing"]];
  showDialog("stage", node.name,
    h("p", { class: "note" }, STATES[node.state]),
    node.error && h("p", { class: "absent failed" }, h("code", { class: "error-text" }, node.error)),
    factList(facts),
    answered("stage", { name: node.name }, (data) => stageDetails(data)));
}

const factList = (facts) => h("dl", { class: "facts" }, facts.filter(([, value]) => known(value) && value !== "").map(([name, value, long]) => h("div", { class: long ? "long" : null }, h("dt", {}, name), h("dd", {}, value))));

function stageDetails(data) {
  const libraries = Object.entries(data.libraries || {}).map(([name, version]) => `${name} ${version}`);
  return [
    factList([["output", data.folder && h("code", {}, data.folder)], ["version of the stage", known(data.version) ? String(data.version) : null], ["libraries it depends on", libraries.join(", ")], ["model files, by content", (data.files || []).map((hash) => hash.slice(0, 12)).join(" "), true], ["fingerprint of all this", data.fingerprint, true]]),
    h("h3", {}, "Settings"),
    data.config && Object.keys(data.config).length ? settingsTable(data.config) : h("p", { class: "quiet" }, data.fingerprint ? "It has none." : "Known once it is done."),
    data.phases.length ? data.phases.map((phase) => piecesTable(data.name, phase)) : h("p", { class: "quiet" }, "No piece of it is done yet."),
  ];
}

// {"near": {"threshold": 0.7}} as near.threshold 0.7, a line for each.
function settingsTable(config) {
  const flat = (value, name) => value !== null && typeof value === "object" && !Array.isArray(value) && Object.keys(value).length
    ? Object.entries(value).flatMap(([key, inner]) => flat(inner, name ? `${name}.${key}` : key)) : [[name, typeof value === "string" ? value : JSON.stringify(value)]];
  return table("Settings of the stage", [
    { head: "setting", class: "name", cell: ([name]) => name },
    { head: "value", cell: ([, value]) => h("code", {}, value === "" ? "(none)" : value) },
  ], flat(config, ""), { class: "settings" });
}

function piecesTable(name, phase) {
  const ratio = phase.median > 0 ? phase.slowest[0].seconds / phase.median : null;
  return [
    h("h3", {}, phase.phase ? `Pieces of ${phase.phase}` : "Pieces", h("span", { class: "note" }, ` ${count(phase.pieces)} in ${duration(phase.seconds)} of one worker’s time, ${count(phase.rows)} rows${phase.seconds > 0 && phase.rows ? ` (${count(phase.rows / phase.seconds)}/s)` : ""}`)),
    phase.pieces > 1 && h("p", { class: "note" }, `The median takes ${duration(phase.median)}${known(ratio) ? `, the slowest ${decimal(ratio, 2)} times as long` : ""}.${phase.slowest.length < phase.pieces ? ` The ${count(phase.slowest.length)} slowest:` : ""}`),
    table(`Pieces of ${name}${phase.phase ? `, ${phase.phase}` : ""}`, [
      { head: "piece", class: "name", cell: (row) => row.piece },
      { head: "time", number: true, unit: "s", value: (row) => row.seconds, cell: (row) => duration(row.seconds) },
      { head: "rows", number: true, value: (row) => row.rows, cell: (row) => count(row.rows) },
      { head: "bytes", number: true, value: (row) => row.bytes, cell: (row) => short(row.bytes) },
      { head: "fingerprint", value: (row) => row.fingerprint, cell: (row) => h("code", { title: row.fingerprint }, (row.fingerprint || "").slice(0, 12)) },
      phase.slowest.some((row) => row.sha256) && { head: "content", value: (row) => row.sha256, cell: (row) => h("code", { title: row.sha256 }, (row.sha256 || "").slice(0, 12)) },
    ].filter(Boolean), phase.slowest, { at_once: 20 }),
  ];
}

// run.json alone is small: it is looked at more often than all of the run, as long as a runner writes it.
async function followStages() {
  for (;;) {
    await new Promise((wake) => setTimeout(wake, LOOK_EVERY * 1000));
    if (document.hidden || report.stages.status !== "running") continue;
    const answer = await ask("workflow");
    if (!answer || !here(answer) || JSON.stringify(answer) === JSON.stringify(report.stages)) continue;
    report.stages = answer;
    change("stages", {});
    document.querySelector("header.top").replaceWith(header());
  }
}
