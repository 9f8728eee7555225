// ipywidgets still calls MathJax 2's Hub; without this every label on a page with maths throws an error.
// DOMContentLoaded, not load: the widget manager starts before `load`.
document.addEventListener("DOMContentLoaded", () => {
  const mathjax = window.MathJax;
  if (mathjax && !mathjax.Hub) {
    mathjax.Hub = {
      Queue: (job) => mathjax.startup?.promise?.then(() => mathjax.typesetPromise?.([job[2]])),
    };
  }
  // The theme names this button "Search" while it reads "Search Ctrl+K": speech control needs what can be read.
  document.querySelectorAll(".search-button-field").forEach((button) => button.removeAttribute("aria-label"));
  // The arrow that opens a part of the table of contents is a picture without words.
  document.querySelectorAll("li.has-children > details > summary").forEach((arrow) => {
    const part = arrow.closest("li").querySelector("a")?.textContent.trim();
    arrow.setAttribute("aria-label", `Pages of ${part}`);
  });
});

new MutationObserver(() => {
  // Slider handles come without a name: screen readers would read a bare number.
  document.querySelectorAll(".noUi-handle:not([aria-label])").forEach((handle) => {
    const label = handle.closest(".jupyter-widgets")?.querySelector(".widget-label");
    if (label) handle.setAttribute("aria-label", label.textContent.trim());
  });
  // Three icons, each with a title, lie in the button "Color mode", and all would be read.
  document.querySelectorAll(".theme-switch-button svg > title").forEach((title) => {
    const icon = title.parentElement;
    ["aria-labelledby", "role"].forEach((name) => icon.removeAttribute(name));
    icon.setAttribute("aria-hidden", "true");
    title.remove();
  });
}).observe(document.documentElement, { childList: true, subtree: true });
