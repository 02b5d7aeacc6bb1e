/** Talk: microphone to the Listen side, answers from the Speak side, joined by one contract. */

import { Conversation } from "./conversation.js";
import { at, choose, showLevel } from "./dom.js";
import { sentence, socketAddress } from "./http.js";
import { LISTEN, LISTEN_RATE, ListenClient } from "./listen-client.js";
import { Microphone } from "./microphone.js";
import { forget, notice } from "./notices.js";
import { missingToListen, serverState } from "./server-state.js";
import { SpeechClient } from "./speech-client.js";
import { microphoneFault, noMicrophoneHere, titleOf } from "./words.js";

const INSTALL = 'pip install "qwen3-jax[listen]"';
const KEY = "talk";
const LOADING = "talk-loading";
const LINK = "talk-link";
const PASSING = ["RATE_LIMITED", "OVERLOADED", "TIMEOUT", "MODEL_LOADING"]; // faults after which the sockets connect again
const AGAIN = 2000; // milliseconds after which a lost microphone is asked for again

/** @typedef {"idle"|"opening"|"lost"|"listening"|"hearing"|"thinking"|"answering"|"ducked"} State */

/** @type {Record<State, [string, string]>} what the button does, and what is going on */
const SAID = {
  idle: ["Start", "Press Start and allow the microphone."],
  opening: ["Starting", "Opening the microphone …"],
  lost: ["Connecting", "Connecting to the server again …"],
  listening: ["Listening", "Say something."],
  hearing: ["I’m done", "Listening to you."],
  thinking: ["Thinking", "Thinking …"],
  answering: ["Interrupt", "Speak at any time to interrupt."],
  ducked: ["Interrupt", "You speak: the voice waits."],
};

export class TalkView {
  /** @type {State} */
  #state = "idle";
  #contract = "";
  #player;
  #speech;
  #listen;
  #conversation = new Conversation(at("conversation"));
  /** @type {Microphone|null} */
  #microphone = null;
  /** @type {{listen: string[], speak: string[]}} that each side knows, once it has said so */
  #languages = { listen: [], speak: [] };
  #sounding = ""; // the answer that is heard, or is about to be
  #wantToken;
  #shown = false;

