/** The voices and languages that can be chosen, the same in every view. */

import { choose } from "./dom.js";
import { ask } from "./http.js";

const LANGUAGES = ["English", "Japanese", "Chinese", "Korean", "German", "French", "Russian", "Portuguese", "Spanish", "Italian"];

/** @typedef {{id: string, name: string, language: string, description: string, isDefault: boolean, deletable: boolean, modes: string[], durationSeconds: number, licence: string}} Voice */

/** @type {Voice[]} */
let known = [];

/** @returns {Promise<Voice[]>} of the server, and every list of choices is filled anew */
export async function loadVoices() {
  known = (await (await ask("api/v1/voices")).json()).voices;
  const choices = known.map(({ id, name, isDefault }) => ({ value: id, label: isDefault && !/default/i.test(name) ? `${name} (default)` : name }));
  const usual = known.find(({ isDefault }) => isDefault)?.id ?? "";
  for (const select of document.querySelectorAll("select[data-voices]")) {
    const fresh = !(/** @type {HTMLSelectElement} */ (select).value);
    choose(/** @type {HTMLSelectElement} */ (select), choices);
    if (fresh) /** @type {HTMLSelectElement} */ (select).value = usual;
  }
  return known;
}

/** @param {string[]} [spoken] by the model; empty or absent: all that there are */
export function showLanguages(spoken) {
  const names = spoken?.length ? spoken : LANGUAGES;
  const choices = [{ value: "", label: "Default" }, ...names.map((name) => ({ value: name, label: name }))];
  for (const select of document.querySelectorAll("select[data-languages]")) choose(/** @type {HTMLSelectElement} */ (select), choices);
}

/** @param {string} id of the voice to speak with from now on */
export function useVoice(id) {
  for (const select of document.querySelectorAll("select[data-voices]")) /** @type {HTMLSelectElement} */ (select).value = id;
}
