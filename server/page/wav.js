/** PCM16 of one channel <-> float samples, and a WAV file. */

/**
 * @param {ArrayBuffer} pcm little-endian
 * @returns {Float32Array<ArrayBuffer>}
 */
export function toFloats(pcm) {
  const view = new DataView(pcm);
  const samples = new Float32Array(pcm.byteLength >> 1);
  for (let index = 0; index < samples.length; index++) samples[index] = view.getInt16(2 * index, true) / 32767;
  return samples;
}

/**
 * @param {Float32Array} samples
 * @returns {ArrayBuffer}
 */
export function toPcm16(samples) {
  const view = new DataView(new ArrayBuffer(2 * samples.length));
  samples.forEach((sample, index) => view.setInt16(2 * index, Math.round(32767 * Math.max(-1, Math.min(1, sample))), true));
  return view.buffer;
}

/**
 * @param {ArrayBuffer[]} pieces PCM16
 * @param {number} rate in Hz
 * @returns {Blob}
 */
export function wav(pieces, rate) {
  const bytes = pieces.reduce((sum, piece) => sum + piece.byteLength, 0);
  const head = new DataView(new ArrayBuffer(44));
  const write = (/** @type {number} */ place, /** @type {string} */ text) => [...text].forEach((letter, index) => head.setUint8(place + index, letter.charCodeAt(0)));
  write(0, "RIFF");
  head.setUint32(4, 36 + bytes, true);
  write(8, "WAVEfmt ");
  head.setUint32(16, 16, true);
  head.setUint16(20, 1, true); // PCM
  head.setUint16(22, 1, true); // one channel
  head.setUint32(24, rate, true);
  head.setUint32(28, 2 * rate, true);
  head.setUint16(32, 2, true);
  head.setUint16(34, 16, true);
  write(36, "data");
  head.setUint32(40, bytes, true);
  return new Blob([head, ...pieces], { type: "audio/wav" });
}
