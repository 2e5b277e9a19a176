/** Whether the server is there: waits until it is, and says what it waits for. */

const AGAIN_MS = 1500;

const WORDS = {
  away: "Server not ready",
  lost: "No connection",
  failed: "Server failing",
  refused: "Server failing",
};

export class Status {
  #server;
  #text;
  #key;
  #connecting = null;
  #ready = () => {};
  #state = "Connecting";
  #answering = false;

  /**
   * @param {import("./server.js").Server} server
   * @param {{text: HTMLElement, key: HTMLButtonElement}} elements
   */
  constructor(server, { text, key }) {
    this.#server = server;
    this.#text = text;
    this.#key = key;
  }

  /** @param {(model: string) => void} listener called with the model's name */
  whenReady(listener) {
    this.#ready = listener;
  }

  set answering(answering) {
    this.#answering = answering;
    this.#show();
  }

  /** Resolves when the server takes requests. */
  connect() {
    this.#connecting ??= this.#connect().finally(() => {
      this.#connecting = null;
    });
    return this.#connecting;
  }

  async #connect() {
    for (;;) {
      try {
        await this.#server.fetch("health");
        const { data } = await this.#server.json("v1/models");
        this.#set("Ready");
        this.#ready(data[0].id);
        return;
      } catch (error) {
        if (error.kind === "key") await this.#wanted();
        else {
          this.#set(WORDS[error.kind] ?? "Server failing");
          await new Promise((resolve) => setTimeout(resolve, AGAIN_MS));
        }
      }
    }
  }

  /** Nobody gave a key: until somebody wants to. */
  async #wanted() {
    this.#set("Key needed");
    this.#key.hidden = false;
    await new Promise((resolve) => this.#key.addEventListener("click", resolve, { once: true }));
    this.#key.hidden = true;
  }

  #set(state) {
    this.#state = state;
    this.#show();
  }

  #show() {
    const shown = this.#answering && this.#state === "Ready" ? "Answering" : this.#state;
    if (this.#text.textContent !== shown) this.#text.textContent = shown;
    this.#text.dataset.state = shown === "Ready" || shown === "Answering" ? shown : "waiting";
  }
}
