// Selects a cell. The table stays the same, so that the keyboard focus does not move.
element.addEventListener("click", event => {
  const chosen = event.target.closest("button[data-interval]");
  if (!chosen) return;
  for (const button of element.querySelectorAll("button[data-interval]"))
    button.setAttribute("aria-pressed", String(button === chosen));
  trigger("select", { interval: Number(chosen.dataset.interval), branch: Number(chosen.dataset.branch) });
});
