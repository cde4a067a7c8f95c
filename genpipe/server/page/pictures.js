// The pictures as the page shows them: while they are drawn, and with what can be done with each.

import { command, curl, python } from "/page/spellings.js";
import { notice, text } from "/page/texts.js";

const VARY = 0.3; // of the way to another seed's picture
const LARGER = 2;

export function element(kind, properties = {}, ...children) {
  const made = Object.assign(document.createElement(kind), properties);
  made.append(...children);
  return made;
}

export function button(name, action) {
  return element("button", { type: "button", textContent: text(name), onclick: action });
}

export function waitingFigure() {
  const bar = element("progress", { max: 1, ariaLabel: text("drawing") });
  return element("figure", {}, element("figcaption", { textContent: text("waiting") }), bar);
}

export function showStep(figure, said) {
  const parts = [];
  if (said.preview) parts.push(element("img", { className: "preview", alt: "", src: `data:image/jpeg;base64,${said.preview}` }));
  const bar = element("progress", { max: said.steps, value: said.step, ariaLabel: text("drawing") });
  figure.replaceChildren(...parts, bar, element("figcaption", { textContent: text("step", said) }));
}

export function showFailure(figure, said) {
  const name = { cancelled: "stopped", late: "late", refused: "refused" }[said.kind] ?? "broken";
  figure.replaceChildren(element("p", { className: "failed", textContent: text(name, said) }));
}

// What there is to know of pictures that were drawn together: each line once.
export function showNotices(place, warnings) {
  const there = [...place.children].map((line) => line.textContent);
  const lines = new Set(warnings.map(notice).filter((line) => !there.includes(line)));
  place.append(...[...lines].map((line) => element("p", { textContent: line })));
}

const slug = (words) => words.toLowerCase().replace(/[^\p{L}\p{N}]+/gu, "-").replace(/^-|-$/g, "").slice(0, 60) || "picture";

// Larger, of the same seed. A picture of which a part stayed as it was is itself what is enlarged, after a single step.
function enlarged(request, blob, usual) {
  if (!request.mask) return { ...request, upscale: LARGER };
  const { mask, ...rest } = request;
  return { ...rest, image: blob, strength: Math.min(1, 1.01 / (request.steps ?? usual.steps)), upscale: LARGER };
}

// can: what the page does on request: draw, begin (from a picture), copy; and usual, a model's settings.
export function showPicture(figure, blob, request, can) {
  const address = URL.createObjectURL(blob);
  const other = String(crypto.getRandomValues(new Uint32Array(1))[0]);
  const { vary, vary_seed, ...plain } = request;
  const buttons = element(
    "div",
    { className: "buttons" },
    button("vary", () => can.draw({ ...plain, n: 4, vary: VARY, vary_seed: other })),
    button("upscale", () => can.draw(enlarged(request, blob, can.usual(request.model)))),
    button("begin", () => can.begin(blob)),
    button("save", () => element("a", { href: address, download: `${slug(request.prompt)}-${request.seed}.png` }).click()),
  );
  const copies = element(
    "div",
    { className: "buttons" },
    button("command", () => can.copy(command(request))),
    button("python", () => can.copy(python(request))),
    button("curl", () => can.copy(curl(request, location.origin, sessionStorage.key))),
  );
  const caption = element("figcaption", { textContent: `${text("seed")} ${request.seed}` });
  const more = element("details", {}, element("summary", { textContent: text("copy") }), copies);
  caption.append(buttons, more);
  figure.replaceChildren(element("img", { src: address, alt: text("picture", request) }), caption);
}
