"""Tables of regions: sorted by a click on a heading, hovering a row shows its region, clicking it picks it."""

import html
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import gradio as gr

SCRIPT = """
const key = (row, column) => {
  const text = row.cells[column].dataset.value ?? row.cells[column].textContent;
  return text !== "" && !isNaN(text) ? Number(text) : text;
};
function compare(a, b) {
  return typeof a === "number" && typeof b === "number" ? a - b : String(a).localeCompare(String(b));
}
function sort(heading) {
  const rising = heading.getAttribute("aria-sort") !== "ascending";
  for (const other of heading.parentElement.cells) other.removeAttribute("aria-sort");
  heading.setAttribute("aria-sort", rising ? "ascending" : "descending");
  const body = heading.closest("table").tBodies[0];
  const rows = [...body.rows].sort((a, b) => compare(key(a, heading.cellIndex), key(b, heading.cellIndex)));
  body.append(...(rising ? rows : rows.reverse()));
}
function pick(row) {
  const again = row.getAttribute("aria-selected") === "true";
  for (const other of row.parentElement.rows) other.setAttribute("aria-selected", "false");
  row.setAttribute("aria-selected", String(!again));
  trigger("pick", { number: again ? 0 : Number(row.dataset.number) });
}
element.addEventListener("click", (event) => {
  const heading = event.target.closest("th");
  const row = event.target.closest("tbody tr");
  if (heading) sort(heading);
  else if (row) pick(row);
});
element.addEventListener("keydown", (event) => {
  if (event.key !== "Enter" || event.target.tagName !== "TR") return;
  event.preventDefault();
  pick(event.target);
});
"""


@dataclass(frozen=True)
class Row:
    """A row: its cells, numbers as numbers, and the name under which the picture's overlay has its region."""

    cells: tuple[str | int | float, ...]
    region: str


def build_table(name: str) -> gr.HTML:
    """The component; its value is made by `table_html`, its event `pick` tells the `number` of a row, 0 for none."""
    return gr.HTML("", js_on_load=SCRIPT, apply_default_css=False, elem_id=name)


def table_html(columns: Sequence[str], rows: Sequence[Row]) -> str:
    """A table of rows numbered from 1; "" without rows."""
    if not rows:
        return ""
    headings = "".join(
        f'<th scope="col"><button type="button">{html.escape(column)}</button></th>' for column in columns
    )
    body = "".join(_row(number, row) for number, row in enumerate(rows, start=1))
    return (
        f'<div class="listing"><table aria-multiselectable="false"><thead><tr>{headings}</tr></thead>'
        f"<tbody>{body}</tbody></table></div>"
    )


def picked_number(data: Any) -> int:
    """The number that a `pick` event tells; 0 if it tells none."""
    number = data.get("number")
    return number if isinstance(number, int) else 0


def _row(number: int, row: Row) -> str:
    cells = "".join(map(_cell, row.cells))
    return f'<tr tabindex="0" data-number="{number}" data-region="{html.escape(row.region)}">{cells}</tr>'


def _cell(value: str | int | float) -> str:
    if isinstance(value, str):
        return f"<td>{html.escape(value)}</td>"
    shown = f"{value:,}".replace(",", "\u202f") if isinstance(value, int) else f"{value:g}"
    return f'<td class="number" data-value="{value}">{shown}</td>'
