/** Faults of the microphone, of a socket and of the server -> a title, and what to do. */

/** @typedef {{title: string, said: string}} Words */

/** @returns {Words|null} why this page can have no microphone at all; null if it can */
export function noMicrophoneHere() {
  if (window.isSecureContext && navigator.mediaDevices) return null;
  if (window.isSecureContext) return { title: "This browser gives pages no microphone.", said: "Use a current Chrome, Edge, Firefox or Safari." };
  return {
    title: "Browsers allow the microphone on secure pages only.",
    said: `Open this page as http://localhost${location.port ? `:${location.port}` : ""} on the server's own machine, or put the server behind https.`,
  };
}

/**
 * Why getUserMedia failed, or the page's part of it could not be loaded.
 * @param {any} error
 * @returns {Words}
 */
export function microphoneFault(error) {
  switch (error?.name) {
    case "NotAllowedError":
    case "SecurityError":
      return { title: "The microphone is not allowed.", said: "Allow it in the browser's address bar (the icon left of the address), then start again." };
    case "NotFoundError":
    case "OverconstrainedError":
      return { title: "There is no microphone.", said: "Plug one in, or choose one in the system's sound settings, then start again." };
    case "NetworkError":
      return { title: "The server does not answer.", said: "Start it, or check the network, then start again." };
    case "NotReadableError":
    case "AbortError":
      return { title: "The microphone cannot be opened.", said: "Another program may be using it: close that program, then start again." };
    default:
      return { title: "The microphone cannot be opened.", said: String(error?.message ?? error) };
  }
}

/**
 * Why a socket closed, and whether connecting again can help.
 * @param {number} code
 * @returns {Words & {again: boolean, slower: boolean}}
 */
export function closed(code) {
  const again = { again: true, slower: false };
  switch (code) {
    case 4401:
      return { title: "The server wants a token.", said: "Enter a valid one.", again: false, slower: false };
    case 4429:
      return { title: "Too many requests.", said: "The server allows more in a minute.", again: true, slower: true };
    case 1013:
      return { title: "The server is full.", said: "This page tries again by itself.", again: true, slower: true };
    case 1012:
      return { title: "The server restarts.", said: "This page connects again by itself.", ...again };
    case 1009:
      return { title: "The text is too long for one message.", said: "Speak it in parts.", ...again };
    case 1011:
      return { title: "The server had a fault.", said: "Its log says why. This page connects again by itself.", ...again };
    default:
      return { title: "The connection to the server is lost.", said: "This page connects again by itself.", ...again };
  }
}

/**
 * The title of a server's `error`; its message says the rest.
 * @param {string} code
 * @returns {string}
 */
export function titleOf(code) {
  const titles = {
    MODEL_LOADING: "The model is loading.",
    SYNTHESIS_ERROR: "The speech failed.",
    INVALID_TEXT: "This text cannot be spoken.",
    INVALID_MESSAGE: "The server did not understand the page.",
    VOICE_NOT_FOUND: "That voice is gone.",
    UNAUTHORIZED: "The server wants a token.",
    RATE_LIMITED: "Too many requests.",
    TIMEOUT: "That took too long.",
    GPU_OUT_OF_MEMORY: "The server's memory is full.",
    RECOGNITION_ERROR: "What you say cannot be written down now.",
    OVERLOADED: "The server hears more than it can write down.",
    RESPONDER_ERROR: "There is no answer.",
  };
  return titles[/** @type {keyof typeof titles} */ (code)] ?? "The server refused.";
}
