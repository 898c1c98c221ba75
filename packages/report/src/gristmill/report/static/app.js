// The page: header, contents, numbered sections; drawn again when a choice or, on a live page, the run changes.

// key of the page's data -> title, and what draws it: make(its data, choices, change, all data). One that "asks" has no
// data in the page.
const RUN = [
  ["stages", "How the run went", panelStages],
  ["funnel", "What the policy kept", panelFunnel],
  ["desk", "The policy desk", panelDesk, "asks"],
  ["comparison", "Did filtering help?", panelComparison],
  ["scores", "Scores and thresholds", panelScores],
  ["samples", "Read the documents", panelSamples],
  ["browse", "Find documents", panelBrowse, "asks"],
  ["measures", "Measured values", panelMeasures],
  ["oracle", "The oracle's grades", panelOracle],
  ["heads", "The heads", panelHeads],
  ["duplicates", "Duplicates", panelDuplicates],
  ["contamination", "Contamination", panelContamination, "asks"],
  ["quarantine", "Quarantine", panelQuarantine],
  ["training", "Training", panelTraining],
  ["mixture", "Mixture", panelMixture, "asks"],
  ["artifacts", "Published shards", panelArtifacts],
];
const FOLDER = [["runs", "All runs", panelRuns], ["overlay", "Trainings, overlaid", panelOverlay], ["settings", "Where their settings differ", panelSettings], ["compared", "Arms compared", panelCompared]];
const SECTIONS = document.body.dataset.kind === "folder" ? FOLDER : RUN;

let report = JSON.parse(document.getElementById("data").textContent);
if (report.runs) report = { ...folderSections(report.runs), answers: report.answers };
let choices = {};

for (const one of report.answers || []) answers.set(addressed(one.question, one.asked), one.answer);

// The style sheet numbers figures (an answer may come late, between two others). A lone table's CSV stands with the rest.
function figure(caption, ...content) {
  const words = h("span", { class: "caption-text" }, caption), tools = h("span", { class: "tools" });
  const made = h("figure", {}, content, h("figcaption", {}, words, tools));
  const number = () => `figure-${SECTIONS.findIndex(([key]) => key === made.closest("main > section")?.id) + 1}-${1 + [...made.closest("section").querySelectorAll("figure")].indexOf(made)}`;
  const save = (name, how) => h("button", { type: "button", class: "needs-chart", title: `Save this figure as ${name}`, onclick: () => how(made, number(), textOf(caption)) }, name);
  tools.append(save("SVG", saveSvg), save("PNG", savePng));
  const tables = made.querySelectorAll(".table > .tools");
  if (tables.length === 1) { tools.append(...tables[0].children); tables[0].remove(); }
  return made;
}

function absent(panel) {
  if (panel.unserved) return h("p", { class: "absent" }, "This is read from the run's files while it is looked at: ", h("code", {}, "report open RUN"), " shows it.");
  if (panel.error) return h("p", { class: "absent failed" }, "This part of the run could not be read: ", h("code", {}, panel.error));
  return h("p", { class: "absent" }, "Nothing here yet: ", h("code", {}, panel.missing), " is not in the run folder; it is made by ", h("b", {}, panel.made_by), ".");
}

const here = (panel) => panel && !panel.missing && !panel.error && !panel.unserved;

function draw() {
  document.getElementById("contents").replaceChildren(...contents().filter(Boolean));
  document.getElementById("main").replaceChildren(...[hatching(), header(), SECTIONS.map(([key]) => section(key)), colophon()].flat().filter(Boolean));
}

function hatching() {
  return s("svg", { class: "defs", width: 0, height: 0, "aria-hidden": "true" }, s("defs", {},
    s("pattern", { id: "hatch", width: 5, height: 5, patternUnits: "userSpaceOnUse", patternTransform: "rotate(45)" },
      s("rect", { class: "hatch-ground", width: 5, height: 5 }), s("rect", { class: "fill-dropped", width: 1.7, height: 5 }))));
}

function section(key) {
  const number = SECTIONS.findIndex((one) => one[0] === key) + 1;
  const [, title, make, asks] = SECTIONS[number - 1];
  const redraw = (chosen) => change(key, chosen);
  return h("section", { id: key, "aria-labelledby": `${key}-title` },
    h("h2", { id: `${key}-title`, tabindex: "-1" }, h("span", { class: "section-number" }, String(number)), title),
    asks || here(report[key]) ? drawn(() => make(report[key], choices, redraw, report)) : absent(report[key] || { missing: key, made_by: "another version" }));
}

// Files of another version may hold what a panel does not expect; that costs the panel, not the page.
function drawn(make) {
  try {
    return make();
  } catch (error) {
    return absent({ error: `this page cannot draw it (${error.message})` });
  }
}

// Draws one section again, after a choice in it or for new data; the control that had the focus keeps it.
function change(key, chosen) {
  choices = { ...choices, ...chosen };
  const element = document.getElementById(key);
  steady(element, () => element.replaceWith(section(key)), () => document.getElementById(key));
}

function contents() {
  return [
    h("p", { class: "brand" }, document.body.dataset.run ? h("a", { href: "/" }, "Gristmill") : "Gristmill"),
    h("ol", {}, SECTIONS.map(([key, title, , asks]) => h("li", { class: asks || here(report[key]) ? null : "absent-item" }, h("a", { href: `#${key}` }, title)))),
    isServed() && h("p", { class: "live", id: "live" }, "following the run"),
    look(),
  ];
}

