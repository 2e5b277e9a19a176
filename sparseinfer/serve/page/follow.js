/** Keeps the end of a growing text in view, unless the reader has scrolled away from it. */

const NEAR_PX = 48;

export class Follow {
  #box;
  #pinned = true;
  #due = false;
  #top = 0;

  /** @param {HTMLElement} box scrolls, except on very low screens, where the whole page does */
  constructor(box) {
    this.#box = box;
    const moved = () => {
      const { scrollTop } = this.#scroller();
      // Downwards the page moves by itself too, and by then the text may have grown on.
      if (scrollTop < this.#top || this.#left() < NEAR_PX) this.#pinned = this.#left() < NEAR_PX;
      this.#top = scrollTop;
    };
    box.addEventListener("scroll", moved, { passive: true });
    document.addEventListener("scroll", moved, { passive: true });
    new ResizeObserver(() => this.grown()).observe(box);
  }

  /** Something was added. */
  grown() {
    if (!this.#pinned || this.#due) return;
    this.#due = true;
    requestAnimationFrame(() => {
      this.#due = false;
      this.#scroller().scrollTop = this.#scroller().scrollHeight;
    });
  }

  /** The reader asked something, and wants to see what comes. */
  pin() {
    this.#pinned = true;
    this.grown();
  }

  #scroller() {
    const scrolls = getComputedStyle(this.#box).overflowY !== "visible";
    return scrolls ? this.#box : document.scrollingElement;
  }

  #left() {
    const { scrollHeight, scrollTop, clientHeight } = this.#scroller();
    return scrollHeight - scrollTop - clientHeight;
  }
}
