"""Tessera's mixture-of-experts layer in SGLang: installing the package is all there is to do.

SGLang calls ``register`` in each of its processes, through the entry point group ``sglang.srt.plugins``. From then on a layer
for which SGLang would run its Triton experts runs Tessera's where they can compute it, and Triton's where not.
``SGLANG_PLUGINS`` names the plug-ins to load.
"""


def register() -> None:
    """Takes the place of SGLang's fused function of the Triton runner without an exchange between ranks. Calling it again does
    nothing."""
    from tessera_sglang import runner

    runner.enroll()
