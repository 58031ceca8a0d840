// Data files: each is a script that calls dictlabReceive(name, text of JSON). They are loaded when they are wanted.

const waiting = new Map(); // name -> function that takes the content
const loaded = new Map(); // name -> promise of the content
const KEPT = 48; // data files of latents and texts that are kept in memory

// A data file that is unpacked into arrays: what is packed takes memory as long as it is held.
async function loadOnce(name) {
  const content = await load(name);
  loaded.delete(name);
  return content;
}

globalThis.dictlabReceive = (name, text) => {
  const take = waiting.get(name);
  if (take) take(JSON.parse(text));
};

function load(name) {
  const known = loaded.get(name);
  if (known) {
    loaded.delete(name); // the most recently used one stands last
    loaded.set(name, known);
    return known;
  }
  const promise = new Promise((resolve, reject) => {
    const script = document.createElement("script");
    const end = () => { waiting.delete(name); script.remove(); };
    waiting.set(name, content => { end(); resolve(content); });
    script.onerror = () => { end(); loaded.delete(name); reject(new Error(`data/${name}.js cannot be read.`)); };
    script.src = `data/${name}.js`;
    document.head.append(script);
  });
  loaded.set(name, promise);
  forget();
  return promise;
}

function forget() {
  const large = [...loaded.keys()].filter(name => /^(latents|text|firings)-/.test(name));
  for (const name of large.slice(0, Math.max(0, large.length - KEPT))) loaded.delete(name);
}

const TYPES = { float32: Float32Array, int32: Int32Array, uint8: Uint8Array, int16: Int16Array, uint16: Uint16Array };

function unpacked(content) {
  const [kind, text] = Object.entries(content)[0];
  if (kind === "unit16") return converted(unpacked({ int16: text }), Float32Array, -32768, NaN, 1 / 32767);
  if (kind === "id16") return converted(unpacked({ uint16: text }), Int32Array, 65535, -1, 1);
  return new TYPES[kind](bytesOf(text).buffer);
}

// A loop: with a function for each of millions of numbers this took seconds.
function converted(values, type, none, missing, unit) {
  const found = new type(values.length);
  for (let k = 0; k < values.length; k++) found[k] = values[k] === none ? missing : values[k] * unit;
  return found;
}

function bytesOf(text) {
  if (Uint8Array.fromBase64) return Uint8Array.fromBase64(text);
  const raw = atob(text), bytes = new Uint8Array(raw.length);
  for (let k = 0; k < raw.length; k++) bytes[k] = raw.charCodeAt(k);
  return bytes;
}

let meta = null;
const vocabulary = new Map(); // token id -> its text
const columns = []; // by dictionary: name -> typed array

let ready = null; // that the index is there

async function loadIndex() {
  const words = await loadOnce("vocabulary");
  words.ids.forEach((id, i) => vocabulary.set(id, words.texts[i]));
  for (let d = 0; d < meta.dictionaries.length; d++) { // one after the other, for the same reason
    const index = await loadOnce(`index-${d}`);
    columns[d] = Object.fromEntries(Object.entries(index).map(([name, content]) => [name, unpacked(content)]));
  }
}

async function loadLatent(d, latent) {
  const part = await load(`latents-${d}-${Math.floor(latent / meta.latents_a_file)}`);
  return part[latent % meta.latents_a_file];
}

async function loadSequence(sequence) {
  const part = await load(`text-${Math.floor(sequence / meta.sequences_a_file)}`);
  return part[sequence % meta.sequences_a_file];
}
