// With the model behind the page (dictlab explore --serve): a text of one's own, and what a latent does to predictions.

const LIVE = document.documentElement.hasAttribute("data-live");
const trial = { text: "", answer: null, at: 0, change: null, changed: null };

async function ask(what, question) {
  const reply = await fetch(`api/${what}`, { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(question) });
  const answer = await reply.json();
  if (!reply.ok) throw new Error(answer.error);
  return answer;
}

function tryView() {
  if (!LIVE) return el("p", { class: "note" }, "This needs the model behind the page: dictlab explore --serve.");
  const area = el("textarea", { rows: 4, "aria-label": "Your text", placeholder: "Paste a text" });
  area.value = trial.text;
  const results = el("div", { class: "results" }), said = el("span", { class: "note", role: "status" });
  const run = async () => {
    said.textContent = "running …";
    try {
      Object.assign(trial, { text: area.value, answer: await ask("run", { text: area.value }), change: null, changed: null });
      trial.at = trial.answer.sequence.lengths.length - 1;
      said.textContent = trial.answer.sequence.lengths.length >= trial.answer.context ? `cut to the model's ${trial.answer.context} tokens` : "";
      drawTrial(results);
    } catch (error) { said.textContent = error.message; }
  };
  area.addEventListener("keydown", event => { if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) run(); });
  if (trial.answer) drawTrial(results);
  return el("article", { class: "try" }, el("h1", {}, "Which latents are active on your text?"), area,
    el("div", { class: "controls" }, el("button", { onclick: run }, "run"), el("span", { class: "note" }, "or Ctrl and Enter"), said), results);
}

function drawTrial(results) {
  const { answer } = trial, tokens = tokensOf(answer.sequence), chosen = trial.change;
  const values = new Map();
  if (chosen) answer.dictionaries[chosen.d].latents.forEach((list, p) => list.forEach(([i, v]) => { if (i === chosen.i) values.set(p, v); }));
  const layer = { d: chosen ? chosen.d : 0, values, most: Math.max(0, ...[...values.values()].map(Math.abs)) };
  const line = el("p", { class: `line d${layer.d % 6}`, dir: "auto" }, piecesOf(tokens, 0, tokens.length).map(piece => {
    const span = pieceSpan(piece, -1, layer), p = piece.positions.at(-1);
    if (piece.positions.includes(trial.at)) span.classList.add("taken");
    span.setAttribute("tabindex", "0");
    span.setAttribute("role", "button");
    const take = () => { trial.at = p; drawTrial(results); results.querySelectorAll(".line .t")[[...results.querySelectorAll(".line .t")].findIndex(t => t.classList.contains("taken"))]?.focus(); };
    span.addEventListener("click", take);
    span.addEventListener("keydown", event => { if (event.key === "Enter") { event.stopPropagation(); take(); } });
    return span;
  }));
  results.replaceChildren(el("p", { class: "note" }, "Choose a token."), el("div", { class: "context" }, line), chosen ? changeForm(results, layer) : null, el("div", { class: "side" }, predictions(), answer.dictionaries.map((about, d) => activeHere(about, d, results))));
}

const chances = list => el("ol", { class: "tokens" }, list.map(([text, p]) => el("li", {}, el("code", {}, visible(text)), el("span", { class: "note" }, ` ${percent(p)}`))));

function predictions() {
  const at = trial.at, parts = [el("h2", {}, "The model predicts next"), chances(trial.answer.clean.next[at])];
  if (trial.changed) {
    parts.push(el("h2", {}, "and after the change"), chances(trial.changed.next[at]), el("p", { class: "note" }, `KL here ${number(trial.changed.kl[at])} nats; mean over the text ${number(trial.changed.kl.reduce((a, b) => a + b, 0) / trial.changed.kl.length)}`),
      el("h3", {}, "what moved most"), el("ul", { class: "own" }, trial.changed.moved[at].map(([text, before, after]) => el("li", {}, el("code", {}, visible(text)), ` ${percent(before)} → ${percent(after)}`))));
  }
  return el("section", {}, parts);
}

function activeHere(about, d, results) {
  const here = about.latents[trial.at];
  return el("section", {}, el("h2", {}, badge(d)),
    here.length === 0 ? el("p", { class: "note" }, trial.answer.counted[trial.at] ? "none is active" : "this token does not count") : el("ul", { class: "own" }, here.map(([i, v]) => el("li", {},
      latentLink(d, i, String(i)), ` ${number(v)} `, el("button", { class: "more", "aria-label": `change latent ${i}`, onclick: () => { trial.change = { d, i }; trial.changed = null; drawTrial(results); } }, "change"), " ", codesOf(tokensAt(d, i, "on").slice(0, 3))))),
    el("h3", {}, "with it in the place of the activations"), chances(about.next[trial.at]), el("p", { class: "note" }, `KL ${number(about.kl[trial.at])} nats`));
}

function changeForm(results, layer) {
  const { d, i } = trial.change, said = el("span", { class: "note", role: "status" });
  const scale = el("input", { type: "number", step: "any", value: 0, "aria-label": "factor", class: "bound" });
  const add = el("input", { type: "number", step: "any", value: number(columns[d].max[i]).replaceAll(",", ""), "aria-label": "amount", class: "bound" });
  const here = el("input", { type: "checkbox", id: "here" });
  const run = async how => {
    said.textContent = "running …";
    try {
      trial.changed = await ask("change", { text: trial.text, dictionary: d, latent: i, position: here.checked ? trial.at : null, ...how });
      drawTrial(results);
    } catch (error) { said.textContent = error.message; }
  };
  return el("div", { class: "controls" }, latentLink(d, i), layer.values.size ? "" : " (not among the strongest here)",
    el("button", { onclick: () => run({ scale: 0 }) }, "switch off"), " scale by ", scale, el("button", { onclick: () => run({ scale: Number(scale.value) }) }, "scale"),
    " add ", add, " × its direction ", el("button", { onclick: () => run({ add: Number(add.value) }) }, "add"), el("label", { for: "here" }, here, " at the chosen token alone"), said);
}
