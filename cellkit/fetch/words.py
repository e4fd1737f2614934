"""What can be fetched and what was, in words."""

from __future__ import annotations

from typing import Any


def entries_text(rows: list[dict[str, Any]]) -> str:
    """Return `list_entries` in words."""
    lines = []
    for kind in ("data", "weights"):
        lines.append(f"{kind}:")
        for row in rows:
            if row["kind"] == kind:
                mark = " (here)" if row["here"] else ""
                lines.append(f"  {row['name']:<25}{row['about']}{mark}\n{'':<27}licence: {row['licence']}")
    return "\n".join(lines)


def fetched_text(found: dict[str, Any]) -> str:
    """Return what `fetch` brought, in words."""
    lines = [
        f"{file['state']:<8} {file['target']}  (sha256 {file['sha256'][:12]}..., {file['trust']})"
        for file in found["files"]
    ]
    if found["weights"]:
        lines.append(f"{'use':<8} {found['use']}")
    else:
        lines.append(f"{'use':<8} data: {found['folder']}, or CELLKIT_DATA={found['folder']}")
    return "\n".join([*lines, f"{'licence':<8} {found['licence']}; cite {found['paper']}"])
