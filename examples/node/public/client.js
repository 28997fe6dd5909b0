const list = document.querySelector('ul');
const show = ({ text }) => list.append(Object.assign(document.createElement('li'), { textContent: text }));

new EventSource('/events').onmessage = (event) => show(JSON.parse(event.data));
for (const message of await (await fetch('/messages')).json()) show(message);
document.querySelector('form').onsubmit = async (event) => {
  event.preventDefault();
  const text = event.target.text.value;
  event.target.reset();
  await fetch('/messages', { method: 'POST', body: JSON.stringify({ text }) });
};
