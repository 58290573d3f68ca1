"""Takes torch's place while the CuTe-DSL kernels are compiled ahead: FlashInfer's modules import torch and name its types in
annotations and decorators, but compiling calls nothing of it except the two at the end. Every attribute is a class that can be
called, subscripted, subclassed and used as a decorator. The object files are those that come out with the real torch.
"""
import sys
import types


class _Meta(type):
    def __getattr__(cls, name):
        return _made(cls, name)

    def __call__(cls, *arguments, **options):
        only = arguments[0] if len(arguments) == 1 and not options else None
        return only if isinstance(only, (types.FunctionType, type)) else cls  # a decorator, with or without arguments

    def __getitem__(cls, key):
        return cls


class _Anything(metaclass=_Meta):
    pass


class _Module(types.ModuleType):
    __path__ = []
    __version__ = "2.11.0"

    def __getattr__(self, name):
        return _made(self, name)


def _made(owner, name):
    if name.startswith("__"):
        raise AttributeError(name)
    made = _Meta(name, (_Anything,), {})
    setattr(owner, name, made)
    return made


for _name in ("torch", "torch.nn", "torch.nn.functional", "torch.cuda", "torch.library", "torch.version", "torch.utils",
              "torch.utils.cpp_extension", "torch.distributed", "torch.torch_version", "torch.types"):
    _new = sys.modules[_name] = _Module(_name)
    _parent, _, _short = _name.rpartition(".")
    if _parent:
        setattr(sys.modules[_parent], _short, _new)
sys.modules["torch.torch_version"].TorchVersion = lambda text: tuple(map(int, text.split(".")[:2]))
sys.modules["torch"].finfo = lambda dtype: types.SimpleNamespace(max=(2 - 2**-23) * 2.0**127)  # asked for fp32 alone
