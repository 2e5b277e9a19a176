/** Asks a person for the API key. */

export class KeyDialog {
  #dialog;
  #input;
  #wrong;

  /** @param {HTMLDialogElement} dialog */
  constructor(dialog) {
    this.#dialog = dialog;
    this.#input = dialog.querySelector("input");
    this.#wrong = dialog.querySelector(".wrong");
    dialog.querySelector("#key-cancel").addEventListener("click", () => dialog.close(""));
  }

  /**
   * @param {boolean} wrong whether the server refused the last one
   * @returns {Promise<string | null>} null: none was given
   */
  ask(wrong) {
    this.#wrong.hidden = !wrong;
    this.#dialog.returnValue = "";
    this.#dialog.showModal();
    return new Promise((resolve) => {
      const closed = () => {
        const key = this.#dialog.returnValue === "give" ? this.#input.value.trim() : "";
        this.#input.value = "";
        resolve(key === "" ? null : key);
      };
      this.#dialog.addEventListener("close", closed, { once: true });
    });
  }
}
