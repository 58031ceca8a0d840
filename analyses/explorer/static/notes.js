// Notes on latents: kept by this browser alone, for this explorer; taken away and brought back as a file.

let notes = null;
const notesKey = () => `dictlab notes ${meta.identity}`;

function allNotes() {
  if (notes === null) {
    try { notes = JSON.parse(localStorage.getItem(notesKey())) || {}; } catch { notes = {}; }
    if (typeof notes !== "object" || Array.isArray(notes)) notes = {};
  }
  return notes;
}

function noteOf(d, i) {
  const held = allNotes(), key = `${meta.dictionaries[d].name} ${i}`;
  return Object.hasOwn(held, key) ? String(held[key]) : "";
}

function setNote(d, i, text) {
  const key = `${meta.dictionaries[d].name} ${i}`;
  if (text.trim()) allNotes()[key] = text;
  else delete allNotes()[key];
  kept.key = null;
  try { localStorage.setItem(notesKey(), JSON.stringify(notes)); return true; } catch { return false; }
}

function notePart(d, i) {
  const said = el("span", { class: "note", role: "status" });
  const area = el("textarea", { rows: 2, "aria-label": `Note on latent ${i} of ${name(d)}`, placeholder: "your note",
    oninput: event => { said.textContent = setNote(d, i, event.target.value) ? "kept in this browser" : "this browser keeps nothing: take it away as a file"; } });
  area.value = noteOf(d, i);
  return el("section", { class: "notes" }, el("h3", {}, "Note"), area, said);
}

function notesFile() {
  const input = el("input", { type: "file", accept: ".json", "aria-label": "Bring notes from a file", onchange: async event => {
    try {
      const given = JSON.parse(await event.target.files[0].text());
      for (const [key, text] of Object.entries(given)) if (typeof text === "string") allNotes()[key] = text;
      localStorage.setItem(notesKey(), JSON.stringify(notes));
      kept.key = null;
      render();
    } catch { event.target.value = ""; alert("This file holds no notes."); }
  } });
  return el("p", {}, "Notes: ", viewLink({ view: "list", where: "noted" }, `${number(Object.keys(allNotes()).length)} latents have one`), " ",
    el("button", { onclick: () => download("notes.json", JSON.stringify(allNotes(), null, 1)) }, "as a file"), " from a file ", input);
}
