// A model's text to what may be shown. Nothing in it can run, load or look like the page's own controls: HTML is
// shown as text, pictures as their links, and what marked makes of the rest goes through DOMPurify.
import { Marked } from "./vendor/marked.js";

const escape = (text) => text.replace(/[&<>"']/g, (c) => `&#${c.charCodeAt(0)};`);

const marked = new Marked({
  gfm: true,
  breaks: true, // a poem keeps its lines
  renderer: {
    html({ text }) { return /^<br\s*\/?>$/i.test(text.trim()) ? "<br>" : escape(text); },
    image({ href, text }) { return `<a href="${escape(href)}">${escape(text || href)}</a>`; },
    checkbox({ checked }) { return checked ? "☑ " : "☐ "; },
  },
});

const CLEAN = {
  ALLOWED_TAGS: ["a", "b", "blockquote", "br", "code", "del", "em", "h1", "h2", "h3", "h4", "h5", "h6", "hr", "i", "li", "ol", "p", "pre", "strong", "table", "tbody", "td", "th", "thead", "tr", "ul"],
  ALLOWED_ATTR: ["href", "start", "class"],
  ALLOWED_URI_REGEXP: /^(?:https?:\/\/|mailto:)/i,
  ALLOW_DATA_ATTR: false,
  ALLOW_ARIA_ATTR: false,
  RETURN_DOM_FRAGMENT: true,
};

function clean(html) {
  const fragment = window.DOMPurify.sanitize(html, CLEAN);
  for (const element of fragment.querySelectorAll("[class]")) {
    const language = /^language-([\w+#.-]{1,24})$/.exec(element.className);
    element.removeAttribute("class");
    if (language && element.tagName === "CODE") element.dataset.language = language[1];
  }
  for (const link of fragment.querySelectorAll("a")) {
    if (link.hasAttribute("href")) {
      link.target = "_blank";
      link.rel = "noopener noreferrer nofollow";
    } else {
      link.replaceWith(...link.childNodes);
    }
  }
  for (const pre of fragment.querySelectorAll("pre")) pre.replaceWith(codeBlock(pre));
  return fragment;
}

function codeBlock(pre) {
  const code = pre.querySelector("code");
  const block = document.createElement("div");
  block.className = "code";
  const bar = document.createElement("div");
  bar.className = "bar";
  const name = document.createElement("span");
  name.textContent = code?.dataset.language ?? "text";
  const button = document.createElement("button");
  button.type = "button";
  button.textContent = "Copy";
  button.setAttribute("aria-label", "Copy code");
  button.addEventListener("click", () => copy(block.querySelector("pre").textContent, button));
  bar.append(name, button);
  pre.tabIndex = 0; // so that the keyboard can scroll it
  block.append(bar, pre.cloneNode(true));
  return block;
}

export async function copy(text, button) {
  try {
    await navigator.clipboard.writeText(text);
  } catch { // only a page of this machine, or by HTTPS, has a clipboard
    const area = document.createElement("textarea");
    area.value = text;
    document.body.append(area);
    area.select();
    document.execCommand("copy");
    area.remove();
  }
  button.classList.add("done");
  const label = button.textContent.trim();
  if (label) button.textContent = "Copied";
  setTimeout(() => { button.classList.remove("done"); if (label) button.textContent = label; }, 1200);
}

// Text that grows: of its blocks only those that have changed are made anew.
export class Growing {
  constructor(element) {
    this.element = element;
    this.blocks = [];
  }

  set(text) {
    const tokens = marked.lexer(text).filter((token) => token.type !== "space");
    tokens.forEach((token, i) => {
      const block = this.blocks[i];
      if (block?.raw === token.raw) return;
      const nodes = [...clean(marked.parser([token])).childNodes];
      if (block) {
        this.#drop(this.blocks.splice(i));
      }
      this.element.append(...nodes);
      this.blocks[i] = { raw: token.raw, nodes };
    });
    this.#drop(this.blocks.splice(tokens.length));
  }

  #drop(blocks) { for (const block of blocks) for (const node of block.nodes) node.remove(); }
}
