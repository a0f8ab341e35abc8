// The page: which conversation is shown, and what is being answered.
import { Problem, complete, models } from "./api.js";
import { HeatView } from "./heat.js";
import { AssistantMessage, iconButton, make, userMessage } from "./messages.js";
import * as store from "./store.js";

const $ = (id) => document.getElementById(id);
const IDEAS = [
  "Why is the sky blue? Explain it to a child.",
  "Write a Python function that merges two sorted lists.",
  "Plan three days in Paris for someone who likes food.",
  "What makes a good cup of coffee? Give me a short list.",
];

let chat = store.load(location.hash.slice(1)) ?? store.newChat();
let running = null; // { chat, view, controller, paint }
let known = []; // models of the server
const heat = new HeatView($("heat"), () => modelName());

// Conversations

function show(next) {
  chat = next;
  history.replaceState(null, "", chat.messages.length ? `#${chat.id}` : location.pathname);
  const views = chat.messages.map((message, i) => viewOf(message, i).element);
  $("messages").replaceChildren(...(views.length ? views : [welcome()]));
  $("error").hidden = true;
  if (chat.model && known.some((model) => model.id === chat.model)) $("model").value = chat.model;
  list();
  usage();
  toEnd();
}

function viewOf(message, i) {
  if (message.role === "user") return { element: userMessage(message, { edit: (text) => resend(i, text) }) };
  if (running?.message === message) return running.view;
  const view = new AssistantMessage(message, { retry: () => resend(i) });
  view.update(false);
  return view;
}

function welcome() {
  const ideas = IDEAS.map((text) => make("button", { type: "button", textContent: text, onclick: () => send(text) }));
  return make("div", { className: "welcome" },
    make("h1", { textContent: "What is on your mind?" }),
    make("p", { textContent: "The model runs on this server alone: nothing you write goes anywhere else." }),
    make("div", { className: "ideas" }, ...ideas));
}

function list() {
  $("chats").replaceChildren(...store.chats().map((other) => {
    const open = make("button", { type: "button", textContent: other.title, title: other.title, onclick: () => { show(running?.chat.id === other.id ? running.chat : other); drawer(false); view("chat"); $("input").focus(); } });
    const row = make("div", { className: "chat-row" }, open, iconButton("delete", `Delete ${other.title}`, () => forget(other)));
    if (other.id === chat.id) { row.classList.add("current"); open.setAttribute("aria-current", "true"); }
    return row;
  }));
}

function forget(other) {
  if (!confirm(`Delete “${other.title}”?`)) return;
  if (running?.chat.id === other.id) running.controller.abort();
  store.remove(other.id);
  if (other.id === chat.id) show(store.newChat()); else list();
}

function keep(which) {
  which.changed = Date.now();
  if (!store.save(which)) problem("The browser has no room for this conversation: delete some, or export them first.");
  if (which === chat) history.replaceState(null, "", `#${chat.id}`);
  list();
}

// Asking

function send(text) {
  if (!text) return;
  if (running) return problem("An answer is still being written: Esc stops it.");
  $("input").value = "";
  fit();
  chat.messages.push({ role: "user", content: text });
  answer();
}

// From message i on once more, with another text where one is given.
async function resend(i, text) {
  running?.controller.abort();
  await running?.ended;
  if (text !== undefined) chat.messages[i] = { role: "user", content: text };
  chat.messages.length = text === undefined ? i : i + 1;
  answer();
}

function body() {
  // What failed before there was any answer was not said.
  const messages = chat.messages.filter(({ role, content }, i, all) =>
    role === "user" ? !all[i + 1]?.error || all[i + 1].content : content);
  const spoken = messages.map(({ role, content }) => ({ role, content }));
  if (chat.system) spoken.unshift({ role: "system", content: chat.system });
  return { model: modelName(), messages: spoken, ...store.sampling() };
}

