/**
 * The Speak side of the protocol: utterances of ours, and answers of the server's, in the order of their audio.
 *
 * Binary audio names no utterance: it is the first one's that has not ended. One that was cancelled here stays in the line, silent, until
 * the server says that it has ended, so that audio on its way is never taken for the next one's.
 */

import { tokenField } from "./access.js";
import { Emitter } from "./events.js";
import { Link } from "./link.js";
import { RATE } from "./player.js";
import { toFloats } from "./wav.js";

const REPORT = 250; // milliseconds between two `played`
const RESUMING = 3000; // milliseconds that the answer to `resume` may take
const FLUSHING = 100; // milliseconds that the audio thread may take to say what was heard

/** @typedef {{requestId: string, silent: boolean, bytes: number, message: {text: string, requestId: string}|null}} Utterance message: while it can be asked for again */

/**
 * Events: `ready`, `started`, `complete`, `ducked`, `resumed`, `interrupted`, `words`, `answer`, `trouble` (the server's message);
 * `audio` (requestId, PCM16); `failed` (message, with `cancelled`); `down`, `refused` (Words).
 */
export class SpeechClient extends Emitter {
  #link;
  #player;
  #options;
  /** @type {Utterance[]} */
  #line = [];
  /** @type {Map<string, number>} requestId -> milliseconds in the last report, until it has ended here */
  #reported = new Map();
  /** @type {Set<string>} requestIds of this session whose audio is all there */
  #finished = new Set();
  /** @type {Map<string, () => void>} what waits for the audio thread's last word on an utterance */
  #flushing = new Map();
  #session = ""; // the one that may be resumed
  #fresh = ""; // that of the socket
  #started = false;
  #resuming = 0;
  #stays = false; // connected, whether it speaks or not

