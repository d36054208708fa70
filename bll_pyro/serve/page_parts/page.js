"use strict";
const MOST_CLASSES = 12, INTERVAL = 0.9, LEAST_P = 1e-4;
const at = id => document.getElementById(id);
let model = null, given = null, shown = 0, asked = 0;

const short = value => {
  const size = Math.abs(value);
  return size !== 0 && (size < 1e-3 || size >= 1e5) ? value.toExponential(2) : value.toFixed(size < 10 ? 3 : 1);
};
const percent = value => (100 * value).toFixed(1) + " %";
const width = value => 100 * Math.min(1, Math.max(0, value)) + "%"; // of CSS

function fail(text) {
  at("problem").textContent = text;
  at("problem").hidden = !text;
}

// Ask the service; problems are errors with their detail as the message.
async function ask(path, options = {}) {
  const key = at("key").value.trim(), headers = { ...options.headers };
  if (key) headers.Authorization = "Bearer " + key;
  let answer;
  try {
    answer = await fetch(path, { ...options, headers });
  } catch {
    throw new Error("The service does not answer. Is it still running?");
  }
  if (answer.ok) return answer.json();
  if (answer.status === 401) at("keys").hidden = false;
  const problem = await answer.json().catch(() => ({ detail: "the answer is no JSON" }));
  throw new Error((problem.title || answer.status) + ": " + problem.detail);
}

async function begin() {
  try {
    const { models } = await ask("models");
    at("model").replaceChildren(...models.map(name => new Option(name)));
    at("models").hidden = models.length < 2;
    await choose();
  } catch (error) {
    fail(error.message);
    at("about").textContent = "";
  }
}

async function choose() {
  fail("");
  model = await ask("models/" + encodeURIComponent(at("model").value));
  const shape = model.input_shape, parts = [model.name];
  if (model.classes) parts.push(model.classes.length + " classes");
  if (model.columns) parts.push("columns " + model.columns.join(", "));
  else if (shape) parts.push((model.takes_images ? "images " : "rows of ") + shape.join(" × ") + (model.takes_images ? "" : " numbers"));
  parts.push(model.has_detector ? "detector of unknown rows" : "no detector");
  at("about").textContent = parts.join(" · ");
  at("images").hidden = !model.takes_images;
  at("numbers").hidden = model.takes_images;
  at("row").placeholder = model.columns ? model.columns.join(", ") : "0.1, 2.5, …";
  at("hint").textContent = model.columns
    ? "The columns " + model.columns.join(", ") + ", in this order, with commas or tabs between them."
    : shape ? shape[0] + " numbers a row, with commas, spaces or tabs between them. Control+Enter predicts." : "";
  at("result").hidden = true;
  at("none").hidden = false;
}

// Lines of text as rows: numbers, or, for a model with columns, objects.
function rowsOf(text) {
  const lines = text.split("\n").map(line => line.trim()).filter(line => line);
  if (!lines.length) throw new Error("Paste a row of numbers first.");
  return lines.map((line, place) => {
    const cells = line.replace(/^\[|\],?$/g, "").split(model.columns ? /\s*[,;\t]\s*/ : /[\s,;]+/).filter(cell => cell !== "");
    const values = cells.map(cell => (isNaN(Number(cell)) ? cell.replace(/^"|"$/g, "") : Number(cell)));
    const wanted = model.columns ? model.columns.length : model.input_shape ? model.input_shape[0] : values.length;
    if (values.length !== wanted) throw new Error(`Line ${place + 1}: expected ${wanted} values, got ${values.length}.`);
    const text = values.find(value => typeof value === "string");
    if (!model.columns && text !== undefined) throw new Error(`Line ${place + 1}: expected numbers, got “${text.slice(0, 20)}”.`);
    return model.columns ? Object.fromEntries(model.columns.map((name, k) => [name, values[k]])) : values;
  });
}

async function predict(options) {
  const own = ++asked;
  fail("");
  at("predict").disabled = true;
  try {
    const path = "models/" + encodeURIComponent(model.name) + "/predict" + (model.has_intervals ? "?interval=" + INTERVAL : "");
    const found = await ask(path, { method: "POST", ...options });
    if (own !== asked) return;
    given = found;
    show(0);
  } catch (error) {
    if (own !== asked) return;
    fail(error.message);
    at("result").hidden = true;
    at("none").hidden = false;
  } finally {
    at("predict").disabled = false;
  }
}

function predictFiles(files) {
  if (!files.length) return;
  const form = new FormData();
  for (const file of files) form.append("images", file, "image");
  const old = at("preview").src;
  at("preview").src = URL.createObjectURL(files[0]);
  at("preview").hidden = false;
  if (old) URL.revokeObjectURL(old);
  predict({ body: form });
}

function element(name, text, style = {}) {
  const made = document.createElement(name);
  if (text !== null) made.textContent = text;
  Object.assign(made.style, style);
  return made;
}

function bar(name, filled, value, low, high, text, more) {
  const line = element("li", null), track = element("div", null), told = element("span", text);
  track.className = "bar";
  track.setAttribute("aria-hidden", "true");
  if (filled) track.append(element("i", null, { width: width(value) }));
  if (low !== null) track.append(element("b", null, { left: width(low), width: width(high - low) }));
  track.append(element("u", null, { left: width(value) }));
  if (more) told.append(" ", element("small", more));
  line.append(element("span", name), track, told);
  return line;
}

