// Two latents of two dictionaries on the same tokens: the contexts of either, with the activations of both.

async function pairView(one, other) {
  const [a, b] = await Promise.all([loadLatent(one.d, one.i), loadLatent(other.d, other.i)]);
  const ab = (a.twins[other.d] || []).find(t => t.latent === other.i) || null;
  const ba = (b.twins[one.d] || []).find(t => t.latent === one.i) || null;
  const known = ab || ba;
  return el("article", { class: "one" },
    el("div", { class: "title" }, el("h1", {}, latentLink(one.d, one.i), " and ", latentLink(other.d, other.i)), exportContexts([[one.d, one.i, a], [other.d, other.i, b]])),
    known ? pairFigures(known, one, other, a, b) : el("p", { class: "note" }, "These two are not among each other's twins, so that nothing was measured of them together."),
    await bothPart(a, ab, one, other), await bothPart(b, ba, other, one));
}

function pairFigures(known, one, other, a, b) {
  const [na, nb] = [a, b].map(r => r.hist.reduce((x, y) => x + y, 0));
  const label = x => `${name(x.d)} · ${x.i}`;
  const rows = [["cosine of directions", number(known.cosine)], ["correlation of activations", number(known.correlation)], ["Jaccard of active tokens", number(jaccard(na, nb, known.both))],
    [`where ${label(one)} is active (${number(na)} tokens), so is ${label(other)} on`, percent(na ? known.both / na : NaN)],
    [`where ${label(other)} is active (${number(nb)} tokens), so is ${label(one)} on`, percent(nb ? known.both / nb : NaN)]];
  return el("dl", { class: "wide" }, rows.map(([term, value]) => [el("dt", {}, term), el("dd", {}, value)]));
}

async function bothPart(record, twin, one, other) {
  const examples = record.examples.map(([group, sequence, position], k) => ({ group, sequence, position, k })).filter(e => e.group === 0 || e.group > meta.bands - 2);
  const lines = await Promise.all(examples.map(async example => {
    const layers = [layerOf(one.d, record, example.k), ...(twin ? [layerOf(other.d, twin, example.k)] : [])];
    const line = await exampleLine(example, layers);
    if (twin && !layers[1].values.get(example.position)) line.prepend(el("span", { class: "apart" }, `${name(other.d)} · ${other.i} is silent here`));
    return line;
  }));
  return el("section", { class: "both" }, el("h2", {}, "Where ", latentLink(one.d, one.i), " is active"),
    twin ? el("p", { class: "note" }, badge(one.d), " above, ", badge(other.d), " below; each is shaded beside its own largest activation.") : el("p", { class: "note" }, "The other one's activations here were not kept: it is not among this latent's nearest."), lines);
}
