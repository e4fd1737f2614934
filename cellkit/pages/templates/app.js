// The page of `cellkit app`: what is chosen, what is asked of the server, what is said. Text is set as text, never as HTML.
import { Viewer, colourOf, parseCells } from "./app.viewer.js";

const $ = (id) => document.getElementById(id);
const state = { page: "", models: [], colours: [], open: null, looked: null, changed: {}, cells: null, mostMb: 0 };
const MOST_PLANES = 200; // of a stack, to choose from
const AT_WORK = "the page is still at work";
let viewer = null;

// ---- the server ----------------------------------------------------------------------------------------------------
class Refused extends Error {
  constructor({ problem, remedy }) { super(problem); this.remedy = remedy || ""; }
}

async function ask(call, body, how = {}) {
  let answer;
  try {
    const headers = { "x-cellkit-page": state.page, ...(how.raw ? {} : { "content-type": "application/json" }) };
    answer = await fetch(`api/${call}${how.query || ""}`, { method: "POST", headers, body: how.raw ? body : JSON.stringify(body || {}) });
  } catch {
    throw new Refused({ problem: "cellkit app does not answer", remedy: "look at the terminal it was started in; start it again and open the address it prints" });
  }
  if (!answer.ok) {
    const said = await answer.json().catch(() => ({ problem: `the server answered ${answer.status}`, remedy: "look at the terminal" }));
    throw new Refused(said);
  }
  return answer;
}
const askJson = async (call, body, how) => (await ask(call, body, how)).json();

// ---- what is said --------------------------------------------------------------------------------------------------
function make(kind, properties = {}, ...inside) {
  const made = document.createElement(kind);
  for (const [name, value] of Object.entries(properties)) if (name in made) made[name] = value; else made.setAttribute(name, value);
  made.append(...inside);
  return made;
}
const say = (text) => { $("status").textContent = text; };
const counted = (number, one) => `${number.toLocaleString("en")} ${one}${number === 1 ? "" : "s"}`;

function complain(error) {
  if (!(error instanceof Refused)) console.error(error);
  $("problem").textContent = error.message || String(error);
  $("remedy").textContent = error.remedy || "";
  $("error").hidden = false;
  $("error").scrollIntoView({ block: "nearest" });
}
const forgive = () => { $("error").hidden = true; };

/** Do one thing that takes time: nothing else can be begun meanwhile; after a moment say who comes first. */
async function busy(words, work) {
  if (document.body.classList.contains("busy")) {
    return complain(new Refused({ problem: AT_WORK, remedy: "wait until it is done, then do it again" }));
  }
  forgive();
  document.body.classList.add("busy");
  for (const id of ["how", "move", "take", "file"]) $(id).disabled = true;
  say(words);
  const poll = setInterval(async () => {
    const { before } = await askJson("place").catch(() => ({ before: 0 }));
    if (document.body.classList.contains("busy")) say(before ? `${words}; ${counted(before, "other call")} first` : words);
  }, 1000);
  try {
    await work();
  } catch (error) {
    complain(error);
    say(state.cells ? summary() : state.open ? "Choose how to look, then Find cells." : "No image yet.");
  } finally {
    clearInterval(poll);
    document.body.classList.remove("busy");
    if ($("problem").textContent === AT_WORK) forgive();
    $("how").disabled = !state.open;
    for (const id of ["move", "take", "file"]) $(id).disabled = false;
  }
}

// ---- an image ------------------------------------------------------------------------------------------------------
async function take(files) {
  if (!files.length) return;
  if (files.length > 1) return complain(new Refused({ problem: `${files.length} files were dropped`, remedy: "drop one image at a time; cellkit predict takes whole folders" }));
  const [file] = files;
  if (file.size > state.mostMb * 1e6) {
    return complain(new Refused({ problem: `${file.name} has ${Math.ceil(file.size / 1e6)} MB, this page takes up to ${state.mostMb} MB`, remedy: "cellkit predict takes it where it lies, or start cellkit app with --most-mb" }));
  }
  await busy(`Reading ${file.name}`, async () => {
    opened(await askJson("upload", file, { raw: true, query: `?name=${encodeURIComponent(file.name)}` }));
  });
}

