/** Who wants to hear of something, and telling them. */
export class Emitter {
  #heard = new Map();

  /**
   * Call `then` whenever `name` happens.
   * @param {string} name
   * @param {(...values: any[]) => void} then
   * @returns {this}
   */
  on(name, then) {
    this.#heard.set(name, [...(this.#heard.get(name) ?? []), then]);
    return this;
  }

  /**
   * Tell that `name` has happened.
   * @param {string} name
   * @param {...any} values
   */
  emit(name, ...values) {
    for (const then of this.#heard.get(name) ?? []) then(...values);
  }
}
