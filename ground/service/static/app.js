// The page: scenes, view, products and jobs.

import { json, request, save, upload } from "./api.js";
import { Footprint, Viewer } from "./viewer.js";

const at = (id) => document.getElementById(id);
const viewer = new Viewer("viewer", failed, (count) => { at("busy").textContent = count ? `Loading ${count} tiles …` : ""; });
const footprint = new Footprint("map");
let scene = null;
let statistics = [];

function failed(error) {
  at("alert-text").textContent = error.message;
  at("alert").hidden = false;
}

const tried = (work) => (...given) => Promise.resolve(work(...given)).catch(failed);

function element(name, text, more = {}) {
  const made = Object.assign(document.createElement(name), more);
  if (text !== undefined) made.textContent = text;
  return made;
}

function options(select, pairs, chosen) {
  select.replaceChildren(...pairs.map(([value, text]) => element("option", text, { value })));
  select.value = chosen;
}

function size(bytes) {
  return bytes < 1e6 ? `${(bytes / 1e3).toFixed(1)} kB` : bytes < 1e9 ? `${(bytes / 1e6).toFixed(1)} MB` : `${(bytes / 1e9).toFixed(2)} GB`;
}

// --- scenes -----------------------------------------------------------------------------------------------------------

async function listScenes() {
  const found = await json("/scenes?limit=500");
  at("scenes").replaceChildren(...found.scenes.map((one) => {
    const item = element("li");
    const open = element("button", one.id, { type: "button", className: "open", title: one.error ?? `${one.width} x ${one.height}, ${one.bands} bands` });
    open.disabled = Boolean(one.error);
    open.setAttribute("aria-current", String(scene?.id === one.id));
    open.addEventListener("click", tried(() => openScene(one.id)));
    item.append(open);
    if (!found.read_only) {
      const gone = element("button", "Delete", { type: "button" });
      gone.setAttribute("aria-label", `Delete ${one.id}`);
      gone.addEventListener("click", tried(() => deleteScene(one.id)));
      item.append(gone);
    }
    return item;
  }));
  at("kept").textContent = `${found.count} scene${found.count === 1 ? "" : "s"}, ${size(found.bytes)} of ${size(found.quota_bytes)}`;
  at("file").disabled = found.read_only;
}

async function deleteScene(id) {
  await request(`/scenes/${encodeURIComponent(id)}`, { method: "DELETE" });
  if (scene?.id === id) {
    scene = null;
    viewer.map.setLayers([]);
    at("details").hidden = at("compare").hidden = true;
    at("status").textContent = "No scene is open.";
  }
  await listScenes();
}

async function take(file) {
  const id = file.name.replace(/\.peri$/i, "").replace(/[^A-Za-z0-9._-]/g, "-").replace(/^[^A-Za-z0-9]+/, "").slice(0, 100) || "scene";
  const bar = at("upload");
  bar.hidden = false;
  try {
    await upload(`/scenes/${encodeURIComponent(id)}?damaged=true`, file, (share) => { bar.value = share; });
  } finally {
    bar.hidden = true;
    at("file").value = "";
  }
  await listScenes();
  await openScene(id);
}

async function openScene(id) {
  const base = `/scenes/${encodeURIComponent(id)}`;
  at("status").textContent = `Opening ${id} …`;
  [scene, statistics] = await Promise.all([json(base), json(`${base}/statistics`)]);
  at("alert").hidden = true;
  at("details").hidden = false;
  const images = [["none", "Base image"], ...scene.compensations.map((name) => [name, name === "restore" ? "Enhanced: restore" : `Compensated: ${name}`])];
  options(at("left"), images, "none");
  options(at("right"), images, images.length > 1 ? images[1][0] : "none");
  options(at("added"), [...images, ...scene.guided.map((name) => [name, `Guided by a map: ${name}`])], "none");
  at("guide").value = "";
  takeMap();
  const bands = Array.from({ length: scene.bands }, (_, n) => [String(n + 1), scene.band_names?.[n] ? `${n + 1} ${scene.band_names[n]}` : String(n + 1)]);
  ["red", "green", "blue"].forEach((name, n) => options(at(name), bands, String(scene.bands >= 3 ? n + 1 : 1)));
  at("trust").checked = false;
  at("trust").disabled = images.length < 2;
  viewer.open(scene);
  stretch(scene.dtype === "uint8");
  describe();
  fromView();
  await listScenes();
  at("status").textContent = `${id}: ${scene.width} x ${scene.height} pixels, ${scene.bands} bands of ${scene.dtype}, ${size(scene.bytes)}`;
}

