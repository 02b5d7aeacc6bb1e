/** How the server is: asked at the start, while it is not ready, and now and then; shown at the top of the page. */

import { at } from "./dom.js";
import { attempt } from "./http.js";
import { BACK, LOST, backOff } from "./link.js";

const CALM = 30_000; // milliseconds between two questions while all is well
const SOON = 1_000; // while the model loads
const ANSWER = 10_000; // what an answer may take

const SAID = {
  checking: "Connecting",
  ready: "Ready",
  idle: "Ready",
  loading: "Loading",
  draining: "Restarting",
  failed: "Model failed",
  gone: "Not connected",
};

/** @typedef {keyof typeof SAID} State */

/** @type {State} */
let state = "checking";
let tries = 0;
let timer = 0;
/** @type {string|null|undefined} */
let deaf;
/** @type {((now: State, before: State) => void)[]} */
const listeners = [];

/** @param {(now: State, before: State) => void} then called at each change */
export const onServer = (then) => listeners.push(then);

/** @returns {State} */
export const serverState = () => state;

/** @returns {string|null|undefined} what the server lacks for listening; null: nothing; undefined: not known yet */
export const missingToListen = () => deaf;

/** Ask now. */
export async function askServer() {
  clearTimeout(timer);
  /** @type {{status: string, loadingSeconds?: number, listen?: string|null}} */
  let told = { status: "gone" };
  try {
    told = await (await attempt("readyz", { cache: "no-store", signal: AbortSignal.timeout(ANSWER) })).json();
    deaf = told.listen;
    tries = 0;
  } catch {
    tries++; // no answer, or a proxy's
  }
  show(told.status in SAID ? /** @type {State} */ (told.status) : "gone", told.loadingSeconds ?? 0);
  const wait = state === "loading" || state === "draining" ? SOON : state === "gone" ? backOff(tries) : CALM;
  timer = window.setTimeout(askServer, wait);
}

/** Begin to watch the server. */
export function watchServer() {
  document.addEventListener("visibilitychange", () => document.visibilityState === "visible" && askServer());
  addEventListener("online", () => askServer());
  addEventListener(LOST, () => state !== "gone" && askServer()); // then it is asked soon enough
  return askServer();
}

/**
 * @param {State} now
 * @param {number} seconds that loading has taken so far
 */
function show(now, seconds) {
  const pill = at("server-state");
  pill.dataset.state = now;
  pill.querySelector(".said").textContent = SAID[now];
  at("loading").hidden = now !== "loading";
  at("loading-said").textContent = `${Math.round(seconds)} s so far. A first start compiles for a minute or two; later ones are quick.`;
  const before = state;
  state = now;
  if (before === "gone" && now !== "gone") dispatchEvent(new Event(BACK));
  if (now !== before) for (const then of listeners) then(now, before);
}
