/** The token: from the address's fragment (#token=…) or from the field; kept in this tab alone, sent in headers and messages only. */

const KEPT = "speech-token";
let token = "";

/** Take a token out of the address bar, before anything else can read or keep the address. */
export function takeFromAddress() {
  try {
    token = sessionStorage.getItem(KEPT) ?? "";
  } catch {
    token = ""; // storage is switched off: the token lives as long as the page
  }
  const parts = new URLSearchParams(location.hash.slice(1));
  const given = parts.get("token");
  if (given === null) return;
  parts.delete("token");
  const view = parts.get("view") ?? [...parts.keys()][0] ?? "";
  history.replaceState(null, "", `${location.pathname}${location.search}${view ? `#${view}` : ""}`);
  useToken(given);
}

/** @param {string} given empty: none */
export function useToken(given) {
  token = given.trim();
  try {
    if (token) sessionStorage.setItem(KEPT, token);
    else sessionStorage.removeItem(KEPT);
  } catch {
    // storage is switched off
  }
}

/** @returns {string} empty if there is none */
export const currentToken = () => token;

/** @returns {{authToken?: string}} for `start` and `resume` */
export const tokenField = () => (token ? { authToken: token } : {});

/** @returns {Record<string, string>} for requests */
export const tokenHeader = () => (token ? { Authorization: `Bearer ${token}` } : {});
