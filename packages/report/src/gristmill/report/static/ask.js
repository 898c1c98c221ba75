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
function answered(question, parameters, make, slot = question) {
  const place = h("div", { class: "answer", "data-question": question });
  let shown = null;
  const show = (answer) => {
    shown = JSON.stringify(answer);
    steady(place, () => place.replaceChildren(...[here(answer) ? drawn(() => make(answer)) : absent(answer)].flat(Infinity).filter(Boolean)));
  };
  const again = async () => {
    const answer = await ask(question, parameters, slot);
    if (answer && JSON.stringify(answer) !== shown) show(answer);
    place.dataset.answered = "true";
  };
  const last = answers.get(addressed(question, parameters));
  if (last) show(last);
  else place.append(h("p", { class: "quiet" }, "reading …"));
  place.addEventListener("run-changed", () => { if (!place.contains(document.activeElement?.closest("input, textarea, select"))) again(); });
  again();
  return place;
}

// What `draw` puts in the place of what an element holds gets its focus, its open details, and how far things were scrolled.
function steady(element, draw, find = () => element) {
  const marked = (within) => [...within.querySelectorAll("button, select, input, textarea, summary, a, h2, details, .scroll, .text, .tokens")];
  const before = marked(element).map((one) => ({ focused: one === document.activeElement, open: one.open, left: one.scrollLeft, top: one.scrollTop }));
  draw();
  marked(find()).forEach((one, index) => {
    const was = before[index] || {};
    if (was.focused) one.focus({ preventScroll: true });
    if (one.localName === "details" && was.open) one.open = true;
    if (was.left || was.top) one.scrollTo({ left: was.left, top: was.top, behavior: "instant" });
  });
}