function row(list, name, value) {
  if (value === null || value === undefined || value === "") return;
  list.append(element("dt", name), element("dd", Array.isArray(value) ? value.join(", ") : String(value)));
}

function describe() {
  const facts = at("facts");
  facts.replaceChildren();
  row(facts, "Format version", scene.format_version);
  row(facts, "Quality", [...new Set(scene.quality)]);
  row(facts, "Bits a pixel", scene.bpp);
  row(facts, "Patches", scene.patches);
  row(facts, "EPSG", scene.epsg);
  row(facts, "Nodata", scene.nodata);
  for (const [name, value] of Object.entries(scene.acquisition ?? {})) row(facts, name.replaceAll("_", " "), value);
  const provenance = at("provenance");
  provenance.replaceChildren();
  for (const [name, value] of Object.entries(scene.provenance)) row(provenance, name.replace("PERIGEE_", "").replaceAll("_", " ").toLowerCase(), value);
  const damage = [...(scene.damage ?? []), ...(scene.cut_segments ?? []).map((n) => `segment ${n} was cut short`)];
  at("damage").replaceChildren(...(damage.length ? damage : ["None."]).map((text) => element("li", text)));
  footprint.show(scene.geometry, scene.bbox);
  at("place").textContent = scene.bbox ? `West ${scene.bbox[0]}, south ${scene.bbox[1]}, east ${scene.bbox[2]}, north ${scene.bbox[3]}` : "The scene has no place on the Earth.";
}

// --- view -------------------------------------------------------------------------------------------------------------

function chosenBands() {
  return [...new Set(["red", "green", "blue"].map((name) => at(name).value))].length === 1
    ? [at("red").value] : ["red", "green", "blue"].map((name) => at(name).value);
}

function stretch(plain = false) {
  const used = statistics.filter((one) => chosenBands().includes(String(one.band)) && one.low !== null);
  at("low").value = plain || !used.length ? 0 : Math.min(...used.map((one) => one.low));
  at("high").value = plain || !used.length ? 255 : Math.max(...used.map((one) => one.high));
  show();
}

function show() {
  if (!scene) return;
  const common = { bands: chosenBands().join(","), low: at("low").value || "0", high: at("high").value || "1", v: scene.created };
  const query = (compensation) => new URLSearchParams({ ...common, compensation }).toString();
  const [left, right] = [at("left"), at("right")];
  const trust = at("trust").checked && right.value !== "none" ? new URLSearchParams({ compensation: right.value, v: scene.created }).toString() : null;
  viewer.show(query(left.value), query(right.value), trust);
  at("compare").hidden = left.value === right.value;
  at("left-label").textContent = left.selectedOptions[0].text;
  at("right-label").textContent = right.selectedOptions[0].text;
}

// --- products and jobs ------------------------------------------------------------------------------------------------

function fromView() {
  const found = viewer.window();
  ["top", "left-px", "rows", "cols"].forEach((id, n) => { at(id).value = found[n]; });
}

function wanted(format) {
  const area = ["top", "left-px", "rows", "cols"].map((id) => at(id).value).join(",");
  const given = { window: area, compensation: at("added").value, format };
  if (scene.damage?.length) given.damaged = "true";
  if (format === "png") given.bands = chosenBands().join(",");
  return new URLSearchParams(given).toString();
}

function takeMap() {
  at("guide").required = scene.guided.includes(at("added").value);
  at("guide").disabled = !at("guide").required;
  at("objects").textContent = "";
}

