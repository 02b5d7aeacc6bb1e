/** Speak: a text, how to say it, what is heard, and its figures. */

import { showLanguages } from "./choices.js";
import { at } from "./dom.js";
import { sentence, socketAddress } from "./http.js";
import { forget, notice } from "./notices.js";
import { RATE } from "./player.js";
import { SpeechClient } from "./speech-client.js";
import { toFloats, wav } from "./wav.js";
import { Waveform } from "./waveform.js";
import { titleOf } from "./words.js";

const LETTERS = 15; // a second, about: only for the first guess of the length
const KEY = "speak"; // of this view's notices

/** @typedef {{id: string, asked: number, first: number|null, gaps: number, missed: number, pieces: ArrayBuffer[], done: boolean, failed: boolean}} Take */

let count = 0;

export class SpeakView {
  #player;
  #client;
  #wave;
  /** @type {Take|null} */
  #take = null;
  #address = "";
  #wantToken;

  /**
   * @param {import("./player.js").Player} player
   * @param {() => void} wantToken
   */
  constructor(player, wantToken) {
    this.#player = player;
    this.#wantToken = wantToken;
    this.#wave = new Waveform(at("waveform"), RATE);
    this.#client = new SpeechClient(socketAddress("api/v1/speak"), player, () => ({}))
      .on("ready", ({ capabilities }) => showLanguages(capabilities?.languages))
      .on("audio", (id, data) => this.#audio(id, data))
      .on("complete", (message) => this.#complete(message))
      .on("failed", (message) => this.#failed(message))
      .on("trouble", (message) => this.#trouble(message))
      .on("down", (words) => this.#say(this.#take?.done === false ? `${words.title} ${words.said}` : ""))
      .on("refused", () => this.#wantToken());
    player
      .on("begun", (id) => this.#begun(id))
      .on("progress", (id, ms) => this.#is(id) && this.#wave.played(ms / 1000))
      .on("ended", (id, ms) => this.#ended(id, ms))
      .on("underrun", (gaps, missed) => this.#underrun(gaps, missed));
    at("speak-form").onsubmit = (/** @type {Event} */ event) => {
      event.preventDefault();
      this.#speak();
    };
    at("speak-stop").onclick = () => this.#stop();
    at("speak-again").onclick = () => this.#again();
    at("speak-text").oninput = () => this.#counted();
    at("speak-download").onclick = (/** @type {Event} */ event) => at("speak-download").hasAttribute("href") || event.preventDefault();
    document.addEventListener("keydown", (event) => this.#key(event));
    this.#counted();
  }

  enter() {}

  leave() {
    this.#stop();
    forget(KEY);
  }

  tokenChanged() {
    this.#stop();
    this.#client.close();
    forget(KEY);
  }

  /** @param {string} _now */
  serverChanged(_now) {}

  /** @param {KeyboardEvent} event */
  #key(event) {
    if (at("speak-view").hidden || document.querySelector("dialog[open]")) return;
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey) && !event.isComposing) {
      event.preventDefault();
      this.#speak();
    } else if (event.key === "Escape" && !at("speak-stop").disabled) {
      event.preventDefault();
      this.#stop();
    }
  }

  async #speak() {
    const text = at("speak-text").value.trim();
    if (!text) {
      this.#say("Write something to say first.");
      at("speak-text").focus();
      return;
    }
    if (!at("speak-form").reportValidity()) return;
    this.#stop();
    forget(KEY);
    if (!(await this.#wake())) return;
    const id = `page-${++count}`;
    this.#take = { id, asked: performance.now(), first: null, gaps: 0, missed: 0, pieces: [], done: false, failed: false };
    this.#wave.begin(Math.max(1, text.length / LETTERS));
    this.#figures();
    this.#offer();
    at("speak-stop").disabled = false;
    this.#say("Waiting for the first audio …");
    at("speak-sound").scrollIntoView({ block: "nearest" });
    this.#client.speak({ requestId: id, text, ...this.#fields() });
  }

  async #wake() {
    try {
      if (await this.#player.wake()) return true;
      notice(KEY, "The browser does not let this page sound.", "Allow sound for it in the address bar, then press Speak again.");
    } catch (error) {
      notice(KEY, "The sound cannot be started.", sentence(String(/** @type {any} */ (error)?.message ?? error)));
    }
    return false;
  }

  /** What the form says about how to speak; an empty field is the server's choice. */
  #fields() {
    /** @type {Record<string, string|number>} */
    const fields = {};
    for (const [name, id] of [["voice", "speak-voice"], ["language", "speak-language"]]) if (at(id).value) fields[name] = at(id).value;
    for (const [name, id] of [["temperature", "speak-temperature"], ["topK", "speak-top-k"], ["topP", "speak-top-p"], ["seed", "speak-seed"]]) {
      if (at(id).value !== "") fields[name] = Number(at(id).value);
    }
    return fields;
  }

  #stop() {
    const take = this.#take;
    if (!take || at("speak-stop").disabled) return;
    this.#client.cancel(take.id);
    take.done = true;
    this.#rest("Stopped.");
  }

  /** Hear once more what has been spoken, without asking the server. */
  async #again() {
    const take = this.#take;
    if (!take?.pieces.length || !(await this.#wake())) return;
    this.#stop();
    take.id = `page-${++count}`;
    for (const piece of take.pieces) this.#player.push(take.id, toFloats(piece));
    this.#player.end(take.id);
    at("speak-stop").disabled = false;
    this.#say("Playing again.");
  }

  /** @param {string} id */
  #is(id) {
    return this.#take?.id === id;
  }

  /**
   * @param {string} id
   * @param {ArrayBuffer} data
   */
  #audio(id, data) {
    if (!this.#is(id)) return;
    this.#take?.pieces.push(data);
    this.#wave.add(toFloats(data));
    this.#figures();
  }

  /** @param {string} id */
  #begun(id) {
    const take = this.#take;
    if (!take || take.id !== id) return;
    take.first ??= performance.now() - take.asked;
    this.#say("Speaking.");
    this.#figures();
  }

  /** @param {any} message */
  #complete(message) {
    const take = this.#take;
    if (!take || take.id !== message.requestId) return;
    take.done = true;
    this.#wave.finish();
    this.#figures(message.audioLengthMs ? message.durationMs / message.audioLengthMs : null);
    this.#offer();
    if (message.finishReason === "length") notice(KEY, "The speech was cut.", "The model came to the end of its room: speak the text in shorter parts.");
  }

  /**
   * @param {string} id
   * @param {number} ms
   */
  #ended(id, ms) {
    if (!this.#is(id)) return;
    this.#wave.played(ms / 1000 + 1);
    this.#rest(this.#take?.failed ? "" : "Done.");
  }

  /** @param {any} message */
  #failed(message) {
    const take = this.#take;
    if (!take || take.id !== message.requestId || take.done) return; // one that was stopped here is done
    take.done = take.failed = true;
    if (message.code === "UNAUTHORIZED") this.#wantToken();
    else if (message.cancelled || message.code === "LOST") {
      const title = message.cancelled ? "The server stopped in mid-sentence." : message.message;
      notice(KEY, title, "Press Speak to hear it from the start.", { label: "Speak", then: () => this.#speak() });
    }
    else notice(KEY, titleOf(message.code), sentence(message.message));
    this.#rest("");
  }

  /** @param {any} message an `error` after which all goes on */
  #trouble(message) {
    if (message.code === "MODEL_LOADING") this.#say("The model is loading; the text is spoken as soon as it is there.");
    else notice(KEY, titleOf(message.code), sentence(message.message));
  }

  /**
   * @param {number} gaps
   * @param {number} missed milliseconds
   */
  #underrun(gaps, missed) {
    const take = this.#take;
    if (!take || at("speak-stop").disabled) return;
    take.gaps += gaps;
    take.missed += missed;
    this.#figures();
  }

  /** Nothing is spoken. @param {string} said */
  #rest(said) {
    at("speak-stop").disabled = true;
    this.#wave.finish();
    this.#say(said);
    this.#offer();
  }

  /** The download, as far as there is something. */
  #offer() {
    const link = at("speak-download");
    if (this.#address) URL.revokeObjectURL(this.#address);
    this.#address = "";
    const there = this.#take?.done && this.#take.pieces.length > 0;
    at("speak-again").disabled = !there;
    link.setAttribute("aria-disabled", String(!there));
    if (!there) {
      link.removeAttribute("href");
      return;
    }
    this.#address = URL.createObjectURL(wav(this.#take?.pieces ?? [], RATE));
    link.href = this.#address;
  }

  /** @param {number|null} [factor] */
  #figures(factor = null) {
    const take = this.#take;
    at("figure-first").textContent = take?.first == null ? "–" : `${Math.round(take.first)} ms`;
    at("figure-gaps").textContent = take?.first == null ? "–" : take.gaps ? `${take.gaps} (${take.missed} ms)` : "none";
    at("figure-rtf").textContent = factor === null ? "–" : factor.toFixed(2);
    const seconds = this.#wave.seconds;
    at("figure-length").textContent = seconds ? `${seconds.toFixed(2)} s` : "–";
    at("waveform").setAttribute("aria-label", seconds ? `Waveform of ${seconds.toFixed(1)} seconds of speech` : "Waveform: nothing has been spoken yet");
  }

  /** @param {string} said */
  #say(said) {
    at("speak-state").textContent = said;
  }

  #counted() {
    const { length } = at("speak-text").value.trim();
    at("speak-count").textContent = `${length} character${length === 1 ? "" : "s"}`;
  }
}
