// The page: a form, the pictures that are drawn of it, and those drawn before.

import { ApiError, base64, call, events, json } from "/page/api.js";
import { entries, forget, keep } from "/page/history.js";
import { command, curl, python } from "/page/spellings.js";
import { text, translate } from "/page/texts.js";

const $ = (id) => document.getElementById(id);
const VARY = 0.3; // of the way to another seed's picture
const LARGER = 2;
let models = [];
let given = null; // the picture to begin from, a Blob
let running = null; // the id of what is being drawn

translate(document);
$("form").addEventListener("submit", (event) => {
  event.preventDefault();
  draw(asked());
});
$("cancel").addEventListener("click", cancel);
$("model").addEventListener("change", showDefaults);
$("file").addEventListener("change", () => take($("file").files[0]));
$("remove").addEventListener("click", () => take(null));
$("read").addEventListener("click", () => trying(readSettings));
$("forget").addEventListener("click", async () => {
  await forget();
  await showHistory();
});
addEventListener("keydown", (event) => {
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) $("form").requestSubmit();
  if (event.key === "Escape" && running) cancel();
});
for (const kind of ["dragover", "dragleave", "drop"]) {
  addEventListener(kind, (event) => {
    event.preventDefault();
    $("drop").classList.toggle("over", kind === "dragover");
    if (kind === "drop" && event.dataTransfer.files.length) take(event.dataTransfer.files[0]);
  });
}
start();

async function start() {
  await showHistory();
  for (;;) {
    try {
      const [found, settings] = [await json("/api/models"), await json("/api/settings")];
      models = found;
      $("model").replaceChildren(...found.map((model) => new Option(model.name, model.name)));
      $("sampler").append(...settings.samplers.map((name) => new Option(name, name)));
      $("steps").max = settings.limits.steps;
      showDefaults();
      say("");
      break;
    } catch (error) {
      if (error.status === 401) await askKey();
      else if (error.status === 503) say(text("loading"));
      else complain(error);
      if (error.status !== 401) await new Promise((resolve) => setTimeout(resolve, 1000));
    }
  }
  $("error").hidden = true;
  document.body.dataset.ready = "true";
  const left = sessionStorage.running && JSON.parse(sessionStorage.running); // the page was reloaded meanwhile
  if (left) await trying(() => follow(left.id, left.request));
}

function askKey() {
  return new Promise((resolve) => {
    $("key-dialog").onclose = () => {
      sessionStorage.key = $("key").value;
      resolve();
    };
    $("key-dialog").showModal();
  });
}

function model() {
  return models.find((one) => one.name === $("model").value) ?? models[0];
}

function showDefaults() {
  $("steps").placeholder = model().defaults.steps;
  $("scale").placeholder = model().defaults.guidance_scale;
}

// The size of a ratio: about as many pixels as the model was trained on.
function sized(ratio) {
  const { width, height } = model().defaults;
  const step = Math.min(width, height) >= 512 ? 64 : Math.max(8, model().multiple_of);
  const side = (value) => Math.max(step, Math.round(value / step) * step);
  return ratio === 1 ? { width, height } : { width: side(Math.sqrt(width * height * ratio)), height: side(Math.sqrt((width * height) / ratio)) };
}

// What the form asks for, as the API reads it.
function asked() {
  const request = { prompt: $("prompt").value, n: Number($("count").value), model: $("model").value };
  Object.assign(request, sized(Number($("shape").value)));
  if ($("negative").value) request.negative_prompt = $("negative").value;
  if (!$("keep").checked || !$("seed").value) $("seed").value = crypto.getRandomValues(new Uint32Array(1))[0];
  request.seed = $("seed").value;
  if ($("steps").value) request.steps = Number($("steps").value);
  if ($("scale").value) request.guidance_scale = Number($("scale").value);
  if ($("sampler").value) request.sampler = $("sampler").value;
  if (given) Object.assign(request, { image: given, strength: Number($("strength").value) });
  return request;
}

async function draw(request) {
  if (running) await cancel();
  await trying(async () => {
    const body = { ...request };
    if (body.image) body.image = await base64(body.image);
    const drawing = await json("/api/drawings", { method: "POST", body });
    const { image, ...plain } = request;
    sessionStorage.running = JSON.stringify({ id: drawing.id, request: plain });
    await follow(drawing.id, request);
  });
}

// Show every step of a drawing, and keep its pictures.
async function follow(id, request) {
  running = id;
  $("cancel").disabled = false;
  say(text("drawing"));
  const figures = new Map();
  const images = [];
  let stopped = false;
  try {
    $("pictures").replaceChildren();
    for await (const [name, said] of events(`/api/drawings/${id}/events`)) {
      if (said.image === undefined) continue;
      if (!figures.has(said.image)) figures.set(said.image, $("pictures").appendChild(waitingFigure()));
      const figure = figures.get(said.image);
      if (name === "step") showStep(figure, said);
      if (name === "failed") {
        stopped = said.kind === "cancelled";
        showFailure(figure, said);
      }
      if (name === "image") {
        const blob = await (await call(said.url)).blob();
        const own = { ...request, n: 1, seed: said.seed };
        if (request.vary) own.seed = request.seed;
        if (request.vary && request.vary_seed !== undefined) own.vary_seed = String(BigInt(request.vary_seed) + BigInt(said.image));
        showPicture(figure, blob, own, said.warnings);
        const { image, ...plain } = own;
        images.push({ blob, request: plain });
      }
    }
    say(text(stopped ? "stopped" : "done"));
  } catch (error) {
    if (error.status === 404) $("pictures").replaceChildren();
    else throw error;
  } finally {
    if (running === id) {
      running = null;
      delete sessionStorage.running;
      $("cancel").disabled = true;
    }
  }
  if (images.length) {
    const { image, ...plain } = request;
    await keep({ id, time: Date.now(), request: plain, images });
    await showHistory();
  }
}

