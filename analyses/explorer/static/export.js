// Lists to take away: as CSV, and as the lines of Python that give the same frame.

// What each view has: its table as CSV, the lines of Python that give the same, and its address.
function exportsPart(file, table, python) {
  return el("span", { class: "exports" },
    el("button", { onclick: async () => download(file, csvOf(await table())) }, "CSV"),
    el("button", { onclick: event => copy(event.target, `${python().join("\n")}\n`) }, "copy as Python"),
    el("button", { onclick: event => copy(event.target, location.href) }, "copy address"));
}

// `listed`: the latents are no result of the address's conditions, so that Python names each of them.
function exportLinks(rows, listed = false) {
  return exportsPart("latents.csv", () => latentTable(rows), () => pythonOf(rows, listed));
}

const explorerLines = what => ["from pathlib import Path", "from analyses.explorer.explorer_folder import Explorer", "", `frame = Explorer(Path(${quoted(folderName())})).${what}`];

const fullNameOf = d => quoted(meta.dictionaries[d].name);

// Contexts of some latents, [dictionary, latent, record] each.
function exportContexts(latents) {
  const table = async () => [["dictionary", "latent", "group", "sequence", "position", "activation", "text"],
    ...(await Promise.all(latents.flatMap(([d, i, record]) => record.examples.map(async ([group, sequence, position], k) => {
      const tokens = tokensOf(await loadSequence(sequence)), text = (from, to) => tokens.slice(from, to).map(t => t.text).join("");
      const around = `${text(Math.max(0, position - meta.reach), position)}«${text(position, position + 1)}»${text(position + 1, position + meta.reach + 1)}`;
      return [meta.dictionaries[d].name, i, group, sequence, position, byPosition(record.acts[k], record.unit).get(position), visible(around)];
    }))))];
  const python = () => (latents.length === 1 ? explorerLines(`contexts(${fullNameOf(latents[0][0])}, ${latents[0][1]})`)
    : [...explorerLines(`contexts(${fullNameOf(latents[0][0])}, ${latents[0][1]})`), `other = Explorer(Path(${quoted(folderName())})).contexts(${fullNameOf(latents[1][0])}, ${latents[1][1]})`]);
  return exportsPart("contexts.csv", table, python);
}

function latentTable(rows) {
  const shown = allColumns();
  return [["dictionary", "latent", ...shown.map(c => c.title), "active on", "promotes", "note"], ...rows.map(([d, i]) => [
    meta.dictionaries[d].name, i, ...shown.map(c => { const v = c.value(d, i); return Number.isNaN(v) ? "" : v; }),
    tokensAt(d, i, "on").map(tokenText).join("  "), tokensAt(d, i, "up").map(tokenText).join("  "), noteOf(d, i)])];
}

// A text that a spreadsheet would take for a formula gets an apostrophe in front.
function csvOf(table) {
  const cell = value => {
    const text = typeof value === "string" && /^[=+\-@\t\r]/.test(value) ? `'${value}` : String(value);
    return /[",\n\r]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
  };
  return table.map(row => row.map(cell).join(",")).join("\r\n") + "\r\n";
}

function download(file, text) {
  const address = URL.createObjectURL(new Blob([text], { type: "text/csv;charset=utf-8" }));
  const link = el("a", { href: address, download: file });
  document.body.append(link);
  link.click();
  link.remove();
  setTimeout(() => URL.revokeObjectURL(address), 1000);
}

async function copy(button, text) {
  const before = button.textContent;
  let done = true;
  try { await navigator.clipboard.writeText(text); } catch { done = byHand(text); }
  button.textContent = done ? "copied" : "cannot copy";
  setTimeout(() => { button.textContent = before; }, 1500);
}

function byHand(text) {
  const area = el("textarea", {});
  area.value = text;
  document.body.append(area);
  area.select();
  const done = document.execCommand("copy");
  area.remove();
  return done;
}

const quoted = text => JSON.stringify(text).replace(/[\ud800-\udfff]/g, c => `\\u${c.charCodeAt(0).toString(16)}`);

// Conditions on columns become conditions on the frame; a query has no column, so its latents are listed by number.
function pythonOf(rows, listed) {
  const lines = explorerLines("latents");
  if (state.of !== "" && !listed) lines.push(`frame = frame[frame["dictionary"] == ${quoted(meta.dictionaries[Number(state.of)].name)}]`);
  if (!listed) for (const part of state.where.split(",").filter(Boolean)) lines.push(...pythonCondition(part));
  if (listed || state.q.trim() || state.where.split(",").includes("noted")) {
    const numbers = rows.map(([d, i]) => `(${quoted(meta.dictionaries[d].name)}, ${i})`).join(", ");
    lines.push(`frame = frame[[key in {${numbers}} for key in zip(frame["dictionary"], frame["latent"])]]`);
  }
  const sort = state.sort.replace(/^-/, "");
  if (frameColumn(sort)) lines.push(`frame = frame.sort_values(${quoted(frameColumn(sort))}, ascending=${state.sort.startsWith("-") ? "False" : "True"}, kind="stable")`);
  return lines;
}

const folderName = () => decodeURIComponent(location.pathname.replace(/[^/]*$/, ""));

function frameColumn(key) {
  const plain = { rate: "firing rate", max: "max activation", mean: "mean activation", norm: "norm" }[key];
  const [, kind, e] = /^(cos|corr|jac|effect)(\d+)$/.exec(key) || [];
  if (plain || !meta.dictionaries[e]) return plain || null;
  return { cos: "cosine with ", corr: "correlation with ", jac: "Jaccard with ", effect: "change in MSE of " }[kind] + meta.dictionaries[e].name;
}

function pythonCondition(part) {
  if (part === "alive") return ['frame = frame[frame["firing rate"] > 0]'];
  if (part === "dead") return ['frame = frame[frame["firing rate"] == 0]'];
  const classes = /^class(\d+)=(\w+)$/.exec(part);
  if (classes) return [`frame = frame[frame[${quoted(`class to ${meta.dictionaries[classes[1]].name}`)}] == ${quoted(classes[2])}]`];
  const bound = /^(\w+?)(<=|>=|<|>)(-?[\d.eE+-]+)$/.exec(part);
  if (!bound) return [];
  const column = frameColumn(bound[1]);
  const scale = bound[1].startsWith("effect") ? ` * ${meta.dictionaries[bound[1].slice(6)].mse}` : "";
  return column ? [`frame = frame[frame[${quoted(column)}] ${bound[2]} ${Number(bound[3])}${scale}]`] : [`# ${conditionText(part)}: this column is in the page alone`];
}