function opened(facts) {
  const asBefore = state.open && JSON.stringify(state.open.channels) === JSON.stringify(facts.channels);
  const before = ["nuclei", "cytoplasm", "z"].map((id) => $(id).value);
  Object.assign(state, { open: facts, looked: null, cells: null, changed: {} });
  clearTimeout(reading.wait);
  viewer.clear();
  $("hint").textContent = `${facts.name}: choose how to look, then Find cells`;
  $("hint").hidden = false;
  for (const id of ["move", "take", "counts", "histogram"]) $(id).hidden = true;
  $("none").hidden = false;
  $("under").textContent = "\u00a0";
  const rows = { File: facts.name, Size: `${facts.height} \u00d7 ${facts.width} px, ${facts.dtype}` };
  if (facts.um_per_px) rows["Pixel"] = `${facts.um_per_px.toPrecision(3)} \u00b5m`;
  rows[facts.channels.length > 1 ? "Channels" : "Channel"] = facts.channels.join(", ");
  if (facts.planes > 1) rows["z planes"] = facts.planes;
  $("facts").replaceChildren(...Object.entries(rows).flatMap(([name, value]) => [make("dt", {}, name), make("dd", {}, String(value))]));
  $("facts").hidden = false;
  if (facts.planes > MOST_PLANES) facts.notes.push(`planes from ${MOST_PLANES} on cannot be chosen here: cellkit predict takes them`);
  notes(facts.notes);
  options("frame", facts.frames.map((words, k) => [k, words || "the only one"]));
  for (const row of document.querySelectorAll(".of-frames")) row.hidden = facts.frames.length < 2;
  for (const row of document.querySelectorAll(".of-planes")) row.hidden = facts.planes < 2;
  const own = facts.colours ? "as the picture shows it" : state.run ? "as in the run" : "choose one";
  const channels = [["run", own], ["none", "none"], ...facts.channels.map((name, k) => [k, `${k}: ${name}`])];
  options("nuclei", channels);
  options("cytoplasm", channels);
  const planes = Array.from({ length: Math.min(facts.planes, MOST_PLANES) }, (_, k) => [k, `plane ${k}`]);
  options("z", [["run", state.run ? "as in the run" : "the brightest"], ["max", "the brightest"], ["mean", "the mean"], ["focus", "the sharpest plane"], ...planes]);
  if (asBefore) ["nuclei", "cytoplasm", "z"].forEach((id, k) => { $(id).value = before[k]; if (!$(id).value) $(id).selectedIndex = 0; });
  say("Choose how to look, then Find cells.");
}

function options(id, pairs) {
  $(id).replaceChildren(...pairs.map(([value, text]) => make("option", { value: String(value) }, text)));
}

async function find() {
  const asked = { model: Number($("model").value), frame: Number($("frame").value), diameter_px: $("diameter").value || null };
  for (const id of ["nuclei", "cytoplasm", "z"]) asked[id] = $(id).value;
  clearTimeout(reading.wait);
  await busy("Finding cells", async () => {
    const looked = await askJson("look", asked);
    clearTimeout(reading.wait);
    Object.assign(state, { looked, changed: {} });
    const { bitmap, view } = await picture({});
    $("hint").hidden = true;
    viewer.show(looked.width, looked.height, bitmap, view);
    accept(await cells({}, false));
    sliders();
    for (const id of ["move", "take"]) $(id).hidden = false;
  });
}

async function picture(view) {
  const answer = await ask("picture", { view });
  return { bitmap: await createImageBitmap(await answer.blob()), view: JSON.parse(answer.headers.get("x-cellkit-view")) };
}

async function cells(view, quick, changed = { ...state.changed }) {
  return Object.assign(parseCells(await (await ask("cells", { changed, quick, view })).arrayBuffer()), { changed });
}

/** Fetch a part of a picture that is shown reduced, as it is. */
async function need(view) {
  if (document.body.classList.contains("busy") || !state.cells) return;
  const of = state.cells;
  try {
    const [part, own] = await Promise.all([picture(view), cells(view, !of.exact, of.changed)]);
    if (state.cells === of) viewer.setPart(part.bitmap, part.view, own);
  } catch (error) { complain(error); }
}

