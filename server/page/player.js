/** The loudspeaker's side of the page: one audio context, one worklet, whatever view speaks. */

import { Emitter } from "./events.js";
import { addWorklet } from "./http.js";
import { JitterBuffer } from "./jitter-buffer.js";

export const RATE = 24000;
const DUCKED = 0.15; // volume while it is not yet known whether somebody interrupts

/** Events: `begun`, `progress`, `ended`, `flushed` (id, milliseconds that have sounded), `level` (0 to 1), `underrun` (count, milliseconds missed). */
export class Player extends Emitter {
  /** @type {AudioContext|null} */
  #context = null;
  /** @type {Pick<MessagePort, "postMessage">|null} */
  #port = null;
  /** @type {Promise<void>|null} */
  #made = null;
  #underruns = 0;
  #missed = 0;

  /** Make the context. Browsers let a page sound only after a click or a key: call this from one. */
  async wake() {
    if (!this.#made) {
      this.#made = this.#make().catch((error) => {
        this.#made = null; // the server was away: the next try may do
        throw error;
      });
    }
    await this.#made;
    if (this.#context?.state !== "running") await Promise.race([this.#context?.resume(), new Promise((done) => setTimeout(done, 1000))]);
    return this.#context?.state === "running";
  }

  /**
   * @param {string} id of the utterance
   * @param {Float32Array<ArrayBuffer>} samples
   */
  push(id, samples) {
    this.#port?.postMessage({ type: "push", id, samples }, [samples.buffer]);
  }

  /** @param {string} id */
  end(id) {
    this.#port?.postMessage({ type: "end", id });
  }

  /** @param {string} [id] nothing of it sounds any more */
  flush(id) {
    this.#port?.postMessage({ type: "flush", id });
  }

  /** Turn the volume down until `unduck` or `flush`. */
  duck() {
    this.#port?.postMessage({ type: "duck", gain: DUCKED, held: true });
  }

  unduck() {
    this.#port?.postMessage({ type: "duck", gain: 1, held: false });
  }

  async #make() {
    this.#context ??= new AudioContext({ sampleRate: RATE, latencyHint: "interactive" });
    if (!this.#context.audioWorklet) {
      this.#port = withoutWorklet(this.#context, (news) => this.#heard(news));
      return;
    }
    await addWorklet(this.#context, "page/player-worklet.js");
    const node = new AudioWorkletNode(this.#context, "player", { numberOfInputs: 0, outputChannelCount: [1] });
    node.port.onmessage = ({ data }) => this.#heard(data);
    node.connect(this.#context.destination);
    this.#port = node.port;
  }

  /** Milliseconds of samples that have left the worklet -> of those that have reached the ear. @param {number} samples */
  #sounded(samples) {
    const late = (this.#context?.baseLatency ?? 0) + (this.#context?.outputLatency ?? 0);
    return Math.max(0, Math.round(1000 * (samples / RATE - late)));
  }

  /** @param {any} news */
  #heard(news) {
    if (news.type === "ended") this.emit("ended", news.id, Math.round((1000 * news.played) / RATE));
    else if (news.type !== "report") this.emit(news.type, news.id, this.#sounded(news.played));
    else {
      this.emit("level", news.level);
      if (news.head) this.emit("progress", news.head.id, this.#sounded(news.head.played));
      if (news.underruns > this.#underruns || news.missed > this.#missed) {
        this.emit("underrun", news.underruns - this.#underruns, Math.round((1000 * (news.missed - this.#missed)) / RATE));
        this.#underruns = news.underruns;
        this.#missed = news.missed;
      }
    }
  }
}

/**
 * The same in the page's own thread: a page that is not secure (http from another machine) gets no worklet, and can speak all the same.
 * @param {AudioContext} context
 * @param {(news: any) => void} tell
 */
function withoutWorklet(context, tell) {
  const buffer = new JitterBuffer(context.sampleRate, tell);
  const node = context.createScriptProcessor(1024, 1, 1);
  node.onaudioprocess = ({ outputBuffer }) => {
    const level = buffer.pull(outputBuffer.getChannelData(0));
    const { head, underruns, missed } = buffer;
    tell({ type: "report", head, underruns, missed, level });
  };
  node.connect(context.destination);
  return { postMessage: (/** @type {any} */ message) => buffer.told(message) };
}
