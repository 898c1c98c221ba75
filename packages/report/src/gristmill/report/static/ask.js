// Questions that a panel asks while it is looked at. A page that is a file holds the answers to the first of them.

const answers = new Map(); // the last answer to each question that was asked
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
    answers.set(address, answer);
    return answer;
  } catch (error) {
    return own.signal.aborted ? null : { error: `the server does not answer (${error.message})` };
  } finally {
    if (asking.get(slot) === own) asking.delete(slot);
  }
}

// An element that holds what `make(answer)` draws: at once from the last answer, then from the next.
function answered(question, parameters, make, slot = question) {
  const place = h("div", { class: "answer", "data-question": question });
  const show = (answer) => place.replaceChildren(...[here(answer) ? drawn(() => make(answer)) : absent(answer)].flat(Infinity).filter(Boolean));
  const last = answers.get(addressed(question, parameters));
  if (last) show(last);
  else place.append(h("p", { class: "quiet" }, "reading …"));
  ask(question, parameters, slot).then((answer) => {
    if (answer && (answer !== last || !isServed())) show(answer);
    place.dataset.answered = "true";
  });
  return place;
}