async function cancel() {
  const id = running;
  if (id) await trying(() => call(`/api/drawings/${id}`, { method: "DELETE" }));
}

function element(kind, properties = {}, ...children) {
  const made = Object.assign(document.createElement(kind), properties);
  made.append(...children);
  return made;
}

function waitingFigure() {
  const bar = element("progress", { max: 1, ariaLabel: text("drawing") });
  return element("figure", {}, element("figcaption", { textContent: text("waiting") }), bar);
}

function showStep(figure, said) {
  const parts = [];
  if (said.preview) parts.push(element("img", { className: "preview", alt: "", src: `data:image/jpeg;base64,${said.preview}` }));
  const bar = element("progress", { max: said.steps, value: said.step, ariaLabel: text("drawing") });
  figure.replaceChildren(...parts, bar, element("figcaption", { textContent: text("step", said) }));
}

function showFailure(figure, said) {
  figure.replaceChildren(element("p", { className: "failed", textContent: said.kind === "cancelled" ? text("stopped") : said.error }));
}

function button(name, action) {
  return element("button", { type: "button", textContent: text(name), onclick: action });
}

function showPicture(figure, blob, request, warnings) {
  const address = URL.createObjectURL(blob);
  const copy = (words) => trying(async () => {
    await navigator.clipboard.writeText(words);
    say(text("copied"));
  });
  const other = String(crypto.getRandomValues(new Uint32Array(1))[0]);
  const { vary, vary_seed, ...plain } = request;
  const buttons = element(
    "div",
    { className: "buttons" },
    button("vary", () => draw({ ...plain, n: 4, vary: VARY, vary_seed: other })),
    button("upscale", () => draw({ ...request, upscale: LARGER })),
    button("begin", () => take(blob)),
    button("save", () => element("a", { href: address, download: `${slug(request.prompt)}-${request.seed}.png` }).click()),
  );
  const copies = element(
    "div",
    { className: "buttons" },
    button("command", () => copy(command(request))),
    button("python", () => copy(python(request))),
    button("curl", () => copy(curl(request, location.origin, sessionStorage.key))),
  );
  const caption = element("figcaption", { textContent: `${text("seed")} ${request.seed}` });
  const more = element("details", {}, element("summary", { textContent: text("copy") }), copies);
  caption.append(...warnings.map((line) => element("p", { className: "warning", textContent: line })), buttons, more);
  figure.replaceChildren(element("img", { src: address, alt: text("picture", request) }), caption);
}

const slug = (words) => words.toLowerCase().replace(/[^\p{L}\p{N}]+/gu, "-").replace(/^-|-$/g, "").slice(0, 60) || "picture";

async function showHistory() {
  const found = await entries();
  $("empty").hidden = found.length > 0;
  $("forget").hidden = found.length === 0;
  $("history").replaceChildren(
    ...found.map((entry) => {
      const image = element("img", { alt: "", src: URL.createObjectURL(entry.images[0].blob), loading: "lazy" });
      const again = element("button", { type: "button", className: "history", ariaLabel: text("again", entry.request) }, image, element("span", { textContent: entry.request.prompt }));
      again.onclick = () => showAgain(entry);
      return element("figure", {}, again);
    }),
  );
}

function showAgain(entry) {
  fill(entry.request);
  $("pictures").replaceChildren(
    ...entry.images.map(({ blob, request }) => {
      const figure = element("figure");
      showPicture(figure, blob, request, []);
      return figure;
    }),
  );
}

function fill(settings) {
  const set = (id, value) => { $(id).value = value ?? ""; };
  set("prompt", settings.prompt);
  set("negative", settings.negative_prompt);
  set("seed", settings.seed);
  set("steps", settings.steps);
  set("scale", settings.guidance_scale);
  set("sampler", settings.sampler);
  if (models.some((one) => one.name === settings.model)) set("model", settings.model);
  $("keep").checked = settings.seed !== undefined;
  if (settings.width) {
    const ratios = [...$("shape").options].map((option) => Math.abs(Math.log(option.value) - Math.log(settings.width / settings.height)));
    $("shape").selectedIndex = ratios.indexOf(Math.min(...ratios));
  }
}

function take(blob) {
  given = blob ?? null;
  $("given").hidden = !given;
  if (!given) $("file").value = "";
  else $("given-image").src = URL.createObjectURL(given);
}

async function readSettings() {
  const body = { image: await base64(given) };
  fill((await json("/api/read", { method: "POST", body })).settings);
}

async function trying(action) {
  $("error").hidden = true;
  try {
    await action();
  } catch (error) {
    if (error.status === 401) {
      await askKey();
      await trying(action);
      return;
    }
    complain(error);
  }
}

function complain(error) {
  $("error").hidden = false;
  $("error").textContent = error instanceof ApiError && !error.status ? text("offline") : error.message;
  say("");
}

function say(words) {
  $("status").textContent = words;
}
