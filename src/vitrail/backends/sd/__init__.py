"""Stable Diffusion 1, 2 and XL from other people's files: their networks, our sampling.

``open.open_stable_diffusion`` takes a folder of diffusers or a single file and gives a
:class:`vitrail.backends.model.DiffusionModel`. The networks are diffusers' and transformers' classes (the
extra ``sd``), imported when a checkpoint is opened and not before; no pipeline and no scheduler of theirs is
used.
"""
