/** Voices: list, listen, add, delete. */

import { useVoice } from "./choices.js";
import { at, make } from "./dom.js";
import { ask } from "./http.js";
import { forget, notice } from "./notices.js";
import { VoiceForm } from "./voice-form.js";

/** @typedef {import("./choices.js").Voice} Voice */

export class VoicesView {
  #changed;
  #form;
  #audio = new Audio();
  #address = "";
  /** @type {HTMLButtonElement|null} */
  #playing = null;

  /** @param {() => Promise<void>} changed lists the voices again */
  constructor(changed) {
    this.#changed = changed;
    this.#form = new VoiceForm(async (voice) => {
      await changed();
      this.#say(`${voice.name} has been added.`);
      /** @type {HTMLElement|null} */ (document.querySelector(`[data-voice="${CSS.escape(voice.id)}"] button`))?.focus();
    });
    at("voices-add").onclick = () => this.#form.open();
    this.#audio.onended = () => this.#quiet();
  }

  enter() {}

  leave() {
    forget("voice");
    this.#quiet();
    this.#say("");
  }

  tokenChanged() {
    this.#quiet();
  }

  /** @param {string} _now */
  serverChanged(_now) {}

  /** @param {Voice[]} voices */
  show(voices) {
    this.#quiet();
    at("voice-list").replaceChildren(...voices.map((voice) => this.#card(voice)));
    if (!voices.length) at("voice-list").append(make("li", { class: "card" }, make("p", {}, "There is no voice yet. Add one: a clip of 3 to 30 seconds is enough.")));
  }

  /** @param {Voice} voice */
  #card(voice) {
    const recorded = voice.durationSeconds > 0;
    const listen = make("button", { type: "button", class: "play", "aria-label": `Listen to ${voice.name}`, "aria-pressed": "false" });
    listen.append(make("span", { "aria-hidden": "true" }));
    listen.onclick = () => (this.#playing === listen ? this.#quiet() : this.#listen(voice, listen));
    const use = make("button", { type: "button", "aria-label": `Speak with ${voice.name}` }, "Speak with it");
    use.onclick = () => {
      useVoice(voice.id);
      location.hash = "#speak";
    };
    const buttons = [use];
    if (voice.deletable) {
      const remove = make("button", { type: "button", class: "plain", "aria-label": `Delete ${voice.name}` }, "Delete");
      remove.onclick = () => this.#delete(voice);
      buttons.push(remove);
    }
    const facts = [
      voice.language,
      recorded ? `${voice.durationSeconds.toFixed(1)} s` : "",
      voice.modes.includes("icl") ? "timbre and delivery" : voice.modes.length ? "timbre" : "",
      voice.licence,
    ].filter(Boolean);
    const title = make("h2", {}, voice.name.replace(/ \(default\)$/i, ""));
    if (voice.isDefault) title.append(" ", make("span", { class: "tag" }, "default"));
    const text = make("div", { class: "about" }, title, make("p", {}, voice.description), make("p", { class: "quiet" }, facts.join(" · ")));
    return make("li", { class: "card voice", "data-voice": voice.id }, ...(recorded ? [listen] : []), text, make("div", { class: "actions" }, ...buttons));
  }

  /**
   * @param {Voice} voice
   * @param {HTMLButtonElement} button
   */
  async #listen(voice, button) {
    this.#quiet();
    this.#playing = button;
    button.setAttribute("aria-pressed", "true");
    try {
      const sample = await (await ask(`api/v1/voices/${encodeURIComponent(voice.id)}/sample.wav`)).blob();
      if (this.#playing !== button) return;
      this.#address = URL.createObjectURL(sample);
      this.#audio.src = this.#address;
      await this.#audio.play();
      forget("voice");
    } catch (error) {
      if (this.#playing !== button) return;
      this.#quiet();
      notice("voice", `${voice.name} cannot be heard.`, /** @type {Error} */ (error).message);
    }
  }

  #quiet() {
    this.#playing?.setAttribute("aria-pressed", "false");
    this.#playing = null;
    this.#audio.pause();
    this.#audio.removeAttribute("src");
    if (this.#address) URL.revokeObjectURL(this.#address);
    this.#address = "";
  }

  /** @param {Voice} voice */
  #delete(voice) {
    const dialog = at("delete-dialog");
    at("delete-title").textContent = `Delete ${voice.name}?`;
    at("delete-said").textContent = "Its recording is removed from the server. Nobody can speak with it any more.";
    dialog.returnValue = "keep";
    dialog.onclose = async () => {
      if (dialog.returnValue !== "delete") return;
      try {
        await ask(`api/v1/voices/${encodeURIComponent(voice.id)}`, { method: "DELETE" });
        forget("voice");
        await this.#changed();
        this.#say(`${voice.name} has been deleted.`);
        at("voices-add").focus();
      } catch (error) {
        notice("voice", `${voice.name} has not been deleted.`, /** @type {Error} */ (error).message);
      }
    };
    dialog.showModal();
  }

  /** @param {string} said */
  #say(said) {
    at("voices-state").textContent = said;
  }
}
