/** Add a voice: record it or choose a file, say what it says, state the speaker's consent. */

import { at, showLevel } from "./dom.js";
import { ask, sentence } from "./http.js";
import { Microphone } from "./microphone.js";
import { toPcm16, wav } from "./wav.js";
import { microphoneFault, noMicrophoneHere } from "./words.js";

const LEAST = 3; // seconds
const MOST = 30;

export class VoiceForm {
  #added;
  /** @type {Blob|null} */
  #recording = null;
  /** @type {Microphone|null} */
  #microphone = null;
  /** @type {ArrayBuffer[]} */
  #pieces = [];
  #seconds = 0;
  #address = "";

  /** @param {(voice: import("./choices.js").Voice) => void} added */
  constructor(added) {
    this.#added = added;
    at("voice-record").onclick = () => (this.#microphone ? this.#stop() : this.#record());
    at("voice-file").onchange = () => this.#chosen();
    at("voice-cancel").onclick = () => at("voice-dialog").close();
    at("voice-dialog").addEventListener("close", () => this.#stop());
    at("voice-form").onsubmit = (/** @type {Event} */ event) => {
      event.preventDefault();
      this.#save();
    };
  }

  /** Show the empty form. */
  open() {
    at("voice-form").reset();
    this.#take(null);
    this.#seconds = 0;
    this.#show();
    this.#fault("");
    at("voice-dialog").showModal();
  }

  async #record() {
    const none = noMicrophoneHere();
    if (none) {
      this.#fault(`${none.title} ${none.said} Or choose a file.`);
      return;
    }
    this.#fault("");
    this.#take(null);
    at("voice-file").value = "";
    this.#pieces = [];
    this.#seconds = 0;
    const microphone = new Microphone({ rate: 0, size: 2048, processed: false }); // a voice as it is, not as a telephone has it
    this.#microphone = microphone;
    microphone.on("piece", (samples, level) => this.#heard(microphone, samples, level));
    microphone.on("lost", () => this.#stop());
    try {
      await microphone.open();
    } catch (error) {
      this.#microphone = null;
      const words = microphoneFault(error);
      this.#fault(`${words.title} ${words.said} Or choose a file.`);
    }
    this.#show();
  }

  /**
   * @param {Microphone} microphone
   * @param {Float32Array} samples
   * @param {number} level
   */
  #heard(microphone, samples, level) {
    if (microphone !== this.#microphone) return;
    this.#pieces.push(toPcm16(samples));
    this.#seconds += samples.length / microphone.rate;
    showLevel(at("voice-meter"), level);
    at("voice-seconds").textContent = `${this.#seconds.toFixed(1)} s`;
    if (this.#seconds >= MOST - 0.1) this.#stop();
  }

  #stop() {
    const microphone = this.#microphone;
    if (!microphone) return;
    this.#microphone = null;
    const { rate } = microphone;
    microphone.close();
    if (this.#pieces.length) this.#take(wav(this.#pieces, rate));
    if (this.#seconds < LEAST) this.#fault(`${this.#seconds.toFixed(1)} s are too short: record at least ${LEAST} s.`);
    this.#show();
  }

  #chosen() {
    const [file] = at("voice-file").files;
    this.#stop();
    this.#take(file ?? null);
    if (file && !at("voice-name").value) at("voice-name").value = file.name.replace(/\.[^.]*$/, "").slice(0, 100);
  }

  /** @param {Blob|null} recording */
  #take(recording) {
    this.#recording = recording;
    if (this.#address) URL.revokeObjectURL(this.#address);
    this.#address = recording ? URL.createObjectURL(recording) : "";
    const preview = at("voice-preview");
    preview.hidden = !recording;
    if (recording) preview.src = this.#address;
    else preview.removeAttribute("src");
  }

  #show() {
    const running = this.#microphone !== null;
    at("voice-record").setAttribute("aria-pressed", String(running));
    at("voice-record-said").textContent = running ? "Stop recording" : this.#recording ? "Record again" : "Record";
    at("voice-seconds").textContent = `${this.#seconds.toFixed(1)} s`;
    if (!running) showLevel(at("voice-meter"), 0);
  }

  async #save() {
    this.#stop();
    const missing = this.#missing();
    this.#fault(missing);
    if (missing || !this.#recording) return;
    const form = new FormData();
    form.set("audio", this.#recording, this.#recording instanceof File ? this.#recording.name : "recording.wav");
    form.set("name", at("voice-name").value.trim());
    form.set("consent", at("voice-consent-said").textContent.trim());
    for (const name of ["transcript", "language"]) if (at(`voice-${name}`).value.trim()) form.set(name, at(`voice-${name}`).value.trim());
    at("voice-save").disabled = true;
    at("voice-save").textContent = "Saving …";
    try {
      const voice = await (await ask("api/v1/voices", { method: "POST", body: form })).json();
      at("voice-dialog").close();
      this.#added(voice);
    } catch (error) {
      this.#fault(/** @type {Error} */ (error).message);
    } finally {
      at("voice-save").disabled = false;
      at("voice-save").textContent = "Save the voice";
    }
  }

  /** @returns {string} what is still to be done */
  #missing() {
    if (!this.#recording) return "Record the voice, or choose a file.";
    if (!(this.#recording instanceof File) && this.#seconds < LEAST) return `${this.#seconds.toFixed(1)} s are too short: record at least ${LEAST} s.`;
    if (!at("voice-name").value.trim()) return "Give the voice a name.";
    if (!at("voice-consent").checked) return "The speaker must agree: tick the box if that is so.";
    return "";
  }

  /** @param {string} said */
  #fault(said) {
    at("voice-error").textContent = said && sentence(said);
  }
}
