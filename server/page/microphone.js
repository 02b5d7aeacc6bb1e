/** The microphone as pieces of float samples of one rate; it says when it is lost. */

import { Emitter } from "./events.js";
import { addWorklet } from "./http.js";

/** Events: `piece` (Float32Array, level), `lost`. */
export class Microphone extends Emitter {
  /** @type {MediaStream|null} */
  #stream = null;
  /** @type {AudioContext|null} */
  #context = null;
  #closed = false;
  #options;

  /**
   * @param {{rate?: number, size?: number, processed?: boolean}} options rate in Hz (0: the device's), samples of a piece,
   *   and whether echo and noise are taken out
   */
  constructor({ rate = 16000, size = 512, processed = true } = {}) {
    super();
    this.#options = { rate, size, processed };
  }

  /** Hz of the pieces. */
  get rate() {
    return this.#options.rate || (this.#context?.sampleRate ?? 48000);
  }

  /** Ask for it, and begin; one that was closed while the user was asked stays closed. Throws what getUserMedia throws. */
  async open() {
    const { size, processed } = this.#options;
    const stream = await navigator.mediaDevices.getUserMedia({
      audio: { echoCancellation: processed, noiseSuppression: processed, autoGainControl: processed, channelCount: 1 },
    });
    this.#stream = stream;
    if (this.#closed) this.close();
    else await this.#listen(stream, size).catch((error) => {
      this.close();
      throw error;
    });
  }

  close() {
    const stream = this.#stream;
    this.#closed = true;
    this.#stream = null;
    stream?.getTracks().forEach((track) => track.stop());
    this.#context?.close();
    this.#context = null;
  }

  /**
   * @param {MediaStream} stream
   * @param {number} size
   */
  async #listen(stream, size) {
    const [track] = stream.getAudioTracks();
    track.onended = () => this.#stream && this.emit("lost");
    this.#context = new AudioContext(); // at the device's rate: Firefox takes no other from a microphone
    await addWorklet(this.#context, "page/microphone-worklet.js");
    if (!this.#stream) return; // closed meanwhile
    const node = new AudioWorkletNode(this.#context, "microphone", { numberOfOutputs: 0, processorOptions: { rate: this.rate, size } });
    node.port.onmessage = ({ data }) => this.#stream && this.emit("piece", data.samples, data.level);
    this.#context.createMediaStreamSource(stream).connect(node);
    await this.#context.resume();
  }
}
