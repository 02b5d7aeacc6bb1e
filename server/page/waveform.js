/** A waveform that grows as audio arrives, and fills while it sounds. */

const BAR = 3; // CSS pixels
const SPACE = 2;
const STEP = 0.02; // seconds of audio in one stored peak

export class Waveform {
  /** @type {number[]} */
  #peaks = [];
  #partial = 0;
  #count = 0;
  #size;
  #expected = 1; // seconds that the whole is thought to have
  #complete = false;
  #played = 0; // seconds
  #canvas;
  #rate;
  #drawing = 0;

  /**
   * @param {HTMLCanvasElement} canvas
   * @param {number} rate in Hz
   */
  constructor(canvas, rate) {
    this.#canvas = canvas;
    this.#rate = rate;
    this.#size = Math.round(STEP * rate);
    new ResizeObserver(() => this.draw()).observe(canvas);
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => this.draw());
  }

  /** @param {number} seconds that are expected */
  begin(seconds) {
    this.#peaks = [];
    this.#partial = this.#count = this.#played = 0;
    this.#expected = seconds;
    this.#complete = false;
    this.draw();
  }

  /** @param {Float32Array} samples */
  add(samples) {
    for (const sample of samples) {
      this.#partial = Math.max(this.#partial, Math.abs(sample));
      if (++this.#count % this.#size === 0) {
        this.#peaks.push(this.#partial);
        this.#partial = 0;
      }
    }
    this.draw();
  }

  /** All is there. */
  finish() {
    this.#complete = true;
    this.draw();
  }

  /** @param {number} seconds that have sounded */
  played(seconds) {
    this.#played = seconds;
    this.draw();
  }

  get seconds() {
    return this.#count / this.#rate;
  }

  /** At the next picture; a tab in the background draws nothing. */
  draw() {
    this.#drawing ||= requestAnimationFrame(() => {
      this.#drawing = 0;
      this.#paint();
    });
  }

  #paint() {
    const canvas = this.#canvas;
    const { clientWidth: width, clientHeight: height } = canvas;
    const scale = devicePixelRatio || 1;
    canvas.width = Math.max(1, Math.round(width * scale));
    canvas.height = Math.max(1, Math.round(height * scale));
    const pen = canvas.getContext("2d");
    if (!pen || !width) return;
    pen.scale(scale, scale);
    const style = getComputedStyle(canvas);
    const [rest, done, empty] = ["--wave", "--accent", "--line"].map((name) => style.getPropertyValue(name));
    const bars = Math.floor((width + SPACE) / (BAR + SPACE));
    const seconds = this.#complete ? this.seconds : Math.max(this.#expected, 1.15 * this.seconds);
    const perBar = seconds / STEP / bars;
    for (let bar = 0; bar < bars; bar++) {
      const first = Math.floor(bar * perBar);
      const last = Math.max(first + 1, Math.floor((bar + 1) * perBar));
      const peak = first < this.#peaks.length ? Math.max(...this.#peaks.slice(first, last)) : -1;
      const tall = peak < 0 ? 2 : Math.max(3, Math.min(1, Math.sqrt(peak)) * height);
      pen.fillStyle = peak < 0 ? empty : ((bar + 0.5) / bars) * seconds <= this.#played ? done : rest;
      pen.beginPath();
      pen.roundRect(bar * (BAR + SPACE), (height - tall) / 2, BAR, tall, BAR / 2);
      pen.fill();
    }
  }
}
