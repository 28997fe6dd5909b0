import assert from 'node:assert/strict';
import test from 'node:test';
import { Board } from '../src/board.js';

test('messages are kept in order, and the oldest go', () => {
  const board = new Board(2);
  for (const text of ['one', ' two ', 'three']) board.post(text);
  assert.deepEqual(board.list(), [{ id: 2, text: 'two' }, { id: 3, text: 'three' }]);
});

test('a message without a text is refused, and nobody hears of it', () => {
  const board = new Board();
  board.on('message', () => assert.fail('heard'));
  assert.throws(() => board.post('  '), TypeError);
});