// ---- thresholds ----------------------------------------------------------------------------------------------------
function sliders() {
  const { movable } = state.looked;
  $("immovable").hidden = movable.length > 0;
  $("reset").hidden = !movable.length;
  $("sliders").replaceChildren(...movable.map(({ name, low, high, step, value, about }) => {
    const digits = (String(step).split(".")[1] || "").length;
    const range = make("input", { type: "range", id: `range_${name}`, min: low, max: high, step, value: value ?? (low + high) / 2, "aria-describedby": `about_${name}` });
    const number = make("input", { type: "number", id: `number_${name}`, step, value: value == null ? "" : +value.toFixed(4), placeholder: "its own", "aria-label": `${words(name)}, as a number` });
    range.addEventListener("input", () => { number.value = (+range.value).toFixed(digits); moved(name, +range.value); });
    range.addEventListener("change", settled);
    number.addEventListener("change", () => {
      if (number.value === "") delete state.changed[name]; else { range.value = number.value; state.changed[name] = +number.value; }
      pump(true);
    });
    return make("div", { className: "slider" }, make("label", { htmlFor: range.id }, words(name)),
      make("div", { className: "row" }, range, number), make("small", { id: `about_${name}` }, about));
  }));
}
const words = (name) => ({ cellprob_threshold: "Cell probability (logit)", flow_threshold: "Flow error", min_area_px: "Smallest area (px)", diameter_px: "Cell diameter (px)", score_threshold: "Score", covered_share: "Covered share" })[name] || name.replaceAll("_", " ");

function moved(name, value) {
  state.changed[name] = value;
  pump();
}

const reading = { newest: 0, shown: 0, quick: false, exact: false, wait: null };
/** Read again what has just been moved: a quick look at once, whatever else is under way; the exact reading when nothing moves, or `now`. */
async function pump(now = false) {
  clearTimeout(reading.wait);
  reading.newest += 1;
  reading.now = now;
  if (reading.quick) return; // it looks again when it comes back
  reading.quick = true;
  try {
    for (let asked = 0; asked !== reading.newest;) {
      asked = reading.newest;
      const found = await read(true, asked);
      if (found && !found.exact && asked === reading.newest) reading.wait = setTimeout(exactly, reading.now ? 0 : 700);
    }
  } finally { reading.quick = false; }
}

/** The hand has let go: the exact reading follows at once. */
function settled() {
  reading.now = true;
  if (!reading.quick && state.cells && !state.cells.exact) exactly();
}

/** The exact reading of the newest settings; one at a time. */
async function exactly() {
  clearTimeout(reading.wait);
  if (reading.exact || !state.looked) return;
  reading.exact = true;
  const asked = reading.newest;
  try { await read(false, asked); } finally { reading.exact = false; }
  if (asked !== reading.newest && !reading.quick && state.cells && !state.cells.exact) exactly();
}

/** One call; its cells are shown unless newer ones are. */
async function read(quick, asked) {
  const of = state.looked, begun = performance.now();
  try {
    const found = await cells({}, quick);
    if (state.looked !== of || asked < reading.shown) return null; // of an image that is shown no more, or late
    reading.shown = asked;
    found.ms = performance.now() - begun;
    accept(found);
    if (asked === reading.newest) forgive(); // what is wrong with newer settings stays to be read
    return found;
  } catch (error) {
    if (state.looked === of && !document.body.classList.contains("busy")) {
      complain(error);
      if (!quick && asked === reading.newest) say(`${counted(state.cells.area.length, "cell")}, nearly: the exact reading failed.`);
    }
    return null;
  }
}

// ---- numbers -------------------------------------------------------------------------------------------------------
function accept(found) {
  state.cells = found;
  viewer.setCells(found);
  table(found);
  notes([...state.open.notes, ...state.looked.notes, ...Object.entries(found.left_out).map(([why, number]) => why.startsWith("images: ") ? why.replace("images: ", "an image ") : `${counted(number, "cell")} ${why}`)]);
  say(summary());
}

