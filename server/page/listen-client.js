/** The Listen side of the protocol: pieces of the microphone out, what was heard in. */

import { tokenField } from "./access.js";
import { Emitter } from "./events.js";
import { Link } from "./link.js";
import { toPcm16 } from "./wav.js";

export const LISTEN = "api/v1/listen";
export const LISTEN_RATE = 16000;
const MOST_WAITING = 2 * 2 * LISTEN_RATE; // bytes: two seconds of audio that the network does not take
const EARLY = 10 * 2 * LISTEN_RATE; // bytes: what is said before the server listens; its recogniser may have to be loaded first
const AT_ONCE = 2 * LISTEN_RATE; // bytes of it in one message
const HEARD = ["ready", "started", "speechStarted", "partial", "turnPredicted", "turnResumed", "final", "error"];

/** Events: the server's messages by their types, but an `error` before `started` is `unstarted`; `down`, `refused` (Words); `dropped` when the network is too slow. */
export class ListenClient extends Emitter {
  #link;
  #options;
  #started = false;
  #dropped = false;
  /** @type {ArrayBuffer[]} */
  #early = []; // pieces that wait for `started`
  #behind = 0; // bytes that were sent late, and may wait once more

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
    this.#early = [];
    this.#link.open();
  }

  close() {
    this.#started = false;
    this.#early = []; // nothing of a conversation that has ended is kept
    this.#link.send({ type: "stop", reason: "closed_by_user" });
    this.#link.close();
  }

  /** The server listens. */
  get started() {
    return this.#started;
  }

  /** @param {Float32Array} samples at LISTEN_RATE */
  hear(samples) {
    const piece = toPcm16(samples);
    if (!this.#started) {
      this.#early.push(piece);
      if (this.#early.length * piece.byteLength > EARLY) this.#early.shift();
      return;
    }
    const waiting = this.#link.waiting;
    if (waiting <= MOST_WAITING) this.#behind = 0;
    const full = waiting > MOST_WAITING + this.#behind;
    if (full && !this.#dropped) this.emit("dropped");
    this.#dropped = full;
    if (!full) this.#link.send(piece);
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
      this.#catchUp();
    }
    if (message.type === "error" && !this.#started) this.emit("unstarted", message);
    else if (HEARD.includes(message.type)) this.emit(message.type, message);
  }

  /** Send what was said before the server listened. */
  #catchUp() {
    this.#behind = this.#early.reduce((bytes, piece) => bytes + piece.byteLength, 0);
    const all = new Uint8Array(this.#behind);
    let filled = 0;
    for (const piece of this.#early) {
      all.set(new Uint8Array(piece), filled);
      filled += piece.byteLength;
    }
    this.#early = [];
    for (let from = 0; from < filled; from += AT_ONCE) this.#link.send(all.slice(from, from + AT_ONCE).buffer);
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