  /**
   * @param {import("./player.js").Player} player
   * @param {() => void} wantToken
   */
  constructor(player, wantToken) {
    this.#player = player;
    this.#wantToken = wantToken;
    this.#speech = this.#speaks();
    this.#listen = this.#hears();
    player
      .on("begun", (id) => id === this.#sounding && this.#now("answering"))
      .on("progress", (id, ms) => this.#conversation.progress(id, ms))
      .on("ended", (id) => this.#ended(id))
      .on("level", (level) => this.#running && showLevel(at("meter-voice"), this.#ring("--theirs", level)));
    at("talk-button").onclick = () => this.#pressed();
    at("talk-end").onclick = () => this.#end();
    document.addEventListener("keydown", (event) => {
      if (event.key !== "Escape" || !this.#shown || !this.#sounding || document.querySelector("dialog[open]")) return;
      event.preventDefault();
      this.#interrupt();
    });
  }

  enter() {
    this.#shown = true;
    this.#probe();
  }

  leave() {
    this.#shown = false;
    this.#end();
    for (const key of [KEY, LOADING]) forget(key);
  }

  tokenChanged() {
    this.#end();
    this.#probe();
  }

  /** @param {string} now */
  serverChanged(now) {
    if (now !== "loading") forget(LOADING);
    if (this.#shown && now !== "gone") this.#probe();
  }

  get #running() {
    return this.#state !== "idle" && this.#state !== "opening";
  }

  /** Whether this server listens at all; if not, how to make it. */
  #probe() {
    const missing = missingToListen();
    if (missing !== undefined) this.#can(missing === null, missing ? sentence(missing) : "");
  }

  /**
   * @param {boolean} works
   * @param {string} why it does not, if so
   */
  #can(works, why) {
    at("talk-missing").hidden = works;
    at("talk-stage").hidden = at("talk-options").hidden = !works;
    if (works) return;
    at("talk-missing-said").textContent = why;
    at("talk-missing-command").textContent = INSTALL;
    this.#end();
  }

  #speaks() {
    return new SpeechClient(socketAddress("api/v1/speak"), this.#player, () => ({ ...this.#chosen(["voice", "language", "interruption"]), contractId: this.#contract, wordTimes: true }))
      .on("answer", ({ requestId, text }) => this.#answer(requestId, text))
      .on("words", ({ requestId, words, first }) => this.#conversation.words(requestId, words, first))
      .on("ducked", ({ requestId }) => requestId === this.#sounding && this.#now("ducked"))
      .on("resumed", ({ requestId }) => requestId === this.#sounding && this.#now("answering"))
      .on("interrupted", ({ requestId, spokenText }) => this.#over(requestId, spokenText))
      .on("failed", (message) => this.#failed(message))
      .on("ready", ({ capabilities }) => this.#knows("speak", capabilities))
      .on("trouble", (message) => (this.#speech.started ? this.#trouble(message) : this.#unstarted(message)))
      .on("started", () => this.#linked())
      .on("down", (words) => this.#state !== "idle" && notice(LINK, words.title, words.said))
      .on("refused", () => this.#refused());
  }

  #hears() {
    return new ListenClient(socketAddress(LISTEN), () => ({ ...this.#chosen(["language"]), contractId: this.#contract, respond: true, turnDetection: { silenceMs: Number(at("talk-pause").value) } }))
      .on("ready", ({ capabilities }) => this.#knows("listen", capabilities))
      .on("started", () => this.#ready())
      .on("unstarted", (message) => this.#unstarted(message))
      .on("speechStarted", () => this.#hearing())
      .on("partial", ({ text }) => (at("caption").textContent = text))
      .on("turnPredicted", () => this.#state === "hearing" && (at("talk-state").textContent = "Have you finished?"))
      .on("turnResumed", () => this.#hearing())
      .on("final", ({ text }) => this.#final(text))
      .on("error", (message) => this.#unheard(message))
      .on("dropped", () => notice(KEY, "The network is too slow for the microphone.", "Some of what you say is lost: move closer to the network, or wait a moment."))
      .on("down", (words) => this.#deaf(words))
      .on("refused", () => this.#refused());
  }

  /**
   * A side has said what it can do: offer the languages that both know.
   * @param {"listen"|"speak"} side
   * @param {{languages?: string[]}} [capabilities]
   */
  #knows(side, capabilities) {
    this.#languages[side] = capabilities?.languages ?? [];
    const { listen, speak } = this.#languages;
    const both = listen.length && speak.length ? speak.filter((name) => listen.includes(name)) : [];
    choose(at("talk-language"), [{ value: "", label: "The server’s choice" }, ...both.map((name) => ({ value: name, label: name }))]);
  }

  /**
   * What the options say; an empty one is the server's choice.
   * @param {string[]} names
   */
  #chosen(names) {
    return Object.fromEntries(names.map((name) => [name, at(`talk-${name}`).value]).filter(([, value]) => value));
  }

  #pressed() {
    if (this.#state === "idle") this.#begin();
    else if (this.#sounding) this.#interrupt();
    else if (this.#state === "hearing") this.#listen.commit();
  }

  async #begin() {
    const none = noMicrophoneHere();
    if (none) {
      notice(KEY, none.title, none.said);
      return;
    }
    if (serverState() === "loading") {
      notice(LOADING, "The model is loading.", "Press Start again when the state at the top says Ready.");
      return;
    }
    forget(KEY);
    this.#conversation.clear();
    this.#now("opening");
    const contract = (this.#contract = crypto.randomUUID());
    try {
      if (!(await this.#player.wake())) notice(KEY, "The browser does not let this page sound.", "Allow sound for it in the address bar.");
      await this.#openMicrophone();
    } catch (error) {
      if (this.#state !== "opening" || contract !== this.#contract) return;
      const words = microphoneFault(error);
      notice(KEY, words.title, words.said, { label: "Try again", then: () => this.#begin() });
      this.#end();
      return;
    }
    if (this.#state !== "opening" || contract !== this.#contract) return; // the view was left meanwhile, and perhaps entered again
    at("talk-state").textContent = "Speak already: the voice is being woken.";
    this.#speech.open();
    this.#listen.open();
  }

  async #openMicrophone() {
    const microphone = new Microphone({ rate: LISTEN_RATE });
    this.#microphone = microphone;
    microphone.on("piece", (samples, level) => {
      this.#listen.hear(samples);
      showLevel(at("meter-you"), this.#ring("--mine", level));
    });
    microphone.on("lost", () => microphone === this.#microphone && this.#lostMicrophone());
    await microphone.open();
  }

  /** It was unplugged, or the permission taken away: ask for another one. */
  async #lostMicrophone() {
    this.#microphone?.close();
    notice(KEY, "The microphone is gone.", "Plug it in again, or choose another one in the system's settings: this page takes it as soon as it is there.");
    const contract = this.#contract;
    while (this.#state !== "idle") {
      await new Promise((done) => setTimeout(done, AGAIN));
      if (this.#state === "idle" || contract !== this.#contract) return;
      try {
        await this.#openMicrophone();
        forget(KEY);
        return;
      } catch {
        // not yet
      }
    }
  }

  #end() {
    if (this.#state === "idle") return;
    this.#microphone?.close();
    this.#microphone = null;
    this.#listen.close();
    this.#speech.close();
    this.#conversation.end();
    this.#sounding = "";
    at("caption").textContent = "";
    for (const key of [LINK, LOADING]) forget(key);
    this.#now("idle");
  }

  /** Stop the answer, here and on the server. */
  #interrupt() {
    const id = this.#sounding;
    if (!id) return;
    this.#speech.cancel(id);
    this.#conversation.stopped(id);
    this.#sounding = "";
    this.#now("listening");
  }

  #ready() {
    this.#linked();
    if (["opening", "lost"].includes(this.#state)) this.#now("listening");
  }

  /** Both sides are there, or one of them. */
  #linked() {
    if (this.#listen.started && this.#speech.started) forget(LINK);
  }

  /** @param {import("./words.js").Words} words why nobody listens now; a turn that was under way has no end */
  #deaf(words) {
    if (this.#state === "idle") return;
    notice(LINK, words.title, words.said);
    at("caption").textContent = "";
    if (this.#running && !this.#sounding) this.#now("lost");
  }

  #hearing() {
    if (!this.#running) return;
    if (!this.#sounding) this.#now("hearing");
  }

  /** @param {string} text */
  #final(text) {
    at("caption").textContent = "";
    if (!this.#running) return;
    if (text.trim()) {
      this.#conversation.heard(text);
      if (!this.#sounding) this.#now("thinking");
    } else if (!this.#sounding) this.#now("listening");
  }

  /**
   * @param {string} id
   * @param {string} text
   */
  #answer(id, text) {
    if (!this.#running) return;
    if (this.#sounding !== id && text) this.#sounding = id;
    this.#conversation.answer(id, text);
  }

  /** @param {string} id whose audio has sounded to its end */
  #ended(id) {
    this.#over(id, null);
  }

  /**
   * @param {string} id
   * @param {string|null} spoken
   */
  #over(id, spoken) {
    this.#conversation.over(id, spoken);
    if (id !== this.#sounding) return;
    this.#sounding = "";
    this.#now(spoken === null ? "listening" : "hearing");
  }

  /** @param {any} message */
  #failed(message) {
    this.#conversation.stopped(message.requestId, !message.cancelled);
    if (message.requestId === this.#sounding) {
      this.#sounding = "";
      if (this.#running) this.#now("listening");
    }
    if (message.code === "MODEL_LOADING") notice(LOADING, titleOf(message.code), "There are no answers until the state at the top says Ready.");
    else if (!message.cancelled) notice(KEY, message.code === "LOST" ? message.message : titleOf(message.code), message.code === "LOST" ? "Ask again." : sentence(message.message));
  }

  /** @param {any} message an `error` of either side, after which all goes on */
  #trouble(message) {
    if (message.code === "UNAUTHORIZED") this.#refused();
    else notice(KEY, titleOf(message.code), sentence(message.message));
  }

  /** @param {any} message an `error` in place of a `final`, or of an answer */
  #unheard(message) {
    this.#trouble(message);
    if (!this.#running || this.#sounding) return;
    at("caption").textContent = "";
    this.#now("listening");
  }

  /** @param {any} message an `error` in place of `started` */
  #unstarted(message) {
    if (this.#state === "idle") return;
    if (message.code === "UNAUTHORIZED") this.#refused();
    else if (message.recoverable === false && message.code === "RECOGNITION_ERROR") this.#can(false, sentence(message.message));
    else if (this.#running && PASSING.includes(message.code)) this.#trouble(message);
    else {
      const title = PASSING.includes(message.code) ? titleOf(message.code) : `The conversation cannot ${this.#running ? "go on" : "begin"}.`;
      this.#end();
      notice(KEY, title, sentence(message.message));
    }
  }

  #refused() {
    this.#end();
    this.#wantToken();
  }

  /**
   * Let a ring of the button grow with a level.
   * @param {string} name
   * @param {number} level
   */
  #ring(name, level) {
    at("orb").style.setProperty(name, Math.min(1, 3 * Math.sqrt(level)).toFixed(3));
    return level;
  }

  /** @param {State} state */
  #now(state) {
    if (state === "listening" && !this.#listen.started) state = "lost";
    this.#state = state;
    const [button, said] = SAID[state];
    at("orb").dataset.state = state;
    at("talk-button-said").textContent = button;
    at("talk-state").textContent = said;
    at("talk-button").setAttribute("aria-disabled", String(["opening", "lost", "listening", "thinking"].includes(state)));
    at("talk-view").toggleAttribute("data-running", this.#running);
    at("talk-view").toggleAttribute("data-compact", this.#running || !at("conversation").hidden);
    if (!this.#running && at("talk-keys").contains(document.activeElement)) at("talk-button").focus();
    at("talk-levels").hidden = at("talk-keys").hidden = !this.#running;
    if (this.#running) return;
    for (const id of ["meter-you", "meter-voice"]) showLevel(at(id), 0);
    for (const name of ["--mine", "--theirs"]) this.#ring(name, 0);
  }
}
