"""Other people's files: checkpoints of taming-transformers, folders of diffusers, read without running them.

``checkpoints``    reads the weights of any such file: starts a child with limits, loads what it wrote
``unpacking``      the child's program: a torch file in, safetensors out
``containers``     where the parts of a torch file lie: the zip of today, the stream of torch before 1.6
``inert``          a pickle machine that builds numbers, text, lists and plans of tensors, and nothing else;
                   with ``inert_values``, ``inert_calls`` and ``hostile_names``
``configs``        YAML and JSON as data
``taming``         autoencoders of taming-transformers and latent-diffusion -> ours
``taming_prior``   Net2NetTransformer -> our token transformer
``diffusers_vq``   diffusers' VQModel and AutoencoderKL -> ours
``conversion``     the strict check that all of them pass
``convert``        tells what a file or folder is, converts it, writes a model folder
"""
