/** The Listen side of the protocol: pieces of the microphone out, what was heard in. */

import { tokenField } from "./access.js";
import { Emitter } from "./events.js";
import { Link } from "./link.js";
import { toPcm16 } from "./wav.js";

export const LISTEN = "api/v1/listen";
export const LISTEN_RATE = 16000;
const MOST_WAITING = 2 * 2 * LISTEN_RATE; // bytes: two seconds of audio that the network does not take
const HEARD = ["ready", "started", "speechStarted", "partial", "turnPredicted", "turnResumed", "final", "error"];

/** Events: the server's messages by their types, but an `error` before `started` is `unstarted`; `down`, `refused` (Words); `dropped` when the network is too slow. */
export class ListenClient extends Emitter {
  #link;
  #options;
  #started = false;
  #dropped = false;

  /**
   * @param {string} url
   * @param {() => object} options fields of `start`
   */
  constructor(url, options) {
    super();
    this.#options = options;
    this.#link = new Link(url)
      .on("open", () => this.#link.send({ type: "start", sampleRate: LISTEN_RATE, encoding: "pcm16", ...this.#options(), ...tokenField() }))
      .on("message", (message) => this.#heard(message))
      .on("down", (words) => this.#lost("down", words))
      .on("refused", (words) => this.#lost("refused", words));
  }

  open() {
    this.#link.open();
  }

  close() {
    this.#started = false;
    this.#link.send({ type: "stop", reason: "closed_by_user" });
    this.#link.close();
  }

  /** @param {Float32Array} samples at LISTEN_RATE */
  hear(samples) {
    if (!this.#started) return;
    const full = this.#link.waiting > MOST_WAITING;
    if (full && !this.#dropped) this.emit("dropped");
    this.#dropped = full;
    if (!full) this.#link.send(toPcm16(samples));
  }

  /** The turn is over, whatever the server thinks. */
  commit() {
    this.#link.send({ type: "commit" });
  }

  /** @param {any} message */
  #heard(message) {
    if (message.type === "started") {
      this.#started = true;
      this.#link.settled();
    }
    if (message.type === "error" && !this.#started) this.emit("unstarted", message);
    else if (HEARD.includes(message.type)) this.emit(message.type, message);
  }

  /**
   * @param {string} event
   * @param {any} words
   */
  #lost(event, words) {
    this.#started = false;
    this.emit(event, words);
  }
}
