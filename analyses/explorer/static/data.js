// Data files: each is a script that calls dictlabReceive(name, text of JSON). They are loaded when they are wanted.

const waiting = new Map(); // name -> function that takes the content
const loaded = new Map(); // name -> promise of the content
const KEPT = 48; // data files that are kept in memory besides the index

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
  const large = [...loaded.keys()].filter(name => /^(latents|text)-/.test(name));
  for (const name of large.slice(0, Math.max(0, large.length - KEPT))) loaded.delete(name);
}

const TYPES = { float32: Float32Array, int32: Int32Array, uint8: Uint8Array, int16: Int16Array, uint16: Uint16Array };

function unpacked(content) {
  const [kind, text] = Object.entries(content)[0];
  if (kind === "unit16") return Float32Array.from(unpacked({ int16: text }), v => (v === -32768 ? NaN : v / 32767));
  if (kind === "id16") return Int32Array.from(unpacked({ uint16: text }), v => (v === 65535 ? -1 : v));
  const bytes = Uint8Array.fromBase64 ? Uint8Array.fromBase64(text) : Uint8Array.from(atob(text), c => c.charCodeAt(0));
  return new TYPES[kind](bytes.buffer);
}

let meta = null;
const vocabulary = new Map(); // token id -> its text
const columns = []; // by dictionary: name -> typed array

let ready = null; // that the index is there

async function loadIndex() {
  const words = await load("vocabulary");
  words.ids.forEach((id, i) => vocabulary.set(id, words.texts[i]));
  for (let d = 0; d < meta.dictionaries.length; d++) { // one after the other: what is packed takes memory as long as it is held
    const index = await load(`index-${d}`);
    columns[d] = Object.fromEntries(Object.entries(index).map(([name, content]) => [name, unpacked(content)]));
    loaded.delete(`index-${d}`);
  }
  loaded.delete("vocabulary");
}

async function loadLatent(d, latent) {
  const part = await load(`latents-${d}-${Math.floor(latent / meta.latents_a_file)}`);
  return part[latent % meta.latents_a_file];
}

async function loadSequence(sequence) {
  const part = await load(`text-${Math.floor(sequence / meta.sequences_a_file)}`);
  return part[sequence % meta.sequences_a_file];
}
