/** Puts the page together. */

import { Announcer } from "./announcer.js";
import { Chat } from "./chat.js";
import { byId } from "./elements.js";
import { Follow } from "./follow.js";
import { Inside } from "./inside.js";
import { KeyDialog } from "./key_dialog.js";
import { Live } from "./live.js";
import { Server } from "./server.js";
import { Settings } from "./settings.js";
import { Status } from "./status.js";

const MOST_PROMPT_PX = 200;
const MOST_SEED = 2 ** 31;

const prompt = byId("prompt");
const send = byId("send");
const compare = byId("compare");
const keyDialog = new KeyDialog(byId("key-dialog"));
const server = new Server((wrong) => keyDialog.ask(wrong));
const inside = new Inside();
const live = new Live(server, report, () => inside.missing());
const settings = new Settings(
  byId("settings"),
  byId("settings-button"),
  byId("settings-summary"),
);
const status = new Status(server, { text: byId("status"), key: byId("give-key") });
const follow = new Follow(byId("talk"));
const onPhone = () => matchMedia("(pointer: coarse)").matches;
const chat = new Chat(server, byId("turns"), new Announcer(byId("announcer")), follow, {
  onRunning(running) {
    status.answering = running;
    send.textContent = running ? "Stop" : "Send";
    send.classList.toggle("stop", running);
    // "Try again" is gone once it was pressed.
    if (running && document.activeElement === document.body) send.focus();
  },
  onRate: (side, rate) => inside.setRate(side, rate),
  onSide: () => live.nudge(),
  onSideEnd: () => live.refresh().catch(() => {}),
  onCompared: (times) => inside.setComparison(times),
  onError(error) {
    if (error.param === "sparsity") {
      cannotCompare("Sparsity cannot be switched off for this model, so there is nothing to compare.");
    }
    if (["away", "lost", "key"].includes(error.kind)) status.connect();
  },
});

function report(data, isLive) {
  inside.report(data, isLive);
  byId("model-shape").textContent = inside.shape;
  if (inside.isDenseModel) {
    cannotCompare("This model is dense: there is no sparsity to switch off.");
    byId("welcome-text").textContent =
      "This model is dense: it computes all of its neurons for every token. “sparseinfer convert” " +
      "makes a model of it that does not.";
  }
}

function cannotCompare(reason) {
  compare.checked = false;
  compare.disabled = true;
  byId("compare-note").textContent = reason;
  byId("compare-note").hidden = false;
}

function ask(question) {
  if (question.trim() === "" || chat.running || !settings.check()) return false;
  const sampling = settings.sampling();
  if (compare.checked && sampling.temperature > 0) {
    sampling.seed ??= Math.floor(Math.random() * MOST_SEED);
  }
  byId("welcome").hidden = true;
  byId("new-chat").disabled = false;
  chat.ask(question, settings.system, sampling, compare.checked ? ["sparse", "dense"] : ["answer"]);
  return true;
}

function focusPrompt() {
  // On a phone this would bring up the keyboard, and hide half of the page.
  if (!onPhone()) prompt.focus();
}

function grow() {
  prompt.style.height = "auto";
  prompt.style.height = `${Math.min(prompt.scrollHeight, MOST_PROMPT_PX)}px`;
}

byId("composer").addEventListener("submit", (event) => {
  event.preventDefault();
  if (chat.running) {
    chat.stop();
  } else if (ask(prompt.value)) {
    prompt.value = "";
    grow();
    focusPrompt();
  }
});

prompt.addEventListener("input", grow);
prompt.addEventListener("keydown", (event) => {
  // On a phone the key makes a new line: there is a button to send.
  if (event.key !== "Enter" || event.shiftKey || event.isComposing || onPhone()) return;
  event.preventDefault();
  if (!chat.running) byId("composer").requestSubmit();
});

document.addEventListener("keydown", (event) => {
  if (event.key !== "Escape" || byId("key-dialog").open) return;
  if (settings.shown) settings.hide();
  else chat.stop();
});

byId("examples").addEventListener("click", (event) => {
  const chosen = event.target.closest("button");
  if (chosen && ask(chosen.textContent)) focusPrompt();
});

byId("new-chat").addEventListener("click", () => {
  chat.forget();
  byId("welcome").hidden = false;
  byId("new-chat").disabled = true;
  focusPrompt();
});

byId("expand").addEventListener("click", (event) => {
  const expanded = byId("inside").classList.toggle("expanded");
  event.target.setAttribute("aria-expanded", String(expanded));
  event.target.textContent = expanded ? "Fewer figures" : "More figures";
});

status.whenReady((model) => {
  chat.model = model;
  byId("model-name").textContent = model;
  document.title = `${model} · sparseinfer`;
  live.nudge();
});
status.connect().then(() => live.run());
focusPrompt();
