/** The page begins here: token, views, the server's state. */

import { currentToken, takeFromAddress, useToken } from "./access.js";
import { loadVoices, showLanguages } from "./choices.js";
import { at } from "./dom.js";
import { Refused } from "./http.js";
import { forget, notice } from "./notices.js";
import { Player } from "./player.js";
import { askServer, onServer, watchServer } from "./server-state.js";
import { SpeakView } from "./speak-view.js";
import { TalkView } from "./talk-view.js";
import { VoicesView } from "./voices-view.js";
import { closed } from "./words.js";

takeFromAddress();

const NAMES = ["talk", "speak", "voices"];
const player = new Player();
const views = { talk: new TalkView(player, wantToken), speak: new SpeakView(player, wantToken), voices: new VoicesView(voicesChanged) };
let shown = "";

/** Show the view that the address names. */
function route() {
  const name = location.hash.slice(1);
  if (name.includes("token=")) {
    takeFromAddress();
    voicesChanged();
  }
  const wanted = NAMES.includes(name) ? name : shown || "talk";
  if (wanted === shown) return;
  const first = shown === "";
  shown = wanted;
  for (const one of NAMES) {
    at(`${one}-view`).hidden = one !== wanted;
    const link = /** @type {HTMLElement} */ (document.querySelector(`nav [data-view=${one}]`));
    if (one === wanted) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
    if (one !== wanted) views[/** @type {keyof typeof views} */ (one)].leave();
  }
  document.title = `${wanted[0].toUpperCase()}${wanted.slice(1)} · Speech`;
  views[/** @type {keyof typeof views} */ (wanted)].enter();
  if (!first) at("main").focus({ preventScroll: true });
}

/** Ask for the voices again, and say why if they do not come. */
async function voicesChanged() {
  try {
    views.voices.show(await loadVoices());
    forget("voices");
    forget("token");
  } catch (error) {
    if (!(error instanceof Refused)) throw error;
    if (error.status === 401) wantToken();
    else if (error.status) notice("voices", "The voices cannot be listed.", error.message, { label: "Try again", then: voicesChanged });
    // no answer at all: the server's state says so
  }
}

/** The server wants to know who asks. */
function wantToken() {
  const had = currentToken() !== "";
  notice("token", closed(4401).title, had ? "It does not take the one that you gave." : "Its operator has one for you.", {
    label: "Enter a token",
    then: openAccess,
  });
}

function openAccess() {
  at("access-token").value = currentToken();
  at("access-said").textContent = `${location.host}: ${at("server-state").querySelector(".said").textContent.toLowerCase()}.`;
  at("access-dialog").showModal();
}

at("server-state").onclick = openAccess;
at("access-cancel").onclick = () => at("access-dialog").close();
at("access-form").onsubmit = () => {
  useToken(at("access-token").value);
  for (const view of Object.values(views)) view.tokenChanged();
  voicesChanged();
};
addEventListener("hashchange", route);
document.querySelector(".mark")?.addEventListener("click", () => at("main").focus());

onServer((now, before) => {
  if (now === "gone") notice("server", "The server does not answer.", "Start it, or check the network. This page connects again by itself.", { label: "Try now", then: askServer });
  else forget("server");
  if (now === "failed") notice("failed", "The model could not be loaded.", "The server's log says why. Mend that, and start the server again.");
  else forget("failed");
  if (before === "gone" || before === "checking" || now === "ready") voicesChanged();
  for (const view of Object.values(views)) view.serverChanged(now);
});

showLanguages();
route();
watchServer();
