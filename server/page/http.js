/** Requests to the server's REST part, and its refusals as errors with words. */

import { tokenHeader } from "./access.js";

export class Refused extends Error {
  /**
   * @param {string} message
   * @param {number} status 0: no answer at all
   * @param {string} code
   */
  constructor(message, status, code) {
    super(message);
    this.status = status;
    this.code = code;
  }
}

/** @param {string} path @returns {URL} relative to the page, so that a prefix of a proxy stays */
export const address = (path) => new URL(path, document.baseURI);

/**
 * Load a module of the page's into the audio thread. Throws a NetworkError if the server does not hand it out.
 * @param {AudioContext} context
 * @param {string} path
 */
export async function addWorklet(context, path) {
  try {
    await context.audioWorklet.addModule(address(path));
  } catch (error) {
    throw new DOMException(String(error), "NetworkError"); // it is an AbortError, as of a microphone
  }
}

/** @param {string} path @returns {string} of a WebSocket */
export function socketAddress(path) {
  const url = address(path);
  url.hash = "";
  url.protocol = url.protocol === "https:" ? "wss:" : "ws:";
  return url.href;
}

/**
 * Ask; a refusal is thrown.
 * @param {string} path
 * @param {RequestInit} [options]
 * @returns {Promise<Response>}
 */
export async function ask(path, options = {}) {
  const response = await attempt(path, options);
  if (response.ok) return response;
  throw await refusal(response);
}

/**
 * Ask; any answer is returned.
 * @param {string} path
 * @param {RequestInit} [options]
 * @returns {Promise<Response>}
 */
export async function attempt(path, options = {}) {
  try {
    return await fetch(address(path), { ...options, headers: { ...tokenHeader(), ...options.headers } });
  } catch {
    throw new Refused("The server does not answer. Is it running?", 0, "GONE");
  }
}

/** @param {Response} response @returns {Promise<Refused>} */
export async function refusal(response) {
  /** @type {{message?: string, code?: string}} */
  let error = {};
  try {
    error = (await response.json()).error ?? {};
  } catch {
    error = {}; // no JSON: a proxy answered
  }
  const said = error.message ?? `the server answered ${response.status} ${response.statusText}`.trim();
  return new Refused(sentence(said), response.status, error.code ?? "");
}

/** @param {string} said @returns {string} with a capital and a full stop */
export function sentence(said) {
  const text = said.trim();
  return `${text.charAt(0).toUpperCase()}${text.slice(1)}${/[.!?…]$/.test(text) ? "" : "."}`;
}
