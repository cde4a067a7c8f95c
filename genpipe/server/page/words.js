// What the model reads of the prompt, while it is written: how long it is, and which words it does not know.

import { json } from "/page/api.js";
import { element } from "/page/pictures.js";
import { text } from "/page/texts.js";

const REST = 400; // milliseconds without a key after which the server is asked

// field: the prompt's; line: where it is said; asked: gives what is read and by which model.
export function watchWords(field, line, asked) {
  let timer, last = 0;

  async function look() {
    const number = ++last;
    const body = asked();
    if (!body) {
      line.replaceChildren();
      return;
    }
    let parts;
    try {
      parts = said(await json("/api/tokens", { method: "POST", body }));
    } catch (error) {
      // What cannot be read yet is still being written; without a server there is nothing to say.
      parts = error.status === 400 ? [text("refused", { error: error.message })] : [];
    }
    if (number === last) line.replaceChildren(...parts);
  }

  function said(read) {
    const parts = read.tokens === null ? [] : [element("span", { textContent: text("tokens", read) })];
    if (read.cut) parts.push(element("p", { className: "unknown" }, text("cut"), " ", element("mark", { textContent: read.cut })));
    for (const [word, near] of Object.entries(read.unknown)) {
      const choices = near.map((other) => element("button", { type: "button", textContent: other, ariaLabel: text("instead", { word, other }), onclick: () => replace(word, other) }));
      parts.push(element("p", { className: "unknown" }, text("strange"), " ", element("mark", { textContent: word }), ...choices));
    }
    return parts;
  }

  function replace(word, other) {
    const escaped = word.replace(/[.*+?^${}()|[\]\\]/g, "\\$&");
    field.value = field.value.replace(new RegExp(`(?<![\\p{L}\\p{N}])${escaped}(?![\\p{L}\\p{N}])`, "giu"), () => other);
    field.focus();
    look();
  }

  field.addEventListener("input", () => {
    clearTimeout(timer);
    timer = setTimeout(look, REST);
  });
  return look;
}
