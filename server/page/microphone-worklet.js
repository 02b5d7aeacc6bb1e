/** Runs in the audio thread: the microphone's samples -> pieces of the wanted rate, each with its level. */

import { Resampler } from "./resampler.js";

class Microphone extends AudioWorkletProcessor {
  #size;
  #resampler;
  #made;
  #filled = 0;

  /** @param {any} options */
  constructor(options) {
    super();
    const { rate, size } = options.processorOptions;
    this.#size = size;
    this.#made = new Float32Array(size);
    this.#resampler = rate === sampleRate ? null : new Resampler(sampleRate, rate);
  }

  /** @param {Float32Array[][]} inputs */
  process(inputs) {
    const heard = inputs[0][0];
    if (!heard) return true;
    for (const sample of this.#resampler ? this.#resampler.write(heard) : heard) {
      this.#made[this.#filled++] = sample;
      if (this.#filled === this.#size) this.#send();
    }
    return true;
  }

  #send() {
    const samples = this.#made;
    this.#made = new Float32Array(this.#size);
    this.#filled = 0;
    const level = Math.sqrt(samples.reduce((sum, sample) => sum + sample * sample, 0) / samples.length);
    this.port.postMessage({ samples, level }, [samples.buffer]);
  }
}

registerProcessor("microphone", Microphone);
