// One message on the page.
import { Growing, copy } from "./markdown.js";

const ICONS = {
  copy: '<rect x="9" y="9" width="11" height="11" rx="2"/><path d="M5 15V6a2 2 0 0 1 2-2h9"/>',
  retry: '<path d="M20 11a8 8 0 1 0-.6 4M20 5v6h-6"/>',
  edit: '<path d="M4 20h4L19 9l-4-4L4 16zM13 7l4 4"/>',
  delete: '<path d="M5 7h14M10 7V5h4v2M7 7l1 13h8l1-13"/>',
};

// Elements are made by hand: no text of a model ever becomes markup here.
export function make(tag, properties = {}, ...children) {
  const element = Object.assign(document.createElement(tag), properties);
  element.append(...children);
  return element;
}

export function iconButton(name, label, onclick) {
  const button = make("button", { className: "icon", type: "button", title: label, onclick });
  button.setAttribute("aria-label", label);
  button.innerHTML = `<svg viewBox="0 0 24 24" aria-hidden="true">${ICONS[name]}</svg>`;
  return button;
}

export function userMessage(message, { edit }) {
  const body = make("div", { className: "body" }, message.content);
  const copyIt = iconButton("copy", "Copy", () => copy(message.content, copyIt));
  const foot = make("div", { className: "foot" }, copyIt, iconButton("edit", "Edit and send again", () => begin()));
  const element = make("article", { className: "message user" }, body, foot);
  element.setAttribute("aria-label", "You");

  function begin() {
    const field = make("textarea", { value: message.content, rows: 1 });
    field.setAttribute("aria-label", "Edit the message");
    const fit = () => { field.style.height = "auto"; field.style.height = `${field.scrollHeight}px`; };
    const end = () => { form.replaceWith(body, foot); element.classList.remove("editing"); };
    const send = () => { if (field.value.trim()) edit(field.value.trim()); };
    const form = make("div", { className: "edit" }, field, make("div", {},
      make("button", { className: "quiet", type: "button", textContent: "Cancel", onclick: end }),
      make("button", { className: "primary", type: "button", textContent: "Send again", onclick: send })));
    field.addEventListener("input", fit);
    field.addEventListener("keydown", (event) => {
      if (event.key === "Escape") { event.stopPropagation(); end(); }
      if (event.key === "Enter" && !event.shiftKey && !event.isComposing) { event.preventDefault(); send(); }
    });
    body.replaceWith(form);
    foot.remove();
    element.classList.add("editing");
    fit();
    field.focus();
  }
  return element;
}

export class AssistantMessage {
  constructor(message, { retry }) {
    this.message = message;
    this.body = make("div", { className: "body" });
    this.waiting = make("div", { className: "waiting", title: "Reading the prompt" }, make("i"), make("i"), make("i"));
    this.facts = make("span", { className: "facts" });
    const copyIt = iconButton("copy", "Copy", () => copy(message.content, copyIt));
    this.foot = make("div", { className: "foot" }, copyIt, iconButton("retry", "Try again", retry), this.facts);
    this.element = make("article", { className: "message assistant" }, this.body, this.foot);
    this.element.setAttribute("aria-label", "Assistant");
    this.retry = retry;
  }

  // Shows what the message has become; `busy`: there is more to come.
  update(busy) {
    const { message } = this;
    if (message.reasoning) {
      if (!this.thought) {
        this.summary = make("summary");
        const text = make("div", { className: "md" });
        this.thought = { element: make("details", { className: "thought" }, this.summary, text), text: new Growing(text) };
        this.body.prepend(this.thought.element);
      }
      this.summary.textContent = busy && !message.content ? "Thinking …" : "Thought";
      this.thought.text.set(message.reasoning);
    }
    if (message.content) {
      if (!this.text) {
        const text = make("div", { className: "md" });
        this.text = new Growing(text);
        this.body.append(text);
      }
      this.text.set(message.content);
    }
    for (const [i, call] of (message.calls ?? []).entries()) {
      this.calls ??= [];
      if (!this.calls[i]) {
        const summary = make("summary"), text = make("pre");
        const element = make("details", { className: "tool", open: true }, summary, text);
        this.calls[i] = { summary, text };
        this.body.append(element);
      }
      this.calls[i].summary.textContent = `Calls ${call.name}`;
      this.calls[i].text.textContent = indented(call.arguments);
    }
    const empty = !message.reasoning && !message.content && !message.calls?.length;
    if (busy && empty) this.body.append(this.waiting); else this.waiting.remove();
    this.foot.hidden = busy;
    this.facts.textContent = busy ? "" : factsOf(message);
    this.failure?.remove();
    if (message.error) {
      this.failure = make("div", { className: "failed" }, message.error);
      this.failure.setAttribute("role", "alert");
      this.foot.before(this.failure);
    }
  }
}

function indented(json) {
  try { return JSON.stringify(JSON.parse(json), null, 2); } catch { return json; }
}

function factsOf({ facts, stopped, finish }) {
  const parts = [];
  if (facts?.speed) parts.push(`${facts.speed.toFixed(1)} tokens/s`);
  if (facts?.tokens) parts.push(`${facts.tokens.toLocaleString()} tokens`);
  if (facts?.first) parts.push(`first after ${facts.first < 1 ? `${Math.round(facts.first * 1000)} ms` : `${facts.first.toFixed(1)} s`}`);
  if (stopped) parts.push("stopped");
  if (finish === "length") parts.push("cut off at its limit");
  return parts.join(" · ");
}
