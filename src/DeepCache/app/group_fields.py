"""The two fields by which a visitor chooses what of an ablation is shown: guidance scale, and scheduler and steps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import gradio as gr

from DeepCache.app.measured_group import ExploredGroup

__all__ = ["GroupFields"]


@dataclass(frozen=True)
class GroupFields:
    """The fields, within a `gr.Row`. That of the guidance scale is shown where the ablation has several.

    Args:
        groups: what can be chosen.
        guidance: the field of the guidance scale.
        title: the field of scheduler and steps.
    """

    groups: Sequence[ExploredGroup]
    guidance: gr.Dropdown
    title: gr.Dropdown

    @classmethod
    def of(cls, groups: Sequence[ExploredGroup], name: str) -> GroupFields:
        """Puts the fields on the page, with the first group chosen.

        Args:
            groups: what can be chosen.
            name: what the identifier of the first field begins with.

        Returns:
            The fields.
        """
        scales = list(dict.fromkeys(group.guidance for group in groups))
        named: list[Any] = [("none" if scale is None else f"{scale:g}", scale) for scale in scales]
        guidance = gr.Dropdown(
            named,
            value=scales[0],
            label="Guidance scale",
            visible=len(scales) > 1,
            min_width=120,
            elem_id=f"{name}-guidance",
        )
        first = groups[0]
        title = gr.Dropdown(
            [group.title for group in groups if group.guidance == first.guidance],
            value=first.title,
            label="Scheduler and steps",
            min_width=240,
        )
        return cls(groups, guidance, title)

    def chosen(self, guidance: float | None, title: str) -> ExploredGroup:
        """The group that the two fields name; where the guidance scale has no such title, the first of that scale.

        Args:
            guidance: the value of the field of the guidance scale.
            title: the value of the field of scheduler and steps.

        Returns:
            The group.
        """
        there = [group for group in self.groups if group.guidance == guidance]
        return next((group for group in there if group.title == title), there[0])

    def titles(self, group: ExploredGroup) -> Any:
        """What becomes of the field of scheduler and steps once a group is chosen.

        Args:
            group: what `chosen` returned.

        Returns:
            The update.
        """
        there = [each.title for each in self.groups if each.guidance == group.guidance]
        return gr.update(choices=there, value=group.title)