async function answer() {
  const asked = body(), message = { role: "assistant", content: "" }, of = chat;
  chat.model = modelName();
  chat.messages.push(message);
  let end;
  const place = chat.messages.length - 1;
  const view = new AssistantMessage(message, { retry: () => resend(place) });
  const controller = new AbortController();
  running = { chat, message, view, controller, ended: new Promise((resolve) => { end = resolve; }) };
  keep(chat);
  show(chat);
  view.update(true);
  busy(true);
  toEnd();

  const begun = performance.now();
  let first = 0, last = 0, due = 0, cost = 0;
  const paint = () => { // at most a third of the time is spent on drawing
    due = 0;
    const start = performance.now(), follow = atEnd();
    view.update(true);
    if (follow && of === chat) toEnd();
    cost = performance.now() - start;
  };
  try {
    for await (const chunk of complete(asked, controller.signal)) {
      const choice = chunk.choices[0];
      if (chunk.usage) message.usage = chunk.usage;
      if (!choice) continue;
      if (take(message, choice)) {
        last = performance.now();
        first ||= last;
        due ||= setTimeout(paint, Math.max(30, 2 * cost));
      }
    }
  } catch (error) {
    if (error.name === "AbortError") message.stopped = true;
    else {
      message.error = error instanceof Problem ? error.message : `The page has failed: ${error.message}`;
      if (error.status === 401) settings("key");
    }
  }
  clearTimeout(due);
  message.facts = factsOf(message.usage, begun, first, last);
  const follow = atEnd();
  running = null;
  view.update(false);
  busy(false);
  $("status").textContent = message.error ?? (message.stopped ? "Stopped" : "The answer is complete");
  if (store.load(of.id) || of === chat) keep(of);
  if (of === chat) {
    usage();
    if (follow) toEnd();
  }
  end();
}

// Adds a chunk's delta to a message; whether there was anything to see.
function take(message, { delta, finish_reason: finish }) {
  if (finish) message.finish = finish;
  if (delta.content) message.content += delta.content;
  if (delta.reasoning_content) message.reasoning = (message.reasoning ?? "") + delta.reasoning_content;
  for (const { index, function: part } of delta.tool_calls ?? []) {
    message.calls ??= [];
    const call = (message.calls[index] ??= { name: "", arguments: "" });
    call.name += part.name ?? "";
    call.arguments += part.arguments ?? "";
  }
  return Boolean(delta.content || delta.reasoning_content || delta.tool_calls);
}

function factsOf(used, begun, first, last) {
  const facts = { first: first ? (first - begun) / 1000 : 0 };
  if (used) {
    facts.tokens = used.completion_tokens;
    const seconds = (last - first) / 1000;
    if (facts.tokens > 1 && seconds > 0) facts.speed = (facts.tokens - 1) / seconds;
  }
  return facts;
}

// The frame

function modelName() { return $("model").value || known[0]?.id || ""; }

function busy(is) {
  $("stop").hidden = !is;
  $("send").hidden = is;
  if (is) $("status").textContent = "Answering";
}

function usage() {
  const last = chat.messages.findLast((message) => message.usage);
  const room = known.find((model) => model.id === modelName())?.max_model_len;
  $("used").textContent = last ? `${last.usage.total_tokens.toLocaleString()}${room ? ` of ${room.toLocaleString()}` : ""} tokens of context` : "";
}

function problem(text) { $("error").textContent = text; $("error").hidden = false; }

function fit() {
  const input = $("input");
  input.style.height = "auto";
  input.style.height = `${input.scrollHeight}px`;
  $("send").disabled = !input.value.trim();
}

const scroll = $("scroll");
function atEnd() { return scroll.scrollHeight - scroll.scrollTop - scroll.clientHeight < 60; }
function toEnd() { scroll.scrollTop = scroll.scrollHeight; }

function drawer(open) {
  $("side").classList.toggle("open", open);
  $("shade").hidden = !open;
  $("menu").setAttribute("aria-expanded", String(open));
  if (open) $("new").focus();
}

