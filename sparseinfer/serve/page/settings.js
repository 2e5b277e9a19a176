/** The sampling controls: what is asked of the server with every message. */

const NUMBERS = ["temperature", "top_p", "top_k", "min_p", "max_tokens"];

export class Settings {
  #fields;
  #button;
  #summary;

  /**
   * @param {HTMLFieldSetElement} fields
   * @param {HTMLButtonElement} button shows and hides them
   * @param {HTMLElement} summary what they are, in a few words
   */
  constructor(fields, button, summary) {
    this.#fields = fields;
    this.#button = button;
    this.#summary = summary;
    button.addEventListener("click", () => this.show(fields.hidden));
    fields.addEventListener("input", () => this.#summarise());
    this.#summarise();
  }

  get shown() {
    return !this.#fields.hidden;
  }

  show(shown) {
    this.#fields.hidden = !shown;
    this.#button.setAttribute("aria-expanded", String(shown));
  }

  hide() {
    this.show(false);
    this.#button.focus();
  }

  /** Whether all can be sent; else shows the first that cannot, and why. */
  check() {
    const wrong = [...this.#fields.elements].find((input) => !input.checkValidity());
    if (wrong === undefined) return true;
    this.show(true);
    wrong.reportValidity();
    return false;
  }

  get system() {
    return this.#value("system").trim();
  }

  /** Fields of the request. */
  sampling() {
    const fields = Object.fromEntries(NUMBERS.map((name) => [name, Number(this.#value(name))]));
    const seed = this.#value("seed");
    if (seed !== "") fields.seed = Number(seed);
    return fields;
  }

  #value(name) {
    return this.#fields.elements.namedItem(name).value;
  }

  #summarise() {
    const { temperature, max_tokens: most, seed } = this.sampling();
    const parts = [temperature === 0 ? "greedy" : `temperature ${temperature}`];
    if (seed !== undefined) parts.push(`seed ${seed}`);
    parts.push(`${most} tokens`);
    if (this.system) parts.push("system prompt");
    this.#summary.textContent = parts.join(" · ");
  }
}
