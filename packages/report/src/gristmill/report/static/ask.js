// Questions that a panel asks while it is looked at. A page that is a file holds the answers to the first of them.

const answers = new Map(); // the last answer to each question that was asked
const KEPT = 200; // of them, so that long reading does not fill the memory
const asking = new Map(); // slot -> the AbortController of what it asks now

const addressed = (question, parameters) => `${question}?${new URLSearchParams(Object.entries(parameters).filter(([, value]) => known(value) && value !== "").map(([name, value]) => [name, String(value)]).sort())}`;
const isServed = () => Number(document.body.dataset.live) > 0;

// The answer as a panel: {missing, made_by} or {error} where there is none. Null where a later question of the same slot overtook it.
async function ask(question, parameters = {}, slot = question) {
  const address = addressed(question, parameters);
  if (!isServed()) return answers.get(address) || { unserved: true };
  asking.get(slot)?.abort();
  const own = new AbortController();
  asking.set(slot, own);
  try {
    const query = new URLSearchParams(address.split("?")[1]);
    if (document.body.dataset.run) query.set("run", document.body.dataset.run);
    const reply = await fetch(`/api/${question}?${query}`, { cache: "no-store", signal: own.signal });
    const answer = await reply.json();
    answers.delete(address);
    answers.set(address, answer);
    if (answers.size > KEPT) answers.delete(answers.keys().next().value);
    return answer;
  } catch (error) {
    return own.signal.aborted ? null : { error: `the server does not answer (${error.message})` };
  } finally {
    if (asking.get(slot) === own) asking.delete(slot);
  }
}

// An element that holds what `make(answer)` draws: at once from the last answer, then from the next, and again when the run has changed.
// Until the first answer comes, what its slot showed before stays, dimmed: nothing jumps, and the focus has a place.
function answered(question, parameters, make, slot = question) {
  const place = h("div", { class: "answer", "data-question": question, "data-slot": slot });
  let shown = null;
  const show = (answer) => {
    shown = JSON.stringify(answer);
    place.removeAttribute("aria-busy");
    steady(place, () => place.replaceChildren(...[here(answer) ? drawn(() => make(answer)) : absent(answer)].flat(Infinity).filter(Boolean)));
  };
  const again = async () => {
    const answer = await ask(question, parameters, slot);
    if (answer && JSON.stringify(answer) !== shown) show(answer);
    place.dataset.answered = "true";
  };
  const last = answers.get(addressed(question, parameters)), before = slotNow(slot);
  if (last) show(last);
  else if (before) { place.append(...before.childNodes); place.setAttribute("aria-busy", "true"); }
  else place.append(h("p", { class: "quiet" }, "reading …"));
  place.addEventListener("run-changed", () => { if (!place.contains(document.activeElement?.closest("input, textarea, select"))) again(); });
  again();
  return place;
}

const slotNow = (slot) => document.querySelector(`.answer[data-slot="${CSS.escape(slot)}"]`);

// To the head of a list whose page was turned at its foot.
function toHead(slot) {
  const place = slotNow(slot);
  if (place && place.getBoundingClientRect().top < 0) place.scrollIntoView();
}

// What `draw` puts in the place of what an element holds gets its focus, its open details, and how far things were scrolled.
function steady(element, draw, find = () => element) {
  const marked = (within) => [...within.querySelectorAll("button, select, input, textarea, summary, a, h2, details, .scroll, .text, .tokens")];
  const old = marked(element), focused = old.indexOf(document.activeElement), names = focused < 0 ? [] : old.map(nameOf);
  const before = old.map((one) => ({ open: one.open, left: one.scrollLeft, top: one.scrollTop }));
  draw();
  const made = marked(find());
  if (focused >= 0) alike(made, names, focused)?.focus({ preventScroll: true });
  made.forEach((one, index) => {
    const was = before[index] || {};
    if (one.localName === "details" && was.open) one.open = true;
    if (was.left || was.top) one.scrollTo({ left: was.left, top: was.top, behavior: "instant" });
  });
}

const nameOf = (one) => `${one.localName} ${one.name || ""} ${/^(a|button|summary)$/.test(one.localName) ? one.textContent : ""}`;

// The same control as it was drawn again: in its place under its name; or the one of as many of that name; or what is in its place now.
function alike(made, names, index) {
  const name = names[index], now = made.map(nameOf), at = (all) => all.flatMap((one, number) => (one === name ? [number] : []));
  if (now[index] === name) return made[index];
  if (at(now).length === at(names).length) return made[at(now)[at(names).indexOf(index)]];
  return now[index]?.split(" ")[0] === name.split(" ")[0] ? made[index] : null;
}
