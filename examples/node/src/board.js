// The messages, and who listens for new ones.
import { EventEmitter } from 'node:events';

export class Board extends EventEmitter {
  #messages = [];

  constructor(limit = 100) {
    super();
    this.limit = limit;
  }

  post(text) {
    if (typeof text !== 'string' || text.trim() === '') throw new TypeError('a message has a text');
    const message = { id: (this.#messages.at(-1)?.id ?? 0) + 1, text: text.trim() };
    this.#messages.push(message);
    if (this.#messages.length > this.limit) this.#messages.shift();
    this.emit('message', message);
    return message;
  }

  list() {
    return [...this.#messages];
  }
}
