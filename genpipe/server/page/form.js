// The form: what it asks for, and how settings are put into it.

import { base64, json } from "/page/api.js";
import { Brush } from "/page/brush.js";
import { text } from "/page/texts.js";
import { watchWords } from "/page/words.js";

const $ = (id) => document.getElementById(id);
// What the form has a field for; other settings of a picture's file are kept beside it.
const FIELDS = ["prompt", "negative_prompt", "n", "width", "height", "seed", "steps", "guidance_scale", "sampler", "model", "strength", "image", "mask"];
let models = [];
let settings = null; // what the server says of the settings of a picture
let given = null; // the picture to begin from, a Blob
let others = {}; // settings that the form has no field for

const brush = new Brush($("brush"), () => $("brush-size").value / 200, (isEmpty) => {
  for (const id of ["undo", "clear"]) $(id).disabled = isEmpty;
});
const words = [
  watchWords($("prompt"), $("words"), () => settings && $("prompt").value && { prompt: styled().prompt, model: $("model").value }),
  watchWords($("negative"), $("negative-words"), () => settings && $("negative").value && { prompt: styled().negative_prompt, model: $("model").value }),
];

// Offer what the server has.
export async function connect() {
  [models, settings] = [await json("/api/models"), await json("/api/settings")];
  $("model").replaceChildren(...models.map((model) => new Option(model.name, model.name)));
  $("sampler").append(...settings.samplers.map((name) => new Option(name, name)));
  $("style").append(...Object.keys(settings.styles).map((name) => new Option(name, name)));
  $("steps").max = settings.limits.steps;
  showDefaults();
}

// trying: does what may fail, and shows how it did.
export function listen(trying) {
  $("model").addEventListener("change", showDefaults);
  $("style").addEventListener("change", look);
  $("file").addEventListener("change", () => trying(() => take($("file").files[0])));
  $("remove").addEventListener("click", () => take(null));
  $("read").addEventListener("click", () => trying(readSettings));
  $("paint").addEventListener("click", () => paints($("brush").hidden));
  $("undo").addEventListener("click", () => brush.undo());
  $("clear").addEventListener("click", () => brush.clear());
  $("leave-out").addEventListener("click", () => keepOthers({}));
  for (const kind of ["dragover", "dragleave", "drop"]) {
    addEventListener(kind, (event) => {
      event.preventDefault();
      $("drop").classList.toggle("over", kind === "dragover");
      if (kind === "drop" && event.dataTransfer.files.length) trying(() => take(event.dataTransfer.files[0]));
    });
  }
}

function model(name = $("model").value) {
  return models.find((one) => one.name === name) ?? models[0];
}

// What holds for a model where a request says nothing.
export const usual = (name) => model(name).defaults;

function showDefaults() {
  $("steps").placeholder = model().defaults.steps;
  $("scale").placeholder = model().defaults.guidance_scale;
  look();
}

function look() {
  for (const one of words) one();
}

// The size of a ratio: about as many pixels as the model was trained on.
function sized(ratio) {
  const { width, height } = model().defaults;
  const step = Math.min(width, height) >= 512 ? 64 : Math.max(8, model().multiple_of);
  const side = (value) => Math.max(step, Math.round(value / step) * step);
  return ratio === 1 ? { width, height } : { width: side(Math.sqrt(width * height * ratio)), height: side(Math.sqrt((width * height) / ratio)) };
}

function size() {
  const shape = $("shape").value;
  if (shape === "given") return sized($("given-image").naturalWidth / $("given-image").naturalHeight);
  const [width, height] = shape.split("x").map(Number);
  return height ? { width, height } : sized(width);
}

// The prompts with the chosen style around them: it stands where it says {prompt}, else behind.
function styled() {
  const style = settings.styles[$("style").value] ?? { prompt: "", negative_prompt: "" };
  const merged = (own, added) => (added.includes("{prompt}") ? added.replaceAll("{prompt}", () => own) : [own.trim(), added.trim()].filter(Boolean).join(", "));
  return { prompt: merged($("prompt").value, style.prompt), negative_prompt: merged($("negative").value, style.negative_prompt) };
}

