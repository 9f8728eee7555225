// ipywidgets still calls MathJax 2's Hub; without this every label on a page with maths throws an error.
// DOMContentLoaded, not load: the widget manager starts before `load`.
document.addEventListener("DOMContentLoaded", () => {
  const mathjax = window.MathJax;
  if (mathjax && !mathjax.Hub) {
    mathjax.Hub = {
      Queue: (job) => mathjax.startup?.promise?.then(() => mathjax.typesetPromise?.([job[2]])),
    };
  }
});

// Slider handles come without a name: screen readers would read a bare number.
new MutationObserver(() => {
  document.querySelectorAll(".noUi-handle:not([aria-label])").forEach((handle) => {
    const label = handle.closest(".jupyter-widgets")?.querySelector(".widget-label");
    if (label) handle.setAttribute("aria-label", label.textContent.trim());
  });
}).observe(document.documentElement, { childList: true, subtree: true });
