// Writes dist/: the server as it is, and the public files under names that tell their content, so that browsers may keep them.
import { createHash } from 'node:crypto';
import { cp, mkdir, readdir, readFile, writeFile } from 'node:fs/promises';
import { join, parse } from 'node:path';

const out = 'dist';
await mkdir(join(out, 'public'), { recursive: true });
await cp('src', out, { recursive: true });

const assets = {};
for (const file of (await readdir('public')).sort()) {
  const content = await readFile(join('public', file));
  const { name, ext } = parse(file);
  const digest = createHash('sha256').update(content).digest('hex').slice(0, 12);
  assets[file] = ext === '.html' ? file : `${name}.${digest}${ext}`;
}
for (const [file, published] of Object.entries(assets)) {
  let content = await readFile(join('public', file), 'utf8');
  for (const [from, to] of Object.entries(assets)) content = content.replaceAll(`"/${from}"`, `"/${to}"`);
  await writeFile(join(out, 'public', published), content);
}
await writeFile(join(out, 'package.json'), await readFile('package.json'));
console.log(`built ${Object.keys(assets).length} public files`);
