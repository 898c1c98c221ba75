// Around the sections: light or dark, the keys, which section is being read, and dialogues.

const LOOKS = ["auto", "light", "dark"];
const KEYS = [["j, n", "the next section"], ["k, p", "the one before"], ["/", "search the documents"], ["?", "these keys"], ["Esc", "close this"]];

// Kept for the visit, where the browser lets a page keep anything: a file may not.
function lookOf() {
  try { return LOOKS.find((one) => one === sessionStorage.getItem("look")) || "auto"; } catch (error) { return document.documentElement.dataset.look || "auto"; }
}

function setLook(chosen) {
  try { sessionStorage.setItem("look", chosen); } catch (error) { /* then until the page is left */ }
  document.documentElement.dataset.look = chosen;
  const place = document.querySelector("nav .look");
  steady(place, () => place.replaceWith(look()), () => document.querySelector("nav .look"));
}

function look() {
  document.documentElement.dataset.look = lookOf();
  return h("div", { class: "look" }, choice("Light or dark", LOOKS.map((one) => [one, one]), lookOf(), setLook),
    h("button", { type: "button", onclick: showKeys }, "keys"));
}

// One at a time, over everything; Esc closes it, and the focus goes back to where it was.
function showDialog(name, title, ...content) {
  const made = h("dialog", { class: name, "aria-labelledby": "dialog-title", onclose: () => made.remove(), onclick: (event) => event.target === made && made.close() },
    h("button", { type: "button", class: "close", onclick: () => made.close() }, "Close"),
    h("h2", { id: "dialog-title" }, title), content);
  document.querySelector("dialog")?.close();
  document.body.append(made);
  made.showModal();
  return made;
}

function showKeys() {
  showDialog("keys", "Keys", h("table", {}, h("tbody", {}, KEYS.map(([keys, what]) => h("tr", {}, h("th", { scope: "row" }, keys.split(", ").map((key, index) => [index > 0 && " ", h("kbd", {}, key)])), h("td", {}, what))))));
}

const sectionsNow = () => [...document.querySelectorAll("main > section")];

function goBy(steps) {
  const all = sectionsNow(), reached = all.findLastIndex((one) => one.getBoundingClientRect().top < 40);
  // Up from the middle of a section leads to its own beginning first.
  const inside = steps < 0 && reached >= 0 && all[reached].getBoundingClientRect().top < -40;
  const next = all[clamp(inside ? reached : reached + steps, 0, all.length - 1)];
  next.scrollIntoView({ behavior: "instant" });
  next.querySelector("h2").focus({ preventScroll: true });
}

document.addEventListener("keydown", (event) => {
  const typing = event.target.closest?.("select, textarea, [contenteditable], input:not([type=range], [type=checkbox], [type=radio])");
  if (typing || event.ctrlKey || event.metaKey || event.altKey || document.querySelector("dialog")) return;
  if (event.key === "j" || event.key === "n") goBy(1);
  else if (event.key === "k" || event.key === "p") goBy(-1);
  else if (event.key === "?") showKeys();
  else if (event.key === "/" && document.querySelector("input[type=search]")) document.querySelector("input[type=search]").focus();
  else return;
  event.preventDefault();
});

// The contents say where the reader is.
function watchSections() {
  const mark = () => {
    const at = sectionsNow().findLast((one) => one.getBoundingClientRect().top < innerHeight / 3);
    for (const link of document.querySelectorAll("nav ol a")) {
      if (at && link.getAttribute("href") === `#${at.id}`) link.setAttribute("aria-current", "true");
      else link.removeAttribute("aria-current");
    }
  };
  let waiting = false;
  const soon = () => {
    if (waiting) return;
    waiting = true;
    requestAnimationFrame(() => { waiting = false; mark(); });
  };
  addEventListener("scroll", soon, { passive: true });
  new ResizeObserver(soon).observe(document.getElementById("main")); // a late answer moves what stands below it
  mark();
}