function summary() {
  const { area, exact, view } = state.cells;
  const reduced = view.step > 1 ? ` Shown reduced, 1 of ${view.step} pixels each way: zoom in for all. Numbers and downloads are of all pixels.` : "";
  return `${counted(area.length, "cell")}${exact ? "." : ", nearly: the exact reading follows."}${reduced}`;
}

const unit = () => (state.looked.um_per_px ? [state.looked.um_per_px ** 2, "\u00b5m\u00b2"] : [1, "px"]);
const short = (value) => (value >= 100 ? Math.round(value).toLocaleString("en") : value.toPrecision(3));
const nameOf = (k) => (k > 0 ? state.looked.classes[k - 1] || `class ${k}` : state.looked.classes.length ? "no class" : "cells");

function table(found) {
  const [times, name] = unit(), ids = [...new Set(found.class)].sort((a, b) => a - b);
  const areas = (id) => Array.from(found.area).filter((_, k) => id === null || found.class[k] === id).map((area) => area * times).sort((a, b) => a - b);
  const row = (title, id) => {
    const own = areas(id), middle = own.length ? (own[(own.length - 1) >> 1] + own[own.length >> 1]) / 2 : NaN;
    const head = make("th", { scope: "row" });
    if (id > 0) head.append(swatch(id));
    head.append(title);
    const size = make("td", { title: own.length ? `from ${short(own[0])} to ${short(own.at(-1))} ${name}` : "" }, own.length ? short(middle) : "\u2013");
    return make("tr", {}, head, make("td", {}, own.length.toLocaleString("en")), size);
  };
  const rows = ids.map((id) => row(nameOf(id), id));
  if (ids.length !== 1) rows.push(row("all", null));
  $("sizes").textContent = `Area, median (${name})`;
  $("counts").tBodies[0].replaceChildren(...rows);
  $("counts").hidden = false;
  $("none").hidden = true;
  histogram(found, ids, times, name);
}

function swatch(id) {
  const mark = make("span", { className: "swatch", ariaHidden: "true" });
  mark.style.background = state.colours[((id - 1) % (state.colours.length - 1)) + 1];
  return mark;
}

function histogram(found, ids, times, name) {
  $("histogram").hidden = !found.area.length;
  if (!found.area.length) return;
  const most = found.area.reduce((one, two) => Math.max(one, two), 0) * times, bins = 24, wide = 300, high = 130, counts = ids.map(() => new Array(bins).fill(0));
  found.area.forEach((area, k) => { counts[ids.indexOf(found.class[k])][Math.min(bins - 1, Math.floor((area * times * bins) / most))]++; });
  const tallest = Math.max(...Array.from({ length: bins }, (_, b) => counts.reduce((sum, one) => sum + one[b], 0)));
  const svg = (kind, about, text) => {
    const made = document.createElementNS("http://www.w3.org/2000/svg", kind);
    for (const [key, value] of Object.entries(about)) made.setAttribute(key, value);
    if (text) made.textContent = text;
    return made;
  };
  const drawn = svg("svg", { viewBox: `0 0 ${wide} ${high + 22}`, role: "img", "aria-label": `Histogram of ${counted(found.area.length, "area")}, 0 to ${short(most)} ${name}, at most ${tallest} in a bar` });
  for (let b = 0; b < bins; b++) {
    let low = high;
    counts.forEach((one, k) => {
      const bar = (one[b] / tallest) * (high - 12);
      if (bar) drawn.append(svg("rect", { x: (b * wide) / bins + 1, y: low - bar, width: wide / bins - 2, height: bar, fill: ids[k] > 0 ? state.colours[((ids[k] - 1) % (state.colours.length - 1)) + 1] : "#7a8aa0" }));
      low -= bar;
    });
  }
  drawn.append(svg("line", { x1: 0, x2: wide, y1: high, y2: high }), svg("text", { x: 0, y: high + 15 }, "0"),
    svg("text", { x: wide, y: high + 15, "text-anchor": "end" }, `${short(most)} ${name}`), svg("text", { x: 0, y: 9 }, counted(tallest, "cell")));
  $("histogram").replaceChildren(make("figcaption", {}, "Areas"), drawn);
}

