/** What went wrong, in words that say what to do: shown under the head of the page until it is mended or closed. */

import { at, make } from "./dom.js";

/** @type {Map<string, HTMLElement>} */
const shown = new Map();

/**
 * Show a notice; one of the same key takes its place.
 * @param {string} key what it is about
 * @param {string} title
 * @param {string} [said] what to do
 * @param {{label: string, then: () => void}} [action]
 */
export function notice(key, title, said = "", action) {
  const close = make("button", { type: "button", class: "close", "aria-label": "Close this message" }, "×");
  const text = make("p", {}, make("strong", {}, title), said ? ` ${said}` : "");
  const made = make("div", { class: "notice" }, text);
  if (action) {
    const button = make("button", { type: "button" }, action.label);
    button.onclick = () => {
      forget(key);
      action.then();
    };
    made.append(button);
  }
  close.onclick = () => forget(key);
  made.append(close);
  const before = shown.get(key);
  if (before?.querySelector("p")?.textContent === text.textContent) return;
  if (before) before.replaceWith(made);
  else at("notices").append(made);
  shown.set(key, made);
}

/** @param {string} key whose notice is not true any more */
export function forget(key) {
  const gone = shown.get(key);
  if (gone?.contains(document.activeElement)) at("main").focus({ preventScroll: true }); // a keyboard goes on from there
  gone?.remove();
  shown.delete(key);
}
