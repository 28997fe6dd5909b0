// HTTP: GET and POST /messages, GET /events, and the public files.
import { createServer } from 'node:http';
import { readFile } from 'node:fs/promises';
import { extname, join, normalize } from 'node:path';
import { Board } from './board.js';

const port = Number(process.env.PORT ?? 3000);
const root = new URL('./public/', import.meta.url).pathname;
const types = { '.html': 'text/html; charset=utf-8', '.css': 'text/css', '.js': 'text/javascript' };
const board = new Board();

function send(response, status, body, type = 'application/json') {
  response.writeHead(status, { 'content-type': type });
  response.end(type === 'application/json' ? JSON.stringify(body) : body);
}

async function post(request, response) {
  let body = '';
  for await (const piece of request) {
    body += piece;
    if (body.length > 10_000) return send(response, 413, { error: 'too long' });
  }
  try {
    send(response, 201, board.post(JSON.parse(body).text));
  } catch (error) {
    send(response, 400, { error: error.message });
  }
}

function events(request, response) {
  response.writeHead(200, { 'content-type': 'text/event-stream', 'cache-control': 'no-store' });
  response.write(': welcome\n\n');
  const tell = (message) => response.write(`data: ${JSON.stringify(message)}\n\n`);
  board.on('message', tell);
  request.on('close', () => board.off('message', tell));
}

async function file(path, response) {
  const name = normalize(path === '/' ? '/index.html' : path);
  try {
    send(response, 200, await readFile(join(root, name)), types[extname(name)] ?? 'application/octet-stream');
  } catch {
    send(response, 404, { error: 'not found' });
  }
}

const server = createServer((request, response) => {
  const { pathname } = new URL(request.url, 'http://board');
  if (pathname === '/healthz') return send(response, 200, { ok: true, node: process.version });
  if (pathname === '/messages' && request.method === 'GET') return send(response, 200, board.list());
  if (pathname === '/messages' && request.method === 'POST') return void post(request, response);
  if (pathname === '/events') return events(request, response);
  return void file(pathname, response);
});

server.listen(port, () => console.log(`board listens on port ${port}`));
for (const signal of ['SIGTERM', 'SIGINT']) {
  process.on(signal, () => {
    console.log(`board got ${signal} and ends`);
    server.close(() => process.exit(0));
    server.closeAllConnections();
  });
}