function posted() {
  const [map] = at("guide").disabled ? [] : at("guide").files;
  if (!map) return { method: "POST" };
  const body = new FormData();
  body.append("map", map);
  return { method: "POST", body };
}

function tellObjects(id, counts) {
  at("objects").textContent = counts
    ? `${id}, buildings of the map: ${counts.supported} supported by the image, ${counts.unsupported} unsupported, ${counts.contradicted} contradicted and not drawn.` : "";
}

async function download() {
  const format = at("format").value;
  at("download").disabled = true;
  try {
    const { id } = scene;
    const answer = await save(`/scenes/${encodeURIComponent(id)}/decode?${wanted(format)}`, posted(), `${id}.${format}`);
    tellObjects(id, JSON.parse(answer.headers.get("Perigee-Map-Buildings")));
  } finally {
    at("download").disabled = false;
  }
}

async function asJob() {
  if (!at("product").reportValidity()) return;
  const format = at("format").value;
  const job = await json(`/scenes/${encodeURIComponent(scene.id)}/jobs?${wanted(format)}`, posted());
  const item = element("li");
  const state = element("span", "queued");
  const bar = element("progress", undefined, { max: 1, value: 0 });
  bar.setAttribute("aria-label", `Progress of ${scene.id}`);
  const button = element("button", "Cancel", { type: "button" });
  const name = `${scene.id}.${format}`;
  item.append(element("span", name, { className: "name" }), bar, state, button);
  at("jobs").prepend(item);
  button.addEventListener("click", tried(() => request(`/jobs/${job.id}`, { method: "DELETE" })));
  follow(job.id, name, { state, bar, button }).catch(failed);
}

async function follow(id, name, { state, bar, button }) {
  for (;;) {
    const now = await json(`/jobs/${id}`);
    bar.value = now.progress ?? 0;
    state.textContent = now.status === "running" ? `running, ${Math.round(100 * (now.progress ?? 0))} %` : now.status;
    if (!["queued", "running"].includes(now.status)) {
      if (now.status === "done") {
        bar.value = 1;
        if (now.buildings) tellObjects(name, now.buildings);
        const fetched = element("button", "Save", { type: "button" });
        fetched.addEventListener("click", tried(() => save(`/jobs/${id}/result`, {}, name)));
        button.replaceWith(fetched);
      } else {
        button.remove();
        if (now.problem) failed(new Error(now.problem.detail));
      }
      return;
    }
    await new Promise((resolve) => setTimeout(resolve, 400));
  }
}

// --- events -----------------------------------------------------------------------------------------------------------

at("alert-close").addEventListener("click", () => { at("alert").hidden = true; });
at("file").addEventListener("change", tried(() => at("file").files[0] && take(at("file").files[0])));
for (const kind of ["dragenter", "dragover"]) {
  document.addEventListener(kind, (event) => {
    if (event.target === at("guide")) return;
    event.preventDefault();
    at("drop").classList.add("over");
  });
}
for (const kind of ["dragleave", "drop"]) document.addEventListener(kind, () => at("drop").classList.remove("over"));
document.addEventListener("drop", tried((event) => {
  if (event.target === at("guide")) return;
  event.preventDefault();
  const [file] = event.dataTransfer.files;
  if (file) return take(file);
}));
at("swipe").addEventListener("input", () => viewer.slide(at("swipe").value / 100));
for (const id of ["left", "right", "trust", "red", "green", "blue", "low", "high"]) at(id).addEventListener("change", show);
at("stretch").addEventListener("click", () => stretch());
at("added").addEventListener("change", takeMap);
at("whole").addEventListener("click", () => viewer.whole());
at("pixels").addEventListener("click", () => viewer.pixels());
at("from-view").addEventListener("click", fromView);
at("as-job").addEventListener("click", tried(asJob));
at("product").addEventListener("submit", (event) => { event.preventDefault(); tried(download)(); });
tried(listScenes)();