function notes(list) {
  $("notes").replaceChildren(...[...new Set(list)].map((text) => make("li", {}, text)));
}

function under(what) {
  if (!what) return void ($("under").textContent = "\u00a0");
  const { column, row, cell } = what;
  let text = `row ${row}, column ${column}`;
  if (cell && state.cells) {
    const [times, name] = unit(), { class: classes, area, score } = state.cells;
    text += `: cell ${cell}${classes[cell - 1] ? `, ${nameOf(classes[cell - 1])}` : ""}, ${short(area[cell - 1] * times)} ${name}, score ${score[cell - 1].toFixed(2)}`;
  }
  $("under").textContent = text;
}

async function download(what) {
  await busy("Writing the file", async () => {
    const answer = await ask("download", { what, changed: state.changed }); // what the sliders say, also where its cells are on their way
    const link = make("a", { href: URL.createObjectURL(await answer.blob()), download: JSON.parse(answer.headers.get("x-cellkit-name")) });
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 60000);
    accept(await cells({}, false));
  });
}

// ---- the gallery ---------------------------------------------------------------------------------------------------
async function gallery() {
  const { worst, why } = await askJson("gallery");
  $("gallery").hidden = false;
  $("no-worst").textContent = why;
  $("no-worst").hidden = worst.length > 0;
  document.querySelector(".key").hidden = !worst.length;
  const shown = worst.map(({ image, words: about }, number) => {
    const drawn = make("img", { alt: "" });
    const button = make("button", { type: "button" }, drawn, make("strong", {}, image), make("span", { className: "words" }, about));
    button.addEventListener("click", () => busy(`Reading ${image}`, async () => {
      opened(await askJson("worst", { number }));
      scrollTo({ top: 0 });
    }).then(() => { if (state.open?.name === image) return find(); }));
    return [drawn, make("li", {}, button)];
  });
  $("worst").replaceChildren(...shown.map(([, item]) => item));
  for (const [number, [drawn]] of shown.entries()) drawn.src = URL.createObjectURL(await (await ask("thumb", { number })).blob());
}

// ---- begin ---------------------------------------------------------------------------------------------------------
async function begin() {
  const said = await askJson("begin", { key: location.hash.slice(1) });
  Object.assign(state, { page: said.page, run: said.run, models: said.models, colours: said.colours, mostMb: said.most_mb });
  addEventListener("pagehide", () => navigator.sendBeacon("api/leave", new Blob([JSON.stringify({ page: state.page })], { type: "application/json" })));
  addEventListener("pageshow", (event) => { if (event.persisted) location.reload(); });
  viewer = new Viewer($("picture"), state.colours, need, under);
  options("model", said.models.map(({ title }, k) => [k, title]));
  if (said.run) $("about").textContent = said.run;
  for (const [id, act] of Object.entries({ closer: () => viewer.zoom(1.5), farther: () => viewer.zoom(1 / 1.5), fit: () => viewer.fit(), find, reset: () => { state.changed = {}; sliders(); pump(true); } })) $(id).addEventListener("click", act);
  for (const id of ["outlines", "fill"]) $(id).addEventListener("change", () => { viewer[id] = $(id).checked; viewer.paint(); });
  $("brightness").addEventListener("input", () => { viewer.brightness = +$("brightness").value; viewer.draw(); });
  $("file").addEventListener("change", () => take([...$("file").files]).then(() => { $("file").value = ""; }));
  for (const button of $("take").querySelectorAll("button")) button.addEventListener("click", () => download(button.dataset.what));
  addEventListener("dragover", (event) => { event.preventDefault(); document.body.classList.add("dropping"); });
  addEventListener("dragleave", (event) => { if (!event.relatedTarget) document.body.classList.remove("dropping"); });
  addEventListener("drop", (event) => {
    event.preventDefault();
    document.body.classList.remove("dropping");
    take([...event.dataTransfer.files]);
  });
  if (said.run) await gallery();
}

$("dismiss").addEventListener("click", forgive);
$("theme").addEventListener("click", () => {
  const dark = getComputedStyle(document.documentElement).colorScheme === "dark";
  document.documentElement.dataset.theme = dark ? "light" : "dark";
});
begin().catch(complain);
