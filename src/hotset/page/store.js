// What the browser keeps: each conversation under a key of its own, and the settings.
const PREFIX = "hotset.chat.";

export function newChat(model) {
  const random = crypto.getRandomValues(new Uint32Array(2));
  return { id: Date.now().toString(36) + random[0].toString(36), title: "", changed: Date.now(), model, system: "", messages: [] };
}

// Newest first; what is no conversation is passed over.
export function chats() {
  const all = [];
  for (const key of Object.keys(localStorage)) {
    if (!key.startsWith(PREFIX)) continue;
    try {
      const chat = JSON.parse(localStorage.getItem(key));
      if (chat && Array.isArray(chat.messages)) all.push(chat);
    } catch { /* not ours */ }
  }
  return all.sort((a, b) => b.changed - a.changed);
}

export function load(id) {
  try { return JSON.parse(localStorage.getItem(PREFIX + id)); } catch { return null; }
}

// False where the browser has no room.
export function save(chat) {
  if (!chat.messages.length) return true;
  chat.title = titleOf(chat);
  try {
    localStorage.setItem(PREFIX + chat.id, JSON.stringify(chat));
    return true;
  } catch { return false; }
}

export function remove(id) { localStorage.removeItem(PREFIX + id); }

function titleOf(chat) {
  const first = chat.messages.find((message) => message.role === "user");
  return (first?.content ?? "").trim().replace(/\s+/g, " ").slice(0, 80) || "New chat";
}

export function exportAll() {
  const blob = new Blob([JSON.stringify({ hotset: 1, chats: chats() }, null, 1)], { type: "application/json" });
  const link = document.createElement("a");
  link.href = URL.createObjectURL(blob);
  link.download = `hotset-chats-${new Date().toISOString().slice(0, 10)}.json`;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 1000);
}

export const SAMPLING = ["temperature", "top_p", "max_tokens", "seed"];

// Numbers that were given; an empty field is left to the server.
export function sampling() {
  const kept = JSON.parse(localStorage.getItem("hotset.sampling") ?? "{}");
  return Object.fromEntries(SAMPLING.filter((name) => Number.isFinite(kept[name])).map((name) => [name, kept[name]]));
}

export function keepSampling(values) { localStorage.setItem("hotset.sampling", JSON.stringify(values)); }

export const key = {
  get: () => sessionStorage.getItem("hotset.key") ?? "",
  set: (value) => sessionStorage.setItem("hotset.key", value),
};
