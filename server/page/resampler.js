/** Samples of any rate -> samples of another one, piece by piece without a click: a windowed sinc, its state carried. Pure. */

const ZEROS = 12; // zero crossings of the sinc on each side
const CUTOFF = 0.92; // of the lower Nyquist frequency

export class Resampler {
  #step;
  #scale;
  #half;
  /** @type {Float32Array} */
  #kept = new Float32Array(0);
  #at; // of the next output, in samples of #kept

  /**
   * @param {number} from in Hz
   * @param {number} to in Hz
   */
  constructor(from, to) {
    this.#step = from / to;
    this.#scale = CUTOFF * Math.min(1, to / from);
    this.#half = Math.ceil(ZEROS / this.#scale);
    this.#kept = new Float32Array(this.#half);
    this.#at = this.#half;
  }

  /**
   * @param {Float32Array} samples
   * @returns {Float32Array}
   */
  write(samples) {
    const all = new Float32Array(this.#kept.length + samples.length);
    all.set(this.#kept);
    all.set(samples, this.#kept.length);
    const made = [];
    for (; this.#at + this.#half < all.length; this.#at += this.#step) made.push(this.#one(all, this.#at));
    const gone = Math.max(0, Math.floor(this.#at) - this.#half);
    this.#kept = all.slice(gone);
    this.#at -= gone;
    return Float32Array.from(made);
  }

  /**
   * @param {Float32Array} all
   * @param {number} at
   */
  #one(all, at) {
    const first = Math.max(0, Math.ceil(at - this.#half));
    const last = Math.min(all.length - 1, Math.floor(at + this.#half));
    let sum = 0;
    for (let index = first; index <= last; index++) {
      const away = index - at;
      const turn = Math.PI * away * this.#scale;
      const sinc = turn === 0 ? 1 : Math.sin(turn) / turn;
      sum += all[index] * sinc * this.#scale * (0.5 + 0.5 * Math.cos((Math.PI * away) / this.#half));
    }
    return sum;
  }
}
