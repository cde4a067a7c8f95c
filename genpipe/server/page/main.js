// The page: a form, the pictures that are drawn of it, and those drawn before.

import { ApiError, base64, call, events, json } from "/page/api.js";
import { asked, connect, fill, listen, shown, showSize, take, usual } from "/page/form.js";
import { entries, entry, forget, keep } from "/page/history.js";
import { element, showFailure, showNotices, showPicture, showStep, waitingFigure } from "/page/pictures.js";
import { text, translate } from "/page/texts.js";

const $ = (id) => document.getElementById(id);
const can = { draw, begin, copy, usual };
let running = null; // the id of what is being drawn

translate(document);
listen(trying);
$("form").addEventListener("submit", (event) => {
  event.preventDefault();
  if (!document.body.dataset.ready) return; // the status says what it waits for
  trying(async () => draw(await asked(), shown()));
});
$("cancel").addEventListener("click", cancel);
for (const example of $("examples").querySelectorAll("button")) {
  example.addEventListener("click", () => {
    $("prompt").value = example.textContent;
    $("prompt").dispatchEvent(new Event("input"));
    $("form").requestSubmit();
  });
}
$("forget").addEventListener("click", async () => {
  await forget();
  await showHistory();
});
addEventListener("keydown", (event) => {
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) $("form").requestSubmit();
  if (event.key === "Escape" && running) cancel();
});
start();

async function start() {
  await showHistory();
  for (;;) {
    try {
      await connect();
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
  const left = sessionStorage.running && (await entry(sessionStorage.running)); // the page was reloaded meanwhile
  if (left) await trying(() => follow(left));
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

// formed: what the form showed, where that is not the request itself.
async function draw(request, formed = {}) {
  if (running) await cancel();
  await trying(async () => {
    const body = { ...request };
    if (body.image) body.image = await base64(body.image);
    if (body.mask) body.mask = await base64(body.mask.blob);
    const { id } = await json("/api/drawings", { method: "POST", body });
    const begun = { id, time: Date.now(), request, shown: formed, images: [] };
    await keep(begun);
    await follow(begun);
  });
}

// Show every step of a drawing, and keep its pictures.
async function follow(begun) {
  const { id, request } = begun;
  running = sessionStorage.running = id;
  $("cancel").disabled = false;
  say(text("drawing"));
  const figures = new Map();
  const images = [];
  let end = "done";
  try {
    showPlace();
    $("notices").replaceChildren();
    $("pictures").replaceChildren();
    for await (const [name, said] of events(`/api/drawings/${id}/events`)) {
      if (said.image === undefined) continue;
      if (!figures.has(said.image)) figures.set(said.image, $("pictures").appendChild(waitingFigure()));
      const figure = figures.get(said.image);
      if (name === "step") showStep(figure, said);
      if (name === "failed") {
        end = said.kind === "cancelled" ? "stopped" : "failed";
        showFailure(figure, said);
      }
      if (name === "image") {
        const blob = await (await call(said.url)).blob();
        const own = { n: 1, seed: request.vary ? request.seed : said.seed };
        if (request.vary && request.vary_seed !== undefined) own.vary_seed = String(BigInt(request.vary_seed) + BigInt(said.image));
        showPicture(figure, blob, { ...request, ...own }, can);
        showNotices($("notices"), said.warnings);
        images.push({ blob, own, warnings: said.warnings });
      }
    }
    say(text(end));
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
    await keep({ ...begun, images });
    await showHistory();
  }
}

// Bring the place of the pictures into sight, and the keyboard there if it was on what is about to go.
function showPlace() {
  $("examples").hidden = true;
  if ($("pictures").contains(document.activeElement)) $("shown").focus();
  else if ($("shown").getBoundingClientRect().top > innerHeight) $("shown").scrollIntoView();
}

async function cancel() {
  const id = running;
  if (id) await trying(() => call(`/api/drawings/${id}`, { method: "DELETE" }));
}

async function begin(blob) {
  await trying(() => take(blob));
  $("drop").scrollIntoView({ block: "nearest" });
}

async function copy(words) {
  await trying(async () => {
    await navigator.clipboard.writeText(words);
    say(text("copied"));
  });
}

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

async function showAgain(entry) {
  if (!document.body.dataset.ready) return;
  await trying(async () => {
    fill({ ...entry.request, ...entry.shown });
    await take(entry.request.image, entry.request.mask);
    showSize(entry.request);
    showPlace();
    $("notices").replaceChildren();
    showNotices($("notices"), entry.images.flatMap(({ warnings = [] }) => warnings));
    $("pictures").replaceChildren(
      ...entry.images.map(({ blob, own }) => {
        const figure = element("figure");
        showPicture(figure, blob, { ...entry.request, ...own }, can);
        return figure;
      }),
    );
  });
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
  const names = { 0: "offline", 400: "refused", 413: "large", 429: "busy", 500: "broken", 503: "ending" };
  $("error").textContent = error instanceof ApiError && names[error.status] ? text(names[error.status], { error: error.message }) : error.message;
  $("error").scrollIntoView({ block: "nearest" });
  say("");
}

function say(words) {
  $("status").textContent = words;
}