// What the form shows, where that is not the request itself: the prompts without the style.
export const shown = () => ({ prompt: $("prompt").value, negative_prompt: $("negative").value, style: $("style").value });

// What the form asks for, as the API reads it; pictures are blobs.
export async function asked() {
  const { prompt, negative_prompt } = $("style").value ? styled() : { prompt: $("prompt").value, negative_prompt: $("negative").value };
  const request = { ...others, prompt, n: Number($("count").value), model: $("model").value, ...size() };
  if (negative_prompt) request.negative_prompt = negative_prompt;
  if (!$("keep").checked || !$("seed").value) $("seed").value = crypto.getRandomValues(new Uint32Array(1))[0];
  request.seed = $("seed").value;
  if ($("steps").value) request.steps = Number($("steps").value);
  if ($("scale").value) request.guidance_scale = Number($("scale").value);
  if ($("sampler").value) request.sampler = $("sampler").value;
  if (given) Object.assign(request, { image: given, strength: Number($("strength").value) });
  const mask = given && (await brush.mask());
  if (mask) request.mask = mask; // { blob, strokes }
  return request;
}

// Put the settings of a request, or of a picture's file, into the form; what it has no field for is kept beside it.
export function fill(found) {
  const set = (id, value) => { $(id).value = value ?? ""; };
  set("prompt", found.prompt);
  set("negative", found.negative_prompt);
  set("style", found.style);
  set("seed", found.seed);
  set("steps", found.steps);
  set("scale", found.guidance_scale);
  set("sampler", found.sampler);
  if (found.n) set("count", found.n);
  if (found.strength) set("strength", found.strength);
  if (models.some((one) => one.name === found.model)) set("model", found.model);
  $("keep").checked = found.seed !== undefined;
  showSize(found);
  const fields = Object.entries(found).filter(([name, value]) => settings.fields[name] && !FIELDS.includes(name) && String(settings.fields[name].default) !== String(value));
  keepOthers(Object.fromEntries(fields));
  showDefaults();
}

export function showSize({ width, height }) {
  if (!width) return;
  const shapes = [...$("shape").options].filter((option) => option.value !== "given");
  const same = shapes.find((option) => {
    $("shape").value = option.value;
    return size().width === width && size().height === height;
  });
  if (!same) $("shape").add(new Option(text("size", { width, height }), `${width}x${height}`, false, true));
}

function keepOthers(found) {
  others = found;
  const list = Object.entries(found).map(([name, value]) => `${name} ${value}`);
  $("kept").hidden = !list.length;
  $("kept-settings").textContent = text("kept", { settings: list.join(", ") });
}

// Take a picture to begin from, or none; mask: what was painted over it before.
export async function take(blob, mask = null) {
  given = null;
  $("given").hidden = true;
  $("unread").textContent = "";
  brush.clear();
  const like = [...$("shape").options].find((option) => option.value === "given");
  like.hidden = like.disabled = true;
  if ($("shape").value === "given") $("shape").selectedIndex = 0;
  if (!blob) {
    $("file").value = "";
    return;
  }
  const image = $("given-image");
  URL.revokeObjectURL(image.src);
  image.src = URL.createObjectURL(blob);
  try {
    await image.decode();
  } catch {
    throw new Error(text("unreadable"));
  }
  given = blob;
  $("canvas-holder").style.setProperty("--ratio", image.naturalWidth / image.naturalHeight);
  $("given").hidden = false;
  like.hidden = like.disabled = false;
  $("shape").value = "given";
  brush.begin(image.naturalWidth, image.naturalHeight, mask?.strokes);
  paints(mask !== null);
}

// Show the brush; without it all of the picture changes.
function paints(open) {
  $("brush").hidden = $("brush-tools").hidden = !open;
  $("paint").ariaExpanded = String(open);
  if (!open) brush.clear();
}

async function readSettings() {
  const body = { image: await base64(given) };
  const read = await json("/api/read", { method: "POST", body });
  fill(read.settings);
  const left = Object.entries(read.unread).map(([name, value]) => `${name} ${value}`);
  $("unread").textContent = left.length ? text("unread", { settings: left.join(", ") }) : "";
}
