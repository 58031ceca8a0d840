// Which latents does the address ask for: a query, conditions on columns, an order.

let kept = { key: null, rows: [] };

// The latents as [dictionary, latent], in order.
function found() {
  const key = [state.of, state.q, state.where, state.sort, labels.length, stringHits ? stringHits.text : ""].join("\n");
  if (kept.key !== key) kept = { key, rows: search(state.of, state.q, state.where, state.sort) };
  return kept.rows;
}

function search(of, query, where, sort) {
  const wanted = of === "" ? every() : every().filter(d => String(d) === of);
  const matches = matcher(query), conditions = parseWhere(where), rows = [];
  for (const d of wanted) {
    const fits = matches(d);
    for (let i = 0; i < meta.dictionaries[d].latents; i++) {
      if (fits(i) && conditions.every(condition => condition(d, i))) rows.push([d, i]);
    }
  }
  return sorted(rows, sort);
}

function sorted(rows, sort) {
  const [, sign, key] = /^(-?)(.*)$/.exec(sort);
  if (!key && stringHits && state.q === `text:${stringHits.text}`) {
    return rows.sort((a, b) => stringHits.of(b[0], b[1]) - stringHits.of(a[0], a[1]));
  }
  const column = columnOf(key);
  if (!column) return rows;
  const keyed = rows.map(([d, i]) => [column.value(d, i), d, i]);
  const order = sign ? -1 : 1;
  keyed.sort((a, b) => (Number.isNaN(a[0]) - Number.isNaN(b[0])) || order * (a[0] - b[0]) || a[1] - b[1] || a[2] - b[2]);
  return keyed.map(([, d, i]) => [d, i]);
}

const FIELDS = /^(?:(on|promotes|label|text|is):)?(.*)$/s;

// "254": that number. "on:self", "promotes:self": tokens that contain this, whatever the case; "is:self": that token
// alone; "label:" words from reports; "text:" latents that are active on a string. Without a field: tokens or labels.
function matcher(query) {
  if (!query.trim()) return () => () => true;
  if (/^\s*\d+\s*$/.test(query)) return () => i => i === Number(query);
  const [, field, rest] = FIELDS.exec(query);
  if (field === "text") return d => i => stringHits !== null && stringHits.text === rest && stringHits.of(d, i) > 0;
  const words = new Set();
  for (const [id, word] of vocabulary) if (field === "is" ? visible(word) === rest : contains(word, rest)) words.add(id);
  return d => {
    const within = [field === "promotes" || field === "label" ? null : columns[d].on, field === "promotes" || field === undefined ? columns[d].up : null].filter(Boolean);
    const labelled = field === "label" || field === undefined ? labelledWith(d, rest) : null;
    return i => within.some(values => holds(values, meta.dictionaries[d].latents, i, words)) || (labelled !== null && labelled.has(i));
  };
}

function contains(word, wanted) {
  return word.toLowerCase().includes(wanted.toLowerCase()) || visible(word).toLowerCase().includes(wanted.toLowerCase());
}

function holds(values, latents, i, words) {
  const n = values.length / latents;
  for (let k = i * n; k < (i + 1) * n; k++) if (words.has(values[k])) return true;
  return false;
}

const SIGN = { "<": (v, l) => v < l, ">": (v, l) => v > l, "<=": (v, l) => v <= l, ">=": (v, l) => v >= l };

// "alive", "dead", "noted", "class0=novel", "cos1<0.5", "rate>=0.01", joined by commas.
function parseWhere(where) {
  return where.split(",").filter(Boolean).map(part => {
    if (part === "alive") return (d, i) => !isDead(d, i);
    if (part === "dead") return isDead;
    if (part === "noted") return (d, i) => noteOf(d, i) !== "";
    const classes = /^class(\d+)=(\w+)$/.exec(part);
    if (classes) return (d, i) => classOf(d, i, Number(classes[1])) === classes[2];
    const bound = /^(\w+?)(<=|>=|<|>)(-?[\d.eE+-]+)$/.exec(part);
    const column = bound && columnOf(bound[1]);
    if (!column) return () => true;
    return (d, i) => SIGN[bound[2]](column.value(d, i), Number(bound[3]));
  });
}

function conditionText(part) {
  const classes = /^class(\d+)=(\w+)$/.exec(part);
  if (classes && meta.dictionaries[classes[1]]) return `${classes[2]} to ${name(Number(classes[1]))}`;
  const bound = /^(\w+?)(<=|>=|<|>)(-?[\d.eE+-]+)$/.exec(part);
  const column = bound && columnOf(bound[1]);
  return column ? `${column.title} ${bound[2].replace("<=", "≤").replace(">=", "≥")} ${bound[3]}` : part;
}

// Words that reports say of latents (probe tasks, patterns, explanations), loaded where there are any.
let labels = [];

async function loadLabels() {
  if (meta.labels && labels.length === 0) labels = await load("labels");
}

function labelledWith(d, wanted) {
  return new Set(labels.filter(([of, , , text]) => of === d && contains(text, wanted)).map(([, i]) => i));
}

const labelsOf = (d, i) => labels.filter(([of, latent]) => of === d && latent === i);

// A string in the sample's text: which latents are among the most active on the token that it ends in, and how often.
let stringHits = null;
const MOST_FOUND = 2000; // places of a string that are looked at

async function findString(text, progress) {
  const counts = new Map(), files = Math.ceil(meta.sequences / meta.sequences_a_file);
  let places = 0;
  for (let file = 0; file < files && places < MOST_FOUND; file++) {
    const sequences = await load(`text-${file}`);
    const hits = [];
    sequences.forEach((sequence, s) => places += hitsIn(sequence, text, position => hits.push(s * meta.context + position)));
    if (hits.length) await tally(counts, file, hits);
    progress((file + 1) / files, places);
  }
  stringHits = { text, places, of: (d, i) => counts.get(`${d} ${i}`) || 0 };
}

function hitsIn(sequence, text, add) {
  let n = 0;
  for (let at = sequence.text.indexOf(text); at >= 0; at = sequence.text.indexOf(text, at + 1)) {
    let end = 0, position = 0;
    while (position < sequence.lengths.length && (end += sequence.lengths[position]) < at + text.length) position++;
    add(position);
    n++;
  }
  return n;
}

async function tally(counts, file, hits) {
  for (const d of every()) {
    const latents = await firingsOf(d, file);
    for (const hit of hits) {
      for (let k = 0; k < meta.firings_a_token; k++) {
        const i = latents[hit * meta.firings_a_token + k];
        if (i >= 0) counts.set(`${d} ${i}`, (counts.get(`${d} ${i}`) || 0) + 1);
      }
    }
  }
}

async function firingsOf(d, file) {
  return unpacked(await load(`firings-${d}-${file}`));
}
