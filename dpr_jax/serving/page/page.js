// The search page: what was asked is in the address, so that a link shows the same again.
"use strict";

const byId = (id) => document.getElementById(id);
const [form, question, left, right, count, keyField] =
  ["form", "question", "left", "right", "k", "key"].map(byId);
let latest = 0; // of several searches under way only the last one shows

function element(name, className, ...children) {
  const made = document.createElement(name);
  if (className) made.className = className;
  made.append(...children);
  return made;
}

function say(text, bad = false) {
  byId("status").textContent = text;
  byId("status").className = bad ? "bad" : "";
}

async function ask(path, body) {
  const headers = { "Content-Type": "application/json" };
  if (keyField.value) headers["X-API-Key"] = keyField.value;
  const options = body ? { method: "POST", headers, body: JSON.stringify(body) } : { headers };
  const reply = await fetch(path, options);
  if (reply.status === 401) byId("keylabel").hidden = false;
  const answer = await reply.json();
  if (!reply.ok) {
    const wait = reply.headers.get("Retry-After");
    throw new Error(answer.error.message + (wait ? ` (try again in ${wait} s)` : ""));
  }
  return answer;
}

// Marks count characters, JavaScript's strings count units of UTF-16.
function marked(text, marks) {
  const letters = Array.from(text), parts = [];
  let at = 0;
  for (const [begin, end] of marks || []) {
    parts.push(letters.slice(at, begin).join(""));
    parts.push(element("mark", "", letters.slice(begin, end).join("")));
    at = end;
  }
  parts.push(letters.slice(at).join(""));
  return parts;
}

function passageItem(hit, rank, elsewhere) {
  const facts = element("div", "facts", `${rank}.`, element("span", "", `score ${Number(hit.score.toPrecision(4))}`),
    element("span", "", hit.id));
  if (elsewhere) facts.append(element("span", "chip", `${elsewhere.name}: ${elsewhere.rank}.`));
  const text = element("p", "", ...marked(hit.text, hit.text_marks));
  const item = element("li", "passage",
    element("h3", "", ...(hit.title ? marked(hit.title, hit.title_marks) : ["(no title)"])), facts, text);
  item.tabIndex = 0;
  item.addEventListener("keydown", (event) => { if (event.key === "Enter") text.classList.toggle("whole"); });
  item.addEventListener("dblclick", () => text.classList.add("whole"));
  return item;
}

function show(answers, spentMs) {
  const ranks = answers.map((one) =>
    new Map(one.results[0].passages.map((hit, at) => [hit.id, at + 1])));
  const sections = answers.map((one, side) => {
    const other = 1 - side;
    const items = one.results[0].passages.map((hit, at) => {
      const rank = answers.length > 1 && ranks[other].get(hit.id);
      return passageItem(hit, at + 1, rank ? { name: answers[other].retriever, rank } : null);
    });
    const list = items.length ? element("ol", "", ...items) : element("p", "soft", "No passage was found.");
    const heading = element("h2", "", one.retriever,
      element("span", "soft", `${one.ms.total.toFixed(1)} ms in the server`));
    const section = element("section", "", heading, list);
    section.setAttribute("aria-label", `Passages of ${one.retriever}`);
    return section;
  });
  byId("results").replaceChildren(...sections);
  say(`Answered in ${spentMs.toFixed(0)} ms.`);
}

function address() {
  const asked = new URLSearchParams({ q: question.value, left: left.value, k: count.value });
  if (right.value) asked.set("right", right.value);
  return `/?${asked}`;
}

async function search(remember = true) {
  const mine = ++latest;
  if (!question.value.trim()) return;
  if (remember) history.pushState(null, "", address());
  document.title = `${question.value} · Ask the passages`;
  byId("share").disabled = false;
  say("Searching …");
  const names = [left.value, right.value].filter((name, at, all) => name && all.indexOf(name) === at);
  const begun = performance.now();
  try {
    const answers = await Promise.all(names.map((retriever) =>
      ask("/v1/search", { question: question.value, k: Number(count.value), retriever, marks: true })));
    if (mine === latest) show(answers, performance.now() - begun);
  } catch (error) {
    if (mine !== latest) return;
    byId("results").replaceChildren();
    say(`Not answered: ${error.message}`, true);
  }
}

function fromAddress() {
  const asked = new URLSearchParams(location.search);
  question.value = asked.get("q") || "";
  const choose = (field, value) => {
    if (value !== null && [...field.options].some((one) => one.value === value)) field.value = value;
  };
  choose(left, asked.get("left"));
  if (asked.has("q")) right.value = "";
  choose(right, asked.get("right"));
  choose(count, asked.get("k"));
  if (question.value) search(false);
  else byId("results").replaceChildren();
}

async function start() {
  try {
    const info = await ask("/v1/info");
    const names = Object.keys(info.retrievers);
    const label = (name) => {
      const figure = info.retrievers[name].dev_mrr_at_10;
      return figure === undefined ? name : `${name} (dev MRR@10 ${(100 * figure).toFixed(1)})`;
    };
    left.replaceChildren(...names.map((name) => new Option(label(name), name)));
    right.replaceChildren(new Option("none", ""), ...names.map((name) => new Option(label(name), name)));
    left.value = info.default;
    right.value = names.find((name) => name === "bm25" && name !== info.default) || "";
    const own = info.retrievers[info.default];
    byId("about").textContent = `${own.passages.toLocaleString("en")} passages, ${names.length} `
      + `${names.length === 1 ? "retriever" : "retrievers"}, dpr_jax ${info.versions.dpr_jax}`;
    say("");
    fromAddress();
  } catch (error) {
    say(`Not ready: ${error.message}`, true);
  }
}

function move(step, sideways) {
  const columns = [...byId("results").children].map((one) => [...one.querySelectorAll(".passage")]);
  const here = columns.findIndex((column) => column.includes(document.activeElement));
  if (!columns.length) return;
  const side = Math.min(Math.max((here < 0 ? 0 : here) + sideways, 0), columns.length - 1);
  const row = here < 0 ? -1 : columns[here].indexOf(document.activeElement);
  const item = columns[side][Math.min(Math.max(row + step, 0), columns[side].length - 1)];
  if (item) item.focus();
}

form.addEventListener("submit", (event) => { event.preventDefault(); search(); });
for (const field of [left, right, count]) field.addEventListener("change", () => search());
keyField.value = sessionStorage.getItem("key") || "";
keyField.addEventListener("change", () => { sessionStorage.setItem("key", keyField.value); start(); });
window.addEventListener("popstate", fromAddress);
byId("share").addEventListener("click", async () => {
  const link = new URL(address(), location.href).href;
  try {
    await navigator.clipboard.writeText(link);
    say("Link copied.");
  } catch {
    say(link);
  }
});
document.addEventListener("keydown", (event) => {
  const typing = ["INPUT", "SELECT", "TEXTAREA"].includes(event.target.tagName);
  if (event.key === "Escape") event.target.blur();
  if (typing || event.ctrlKey || event.metaKey || event.altKey) return;
  const moves = { j: [1, 0], k: [-1, 0], h: [0, -1], l: [0, 1] };
  if (event.key === "/") { event.preventDefault(); question.focus(); question.select(); }
  else if (moves[event.key]) { event.preventDefault(); move(...moves[event.key]); }
});
start();