  /**
   * @param {string} url
   * @param {import("./player.js").Player} player
   * @param {() => object} options fields of `start`: voice, language, contractId, interruption
   */
  constructor(url, player, options) {
    super();
    this.#player = player;
    this.#options = options;
    this.#link = new Link(url)
      .on("message", (message) => this.#heard(message))
      .on("audio", (data) => this.#audio(data))
      .on("open", () => this.#opened())
      .on("down", (words) => this.#down(words))
      .on("refused", (words) => this.#refused(words));
    player.on("progress", (id, ms) => this.#played(id, ms, false));
    player.on("ended", (id, ms) => this.#played(id, ms, true));
    player.on("flushed", (id, ms) => {
      this.#played(id, ms, true);
      this.#flushing.get(id)?.();
    });
  }

  /** Connect, and stay so. */
  open() {
    this.#stays = true;
    this.#link.open();
  }

  /** The server has taken `start` on this socket. */
  get started() {
    return this.#started;
  }

  /** Say goodbye; nothing sounds any more. */
  close() {
    for (const id of this.#reported.keys()) this.#player.flush(id);
    this.#link.send({ type: "stop", reason: "closed_by_user" });
    this.#link.close();
    this.#stays = false;
    this.#session = "";
    this.#started = false;
    this.#line = [];
  }

  /** Speak a text. @param {{text: string, requestId: string}} message */
  speak(message) {
    this.#add(message.requestId, message);
    if (this.#started) this.#link.send({ type: "speak", ...message });
    else this.#link.open();
  }

  /**
   * Stop an utterance here and now; the server hears what of it was heard.
   * @param {string} requestId
   */
  async cancel(requestId) {
    const utterance = this.#of(requestId);
    if (utterance?.silent) return;
    if (utterance) utterance.silent = true;
    const told = new Promise((done) => this.#flushing.set(requestId, () => done(null)));
    this.#player.flush(requestId);
    await Promise.race([told, new Promise((done) => setTimeout(done, FLUSHING))]);
    this.#flushing.delete(requestId);
    if (!utterance || !this.#line.includes(utterance)) return;
    if (!this.#started || !this.#link.send({ type: "cancel", requestId })) this.#ended(utterance, "CANCELLED", "");
  }

  #opened() {
    this.#started = false;
    const current = this.#line.find((one) => !one.silent && !one.message);
    if (!this.#session || !current) {
      this.#begin();
      return;
    }
    // What has arrived is still being played, so the server goes on after it.
    const playedMs = Math.round((current.bytes / 2 / RATE) * 1000);
    this.#link.send({ type: "resume", sessionId: this.#session, requestId: current.requestId, playedMs, ...tokenField() });
    this.#resuming = window.setTimeout(() => this.#notResumed(), RESUMING);
  }

  /** A new session; what was under way in the old one has ended. */
  #begin() {
    for (const one of [...this.#line]) if (!one.message) this.#ended(one, "LOST", "The connection broke in mid-sentence.");
    this.#session = this.#fresh;
    this.#finished.clear();
    this.#link.send({ type: "start", sampleRate: RATE, encoding: "pcm16", transport: "binary", ...this.#options(), ...tokenField() });
  }

  #notResumed() {
    clearTimeout(this.#resuming);
    this.#resuming = 0;
    this.#begin();
  }

  /** @param {any} words */
  #down(words) {
    clearTimeout(this.#resuming);
    this.#resuming = 0;
    this.#started = false;
    for (const one of this.#line.filter(({ silent }) => silent)) this.#ended(one, "CANCELLED", "");
    if (words.code !== 4408 || this.#line.length) this.emit("down", words);
    else if (!this.#stays) this.#link.close(); // idle: the next utterance connects again
  }

  /** @param {any} words */
  #refused(words) {
    this.#started = false;
    for (const one of [...this.#line]) this.#ended(one, "UNAUTHORIZED", words.title);
    this.emit("refused", words);
  }

  /** @param {ArrayBuffer} data */
  #audio(data) {
    const [utterance] = this.#line;
    if (!utterance || utterance.silent) return;
    utterance.bytes += data.byteLength;
    utterance.message = null;
    this.#player.push(utterance.requestId, toFloats(data));
    this.emit("audio", utterance.requestId, data);
  }

  /** @param {any} message */
  #heard(message) {
    const { type, requestId } = message;
    if (type === "ready") {
      this.#fresh = message.sessionId ?? "";
      this.#session ||= this.#fresh;
      this.emit("ready", message);
    } else if (type === "started") this.#begun(message);
    else if (type === "error") this.#error(message);
    else if (["complete", "answer", "ducked", "resumed", "interrupted", "words"].includes(type)) {
      if (type === "complete") this.#complete(requestId);
      else if (type === "answer" && !this.#of(requestId) && !this.#finished.has(requestId)) this.#add(requestId, null);
      else if (type === "ducked") this.#player.duck();
      else if (type === "resumed") this.#player.unduck();
      else if (type === "interrupted") this.#silence(requestId);
      this.emit(type, message);
    }
  }

  /** @param {any} message `started` */
  #begun(message) {
    clearTimeout(this.#resuming);
    this.#resuming = 0;
    this.#started = true;
    this.#link.settled();
    for (const one of this.#line) if (one.message && !one.silent) this.#link.send({ type: "speak", ...one.message });
    this.emit("started", message);
  }

  /** @param {any} message */
  #error(message) {
    if (this.#resuming) {
      this.#notResumed(); // the server has nothing to go on with
      return;
    }
    const utterance = this.#of(message.requestId);
    if (!utterance || message.final === false) {
      const idle = message.code === "TIMEOUT" && !this.#line.length; // the session ends for want of work: nobody misses it
      if (message.code !== "CANCELLED" && !idle) this.emit("trouble", message);
      return;
    }
    if (message.code === "MODEL_LOADING" && utterance.message && !utterance.silent) {
      setTimeout(() => this.#again(utterance), message.retryAfterMs ?? 2000);
      this.emit("trouble", message);
      return;
    }
    if (message.code === "CANCELLED") this.#silence(message.requestId);
    this.#ended(utterance, message.code, message.message);
  }

  /** @param {Utterance} utterance that came too early */
  #again(utterance) {
    if (this.#started && this.#line.includes(utterance) && !utterance.silent) this.#link.send({ type: "speak", ...utterance.message });
  }

  /** @param {string} requestId whose audio is all there */
  #complete(requestId) {
    if (!this.#of(requestId)?.silent) this.#player.end(requestId);
    this.#finished.add(requestId);
    this.#line = this.#line.filter((one) => one.requestId !== requestId);
  }

  /** @param {string} requestId of what must not be heard any more */
  #silence(requestId) {
    const utterance = this.#of(requestId);
    if (utterance) utterance.silent = true;
    this.#player.flush(requestId);
  }

  /**
   * It ends before its end. What has arrived of it is still heard, unless it is silent.
   * @param {Utterance} utterance
   * @param {string} code
   * @param {string} message
   */
  #ended(utterance, code, message) {
    this.#complete(utterance.requestId);
    this.emit("failed", { requestId: utterance.requestId, code, message, cancelled: utterance.silent || code === "CANCELLED" });
  }

  /**
   * @param {string} requestId
   * @param {{text: string, requestId: string}|null} message
   */
  #add(requestId, message) {
    this.#line.push({ requestId, silent: false, bytes: 0, message });
    this.#reported.set(requestId, -REPORT);
  }

  /** @param {string} requestId */
  #of(requestId) {
    return this.#line.find((one) => one.requestId === requestId);
  }

  /**
   * @param {string} requestId
   * @param {number} ms
   * @param {boolean} last
   */
  #played(requestId, ms, last) {
    const before = this.#reported.get(requestId);
    if (before === undefined || (!last && ms - before < REPORT)) return;
    if (last) this.#reported.delete(requestId);
    else this.#reported.set(requestId, ms);
    if (this.#started) this.#link.send({ type: "played", requestId, ms });
  }
}
