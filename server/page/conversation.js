/** What both sides have said: turns of the user, and answers with the word that sounds now marked. */

import { make } from "./dom.js";

/** @typedef {{word: string, startMs: number|null, endMs: number|null}} Timed */

/**
 * Where each timed word stands in a text; a word that is not found has no place.
 * @param {string} text
 * @param {Timed[]} words in the order of the text
 * @returns {(Timed & {from: number, to: number})[]}
 */
export function place(text, words) {
  const placed = [];
  const lower = text.toLowerCase();
  let from = 0;
  for (const timed of words) {
    const word = timed.word.trim().toLowerCase();
    const found = word ? lower.indexOf(word, from) : -1;
    if (found < 0) continue;
    from = found + word.length;
    placed.push({ ...timed, from: found, to: from });
  }
  return placed;
}

class Answer {
  text = "";
  /** @type {Timed[]} */
  words = [];
  element;
  #said = make("span", { class: "said" });
  #now = make("mark");
  #rest = make("span", { class: "rest" });

  constructor() {
    this.element = make("li", { class: "turn answer" }, make("span", { class: "who" }, "Voice"), make("p", {}, this.#said, this.#now, this.#rest));
  }

  /**
   * Mark the word that sounds at this moment.
   * @param {number} ms since its first sample
   */
  at(ms) {
    const words = place(this.text, this.words);
    const heard = words.filter(({ startMs }) => startMs !== null && startMs <= ms);
    const word = heard[heard.length - 1];
    if (!word) this.#show(0, 0);
    else if (word.endMs !== null && ms > word.endMs + 150) this.#show(word.to, word.to);
    else this.#show(word.from, word.to);
  }

  /** All of it has been heard. */
  whole() {
    this.#show(this.text.length, this.text.length);
  }

  /**
   * @param {string} spoken what of it was heard, at most
   * @param {string} [why]
   */
  cut(spoken, why = "interrupted") {
    this.element.classList.add("cut");
    const place = this.text.startsWith(spoken) ? spoken.length : Math.min(this.text.length, spoken.length);
    this.#show(place, place);
    this.element.append(make("span", { class: "tag" }, why));
  }

  /**
   * What has been marked so far stays as it is.
   * @param {boolean} failed not by the user's will
   */
  stop(failed) {
    const spoken = this.#said.textContent + this.#now.textContent;
    this.cut(spoken, !failed ? "interrupted" : spoken ? "broken off" : "not spoken");
  }

  /**
   * @param {number} from
   * @param {number} to
   */
  #show(from, to) {
    this.#said.textContent = this.text.slice(0, from);
    this.#now.textContent = this.text.slice(from, to);
    this.#rest.textContent = this.text.slice(to);
  }
}

export class Conversation {
  #list;
  /** @type {Map<string, Answer>} */
  #answers = new Map();
  /** @type {Answer|null} */
  #early = null; // its question comes by another socket, and has not come yet

  /** @param {HTMLElement} list */
  constructor(list) {
    this.#list = list;
  }

  clear() {
    this.#list.replaceChildren();
    this.#answers.clear();
    this.#early = null;
    this.#list.hidden = true;
  }

  /** @param {string} text that the user has said */
  heard(text) {
    const answered = this.#early?.element.classList.contains("over") ? null : this.#early;
    this.#early = null;
    this.#add(make("li", { class: "turn mine" }, make("span", { class: "who" }, "You"), make("p", {}, text)), answered?.element);
  }

  /**
   * @param {string} id
   * @param {string} piece of the answer's text
   */
  answer(id, piece) {
    let answer = this.#answers.get(id);
    if (!answer || answer.element.classList.contains("over")) {
      const again = answer !== undefined;
      answer = new Answer();
      this.#answers.set(id, answer);
      if (!again && !this.#list.lastElementChild?.classList.contains("mine")) this.#early = answer;
      this.#add(answer.element);
    }
    answer.text += piece;
    answer.at(-1);
    this.#down();
  }

  /**
   * @param {string} id
   * @param {Timed[]} words
   * @param {number} [first] the index of the first of them: from there on they replace what was known
   */
  words(id, words, first) {
    const known = this.#answers.get(id)?.words;
    known?.splice(first ?? known.length, Infinity, ...words);
  }

  /**
   * @param {string} id
   * @param {number} ms
   */
  progress(id, ms) {
    const answer = this.#answers.get(id);
    if (answer && !answer.element.classList.contains("over")) answer.at(ms);
  }

  /**
   * An answer has ended.
   * @param {string} id
   * @param {string|null} spoken what of it was heard; null: all of it
   */
  over(id, spoken) {
    const answer = this.#answers.get(id);
    if (!answer || answer.element.classList.contains("over")) return;
    answer.element.classList.add("over");
    if (spoken === null) answer.whole();
    else answer.cut(spoken);
  }

  /** Nothing sounds any more. */
  end() {
    for (const id of this.#answers.keys()) this.stopped(id);
  }

  /**
   * An answer was stopped here.
   * @param {string} id
   * @param {boolean} [failed] not by the user's will
   */
  stopped(id, failed = false) {
    const answer = this.#answers.get(id);
    if (!answer || answer.element.classList.contains("over")) return;
    answer.element.classList.add("over");
    answer.stop(failed);
  }

  /**
   * @param {HTMLElement} turn
   * @param {HTMLElement} [answered] before which it stands; otherwise it is the last one
   */
  #add(turn, answered) {
    this.#list.hidden = false;
    this.#list.insertBefore(turn, answered ?? null);
    this.#down();
  }

  #down() {
    this.#list.scrollTop = this.#list.scrollHeight;
    this.#list.lastElementChild?.scrollIntoView({ block: "nearest" }); // where the window is too low for all
  }
}
