/** Runs in the audio thread: the jitter buffer at the loudspeaker. */

import { JitterBuffer } from "./jitter-buffer.js";

const BLOCKS = 8; // reports come every 8 blocks of 128 samples: 43 ms at 24 kHz

class Player extends AudioWorkletProcessor {
  #buffer = new JitterBuffer(sampleRate, (news) => this.port.postMessage(news));
  #blocks = 0;
  #power = 0;

  constructor() {
    super();
    this.port.onmessage = ({ data }) => this.#buffer.told(data);
  }

  /**
   * @param {Float32Array[][]} _inputs
   * @param {Float32Array[][]} outputs
   */
  process(_inputs, outputs) {
    const level = this.#buffer.pull(outputs[0][0]);
    this.#power += level * level;
    if (++this.#blocks === BLOCKS) {
      const { head, underruns, missed } = this.#buffer;
      this.port.postMessage({ type: "report", head, underruns, missed, level: Math.sqrt(this.#power / BLOCKS) });
      this.#blocks = this.#power = 0;
    }
    return true;
  }
}

registerProcessor("player", Player);