function showClasses(row) {
  let probs = given.probs[row], names = model.classes;
  const pick = name => given[name] && [].concat(given[name][row]);
  let low = pick("lower"), high = pick("upper");
  if (!Array.isArray(probs)) {
    names = names || [0, 1];
    if (low) [low, high] = [[1 - high[0], low[0]], [1 - low[0], high[0]]];
    probs = [1 - probs, probs];
  }
  const order = probs.map((_, k) => k).sort((a, b) => probs[b] - probs[a]);
  at("values").textContent = "Probability of each class";
  at("bars").replaceChildren(...order.slice(0, MOST_CLASSES).map(k => bar(
    names ? names[k] : k, true, probs[k], low ? low[k] : null, low ? high[k] : null, percent(probs[k]),
    low ? (100 * low[k]).toFixed(0) + "–" + (100 * high[k]).toFixed(0) : "")));
  const left = order.length - MOST_CLASSES;
  at("reading").textContent = (low ? "Lines: where 90 % of the draws of the weights put the probability. " : "") + (left > 0 ? left + " classes with less are not shown." : "");
  at("label").textContent = given.label[row] + ", " + percent(Math.max(...probs));
}

function showValues(row) {
  const means = [].concat(given.mean[row]), all = given.quantiles && given.quantiles[row];
  const ends = all ? (Array.isArray(all[0]) ? all : [all]) : means.map((mean, k) => {
    const scale = [].concat(given.scale[row])[k];
    return [mean - 1.645 * scale, mean, mean + 1.645 * scale];
  });
  at("values").textContent = "Mean, and the interval that holds 90 %";
  at("bars").replaceChildren(...means.map((mean, k) => {
    const low = ends[k][0], high = ends[k][ends[k].length - 1], room = 0.25 * (high - low) || 1;
    const place = value => (value - low + room) / (high - low + 2 * room);
    return bar(means.length > 1 ? "target " + k : "target", false, place(mean), place(low), place(high), short(mean), short(low) + " – " + short(high));
  }));
  at("reading").textContent = "";
  at("label").textContent = means.map(short).join(", ");
}

function showVerdict(row) {
  const known = model.has_detector && given.score;
  at("gauge").hidden = !known;
  const badge = at("badge");
  badge.className = !known ? "" : given.is_ood[row] ? "wrong" : "ok";
  badge.textContent = !known ? "No detector" : given.is_ood[row] ? "Unlike the known rows" : "Like the known rows";
  at("distance").textContent = "";
  if (!known) return;
  const score = given.score[row], alpha = model.metadata.alpha || 0.05, away = score - model.threshold;
  if (model.threshold === null) at("distance").textContent = `score ${short(score)}`;
  else at("distance").textContent = `score ${short(score)}, ${short(Math.abs(away))} ${away > 0 ? "above" : "below"} the threshold ${short(model.threshold)}`;
  const p = given.p_value[row], place = value => width(Math.log(Math.max(value, LEAST_P)) / Math.log(LEAST_P));
  at("mark").style.left = place(p);
  at("limit").style.left = at("alarm").style.left = place(alpha);
  at("odds").textContent = `p-value ${short(p)}: so large a score, or a larger one, has a known row with this probability; the alarm is at ${short(alpha)}.`;
}

function showParts(row) {
  const sum = name => [].concat(given[name][row]).reduce((a, b) => a + b, 0);
  const [aleatoric, epistemic] = [sum("aleatoric"), sum("epistemic")], total = aleatoric + epistemic;
  at("aleatoric").style.width = width(total ? aleatoric / total : 0);
  at("epistemic").style.width = width(total ? epistemic / total : 0);
  const unit = given.probs ? " nats" : "";
  const parts = [["aleatoric", aleatoric], ["epistemic", epistemic]].map(([name, value]) => {
    const part = element("div", null);
    part.className = name;
    part.append(element("dt", name), element("dd", short(value) + unit + (total ? ` (${percent(value / total)})` : "")));
    return part;
  });
  at("parts").replaceChildren(...parts);
}

function show(row) {
  shown = row;
  at("none").hidden = true;
  at("result").hidden = false;
  at("pages").hidden = given.num_rows < 2;
  at("which").textContent = `Row ${row + 1} of ${given.num_rows}`;
  at("before").disabled = row === 0;
  at("after").disabled = row === given.num_rows - 1;
  showVerdict(row);
  if (given.probs) showClasses(row);
  else showValues(row);
  showParts(row);
}

at("model").addEventListener("change", () => choose().catch(error => fail(error.message)));
at("keys").addEventListener("submit", event => { event.preventDefault(); begin(); });
at("file").addEventListener("change", event => predictFiles([...event.target.files]));
at("before").addEventListener("click", () => show(shown - 1));
at("after").addEventListener("click", () => show(shown + 1));
at("row").addEventListener("keydown", event => {
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) at("numbers").requestSubmit();
});
at("numbers").addEventListener("submit", event => {
  event.preventDefault();
  try {
    const body = JSON.stringify({ rows: rowsOf(at("row").value) });
    predict({ body, headers: { "Content-Type": "application/json" } });
  } catch (error) {
    fail(error.message);
  }
});
// A file that falls beside the field must not replace the page.
for (const kind of ["dragover", "drop"]) addEventListener(kind, event => event.preventDefault());
addEventListener("dragover", () => at("drop").classList.add("over"));
addEventListener("dragleave", event => { if (!event.relatedTarget) at("drop").classList.remove("over"); });
addEventListener("drop", event => {
  at("drop").classList.remove("over");
  if (model && model.takes_images) predictFiles([...event.dataTransfer.files]);
});
begin();
