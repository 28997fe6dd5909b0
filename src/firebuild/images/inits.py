"""Whether an image brings an init: looked for in its layers as data, where the guest looks for it (crates/vminit/src/inits.rs)."""

from __future__ import annotations

import posixpath
from collections.abc import Sequence

from firebuild.images.treediff import LayerSource, Tree, load_tree

PROGRAMS = ("/sbin/init", "/usr/sbin/init", "/lib/systemd/systemd", "/usr/lib/systemd/systemd")
_LINKS_MAX = 40
_EXECUTABLE = 0o111


def has_init(layers: Sequence[LayerSource]) -> bool:
    """Whether one of the programs is there and executable. Raises ImageError for a layer that is damaged or no tar."""
    tree = load_tree(layers, unread=len(layers))
    return any(_is_program(tree, path) for path in PROGRAMS)


def _is_program(tree: Tree, path: str) -> bool:
    """Follows links inside the tree, as the guest's kernel will."""
    rest, here = path.strip("/").split("/"), "/"
    links = 0
    while rest:
        part = rest.pop(0)
        here = posixpath.normpath(posixpath.join(here, part))
        node = tree.nodes.get(here)
        if node is None or node.kind != "link":
            continue
        links += 1
        if links > _LINKS_MAX:
            return False
        rest = [*filter(None, node.content.split("/")), *rest]
        here = "/" if node.content.startswith("/") else posixpath.dirname(here)
    found = tree.nodes.get(here)
    return found is not None and found.kind == "file" and bool(found.mode & _EXECUTABLE)
