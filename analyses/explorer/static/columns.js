// What latents can be listed, sorted and filtered by.

const fullName = d => visible(meta.dictionaries[d].name);
const isDead = (d, i) => columns[d].rate[i] === 0;
const others = d => meta.dictionaries.map((_, e) => e).filter(e => e !== d);
const every = () => meta.dictionaries.map((_, d) => d);
let shortNames = null;

// The names without what all of them begin or end with, cut between words.
function name(d) {
  if (!shortNames) {
    const words = meta.dictionaries.map(about => about.name.split(/(?<=[-_.+ ])/));
    let start = 0, end = 0;
    const least = Math.min(...words.map(w => w.length));
    if (words.length > 1) {
      while (start < least - 1 && words.every(w => w[start] === words[0][start])) start++;
      while (end < least - 1 - start && words.every(w => w[w.length - 1 - end] === words[0][words[0].length - 1 - end])) end++;
    }
    shortNames = words.map(w => visible(w.slice(start, w.length - end).join("").replace(/[-_.+ ]$/, "")) || "?");
    if (new Set(shortNames).size < shortNames.length) shortNames = meta.dictionaries.map(about => visible(about.name));
  }
  return shortNames[d];
}

let known = null;

// key -> {key, title, help, value(d, i), show(value)}; of columns about another dictionary e for each e.
function allColumns() {
  if (known) return known;
  const simple = (key, title, help, show = number) => ({ key, title, help, value: (d, i) => columns[d][key][i], show });
  known = [
    simple("rate", "firing rate", "share of the sample's tokens at which it is active", percent),
    simple("max", "largest", "its largest activation in the sample"),
    simple("mean", "mean", "its mean activation where it is active"),
    simple("norm", "norm", "length of its decoder direction"),
    { key: "best", title: "best cosine", help: "cosine with its nearest latent of any other dictionary", value: bestCosine, show: number },
  ];
  for (const e of every()) {
    const about = (key, title, help, value, show = number) => known.push({ key: key + e, title, help, value, show, about: e });
    const of = key => (d, i) => (columns[d][key + e] ? columns[d][key + e][i] : NaN);
    about("cos", `cosine, ${name(e)}`, `cosine with its nearest latent of ${name(e)}`, of("cos"));
    about("corr", `correlation, ${name(e)}`, `correlation with the latent of ${name(e)} that it correlates with most`, of("corr"));
    about("jac", `Jaccard, ${name(e)}`, `tokens shared with its nearest latent of ${name(e)}, over those of either`, of("jac"));
    about("effect", `error of ${name(e)}`, `change in the mean squared error of ${name(e)} when this latent alone is added; below 0: novel`,
      (d, i) => (columns[d][`effect${e}`] ? columns[d][`effect${e}`][i] / meta.dictionaries[e].mse : NaN), signedPercent);
  }
  return known;
}

function bestCosine(d, i) {
  let best = NaN;
  for (const e of others(d)) if (!(columns[d][`cos${e}`][i] <= best)) best = columns[d][`cos${e}`][i];
  return best;
}

const columnOf = key => allColumns().find(c => c.key === key);

function classOf(d, i, e) {
  const classes = columns[d][`class${e}`];
  return classes ? meta.classes[classes[i]] : null;
}

function tokensAt(d, i, column) {
  const values = columns[d][column], n = values.length / meta.dictionaries[d].latents, found = [];
  for (let k = 0; k < n; k++) if (values[i * n + k] >= 0) found.push(values[i * n + k]);
  return found;
}

const codesOf = tokens => tokens.map(t => el("code", {}, tokenText(t)));
