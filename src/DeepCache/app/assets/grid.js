// A cell is chosen; the table stays as it is, so that the keyboard does not lose its place.
element.addEventListener("click", event => {
  const chosen = event.target.closest("button[data-interval]");
  if (!chosen) return;
  for (const button of element.querySelectorAll("button[data-interval]"))
    button.setAttribute("aria-pressed", String(button === chosen));
  trigger("select", { interval: Number(chosen.dataset.interval), branch: Number(chosen.dataset.branch) });
});
