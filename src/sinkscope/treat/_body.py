"""A model under treatment: every change goes through here and is written down, so that it can be undone."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import nn
from torch.utils.hooks import RemovableHandle

from sinkscope._errors import OptionError
from sinkscope.treat._anatomy import Anatomy, Site
from sinkscope.treat._container import CONTAINER, Container, Part
from sinkscope.treat._record import AddedModule, Attribute, Hook, Record

if TYPE_CHECKING:
    from sinkscope.treat._treatment import AttentionTreatment


class Body:
    """A model, its anatomy, and the record of what is done to it."""

    def __init__(self, model: nn.Module, anatomy: Anatomy, record: Record) -> None:
        self.model = model
        self.anatomy = anatomy
        self._record = record

    def add(self, parent: nn.Module, name: str, module: nn.Module) -> None:
        """Registers a submodule. Its parameters and buffers are what `save` writes."""
        if hasattr(parent, name):
            raise OptionError(
                f"{type(parent).__name__} has {name} already", "a part of that name once", "undo the treatment first"
            )
        parent.add_module(name, module)
        self._record.steps.append(AddedModule(parent, name))

    def hook(self, handle: RemovableHandle) -> None:
        """Takes note of a hook. Hooks must be functions of a module file or bound methods of an added module: only
        these follow a copy of the model."""
        self._record.steps.append(Hook(handle))

    def set(self, owner: Any, name: str, value: Any) -> None:
        """Gives an attribute another value."""
        self._record.steps.append(Attribute(owner, name, getattr(owner, name)))
        setattr(owner, name, value)

    def put(self, treatment: AttentionTreatment, site: Site, part: Part) -> None:
        """Puts a part into one attention.

        **Raises:** `OptionError` when another treatment has its slot.
        """
        container = self.container(site)
        slot = treatment.slot
        if slot in container.parts:
            raise OptionError(
                f"{treatment.name} and {container.parts[slot].treatment} at {site.name}",
                f"one treatment that is its {slot}",
                "leave one out",
            )
        part.treatment = treatment.name
        self.add(container, slot, part.to(device=site.device, dtype=site.dtype))
        part.attach(site, self)

    def container(self, site: Site) -> Container:
        """The container of one attention, made when it is first asked for."""
        attention = site.attention
        there = getattr(attention, CONTAINER, None)
        if isinstance(there, Container):
            return there
        if site.family.library == "timm":
            from sinkscope.treat._timm import treated_attention

            container = Container()
            self.add(attention, CONTAINER, container)
            self.set(attention, "__class__", treated_attention())
        else:
            from sinkscope.treat._hf import TransformersContainer, note_input, treated_config

            container = TransformersContainer(attention.config)
            self.add(attention, CONTAINER, container)
            self.set(attention, "config", treated_config(attention.config))
            self.hook(attention.register_forward_pre_hook(note_input, with_kwargs=True))
        return container
