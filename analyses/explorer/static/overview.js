// Where one begins: what the dictionaries are, and the questions that lists answer.

const MOST_EXAMPLED = 6; // questions up to which each shows its first latents

function overviewView() {
  const part = el("article", { class: "overview" },
    el("h1", {}, meta.dictionaries.length > 1 ? "Which latents does one dictionary have that another lacks?" : `What are the latents of ${fullName(0)}?`),
    meta.dictionaries.length > 1 ? el("div", { class: "questions" }, questions()) : null,
    el("h2", {}, "The dictionaries"), dictionariesTable(), overviewExports(), sampleNote());
  part.redraw = () => ready.then(() => part.querySelectorAll(".first-latents").forEach(fillFirst)).catch(() => {}); // said elsewhere
  return part;
}

function overviewExports() {
  const heads = ["dictionary", "latents", "dead", "L0", "L0 in its file", "variance unexplained", "mean squared error"];
  const table = () => [heads, ...meta.dictionaries.map(a => [a.name, a.latents, a.dead, a.l0, a.declared_l0 ?? "", a.unexplained ?? "", a.mse])];
  return exportsPart("dictionaries.csv", table, () => [...explorerLines("latents"), 'frame = frame.groupby("dictionary", sort=False)["firing rate"].agg(latents="size", dead=lambda rate: (rate == 0).sum(), L0="sum")']);
}

// Novel latents with the largest effect, in one pass: there may be a hundred thousand.
function mostUseful(d, e, count) {
  const effect = columns[d][`effect${e}`], classes = columns[d][`class${e}`], novel = meta.classes.indexOf("novel"), best = [];
  for (let i = 0; i < effect.length; i++) {
    if (classes[i] !== novel || (best.length === count && !(effect[i] < effect[best[count - 1]]))) continue;
    best.push(i);
    best.sort((a, b) => effect[a] - effect[b] || a - b);
    best.length = Math.min(best.length, count);
  }
  return best;
}

// The first novel latents of a question, each at the token where it is most active.
async function fillFirst(box) {
  const [d, e] = [Number(box.dataset.d), Number(box.dataset.e)];
  const parts = await Promise.all(mostUseful(d, e, 3).map(async i => {
    const record = await loadLatent(d, i), [, sequence, position] = record.examples[0];
    const line = await exampleLine({ sequence, position, k: 0 }, [layerOf(d, record, 0)], false);
    return [el("div", {}, latentLink(d, i), " ", codesOf(tokensAt(d, i, "on").slice(0, 3))), line];
  }));
  box.replaceChildren(...parts.flat());
}

function questions() {
  const list = [], count = every().reduce((sum, d) => sum + Object.keys(meta.dictionaries[d].classes).length, 0);
  for (const d of every()) {
    for (const e of others(d).filter(e => meta.dictionaries[d].classes[e])) {
      const n = countClass(d, e, "novel"), alive = countAlive(d);
      list.push(el("section", { class: "question" },
        el("h2", {}, badge(d), " and ", badge(e)),
        el("p", {}, viewLink({ view: "list", of: d, where: `class${e}=novel`, sort: `effect${e}` }, `Novel latents of ${name(d)}, which ${name(e)} lacks`),
          `: ${number(n)} of ${number(alive)} latents lower the error of ${name(e)} when they are added to it. Most useful first; choose one to see what it is.`),
        count <= MOST_EXAMPLED && n ? el("div", { class: "first-latents", "data-d": d, "data-e": e }) : null,
        el("p", {}, viewLink({ view: "list", of: d, where: `class${e}=reconstruction`, sort: `-cos${e}` }, `Reconstruction latents of ${name(d)}`),
          `: ${number(countClass(d, e, "reconstruction"))} latents that ${name(e)} has already.`),
        el("p", {}, viewLink({ view: "splits", d: e, e: d }, `Latents of ${name(e)} that split in ${name(d)}`), ": one of these, several of those."),
        el("p", {}, viewLink({ view: "absorbed", d: e, e: d }, `Latents of ${name(e)} absorbed in ${name(d)}`), ": others are active in their place."),
        el("p", {}, viewLink({ view: "triggers", d: e, e: d }, "Twins with different triggers"), ": nearly the same direction, active on other tokens."),
      ));
    }
  }
  return list;
}

const countClass = (d, e, wanted) => meta.dictionaries[d].classes[e][meta.classes.indexOf(wanted)];

const countAlive = d => meta.dictionaries[d].latents - meta.dictionaries[d].dead;

function dictionariesTable() {
  const heads = ["", "latents", "dead in this sample", "active at once (L0)", "L0 in its file", "variance unexplained"];
  return el("div", { class: "wide-table" }, el("table", {}, el("thead", {}, el("tr", {}, heads.map(t => el("th", { scope: "col" }, t)))),
    el("tbody", {}, every().map(d => {
      const a = meta.dictionaries[d];
      return el("tr", {}, el("td", {}, viewLink({ view: "list", of: d }, fullName(d))),
        [number(a.latents), number(a.dead), number(a.l0), number(a.declared_l0), number(a.unexplained)].map(t => el("td", { class: "figure" }, t)));
    }))));
}

function sampleNote() {
  const first = meta.dictionaries[0];
  return el("div", { class: "note" },
    el("p", {}, `${visible(meta.model)} at ${visible(String(first.site))}, on ${number(meta.tokens)} tokens of ${visible(meta.text)} in ${number(meta.sequences)} sequences of ${number(meta.context)}; ${number(meta.counted)} tokens count (${visible(meta.selection)}). A dead latent is active on none of them.`),
    el("p", {}, "Effects: the change in a dictionary's mean squared error when the latent alone is added to it. Cosines are of decoder directions; correlation and Jaccard of activations on these tokens."),
    first.streams === null ? null : el("p", {}, `Promoted tokens: the direct effect on the logits of the direction at its mean activation, a mean over ${number(first.streams)} residual streams.`));
}
