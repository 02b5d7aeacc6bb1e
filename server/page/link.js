/** A WebSocket that connects again by itself, slower and slower, for as long as it is wanted. */

import { Emitter } from "./events.js";
import { closed } from "./words.js";

const FIRST = 300; // milliseconds before the first new try
const MOST = 15_000;
const SLOW = 5_000; // where the server is full
const ANSWER = 10_000; // milliseconds that a server, or a proxy before it, may take to open a connection

/** The window's event by which whoever hears from the server again tells every connection not to wait any longer. */
export const BACK = "server-back";

/** The window's event by which a connection that breaks, or cannot be made, has the server asked how it is. */
export const LOST = "server-lost";

/**
 * How long to wait before the next try: doubled each time, and spread so that many pages do not come at once.
 * @param {number} tries that have failed
 * @param {boolean} slower
 * @param {() => number} chance
 * @returns {number} milliseconds
 */
export function backOff(tries, slower = false, chance = Math.random) {
  const most = Math.min(MOST, Math.max(slower ? SLOW : 0, FIRST * 2 ** tries));
  return most * (0.5 + 0.5 * chance());
}

/** Events: `open`, `message` (object), `audio` (ArrayBuffer), `down` (Words, whether it was open), `refused` (Words). */
export class Link extends Emitter {
  #url;
  /** @type {WebSocket|null} */
  #socket = null;
  #wanted = false;
  #tries = 0;
  #timer = 0;

  /** @param {string} url */
  constructor(url) {
    super();
    this.#url = url;
    const now = () => this.#wanted && !this.#socket && this.#connect();
    addEventListener("online", now);
    addEventListener(BACK, now);
    document.addEventListener("visibilitychange", () => document.visibilityState === "visible" && now());
  }

  /** Connect, and stay connected until `close`. */
  open() {
    this.#wanted = true;
    if (!this.#socket) this.#connect();
  }

  /** Connected, and the server has spoken. */
  get isOpen() {
    return this.#socket?.readyState === WebSocket.OPEN;
  }

  /** Bytes that wait to be sent. */
  get waiting() {
    return this.#socket?.bufferedAmount ?? 0;
  }

  /**
   * Send an object as JSON, or bytes.
   * @param {object|ArrayBuffer} what
   * @returns {boolean} whether there was a connection
   */
  send(what) {
    if (!this.isOpen) return false;
    this.#socket?.send(what instanceof ArrayBuffer ? what : JSON.stringify(what));
    return true;
  }

  /** The server is well: the next loss is met quickly again. */
  settled() {
    this.#tries = 0;
  }

  /** Close, and do not come back. */
  close() {
    this.#wanted = false;
    clearTimeout(this.#timer);
    const socket = this.#socket;
    this.#socket = null;
    socket?.close(1000);
  }

  #connect() {
    clearTimeout(this.#timer);
    const socket = new WebSocket(this.#url);
    socket.binaryType = "arraybuffer";
    this.#socket = socket;
    let wasOpen = false;
    const limit = setTimeout(() => socket.close(), ANSWER);
    socket.onopen = () => {
      clearTimeout(limit);
      wasOpen = true;
      if (socket === this.#socket) this.emit("open");
    };
    socket.onmessage = ({ data }) => {
      if (socket !== this.#socket) return;
      if (typeof data === "string") this.emit("message", JSON.parse(data));
      else this.emit("audio", data);
    };
    socket.onclose = ({ code }) => {
      clearTimeout(limit);
      if (socket !== this.#socket) return;
      this.#socket = null;
      this.#lost(code, wasOpen);
    };
  }

  /**
   * @param {number} code
   * @param {boolean} wasOpen
   */
  #lost(code, wasOpen) {
    const words = closed(code);
    if (!words.again) {
      this.#wanted = false;
      this.emit("refused", words);
      return;
    }
    this.emit("down", { ...words, code }, wasOpen);
    dispatchEvent(new Event(LOST));
    if (this.#wanted) this.#timer = window.setTimeout(() => this.#connect(), backOff(this.#tries++, words.slower));
  }
}
