// Where one begins: what the dictionaries are, and the questions that lists answer.

function overviewView() {
  return el("article", { class: "overview" },
    el("h1", {}, meta.dictionaries.length > 1 ? "Which latents does one dictionary have that another lacks?" : `What are the latents of ${fullName(0)}?`),
    meta.dictionaries.length > 1 ? el("div", { class: "questions" }, questions()) : null,
    el("h2", {}, "The dictionaries"), dictionariesTable(), sampleNote());
}

function questions() {
  const list = [];
  for (const d of every()) {
    for (const e of others(d).filter(e => meta.dictionaries[d].classes[e])) {
      const n = countClass(d, e, "novel"), alive = countAlive(d);
      list.push(el("section", { class: "question" },
        el("h2", {}, badge(d), " and ", badge(e)),
        el("p", {}, viewLink({ view: "list", of: d, where: `class${e}=novel`, sort: `effect${e}` }, `Novel latents of ${name(d)}, which ${name(e)} lacks`),
          `: ${number(n)} of ${number(alive)} latents lower the error of ${name(e)} when they are added to it. Most useful first.`),
        el("p", {}, viewLink({ view: "list", of: d, where: `class${e}=reconstruction`, sort: `-cos${e}` }, `Reconstruction latents of ${name(d)}`),
          `: ${number(countClass(d, e, "reconstruction"))} latents that ${name(e)} has already.`),
        el("p", {}, viewLink({ view: "splits", d: e, e: d }, `Latents of ${name(e)} that split in ${name(d)}`), ": one of these, several of those."),
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
