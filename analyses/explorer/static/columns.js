// What latents can be listed, sorted and filtered by.

const name = d => meta.dictionaries[d].name;
const isDead = (d, i) => columns[d].rate[i] === 0;
const others = d => meta.dictionaries.map((_, e) => e).filter(e => e !== d);

// key -> {title, help, value(d, i), show(value)}; of columns about another dictionary e for each e.
function allColumns() {
  const list = [
    { key: "rate", title: "active on", help: "share of the sample's tokens at which it is active", value: (d, i) => columns[d].rate[i], show: percent },
    { key: "max", title: "largest", help: "its largest activation in the sample", value: (d, i) => columns[d].max[i], show: number },
    { key: "mean", title: "mean", help: "its mean activation where it is active", value: (d, i) => columns[d].mean[i], show: number },
    { key: "norm", title: "norm", help: "length of its decoder direction", value: (d, i) => columns[d].norm[i], show: number },
  ];
  meta.dictionaries.forEach((about, e) => {
    const of = column => (d, i) => (columns[d][column + e] ? columns[d][column + e][i] : NaN);
    const short = name(e);
    list.push({ key: `cos${e}`, title: `cosine, ${short}`, help: `cosine with its nearest latent of ${short}`, value: of("cos"), show: number, about: e });
    list.push({ key: `corr${e}`, title: `correlation, ${short}`, help: `correlation with the latent of ${short} that it correlates with most`, value: of("corr"), show: number, about: e });
    list.push({ key: `jac${e}`, title: `Jaccard, ${short}`, help: `tokens shared with its nearest latent of ${short}, over those of either`, value: of("jac"), show: number, about: e });
    list.push({ key: `effect${e}`, title: `effect on ${short}`, help: `change in the mean squared error of ${short} when it alone is added; below 0 it is novel`, value: of("effect"), show: number, about: e });
  });
  return list;
}

function classOf(d, i, e) {
  const classes = columns[d][`class${e}`];
  return classes ? meta.classes[classes[i]] : null;
}

function tokensAt(d, i, column) {
  const values = columns[d][column], n = values.length / meta.dictionaries[d].latents, found = [];
  for (let k = 0; k < n; k++) if (values[i * n + k] >= 0) found.push(values[i * n + k]);
  return found;
}