function header() {
  const it = report.overview && { ...report.overview, status: report.stages.status || report.overview.status };
  if (!it) return h("header", { class: "top" }, h("h1", {}, report.runs.folder || "Runs"));
  const when = [it.started_at && `started ${time(it.started_at)}`, it.finished_at && `finished ${time(it.finished_at)}`].filter(Boolean).join(", ");
  return h("header", { class: "top" },
    h("h1", {}, it.name),
    h("p", { class: "status" }, it.status && h("span", { class: `state ${it.status}` }, it.status), h("span", {}, when), known(it.stage_seconds) && it.stage_seconds > 0 && h("span", {}, `${duration(it.stage_seconds)} of stage time`)),
    h("dl", { class: "findings" },
      finding("Documents", it.documents, it.documents_kept),
      finding("Tokens", it.tokens, it.tokens_kept),
      h("div", {}, h("dt", {}, "Quarantined"), h("dd", {}, h("span", { class: "big" }, count(it.quarantined)), h("span", { class: "small" }, known(it.quarantined) ? `inputs that could not be read${it.unhandled ? ", documents that stages could not handle" : ""}` : "not known yet"))),
      h("div", {}, h("dt", {}, "Comparison"), h("dd", {}, verdict(it.verdict)))));
}

function finding(name, into, kept) {
  const small = known(kept) ? `kept of ${count(into)} (${percent(kept, into)})` : known(into) ? "in; nothing selected yet" : "not known yet";
  return h("div", {}, h("dt", {}, name), h("dd", {}, h("span", { class: "big" }, count(known(kept) ? kept : into)), h("span", { class: "small" }, small),
    known(kept) && into > 0 && s("svg", { class: "keep-bar", viewBox: "0 0 100 4", preserveAspectRatio: "none", "aria-hidden": "true" }, s("rect", { class: "bar-ground", width: 100, height: 4 }), s("rect", { class: "fill-kept", width: (100 * kept) / into, height: 4 }))));
}

function verdict(it) {
  if (!it) return [h("span", { class: "big" }, "–"), h("span", { class: "small" }, "no two trainings compared yet")];
  return [
    h("span", { class: "big word" }, outcome(it.first)),
    h("span", { class: "small" }, `on ${setName(it.first.name)} (${count(it.first.documents)}), ${it.a} against ${it.b}`),
    it.others.map((one) => h("span", { class: "small by-set" }, h("b", {}, outcome(one)), `: ${one.sets.map(words).join(", ")}`)),
  ];
}

function colophon() {
  const it = report.overview;
  if (!it) return null;
  const facts = [...Object.entries(it.machine || {}), ...Object.entries(it.versions || {})];
  return h("footer", {},
    it.command && h("p", {}, "Made by ", h("code", {}, Array.isArray(it.command) ? it.command.join(" ") : String(it.command))),
    facts.length > 0 && h("p", {}, facts.map(([name, value]) => `${words(name)} ${typeof value === "object" ? JSON.stringify(value) : value}`).join(" · ")),
    !isServed() && h("p", {}, "This file holds all that it shows; nothing is fetched."));
}

function time(text) {
  const date = new Date(text);
  return Number.isNaN(date.getTime()) ? String(text) : date.toISOString().slice(0, 16).replace("T", " ") + " UTC";
}

// What changed is drawn again, section by section; what is being read stays where it is. A large run takes a while to be
// read: then it is asked for less often.
async function follow(seconds) {
  let tag = "", took = 0;
  const question = document.body.dataset.kind === "folder" ? "runs" : "data";
  const query = new URLSearchParams(document.body.dataset.run ? { run: document.body.dataset.run } : {});
  for (;;) {
    await new Promise((wake) => setTimeout(wake, Math.max(seconds * 1000, 3 * took)));
    if (document.hidden) continue;
    const sign = document.getElementById("live"), began = performance.now();
    try {
      const answer = await fetch(`/api/${question}?${query}`, { cache: "no-store", headers: tag ? { "If-None-Match": tag } : {} });
      if (answer.status === 200) {
        const got = await answer.json();
        tag = take(question === "runs" ? folderSections(got) : got) ? answer.headers.get("ETag") || "" : "";
      }
      sign.textContent = answer.ok || answer.status === 304 ? `followed until ${new Date().toTimeString().slice(0, 8)}` : "the run is not there any more; this is the last that was seen of it";
      document.dispatchEvent(new Event("followed"));
    } catch (error) {
      sign.textContent = "the server is gone; this is its last word";
    }
    took = performance.now() - began;
  }
}

// False where a section had to be left as it was, as somebody types in it.
function take(data) {
  const before = report, typing = document.activeElement?.closest("input, textarea, select")?.closest("main > section")?.id;
  report = { ...data, answers: [] };
  let all = true;
  for (const [key] of SECTIONS) {
    const changed = JSON.stringify(before[key]) !== JSON.stringify(report[key]);
    if (changed && key === typing) [report[key], all] = [before[key], false];
    else if (changed) change(key, {});
    else document.querySelectorAll(`#${key} .answer`).forEach((one) => one.dispatchEvent(new Event("run-changed")));
  }
  document.querySelectorAll("nav ol li").forEach((item, index) => item.classList.toggle("absent-item", !SECTIONS[index][3] && !here(report[SECTIONS[index][0]])));
  if (report.overview && JSON.stringify(before.overview) !== JSON.stringify(report.overview)) document.querySelector("header.top").replaceWith(header());
  return all;
}

draw();
watchSections();
if (isServed()) follow(Number(document.body.dataset.live));
if (isServed() && SECTIONS === RUN) followStages();
