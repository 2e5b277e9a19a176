/** Keeps the end of what grows in view, unless the reader has scrolled away from it. */

const NEAR_PX = 48;
const BELOW_PX = 24;

export class Follow {
  #box;
  #target = null;
  #pinned = true;
  #due = false;
  #set = 0;

  /** @param {HTMLElement} box scrolls, except on very low screens, where the whole page does */
  constructor(box) {
    this.#box = box;
    const moved = () => {
      const { scrollTop } = this.#scroller();
      const byItself = Math.abs(scrollTop - this.#set) < 2;
      if (!byItself) this.#pinned = Math.abs(scrollTop - this.#wanted()) < NEAR_PX;
    };
    box.addEventListener("scroll", moved, { passive: true });
    document.addEventListener("scroll", moved, { passive: true });
    new ResizeObserver(() => this.#move()).observe(box);
  }

  /** @param {HTMLElement} target has grown; its lower edge is what to see */
  grown(target) {
    this.#target = target;
    this.#move();
  }

  /** The reader asked something, and wants to see what comes. */
  pin() {
    this.#pinned = true;
  }

  #move() {
    if (!this.#pinned || this.#due) return;
    this.#due = true;
    requestAnimationFrame(() => {
      this.#due = false;
      const scroller = this.#scroller();
      scroller.scrollTop = this.#wanted();
      this.#set = scroller.scrollTop;
    });
  }

  #wanted() {
    const { scrollTop, scrollHeight, clientHeight } = this.#scroller();
    const most = scrollHeight - clientHeight;
    if (!this.#target?.isConnected) return most;
    const top = this.#scroller() === this.#box ? this.#box.getBoundingClientRect().top : 0;
    const below = this.#target.getBoundingClientRect().bottom - top + BELOW_PX - clientHeight;
    return Math.min(Math.max(scrollTop + below, 0), most);
  }

  #scroller() {
    const scrolls = getComputedStyle(this.#box).overflowY !== "visible";
    return scrolls ? this.#box : document.scrollingElement;
  }
}
