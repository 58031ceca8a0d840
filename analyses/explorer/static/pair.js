// Two latents of two dictionaries on the same tokens: the contexts of either, with the activations of both.

async function pairView(one, other) {
  const [a, b] = await Promise.all([loadLatent(one.d, one.i), loadLatent(other.d, other.i)]);
  const ab = (a.twins[other.d] || []).find(t => t.latent === other.i) || null;
  const ba = (b.twins[one.d] || []).find(t => t.latent === one.i) || null;
  const known = ab || ba;
  return el("article", { class: "one" },
    el("div", { class: "title" }, el("h1", {}, latentLink(one.d, one.i), " and ", latentLink(other.d, other.i))),
    known ? pairFigures(known, a, b) : el("p", { class: "note" }, "These two are not among each other's twins, so that nothing was measured of them together."),
    await bothPart(`Where ${name(one.d)} ${one.i} is most active`, a, ab, one, other),
    await bothPart(`Where ${name(other.d)} ${other.i} is most active`, b, ba, other, one));
}

function pairFigures(known, a, b) {
  const [na, nb] = [a, b].map(r => r.hist.reduce((x, y) => x + y, 0));
  const rows = [["cosine", number(known.cosine)], ["correlation", number(known.correlation)], ["Jaccard", number(jaccard(na, nb, known.both))],
    ["of the first's tokens, the second is active on", percent(na ? known.both / na : NaN)], ["of the second's tokens, the first is active on", percent(nb ? known.both / nb : NaN)]];
  return el("dl", { class: "wide" }, rows.map(([term, value]) => [el("dt", {}, term), el("dd", {}, value)]));
}

async function bothPart(title, record, twin, one, other) {
  const examples = record.examples.map(([group, sequence, position], k) => ({ group, sequence, position, k })).filter(e => e.group === 0);
  const lines = await Promise.all(examples.map(example => exampleLine(example, [
    { d: one.d, values: byPosition(record.acts[example.k], record.unit), most: 10000 * record.unit },
    ...(twin ? [{ d: other.d, values: byPosition(twin.acts[example.k], twin.unit), most: 10000 * twin.unit }] : []),
  ])));
  return el("section", { class: "both" }, el("h2", {}, title),
    twin ? null : el("p", { class: "note" }, "The other one's activations here were not kept: it is not among this latent's nearest."), lines);
}
