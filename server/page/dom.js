/** Small help with the document. */

/**
 * The element of that id, which index.html has.
 * @param {string} id
 * @returns {any}
 */
export function at(id) {
  const found = document.getElementById(id);
  if (!found) throw new Error(`index.html has no element ${id}`);
  return found;
}

/**
 * A new element.
 * @param {string} name its tag
 * @param {Record<string, string>} [attributes]
 * @param {...(Node|string)} children
 * @returns {any}
 */
export function make(name, attributes = {}, ...children) {
  const element = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  element.append(...children);
  return element;
}

/**
 * Fill a list of choices, and keep what was chosen if it is still there.
 * @param {HTMLSelectElement} select
 * @param {{value: string, label: string}[]} choices
 */
export function choose(select, choices) {
  const before = select.value;
  select.replaceChildren(...choices.map(({ value, label }) => make("option", { value }, label)));
  if (choices.some(({ value }) => value === before)) select.value = before;
}

/**
 * Show a level on a meter, and in numbers for screen readers.
 * @param {HTMLElement} meter
 * @param {number} level root mean square, 0 to 1
 */
export function showLevel(meter, level) {
  const decibels = 20 * Math.log10(Math.max(level, 1e-5));
  const share = Math.max(0, Math.min(1, (decibels + 54) / 48));
  meter.style.setProperty("--level", share.toFixed(3));
  meter.setAttribute("aria-valuenow", String(Math.round(share * 100)));
}
