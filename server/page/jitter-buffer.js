/**
 * Utterances that arrive in pieces -> an unbroken stream of samples. Pure: no clock, no browser; the worklet feeds and pulls it.
 *
 * An utterance begins when enough of it is there to bridge late pieces; each underrun doubles what "enough" is, up to a limit. Ducking
 * turns the volume down over 30 ms. A flush fades out over 5 ms and leaves nothing of what was waiting.
 */

const LEAST = 0.1; // seconds that must be there before an utterance begins
const MOST = 0.4;
const FADE = 0.005;
const RAMP = 0.03;

/** @typedef {{id: string, pieces: Float32Array[], offset: number, waiting: number, ended: boolean, played: number, running: boolean, begun: boolean, starved: boolean}} Waiting */

export class JitterBuffer {
  underruns = 0;
  missed = 0; // samples of silence inside utterances
  /** @type {Waiting[]} */
  #line = [];
  #rate;
  #target;
  #gain = 1;
  #wanted = 1;
  #held = false;
  #rise = 1; // after an underrun sound comes back softly
  /** @type {Float32Array} */
  #tail = new Float32Array(0); // what fades out after a flush
  #tailAt = 0;
  #tell;

  /**
   * @param {number} rate in Hz
   * @param {(news: {type: string, id: string, played: number}) => void} tell `begun`, `ended`, `flushed`
   */
  constructor(rate, tell) {
    this.#rate = rate;
    this.#tell = tell;
    this.#target = LEAST * rate;
  }

  /** The utterance that sounds, or is about to: its id and the samples of it that have sounded. */
  get head() {
    const first = this.#line[0];
    return first ? { id: first.id, played: first.played, waiting: first.waiting } : null;
  }

  /** Do what a message from the page says. @param {any} message */
  told(message) {
    if (message.type === "push") this.push(message.id, message.samples);
    else if (message.type === "end") this.end(message.id);
    else if (message.type === "duck") this.duck(message.gain, message.held);
    else if (message.type === "flush") this.flush(message.id);
  }

  /**
   * @param {string} id
   * @param {Float32Array} samples
   */
  push(id, samples) {
    const utterance = this.#of(id);
    if (utterance.ended || samples.length === 0) return;
    utterance.pieces.push(samples);
    utterance.waiting += samples.length;
  }

  /** No more of it comes. @param {string} id */
  end(id) {
    const utterance = this.#line.find((one) => one.id === id);
    if (utterance) utterance.ended = true;
    else this.#tell({ type: "ended", id, played: 0 });
  }

  /**
   * Turn the volume down; while it is held, a sender that pauses causes no underrun.
   * @param {number} gain
   * @param {boolean} held
   */
  duck(gain, held) {
    if (held && !this.#line.length) return; // what was meant has ended
    this.#wanted = gain;
    this.#held = held;
    const first = this.#line[0];
    if (!held && first && !first.waiting) first.running = false;
  }

  /** Drop an utterance, or all of them. @param {string} [id] */
  flush(id) {
    const dropped = this.#line.filter((utterance) => id === undefined || utterance.id === id);
    for (const utterance of dropped) {
      if (utterance === this.#line[0] && utterance.running) this.#fade(utterance);
      this.#tell({ type: "flushed", id: utterance.id, played: utterance.played });
    }
    this.#line = this.#line.filter((utterance) => !dropped.includes(utterance));
    if (dropped.length) this.#loud();
  }

  /**
   * Fill `out`. Returns the root mean square of what was put there.
   * @param {Float32Array} out
   * @returns {number}
   */
  pull(out) {
    out.fill(0);
    let filled = 0;
    while (filled < out.length && this.#line.length) {
      const first = this.#line[0];
      if (!first.running && !this.#mayRun(first, out.length - filled)) break;
      filled += this.#take(first, out, filled);
      if (first.waiting) continue;
      if (first.ended) {
        this.#line.shift();
        if (!this.#line.length) this.#loud();
        this.#tell({ type: "ended", id: first.id, played: first.played });
      } else if (filled < out.length) {
        this.#starve(first, out.length - filled);
        break;
      }
    }
    this.#addTail(out);
    return Math.sqrt(out.reduce((sum, sample) => sum + sample * sample, 0) / out.length);
  }

  /** The next utterance is not ducked. */
  #loud() {
    this.#wanted = this.#gain = 1;
    this.#held = false;
  }

  /** @param {string} id @returns {Waiting} */
  #of(id) {
    let found = this.#line.find((utterance) => utterance.id === id);
    if (!found) {
      found = { id, pieces: [], offset: 0, waiting: 0, ended: false, played: 0, running: false, begun: false, starved: false };
      this.#line.push(found);
    }
    return found;
  }

  /**
   * @param {Waiting} first
   * @param {number} samples of silence if it may not
   */
  #mayRun(first, samples) {
    if (!first.ended && first.waiting < this.#target) {
      if (first.starved) this.missed += samples;
      return false;
    }
    first.running = true;
    first.starved = false;
    if (!first.begun) {
      first.begun = true;
      this.#tell({ type: "begun", id: first.id, played: 0 });
    }
    return true;
  }

  /**
   * @param {Waiting} first
   * @param {Float32Array} out
   * @param {number} from
   */
  #take(first, out, from) {
    let at = from;
    const step = 1 / (RAMP * this.#rate);
    const rise = 1 / (FADE * this.#rate);
    while (at < out.length && first.waiting) {
      const piece = first.pieces[0];
      const count = Math.min(out.length - at, piece.length - first.offset);
      for (let index = 0; index < count; index++) {
        if (this.#gain !== this.#wanted) this.#gain += Math.max(-step, Math.min(step, this.#wanted - this.#gain));
        out[at + index] = piece[first.offset + index] * this.#gain * this.#rise;
        if (this.#rise < 1) this.#rise = Math.min(1, this.#rise + rise);
      }
      at += count;
      first.offset += count;
      first.waiting -= count;
      first.played += count;
      if (first.offset === piece.length) {
        first.pieces.shift();
        first.offset = 0;
      }
    }
    return at - from;
  }

  /**
   * @param {Waiting} first
   * @param {number} samples
   */
  #starve(first, samples) {
    if (this.#held) return; // the sender pauses on purpose
    first.running = false;
    first.starved = true;
    this.underruns++;
    this.missed += samples;
    this.#target = Math.min(MOST * this.#rate, 2 * this.#target);
    this.#rise = 0;
  }

  /** @param {Waiting} utterance */
  #fade(utterance) {
    const tail = new Float32Array(Math.min(Math.round(FADE * this.#rate), utterance.waiting));
    const { played } = utterance;
    this.#take(utterance, tail, 0);
    utterance.played = played;
    this.#tail = tail.map((sample, index) => sample * (1 - (index + 1) / tail.length));
    this.#tailAt = 0;
  }

  /** @param {Float32Array} out */
  #addTail(out) {
    for (let index = 0; index < out.length && this.#tailAt < this.#tail.length; index++) out[index] += this.#tail[this.#tailAt++];
  }
}