function view(name) {
  for (const other of ["chat", "heat"]) {
    $(`tab-${other}`).setAttribute("aria-selected", String(other === name));
    $(`tab-${other}`).tabIndex = other === name ? 0 : -1;
    $(other).hidden = other !== name;
  }
  heat.show(name === "heat");
}

function settings(focus) {
  $("system").value = chat.system;
  const kept = store.sampling();
  for (const name of store.SAMPLING) $(name).value = kept[name] ?? "";
  $("key").value = store.key.get();
  if (!$("settings").open) $("settings").showModal();
  if (focus) $(focus).focus();
}

function keepSettings() {
  chat.system = $("system").value.trim();
  const values = store.SAMPLING.filter((name) => $(name).value !== "" && $(name).validity.valid);
  store.keepSampling(Object.fromEntries(values.map((name) => [name, Number($(name).value)])));
  const changed = store.key.get() !== $("key").value;
  store.key.set($("key").value);
  if (chat.messages.length) keep(chat);
  if (changed) connect();
  if (document.activeElement === $("input")) { // Chromium gives the focus back, but not the place where text goes
    $("input").blur();
    $("input").focus();
  }
}

async function connect() {
  try {
    known = await models();
    $("error").hidden = true;
  } catch (error) {
    problem(error.message);
    if (error.status === 401) settings("key");
    return;
  }
  $("model").replaceChildren(...known.map((model) => make("option", { value: model.id, textContent: model.id })));
  $("model").hidden = known.length < 2;
  $("model-name").hidden = known.length > 1;
  $("model-name").textContent = known[0]?.id ?? "";
  if (known.some((model) => model.id === chat.model)) $("model").value = chat.model;
  usage();
}

function begin() {
  $("form").addEventListener("submit", (event) => { event.preventDefault(); send($("input").value.trim()); });
  $("input").addEventListener("input", fit);
  $("input").addEventListener("keydown", (event) => {
    if (event.key === "Enter" && !event.shiftKey && !event.isComposing) { event.preventDefault(); send($("input").value.trim()); }
  });
  $("stop").onclick = () => { running?.controller.abort(); $("input").focus(); };
  document.addEventListener("keydown", (event) => {
    if (event.key !== "Escape" || $("settings").open) return;
    if ($("side").classList.contains("open")) { drawer(false); $("menu").focus(); } else running?.controller.abort();
  });
  $("new").onclick = () => { show(store.newChat()); drawer(false); view("chat"); $("input").focus(); };
  $("export").onclick = store.exportAll;
  $("menu").onclick = () => drawer(!$("side").classList.contains("open"));
  $("shade").onclick = () => drawer(false);
  $("down").onclick = toEnd;
  scroll.addEventListener("scroll", () => { $("down").hidden = atEnd(); });
  $("model").onchange = () => { usage(); heat.reset(); };
  for (const name of ["chat", "heat"]) {
    $(`tab-${name}`).onclick = () => view(name);
    $(`tab-${name}`).onkeydown = (event) => {
      if (event.key !== "ArrowLeft" && event.key !== "ArrowRight") return;
      const other = name === "chat" ? "heat" : "chat";
      view(other);
      $(`tab-${other}`).focus();
    };
  }
  $("theme").onclick = () => {
    const dark = getComputedStyle(document.documentElement).getPropertyValue("color-scheme").trim() === "dark" || (!document.documentElement.dataset.theme && matchMedia("(prefers-color-scheme: dark)").matches);
    document.documentElement.dataset.theme = dark ? "light" : "dark";
    localStorage.setItem("hotset.theme", dark ? "light" : "dark");
    heat.draw();
  };
  $("settings-open").onclick = () => settings();
  $("settings").addEventListener("close", keepSettings);
  $("forget").onclick = () => {
    if (!confirm("Delete all conversations of this browser?")) return;
    running?.controller.abort();
    for (const other of store.chats()) store.remove(other.id);
    $("settings").close();
    show(store.newChat());
  };
  show(chat);
  connect();
}

begin();
